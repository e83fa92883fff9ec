// SPDX-License-Identifier: Apache-2.0
//! ipsets over nfnetlink, subsystem 6 (`<linux/netfilter/ipset/ip_set.h>`): many entries in one
//! message, many messages in one send.

use super::ipset_codec::{
    ATTR_FAMILY, ATTR_FLAGS, ATTR_PROTOCOL, ATTR_REVISION, ATTR_TYPENAME, PROTOCOL, create_attrs,
    encode_entry, entry_attrs, name_attrs, nf_family, parse_count, parse_part, type_family,
};
use super::nfnetlink::{AttrIter, Attrs, Counters, NfError, NfSocket, Request};
use crate::core::mirror::ObservedSet;
use crate::core::model::Family;
use crate::core::model::map::Map;
use crate::core::model::sets::{SetId, SetType};
use crate::core::plan::op::{GrowOp, Op};
use crate::core::plan::outcome::{Cause, OpError, Progress};

const SUBSYSTEM: u16 = 6 << 8;
const CMD_CREATE: u16 = 2;
const CMD_DESTROY: u16 = 3;
const CMD_SWAP: u16 = 6;
const CMD_LIST: u16 = 7;
const CMD_ADD: u16 = 9;
const CMD_DEL: u16 = 10;
const CMD_TYPE: u16 = 13;

const NLM_F_EXCL: u16 = 0x200;
/// `IPSET_FLAG_LIST_HEADER`: without the members.
const FLAG_LIST_HEADER: u32 = 1 << 2;
/// An attribute's length is 16 bits: entries of one message stay below this.
const ADT_BYTES: usize = 60_000;

const EEXIST: i32 = 17;
const ENOENT: i32 = 2;
const EPERM: i32 = 1;
/// `IPSET_ERR_TYPE_SPECIFIC`: the hash is full.
const HASH_FULL: i32 = 4352;
/// `IPSET_ERR_BUSY`: a rule or another set refers to the set.
const BUSY: i32 = 4100;
/// Where a set is made anew before it takes the other's place.
const TEMPORARY: &str = "KUBE-IPVS-GROWING";

/// The client.
#[derive(Debug)]
pub struct IpsetClient {
    socket: NfSocket,
    revisions: Map<(SetType, Family), u8>,
}

impl IpsetClient {
    /// Opens a socket in the current network namespace and asks for the set types.
    ///
    /// # Errors
    /// When the kernel has no ipset, or lacks a set type.
    pub fn open() -> Result<Self, NfError> {
        let mut client = Self { socket: NfSocket::open()?, revisions: Map::default() };
        client.learn_revisions()?;
        Ok(client)
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }

    /// Our sets with their members, in one dump. Like `ipset save`.
    ///
    /// # Errors
    /// When the dump is not complete.
    pub fn list(&mut self) -> Result<Map<SetId, ObservedSet>, NfError> {
        let mut attrs = Attrs::default();
        attrs.put(ATTR_PROTOCOL, &[PROTOCOL]);
        let request = Request { kind: SUBSYSTEM | CMD_LIST, flags: 0, family: 0, attrs };
        let mut sets = Map::default();
        self.socket.dump(&request, |part| parse_part(part, &mut sets))?;
        Ok(sets)
    }

    /// One set with its members; `None`: it does not exist. Like `ipset save NAME`.
    ///
    /// # Errors
    /// When the dump is not complete.
    pub fn get(&mut self, set: SetId) -> Result<Option<ObservedSet>, NfError> {
        let attrs = name_attrs(&set.name());
        let request = Request { kind: SUBSYSTEM | CMD_LIST, flags: 0, family: 0, attrs };
        let mut sets = Map::default();
        match self.socket.dump(&request, |part| parse_part(part, &mut sets)) {
            Err(NfError::Refused(ENOENT)) => Ok(None),
            result => result.map(|()| sets.remove(&set)),
        }
    }

    /// How many members a set has; `None`: it does not exist. Like `ipset list -t NAME`.
    ///
    /// # Errors
    /// When the answer is not complete.
    pub fn count(&mut self, set: SetId) -> Result<Option<u32>, NfError> {
        let mut attrs = name_attrs(&set.name());
        attrs.put_be(ATTR_FLAGS, &FLAG_LIST_HEADER.to_be_bytes());
        let request = Request { kind: SUBSYSTEM | CMD_LIST, flags: 0, family: 0, attrs };
        let mut count = None;
        let counted = self.socket.dump(&request, |part| {
            count = count.or(parse_count(part)?);
            Ok(())
        });
        match counted {
            Err(NfError::Refused(ENOENT)) => Ok(None),
            result => result.map(|()| count),
        }
    }

    /// Runs ops on sets and entries, in order, and returns one result each.
    pub fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        match self.try_execute(ops) {
            Ok(results) => results,
            Err(error) => {
                let cause = if matches!(error, NfError::Timeout) { Cause::TimedOut } else { Cause::Other };
                vec![Err(OpError::uncertain(cause, format!("ipset: {error}"))); ops.len()]
            }
        }
    }

    fn try_execute(&mut self, ops: &[&Op]) -> Result<Vec<Result<Progress, OpError>>, NfError> {
        let mut results = Vec::with_capacity(ops.len());
        for part in ops.chunk_by(|a, b| !matches!(a, Op::GrowSet(_)) && !matches!(b, Op::GrowSet(_))) {
            match part {
                [Op::GrowSet(grow)] => results.push(self.grow(grow)?),
                _ => results.extend(self.execute_plain(part)?),
            }
        }
        Ok(results)
    }

    /// Destroys a set, and what is left of an attempt to make it larger. One that does not exist is
    /// destroyed.
    ///
    /// # Errors
    /// What the kernel said; a set that a rule or another set uses stays.
    pub fn destroy(&mut self, set: SetId) -> Result<(), String> {
        let destroy = |name: &str| Request {
            kind: SUBSYSTEM | CMD_DESTROY,
            flags: 0,
            family: 0,
            attrs: name_attrs(name),
        };
        let results = self.send(&[destroy(TEMPORARY), destroy(&set.name())]).map_err(|e| e.to_string())?;
        match results.last().copied().flatten() {
            None | Some(ENOENT) => Ok(()),
            Some(BUSY) => Err(format!("it is in use: remove what uses it (`iptables-save | grep {set}`)")),
            Some(code) => Err(op_error(&Op::DestroySet(set), code).message),
        }
    }

    /// Makes a larger set aside, fills it, and puts it in the place of the old one at once.
    fn grow(&mut self, grow: &GrowOp) -> Result<Result<Progress, OpError>, NfError> {
        let (set, family) = (grow.set, nf_family(grow.set));
        let request = |cmd, flags, attrs| Request { kind: SUBSYSTEM | cmd, flags, family, attrs };
        let destroy = request(CMD_DESTROY, 0, name_attrs(TEMPORARY));
        // One that an earlier try left behind may be there or not.
        self.send(std::slice::from_ref(&destroy))?;
        let attrs = create_attrs(set, TEMPORARY, self.revision(set)?, grow.capacity);
        let mut requests = vec![request(CMD_CREATE, NLM_F_EXCL, attrs)];
        let adds: Vec<Op> = grow.entries.iter().map(|entry| Op::AddEntry(set, *entry)).collect();
        let adds: Vec<&Op> = adds.iter().collect();
        for run in entry_runs(&adds) {
            requests.push(request(CMD_ADD, 0, entry_attrs(TEMPORARY, &adds[run])));
        }
        let mut attrs = name_attrs(TEMPORARY);
        // A swap names the other set where a creation names the type.
        attrs.put_str(ATTR_TYPENAME, &set.name());
        if let Some(code) = self.send(&requests)?.into_iter().flatten().next() {
            return Ok(Err(op_error(&Op::GrowSet(Box::new(grow.clone())), code)));
        }
        let swapped = self.send(&[request(CMD_SWAP, 0, attrs), destroy])?;
        Ok(swapped
            .into_iter()
            .flatten()
            .next()
            .map_or(Ok(Progress::Done), |code| Err(op_error(&Op::GrowSet(Box::new(grow.clone())), code))))
    }

    fn execute_plain(&mut self, ops: &[&Op]) -> Result<Vec<Result<Progress, OpError>>, NfError> {
        let requests = self.prepare(ops)?;
        let refused = self.send(&requests)?;
        let mut results: Vec<Result<Progress, OpError>> = vec![Ok(Progress::Done); ops.len()];
        let mut again = Vec::new();
        for (range, code) in entry_runs(ops).into_iter().zip(refused) {
            if range.len() == 1 {
                results[range.start] = answered(ops[range.start], code);
            } else if code.is_some() {
                // The kernel stops at the first bad entry of a message: find out which ones are bad.
                again.extend(range);
            }
        }
        let singles: Vec<Request> =
            again.iter().map(|i| self.request(&ops[*i..=*i])).collect::<Result<_, _>>()?;
        for (i, code) in again.iter().zip(self.send(&singles)?) {
            results[*i] = answered(ops[*i], code);
        }
        Ok(results)
    }

    /// The requests for ops on sets and entries: one for each creation, and few for many entries.
    ///
    /// # Errors
    /// When an op is not for ipsets.
    pub fn prepare(&self, ops: &[&Op]) -> Result<Vec<Request>, NfError> {
        entry_runs(ops).into_iter().map(|range| self.request(&ops[range])).collect()
    }

    /// Sends requests; see [`NfSocket::batch`].
    ///
    /// # Errors
    /// When an answer was lost.
    pub fn send(&mut self, requests: &[Request]) -> Result<Vec<Option<i32>>, NfError> {
        self.socket.batch(requests)
    }

    /// One message for a run of ops: one creation, or entries of one set in one direction.
    fn request(&self, run: &[&Op]) -> Result<Request, NfError> {
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
            _ => Err(NfError::Malformed("an op that is not for ipsets")),
        }
    }

    fn revision(&self, set: SetId) -> Result<u8, NfError> {
        let revision = self.revisions.get(&(set.kind.set_type(), set.family)).copied();
        revision.ok_or(NfError::NoSetType(set.kind.set_type().name(), ENOENT))
    }

    /// Asks for the newest revision of every type that the kernel knows, in one send; asking loads
    /// the types' modules.
    fn learn_revisions(&mut self) -> Result<(), NfError> {
        let question = |set_type: SetType, family| {
            let number = type_family(set_type, family);
            let mut attrs = Attrs::default();
            attrs.put(ATTR_PROTOCOL, &[PROTOCOL]);
            attrs.put_str(ATTR_TYPENAME, set_type.name()).put(ATTR_FAMILY, &[number]);
            Request { kind: SUBSYSTEM | CMD_TYPE, flags: 0, family: number, attrs }
        };
        let all = SetType::ALL.into_iter().flat_map(|t| Family::ALL.into_iter().map(move |f| (t, f)));
        let questions: Vec<Request> = all.clone().map(|(t, f)| question(t, f)).collect();
        for ((set_type, family), answer) in all.zip(self.socket.ask(&questions)?) {
            let answer = answer.map_err(|code| NfError::NoSetType(set_type.name(), code))?;
            for attr in AttrIter(&answer) {
                if let (ATTR_REVISION, [revision]) = attr? {
                    self.revisions.insert((set_type, family), *revision);
                }
            }
        }
        Ok(())
    }
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

/// What the kernel's answer to an op means. Before Linux 5.11 it complains of a set to destroy that is gone.
fn answered(op: &Op, code: Option<i32>) -> Result<Progress, OpError> {
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
                "it has another type than it must have, and something uses it: remove that (`iptables-save | \
                 grep {set}`); the agent then creates the set again"
            ),
        ),
        (_, ENOENT) => OpError::uncertain(Cause::Missing, "the ipset does not exist"),
        (_, EPERM) => OpError::plain(Cause::NotPermitted, "not permitted: CAP_NET_ADMIN is needed"),
        (_, HASH_FULL) => OpError::plain(Cause::Full, "the ipset is full"),
        (_, BUSY) => OpError::plain(Cause::InUse, "the ipset is in use"),
        (_, code) if code < 4096 => {
            OpError::plain(Cause::of_errno(code), nix::errno::Errno::from_raw(code).desc())
        }
        (_, code) => OpError::plain(Cause::Other, format!("ipset error {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::Protocol;
    use crate::core::model::sets::{Entry, SetKind};

    #[test]
    fn entries_of_one_set_travel_in_one_message() {
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
