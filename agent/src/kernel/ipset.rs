// SPDX-License-Identifier: Apache-2.0
//! ipsets over nfnetlink, subsystem 6 (`<linux/netfilter/ipset/ip_set.h>`): many entries in one
//! message, many messages in one send.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::OpError;
use super::nfnetlink::{AttrIter, Attrs, Counters, NfError, NfSocket, Request};
use crate::core::model::{Family, Protocol};
use crate::core::observed::ObservedSet;
use crate::core::op::{GrowOp, Op};
use crate::core::sets::{Entry, SetId, SetType};

const SUBSYSTEM: u16 = 6 << 8;
const CMD_CREATE: u16 = 2;
const CMD_DESTROY: u16 = 3;
const CMD_SWAP: u16 = 6;
const CMD_LIST: u16 = 7;
const CMD_ADD: u16 = 9;
const CMD_DEL: u16 = 10;
const CMD_TYPE: u16 = 13;

/// The oldest protocol version that current kernels speak.
const PROTOCOL: u8 = 6;
const NLM_F_EXCL: u16 = 0x200;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_LINENO: u16 = 9;

const DATA_IP: u16 = 1;
const DATA_PORT: u16 = 4;
const DATA_PORT_TO: u16 = 5;
const DATA_PROTO: u16 = 7;
const DATA_HASHSIZE: u16 = 18;
const DATA_MAXELEM: u16 = 19;
const DATA_IP2: u16 = 20;
const DATA_CIDR2: u16 = 21;

const IPADDR_V4: u16 = 1;
const IPADDR_V6: u16 = 2;

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
    revisions: HashMap<(SetType, Family), u8>,
}

impl IpsetClient {
    /// Opens a socket in the current network namespace and asks for the set types.
    ///
    /// # Errors
    /// When the kernel has no ipset, or lacks a set type.
    pub fn open() -> Result<Self, NfError> {
        let mut client = Self { socket: NfSocket::open()?, revisions: HashMap::new() };
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
    pub fn list(&mut self) -> Result<HashMap<SetId, ObservedSet>, NfError> {
        let mut attrs = Attrs::default();
        attrs.put(ATTR_PROTOCOL, &[PROTOCOL]);
        let request = Request { kind: SUBSYSTEM | CMD_LIST, flags: 0, family: 0, attrs };
        let mut sets = HashMap::new();
        self.socket.dump(&request, |part| parse_part(part, &mut sets))?;
        Ok(sets)
    }

    /// Runs ops on sets and entries, in order, and returns one result each.
    pub fn execute(&mut self, ops: &[&Op]) -> Vec<Result<(), OpError>> {
        match self.try_execute(ops) {
            Ok(results) => results,
            Err(error) => vec![Err(OpError::doubt(format!("ipset: {error}"))); ops.len()],
        }
    }

    fn try_execute(&mut self, ops: &[&Op]) -> Result<Vec<Result<(), OpError>>, NfError> {
        let mut results = Vec::with_capacity(ops.len());
        for part in ops.chunk_by(|a, b| !matches!(a, Op::GrowSet(_)) && !matches!(b, Op::GrowSet(_))) {
            match part {
                [Op::GrowSet(grow)] => results.push(self.grow(grow)?),
                _ => results.extend(self.execute_plain(part)?),
            }
        }
        Ok(results)
    }

    /// Makes a larger set aside, fills it, and puts it in the place of the old one at once.
    fn grow(&mut self, grow: &GrowOp) -> Result<Result<(), OpError>, NfError> {
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
            return Ok(Err(op_error(&Op::CreateSet(set), code)));
        }
        let swapped = self.send(&[request(CMD_SWAP, 0, attrs), destroy])?;
        Ok(swapped
            .into_iter()
            .flatten()
            .next()
            .map_or(Ok(()), |code| Err(op_error(&Op::CreateSet(set), code))))
    }

    fn execute_plain(&mut self, ops: &[&Op]) -> Result<Vec<Result<(), OpError>>, NfError> {
        let requests = self.prepare(ops)?;
        let refused = self.send(&requests)?;
        let mut results: Vec<Result<(), OpError>> = vec![Ok(()); ops.len()];
        let mut again = Vec::new();
        for (range, code) in entry_runs(ops).into_iter().zip(refused) {
            match code {
                None => {}
                Some(code) if range.len() == 1 => {
                    results[range.start] = Err(op_error(ops[range.start], code));
                }
                // The kernel stops at the first bad entry of a message: find out which ones are bad.
                Some(_) => again.extend(range),
            }
        }
        let singles: Vec<Request> =
            again.iter().map(|i| self.request(&ops[*i..=*i])).collect::<Result<_, _>>()?;
        for (i, code) in again.iter().zip(self.send(&singles)?) {
            results[*i] = code.map_or(Ok(()), |code| Err(op_error(ops[*i], code)));
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

fn op_error(op: &Op, code: i32) -> OpError {
    match (op, code) {
        (Op::CreateSet(set), EEXIST) => OpError::doubt(format!(
            "ipset {set} exists with another type or family: remove the rules that use it, then `ipset destroy {set}`"
        )),
        (Op::DestroySet(set), BUSY) => OpError::plain(format!(
            "ipset {set} has another type than it must have and is in use: remove what uses it (`iptables-save | \
             grep {set}`), it is then made anew"
        )),
        (_, ENOENT) => OpError::doubt("the ipset does not exist (any more)"),
        (_, EPERM) => OpError::plain("not permitted: CAP_NET_ADMIN is needed"),
        (Op::AddEntry(set, _), HASH_FULL) => OpError::plain(format!("ipset {set} is full")),
        (_, code) if code < 4096 => OpError::plain(std::io::Error::from_raw_os_error(code).to_string()),
        (_, code) => OpError::plain(format!("ipset error {code}")),
    }
}

/// The family that a set is created with: a bitmap of ports has none.
fn type_family(set_type: SetType, family: Family) -> u8 {
    const NFPROTO_UNSPEC: u8 = 0;
    const NFPROTO_IPV4: u8 = 2;
    const NFPROTO_IPV6: u8 = 10;
    match (set_type, family) {
        (SetType::BitmapPort, _) => NFPROTO_UNSPEC,
        (_, Family::V4) => NFPROTO_IPV4,
        (_, Family::V6) => NFPROTO_IPV6,
    }
}

fn nf_family(set: SetId) -> u8 {
    type_family(set.kind.set_type(), set.family)
}

fn name_attrs(name: &str) -> Attrs {
    let mut attrs = Attrs::default();
    attrs.put(ATTR_PROTOCOL, &[PROTOCOL]).put_str(ATTR_SETNAME, name);
    attrs
}

/// The options of kube-proxy's sets, but for their room.
fn create_attrs(set: SetId, name: &str, revision: u8, capacity: u32) -> Attrs {
    let mut data = Attrs::default();
    if set.kind.set_type() == SetType::BitmapPort {
        data.put_be(DATA_PORT, &0u16.to_be_bytes()).put_be(DATA_PORT_TO, &u16::MAX.to_be_bytes());
    } else {
        data.put_be(DATA_HASHSIZE, &1024u32.to_be_bytes()).put_be(DATA_MAXELEM, &capacity.to_be_bytes());
    }
    let mut attrs = name_attrs(name);
    attrs.put_str(ATTR_TYPENAME, set.kind.set_type().name());
    attrs.put(ATTR_REVISION, &[revision]).put(ATTR_FAMILY, &[nf_family(set)]).nest(ATTR_DATA, &data);
    attrs
}

fn entry_attrs(name: &str, run: &[&Op]) -> Attrs {
    let mut list = Attrs::default();
    for op in run {
        if let Op::AddEntry(_, entry) | Op::RemoveEntry(_, entry) = op {
            list.nest(ATTR_DATA, &encode_entry(entry));
        }
    }
    let mut attrs = name_attrs(name);
    if run.len() == 1 {
        attrs.append(&list);
    } else {
        // The kernel wants a line number with a list of entries.
        attrs.put(ATTR_LINENO, &0u32.to_ne_bytes()).nest(ATTR_ADT, &list);
    }
    attrs
}

fn put_ip(attrs: &mut Attrs, kind: u16, ip: IpAddr) {
    let mut inner = Attrs::default();
    match ip {
        IpAddr::V4(ip) => inner.put_be(IPADDR_V4, &ip.octets()),
        IpAddr::V6(ip) => inner.put_be(IPADDR_V6, &ip.octets()),
    };
    attrs.nest(kind, &inner);
}

fn encode_entry(entry: &Entry) -> Attrs {
    let mut attrs = Attrs::default();
    let put_port = |attrs: &mut Attrs, port: u16| {
        attrs.put_be(DATA_PORT, &port.to_be_bytes());
    };
    match *entry {
        Entry::Ip(ip) => put_ip(&mut attrs, DATA_IP, ip),
        Entry::Port(port) => put_port(&mut attrs, port),
        Entry::IpPort(ip, proto, port)
        | Entry::IpPortIp(ip, proto, port, _)
        | Entry::IpPortNet(ip, proto, port, _) => {
            put_ip(&mut attrs, DATA_IP, ip);
            match *entry {
                Entry::IpPortIp(_, _, _, ip2) => put_ip(&mut attrs, DATA_IP2, ip2),
                Entry::IpPortNet(_, _, _, net) => {
                    put_ip(&mut attrs, DATA_IP2, net.network());
                    attrs.put(DATA_CIDR2, &[net.prefix_len()]);
                }
                _ => {}
            }
            put_port(&mut attrs, port);
            attrs.put(DATA_PROTO, &[proto.number()]);
        }
    }
    attrs
}

/// Adds one part of a dump: a set, or more members of one. Sets of others are passed over.
fn parse_part(part: &[u8], sets: &mut HashMap<SetId, ObservedSet>) -> Result<(), NfError> {
    let (mut name, mut type_name, mut family, mut header, mut members) = (None, None, None, None, None);
    for attr in AttrIter(part) {
        match attr? {
            (ATTR_SETNAME, value) => name = Some(text(value)?),
            (ATTR_TYPENAME, value) => type_name = Some(text(value)?),
            (ATTR_FAMILY, [value]) => family = Some(*value),
            (ATTR_DATA, value) => header = Some(value),
            (ATTR_ADT, value) => members = Some(value),
            _ => {}
        }
    }
    let name = name.ok_or(NfError::Malformed("a set without a name"))?;
    let Some(id) = SetId::from_name(name) else { return Ok(()) };
    let set = sets.entry(id).or_default();
    if let Some(type_name) = type_name {
        let fits = type_name == id.kind.set_type().name() && fits_family(id, family);
        set.misfit = !fits;
        set.capacity = parse_capacity(header.unwrap_or_default())?.unwrap_or(id.kind.set_type().capacity());
    }
    if set.misfit {
        return Ok(());
    }
    for member in AttrIter(members.unwrap_or_default()) {
        let (_, data) = member?;
        // A member that no entry of ours can be, such as another protocol, is left alone.
        set.members.extend(parse_entry(id.kind.set_type(), data)?);
    }
    Ok(())
}

/// How many members a hash has room for.
fn parse_capacity(header: &[u8]) -> Result<Option<u32>, NfError> {
    for attr in AttrIter(header) {
        if let (DATA_MAXELEM, &[a, b, c, d]) = attr? {
            return Ok(Some(u32::from_be_bytes([a, b, c, d])));
        }
    }
    Ok(None)
}

/// Bitmaps made by the ipset tool carry the family of the tool's caller.
fn fits_family(id: SetId, family: Option<u8>) -> bool {
    id.kind.set_type() == SetType::BitmapPort || family == Some(nf_family(id))
}

fn text(value: &[u8]) -> Result<&str, NfError> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).map_err(|_| NfError::Malformed("a name is not text"))
}

fn parse_ip(value: &[u8]) -> Result<IpAddr, NfError> {
    const WRONG: NfError = NfError::Malformed("an address has the wrong length");
    match AttrIter(value).next().ok_or(WRONG)?? {
        (IPADDR_V4, ip) => <[u8; 4]>::try_from(ip).map(|ip| Ipv4Addr::from(ip).into()).map_err(|_| WRONG),
        (IPADDR_V6, ip) => <[u8; 16]>::try_from(ip).map(|ip| Ipv6Addr::from(ip).into()).map_err(|_| WRONG),
        _ => Err(WRONG),
    }
}

fn parse_entry(set_type: SetType, data: &[u8]) -> Result<Option<Entry>, NfError> {
    let (mut ip, mut ip2, mut cidr2, mut port, mut proto) = (None, None, None, None, None);
    for attr in AttrIter(data) {
        match attr? {
            (DATA_IP, value) => ip = Some(parse_ip(value)?),
            (DATA_IP2, value) => ip2 = Some(parse_ip(value)?),
            (DATA_CIDR2, [value]) => cidr2 = Some(*value),
            (DATA_PORT, [a, b]) => port = Some(u16::from_be_bytes([*a, *b])),
            (DATA_PROTO, [value]) => proto = Protocol::from_number(*value),
            _ => {}
        }
    }
    let build = || match set_type {
        SetType::HashIp => Some(Entry::Ip(ip?)),
        SetType::HashIpPort => Some(Entry::IpPort(ip?, proto?, port?)),
        SetType::HashIpPortIp => Some(Entry::IpPortIp(ip?, proto?, port?, ip2?)),
        SetType::HashIpPortNet => {
            let net = ip2?;
            let prefix = cidr2.unwrap_or(Family::of(net).host_prefix());
            Some(Entry::IpPortNet(ip?, proto?, port?, IpNet::new(net, prefix).ok()?))
        }
        SetType::BitmapPort => Some(Entry::Port(port?)),
    };
    Ok(build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::sets::SetKind;
    use proptest::prelude::*;

    fn any_entry() -> impl Strategy<Value = (SetType, Entry)> {
        let ip = any::<(bool, u128)>().prop_map(|(v4, n)| {
            if v4 { IpAddr::from((n as u32).to_be_bytes()) } else { IpAddr::from(n.to_be_bytes()) }
        });
        let proto = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        (0..5usize, ip.clone(), ip, proto, any::<u16>(), 1..=32u8).prop_map(|(t, a, b, proto, port, len)| {
            let net = IpNet::new(b, len).unwrap().trunc();
            match SetType::ALL[t] {
                t @ SetType::HashIp => (t, Entry::Ip(a)),
                t @ SetType::HashIpPort => (t, Entry::IpPort(a, proto, port)),
                t @ SetType::HashIpPortIp => (t, Entry::IpPortIp(a, proto, port, b)),
                t @ SetType::HashIpPortNet => (t, Entry::IpPortNet(a, proto, port, net)),
                t @ SetType::BitmapPort => (t, Entry::Port(port)),
            }
        })
    }

    proptest! {
        #[test]
        fn entries_survive_the_wire((set_type, entry) in any_entry()) {
            let bytes = encode_entry(&entry);
            prop_assert_eq!(parse_entry(set_type, bytes.as_bytes()).unwrap(), Some(entry));
        }

        #[test]
        fn no_dump_part_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_part(&bytes, &mut HashMap::new());
        }
    }

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

    #[test]
    fn a_set_of_another_type_is_a_misfit_and_foreign_sets_are_passed_over() {
        let part = |name: &str, type_name: &str| {
            let mut attrs = Attrs::default();
            attrs.put_str(ATTR_SETNAME, name).put_str(ATTR_TYPENAME, type_name).put(ATTR_FAMILY, &[2]);
            attrs
        };
        let mut sets = HashMap::new();
        parse_part(part("KUBE-CLUSTER-IP", "hash:net").as_bytes(), &mut sets).unwrap();
        parse_part(part("KUBE-IPVS-IPS", "hash:ip").as_bytes(), &mut sets).unwrap();
        parse_part(part("CALICO", "hash:ip").as_bytes(), &mut sets).unwrap();
        assert_eq!(sets.len(), 2);
        assert!(sets[&SetId { kind: SetKind::ClusterIp, family: Family::V4 }].misfit);
        assert!(!sets[&SetId { kind: SetKind::IpvsIps, family: Family::V4 }].misfit);
    }
}
