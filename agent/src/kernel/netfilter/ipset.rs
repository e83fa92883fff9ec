// SPDX-License-Identifier: Apache-2.0
//! ipsets over nfnetlink, subsystem 6 (`<linux/netfilter/ipset/ip_set.h>`): many entries in one message, many
//! messages in one send.

use std::time::Duration;

use netlink_batch::{AttributeIter, Attributes, Counters, Error, Refusal, Socket};
use netlink_packet_core::NLM_F_EXCL;
use nix::errno::Errno;

use super::ipset_codec::{
    ATTR_DATA, ATTR_FAMILY, ATTR_PROTOCOL, ATTR_REVISION, ATTR_TYPENAME, PROTOCOL, create_attrs,
    encode_entry, entry_attrs, name_attrs, nf_family, parse_part, type_family,
};
use super::nfnetlink::{self, Request, attributes};
use crate::core::mirror::ObservedSet;
use crate::core::model::Family;
use crate::core::model::map::Map;
use crate::core::model::sets::ProbedSet;
use crate::core::model::sets::{SetId, SetKind, SetType};
use crate::core::plan::op::{GrowOp, Op};
use crate::core::plan::outcome::{Cause, OpError, Progress};
use crate::words;

const SUBSYSTEM: u16 = 6 << 8;
const CMD_CREATE: u16 = 2;
const CMD_DESTROY: u16 = 3;
const CMD_SWAP: u16 = 6;
const CMD_LIST: u16 = 7;
const CMD_ADD: u16 = 9;
const CMD_DEL: u16 = 10;
const CMD_TEST: u16 = 11;
const CMD_HEADER: u16 = 12;
const CMD_TYPE: u16 = 13;

/// Limit for the entries of one message: the length of an attribute has 16 bits.
const ADT_BYTES: usize = 60_000;

const EEXIST: i32 = Errno::EEXIST as i32;
const ENOENT: i32 = Errno::ENOENT as i32;
const EPERM: i32 = Errno::EPERM as i32;
/// `IPSET_ERR_TYPE_SPECIFIC`: the hash is full.
const HASH_FULL: i32 = 4352;
/// `IPSET_ERR_BUSY`: a rule or another set refers to the set.
const BUSY: i32 = 4100;
/// `IPSET_ERR_EXIST_SETNAME2`: the second set of a swap does not exist.
const NO_SECOND_SET: i32 = 4101;
/// `IPSET_ERR_EXIST`: the set does not have the member.
const NOT_A_MEMBER: i32 = 4103;
/// `IPSET_ERR_TYPE_MISMATCH`: the sets of a swap have different types.
const TYPE_MISMATCH: i32 = 4102;
/// Name of the larger copy of a set, before it is swapped with the set.
const TEMPORARY: &str = "KUBE-IPVS-GROWING";

/// How often a set is destroyed that may be in use for a moment.
const TRIES: u32 = 40;

/// Errors besides the refusal of single ops.
#[derive(Debug, thiserror::Error)]
pub enum IpsetError {
    #[error(
        "the kernel has no ipset type {name} ({refusal}): load its module with `modprobe ip_set_{module}`",
        module = .name.replace([':', ','], "_")
    )]
    NoSetType {
        /// The type, as an argument of `ipset create`.
        name: &'static str,
        /// The kernel's answer.
        refusal: Refusal,
    },
    #[error(transparent)]
    Netlink(#[from] Error),
}

/// Client of the ipset subsystem.
#[derive(Debug)]
pub struct IpsetClient {
    socket: Socket,
    revisions: Map<(SetType, Family), u8>,
}

impl IpsetClient {
    /// Opens a socket in the current network namespace and reads the revisions of the set types.
    ///
    /// # Errors
    /// When the kernel has no ipset, or lacks a set type.
    pub fn open() -> Result<Self, IpsetError> {
        let mut client = Self { socket: nfnetlink::open()?, revisions: Map::default() };
        client.learn_revisions()?;
        Ok(client)
    }

    /// Opens a socket for sets of any type, to find and to destroy them.
    ///
    /// # Errors
    /// When the process may not open one.
    pub fn open_untyped() -> Result<Self, IpsetError> {
        Ok(Self { socket: nfnetlink::open()?, revisions: Map::default() })
    }

    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }

    /// Reads our sets with their members, in one dump. Like `ipset save`.
    ///
    /// # Errors
    /// When the dump is not complete.
    pub fn list(&mut self) -> Result<Map<SetId, ObservedSet>, Error> {
        let mut attrs = Attributes::default();
        attrs.put(ATTR_PROTOCOL, &[PROTOCOL]);
        let request = Request { kind: SUBSYSTEM | CMD_LIST, attrs, ..Request::default() };
        self.socket.dump(&request, |sets, payload| parse_part(attributes(payload), sets))
    }

    /// Reads one set with its members; `None`: it does not exist. Like `ipset save NAME`.
    ///
    /// # Errors
    /// When the dump is not complete.
    pub fn get(&mut self, set: SetId) -> Result<Option<ObservedSet>, Error> {
        let attrs = name_attrs(&set.name());
        let request = Request { kind: SUBSYSTEM | CMD_LIST, attrs, ..Request::default() };
        let sets: Result<Map<_, _>, _> =
            self.socket.dump(&request, |sets, payload| parse_part(attributes(payload), sets));
        match sets {
            Err(Error::Refused(refusal)) if refusal.code == ENOENT => Ok(None),
            sets => sets.map(|mut sets| sets.remove(&set)),
        }
    }

    /// Reads whether each set exists and has the member, in one send: unlike a list of headers, this does not make the
    /// kernel count the members. Like `ipset test`.
    ///
    /// # Errors
    /// When an answer is lost or cannot be read.
    pub fn have(&mut self, sets: &[ProbedSet]) -> Result<Vec<Result<bool, OpError>>, Error> {
        let request = |(set, member): &ProbedSet| {
            let mut attrs = name_attrs(&set.name());
            let command = match member {
                Some(member) => {
                    attrs.nest(ATTR_DATA, &encode_entry(member));
                    CMD_TEST
                }
                None => CMD_HEADER,
            };
            Request { kind: SUBSYSTEM | command, attrs, ..Request::default() }
        };
        let requests: Vec<Request> = sets.iter().map(request).collect();
        let result = |code| match code {
            None => Ok(true),
            Some(ENOENT | NOT_A_MEMBER) => Ok(false),
            Some(code) => Err(code_error(code)),
        };
        Ok(self.send(&requests)?.into_iter().map(result).collect())
    }

    /// Runs ops on sets and entries, in order, and returns one result for each.
    pub fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        match self.try_execute(ops) {
            Ok(results) => results,
            Err(error) => {
                let timed_out = matches!(error, IpsetError::Netlink(Error::Timeout));
                let cause = if timed_out { Cause::TimedOut } else { Cause::Other };
                vec![Err(OpError::uncertain(cause, format!("ipset: {}", words::causes(&error)))); ops.len()]
            }
        }
    }

    fn try_execute(&mut self, ops: &[&Op]) -> Result<Vec<Result<Progress, OpError>>, IpsetError> {
        let mut results = Vec::with_capacity(ops.len());
        for part in ops.chunk_by(|a, b| !matches!(a, Op::GrowSet(_)) && !matches!(b, Op::GrowSet(_))) {
            match part {
                [Op::GrowSet(grow)] => results.push(self.grow(grow)?),
                _ => results.extend(self.execute_plain(part)?),
            }
        }
        Ok(results)
    }

    /// Destroys a set, and the larger copy that an interrupted [`Op::GrowSet`] left. A set that does not exist
    /// counts as destroyed.
    ///
    /// # Errors
    /// When the kernel refuses, for example because a rule or another set uses the set.
    pub fn destroy(&mut self, set: SetId) -> Result<(), String> {
        let destroy = |name: &str| Request {
            kind: SUBSYSTEM | CMD_DESTROY,
            attrs: name_attrs(name),
            ..Request::default()
        };
        let results = self.send(&[destroy(TEMPORARY), destroy(&set.name())]);
        let results = results.map_err(|error| words::causes(&error))?;
        match results.last().copied().flatten() {
            None | Some(ENOENT) => Ok(()),
            Some(BUSY) => {
                Err(format!("it is in use: remove the rules that use it (`iptables-save | grep {set}`)"))
            }
            Some(code) => Err(op_error(&Op::DestroySet(set), code).message),
        }
    }

    /// Calls `work` with the name of a set of addresses that exists meanwhile.
    ///
    /// # Errors
    /// When the set cannot be made.
    pub fn with_temporary<T>(
        &mut self,
        family: Family,
        work: impl FnOnce(&str) -> T,
    ) -> Result<T, IpsetError> {
        let set = SetId { kind: SetKind::IpvsIps, family };
        let attrs = create_attrs(set, TEMPORARY, self.revision(set)?, set.kind.set_type().capacity());
        let create =
            Request { kind: SUBSYSTEM | CMD_CREATE, flags: NLM_F_EXCL, family: nf_family(set), attrs };
        let destroy =
            Request { kind: SUBSYSTEM | CMD_DESTROY, attrs: name_attrs(TEMPORARY), ..Request::default() };
        // An interrupted try may have left one.
        let refused = self.send(&[destroy.clone(), create])?;
        if let Some(code) = refused.last().copied().flatten() {
            return Err(Error::from(Refusal::new(code, None)).into());
        }
        let result = work(TEMPORARY);
        self.send(&[destroy])?;
        Ok(result)
    }

    /// As [`Self::destroy`], for a set whose last rule was just removed: the kernel frees rules late. Tries for `limit` at
    /// most.
    ///
    /// # Errors
    /// When the set is still in use then, or the kernel refuses.
    pub fn destroy_soon(&mut self, set: SetId, limit: Duration) -> Result<(), String> {
        let mut tries = 0;
        loop {
            match self.destroy(set) {
                Err(_) if tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(limit / TRIES);
                }
                result => return result,
            }
        }
    }

    /// Creates a larger copy of a set, fills it, and swaps the two atomically.
    fn grow(&mut self, grow: &GrowOp) -> Result<Result<Progress, OpError>, IpsetError> {
        let (set, family) = (grow.set, nf_family(grow.set));
        let request = |cmd, flags, attrs| Request { kind: SUBSYSTEM | cmd, flags, family, attrs };
        let destroy = request(CMD_DESTROY, 0, name_attrs(TEMPORARY));
        // An earlier try may have left a copy.
        self.send(std::slice::from_ref(&destroy))?;
        let attrs = create_attrs(set, TEMPORARY, self.revision(set)?, grow.capacity);
        let mut requests = vec![request(CMD_CREATE, NLM_F_EXCL, attrs)];
        let adds: Vec<Op> = grow.entries.iter().map(|entry| Op::AddEntry(set, *entry)).collect();
        let adds: Vec<&Op> = adds.iter().collect();
        for run in entry_runs(&adds) {
            requests.push(request(CMD_ADD, 0, entry_attrs(TEMPORARY, &adds[run])));
        }
        let mut attrs = name_attrs(TEMPORARY);
        // In a swap this attribute is the name of the other set (`IPSET_ATTR_SETNAME2`).
        attrs.put_str(ATTR_TYPENAME, &set.name());
        if let Some(code) = self.send(&requests)?.into_iter().flatten().next() {
            return Ok(Err(code_error(code)));
        }
        let codes = self.send(&[request(CMD_SWAP, 0, attrs), destroy])?;
        Ok(swap_result(&codes).map(|()| Progress::Done))
    }

    fn execute_plain(&mut self, ops: &[&Op]) -> Result<Vec<Result<Progress, OpError>>, IpsetError> {
        let requests = self.prepare(ops)?;
        let refused = self.send(&requests)?;
        let mut results: Vec<Result<Progress, OpError>> = vec![Ok(Progress::Done); ops.len()];
        let mut again = Vec::new();
        for (range, code) in entry_runs(ops).into_iter().zip(refused) {
            if range.len() == 1 {
                results[range.start] = op_result(ops[range.start], code);
            } else if code.is_some() {
                // The kernel stops at the first bad entry of a message: send the entries one by one.
                again.extend(range);
            }
        }
        let singles: Vec<Request> =
            again.iter().map(|i| self.request(&ops[*i..=*i])).collect::<Result<_, _>>()?;
        for (i, code) in again.iter().zip(self.send(&singles)?) {
            results[*i] = op_result(ops[*i], code);
        }
        Ok(results)
    }

    /// The requests for ops on sets and entries: one for each set, few for many entries.
    fn prepare(&self, ops: &[&Op]) -> Result<Vec<Request>, IpsetError> {
        entry_runs(ops).into_iter().map(|range| self.request(&ops[range])).collect()
    }

    /// Sends requests and returns the error code of each.
    fn send(&mut self, requests: &[Request]) -> Result<Vec<Option<i32>>, Error> {
        let mut codes = vec![None; requests.len()];
        for (index, refusal) in self.socket.batch(requests)? {
            codes[index] = Some(refusal.code);
        }
        Ok(codes)
    }

    /// One message for a run of ops: one op on a set, or entries to add to one set or to remove from it.
    fn request(&self, run: &[&Op]) -> Result<Request, IpsetError> {
        let request = |cmd, flags, family, attrs| Request { kind: SUBSYSTEM | cmd, flags, family, attrs };
        match run {
            [Op::CreateSet(set)] => {
                let attrs =
                    create_attrs(*set, &set.name(), self.revision(*set)?, set.kind.set_type().capacity());
                Ok(request(CMD_CREATE, NLM_F_EXCL, nf_family(*set), attrs))
            }
            [Op::DestroySet(set)] => Ok(request(CMD_DESTROY, 0, 0, name_attrs(&set.name()))),
            [Op::AddEntry(set, _), ..] => {
                Ok(request(CMD_ADD, 0, nf_family(*set), entry_attrs(&set.name(), run)))
            }
            [Op::RemoveEntry(set, _), ..] => {
                Ok(request(CMD_DEL, 0, nf_family(*set), entry_attrs(&set.name(), run)))
            }
            _ => Err(Error::Malformed("an op that is not for ipsets").into()),
        }
    }

    fn revision(&self, set: SetId) -> Result<u8, IpsetError> {
        let revision = self.revisions.get(&(set.kind.set_type(), set.family)).copied();
        revision.ok_or_else(|| no_set_type(set.kind.set_type(), Refusal::new(ENOENT, None)))
    }

    /// Reads the newest revision of every set type, in one send; the kernel loads the modules of the types.
    fn learn_revisions(&mut self) -> Result<(), IpsetError> {
        let query = |set_type: SetType, family| {
            let number = type_family(set_type, family);
            let mut attrs = Attributes::default();
            attrs.put(ATTR_PROTOCOL, &[PROTOCOL]);
            attrs.put_str(ATTR_TYPENAME, set_type.name()).put(ATTR_FAMILY, &[number]);
            Request { kind: SUBSYSTEM | CMD_TYPE, flags: 0, family: number, attrs }
        };
        let all = SetType::ALL.iter().flat_map(|t| Family::ALL.into_iter().map(move |f| (*t, f)));
        let queries: Vec<Request> = all.clone().map(|(t, f)| query(t, f)).collect();
        for ((set_type, family), answer) in all.zip(self.socket.ask_all(&queries)?) {
            let answer = answer.map_err(|refusal| no_set_type(set_type, refusal))?;
            for attr in AttributeIter::new(attributes(&answer)) {
                if let (ATTR_REVISION, [revision]) = attr? {
                    self.revisions.insert((set_type, family), *revision);
                }
            }
        }
        Ok(())
    }
}

fn no_set_type(set_type: SetType, refusal: Refusal) -> IpsetError {
    IpsetError::NoSetType { name: set_type.name(), refusal }
}

/// Splits ops into runs that fit one message each: a creation alone, entries of one set together.
fn entry_runs(ops: &[&Op]) -> Vec<std::ops::Range<usize>> {
    let together = |a: &Op, b: &Op| match (a, b) {
        (Op::AddEntry(x, _), Op::AddEntry(y, _)) | (Op::RemoveEntry(x, _), Op::RemoveEntry(y, _)) => x == y,
        _ => false,
    };
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (i, op) in ops.iter().enumerate() {
        let size = match op {
            Op::AddEntry(_, entry) | Op::RemoveEntry(_, entry) => 4 + encode_entry(entry).len(),
            _ => 0,
        };
        match runs.last_mut() {
            Some(run) if together(ops[run.start], op) && bytes + size < ADT_BYTES => {
                run.end = i + 1;
                bytes += size;
            }
            _ => {
                runs.push(i..i + 1);
                bytes = size;
            }
        }
    }
    runs
}

/// The result of an op. Before Linux 5.11 destroying a set that does not exist is an error.
fn op_result(op: &Op, code: Option<i32>) -> Result<Progress, OpError> {
    match (op, code) {
        (_, None) | (Op::DestroySet(_), Some(ENOENT)) => Ok(Progress::Done),
        (_, Some(code)) => Err(op_error(op, code)),
    }
}

fn op_error(op: &Op, code: i32) -> OpError {
    match (op, code) {
        (Op::CreateSet(set), EEXIST) => OpError::uncertain(
            Cause::WrongKind,
            format!(
                "a set of this name exists with another type or family: remove the rules that use it, then \
                 `ipset destroy {set}`"
            ),
        ),
        (Op::DestroySet(set), BUSY) => OpError::plain(
            Cause::WrongKind,
            format!(
                "it has the wrong type and is in use: remove the rules that use it (`iptables-save | grep {set}`); \
                 the agent then creates the set again"
            ),
        ),
        (_, code) => code_error(code),
    }
}

/// The result of a swap with the larger copy and of the removal of the old set, from their error codes.
fn swap_result(codes: &[Option<i32>]) -> Result<(), OpError> {
    let (code, what, state) = match *codes {
        [Some(code), ..] => {
            (code, "cannot swap the ipset with its larger copy", "the smaller one stays in place")
        }
        [None, Some(code)] => {
            (code, "cannot destroy the old ipset after the swap", "the larger one is in place")
        }
        _ => return Ok(()),
    };
    let error = code_error(code);
    Err(OpError { message: format!("{what}: {}; {state}", error.message), ..error })
}

fn code_error(code: i32) -> OpError {
    match code {
        ENOENT => OpError::uncertain(Cause::Missing, "the ipset does not exist"),
        EPERM => OpError::plain(Cause::NotPermitted, "not permitted: CAP_NET_ADMIN is needed"),
        HASH_FULL => OpError::plain(Cause::Full, "the ipset is full"),
        BUSY => OpError::plain(Cause::InUse, "the ipset is in use"),
        NO_SECOND_SET => OpError::plain(Cause::Other, "the ipset does not exist"),
        TYPE_MISMATCH => OpError::plain(Cause::Other, "the ipset has another type"),
        code if code < 4096 => OpError::plain(Cause::of_errno(code), Errno::from_raw(code).desc()),
        code => OpError::plain(Cause::Other, format!("ipset error {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::Protocol;
    use crate::core::model::sets::{Entry, SetKind};

    #[test]
    fn a_failed_swap_is_reported_as_such() {
        assert_eq!(swap_result(&[None, None]), Ok(()));
        let swap = "cannot swap the ipset with its larger copy: the ipset ";
        let destroy = "cannot destroy the old ipset after the swap: the ipset ";
        for (codes, cause, text) in [
            (
                [Some(ENOENT), None],
                Cause::Missing,
                format!("{swap}does not exist; the smaller one stays in place"),
            ),
            (
                [Some(TYPE_MISMATCH), Some(BUSY)],
                Cause::Other,
                format!("{swap}has another type; the smaller one stays in place"),
            ),
            ([None, Some(BUSY)], Cause::InUse, format!("{destroy}is in use; the larger one is in place")),
        ] {
            let error = swap_result(&codes).unwrap_err();
            assert_eq!((error.cause, error.message), (cause, text));
        }
    }

    #[test]
    fn entries_of_one_set_are_one_message() {
        let set = SetId { kind: SetKind::ClusterIp, family: Family::V4 };
        let other = SetId { kind: SetKind::IpvsIps, family: Family::V4 };
        let add = |set, port| Op::AddEntry(set, Entry::IpPort([10, 0, 0, 1].into(), Protocol::Tcp, port));
        let ops = [
            Op::CreateSet(set),
            Op::CreateSet(other),
            add(set, 1),
            add(set, 2),
            add(other, 1),
            Op::RemoveEntry(other, Entry::Port(1)),
        ];
        let refs: Vec<&Op> = ops.iter().collect();
        assert_eq!(entry_runs(&refs), [0..1, 1..2, 2..4, 4..5, 5..6]);
        let many: Vec<Op> = (0..5000).map(|port| add(set, port)).collect();
        let refs: Vec<&Op> = many.iter().collect();
        let runs = entry_runs(&refs);
        assert_eq!(runs.len(), 3, "32 bytes each, below 60,000 per message: {runs:?}");
    }
}
