// SPDX-License-Identifier: Apache-2.0
//! Sets and entries as attributes of `<linux/netfilter/ipset/ip_set.h>`, both ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_batch::{AttributeIter, Attributes, Error};

use crate::core::mirror::ObservedSet;
use crate::core::model::map::Map;
use crate::core::model::sets::{Entry, SetId, SetType};
use crate::core::model::{Family, Protocol};
use crate::core::plan::op::Op;

/// The oldest protocol version that current kernels speak.
pub(in crate::kernel) const PROTOCOL: u8 = 6;

pub(in crate::kernel) const ATTR_PROTOCOL: u16 = 1;
pub(in crate::kernel) const ATTR_SETNAME: u16 = 2;
pub(in crate::kernel) const ATTR_TYPENAME: u16 = 3;
pub(in crate::kernel) const ATTR_REVISION: u16 = 4;
pub(in crate::kernel) const ATTR_FAMILY: u16 = 5;
pub(in crate::kernel) const ATTR_DATA: u16 = 7;
pub(in crate::kernel) const ATTR_ADT: u16 = 8;
pub(in crate::kernel) const ATTR_LINENO: u16 = 9;

pub(in crate::kernel) const DATA_IP: u16 = 1;
pub(in crate::kernel) const DATA_PORT: u16 = 4;
pub(in crate::kernel) const DATA_PORT_TO: u16 = 5;
pub(in crate::kernel) const DATA_PROTO: u16 = 7;
pub(in crate::kernel) const DATA_HASHSIZE: u16 = 18;
pub(in crate::kernel) const DATA_MAXELEM: u16 = 19;
pub(in crate::kernel) const DATA_IP2: u16 = 20;
pub(in crate::kernel) const DATA_CIDR2: u16 = 21;

pub(in crate::kernel) const IPADDR_V4: u16 = 1;
pub(in crate::kernel) const IPADDR_V6: u16 = 2;

/// The family that a set is created with: a bitmap of ports has none.
pub(in crate::kernel) fn type_family(set_type: SetType, family: Family) -> u8 {
    const NFPROTO_UNSPEC: u8 = 0;
    const NFPROTO_IPV4: u8 = 2;
    const NFPROTO_IPV6: u8 = 10;
    match (set_type, family) {
        (SetType::BitmapPort, _) => NFPROTO_UNSPEC,
        (_, Family::V4) => NFPROTO_IPV4,
        (_, Family::V6) => NFPROTO_IPV6,
    }
}

pub(in crate::kernel) fn nf_family(set: SetId) -> u8 {
    type_family(set.kind.set_type(), set.family)
}

pub(in crate::kernel) fn name_attrs(name: &str) -> Attributes {
    let mut attrs = Attributes::default();
    attrs.put(ATTR_PROTOCOL, &[PROTOCOL]).put_str(ATTR_SETNAME, name);
    attrs
}

/// Creates a set with the options of kube-proxy's sets, except for the capacity.
pub(in crate::kernel) fn create_attrs(set: SetId, name: &str, revision: u8, capacity: u32) -> Attributes {
    let mut data = Attributes::default();
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

pub(in crate::kernel) fn entry_attrs(name: &str, run: &[&Op]) -> Attributes {
    let mut list = Attributes::default();
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

fn put_ip(attrs: &mut Attributes, kind: u16, ip: IpAddr) {
    let mut inner = Attributes::default();
    match ip {
        IpAddr::V4(ip) => inner.put_be(IPADDR_V4, &ip.octets()),
        IpAddr::V6(ip) => inner.put_be(IPADDR_V6, &ip.octets()),
    };
    attrs.nest(kind, &inner);
}

pub(in crate::kernel) fn encode_entry(entry: &Entry) -> Attributes {
    let mut attrs = Attributes::default();
    let put_port = |attrs: &mut Attributes, port: u16| {
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

/// Adds one part of a dump: a set, or more members of one. Other programs' sets are ignored.
pub(in crate::kernel) fn parse_part(part: &[u8], sets: &mut Map<SetId, ObservedSet>) -> Result<(), Error> {
    let (mut name, mut type_name, mut family, mut header, mut members) = (None, None, None, None, None);
    for attr in AttributeIter::new(part) {
        match attr? {
            (ATTR_SETNAME, value) => name = Some(text(value)?),
            (ATTR_TYPENAME, value) => type_name = Some(text(value)?),
            (ATTR_FAMILY, [value]) => family = Some(*value),
            (ATTR_DATA, value) => header = Some(value),
            (ATTR_ADT, value) => members = Some(value),
            _ => {}
        }
    }
    let name = name.ok_or(Error::Malformed("a set without a name"))?;
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
    for member in AttributeIter::new(members.unwrap_or_default()) {
        let (_, data) = member?;
        // A member that cannot be ours, such as one of another protocol, is ignored.
        set.members.extend(parse_entry(id.kind.set_type(), data)?);
    }
    Ok(())
}

/// The maximum number of members of a hash.
fn parse_capacity(header: &[u8]) -> Result<Option<u32>, Error> {
    for attr in AttributeIter::new(header) {
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

fn text(value: &[u8]) -> Result<&str, Error> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).map_err(|_| Error::Malformed("a name is not text"))
}

fn parse_ip(value: &[u8]) -> Result<IpAddr, Error> {
    const WRONG: Error = Error::Malformed("an address has the wrong length");
    match AttributeIter::new(value).next().ok_or(WRONG)?? {
        (IPADDR_V4, ip) => <[u8; 4]>::try_from(ip).map(|ip| Ipv4Addr::from(ip).into()).map_err(|_| WRONG),
        (IPADDR_V6, ip) => <[u8; 16]>::try_from(ip).map(|ip| Ipv6Addr::from(ip).into()).map_err(|_| WRONG),
        _ => Err(WRONG),
    }
}

pub(in crate::kernel) fn parse_entry(set_type: SetType, data: &[u8]) -> Result<Option<Entry>, Error> {
    let (mut ip, mut ip2, mut cidr2, mut port, mut proto) = (None, None, None, None, None);
    for attr in AttributeIter::new(data) {
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
            let prefix = cidr2.unwrap_or(IpNet::from(net).prefix_len());
            // Our entries have no host bits.
            Some(Entry::IpPortNet(ip?, proto?, port?, IpNet::new(net, prefix).ok()?.trunc()))
        }
        SetType::BitmapPort => Some(Entry::Port(port?)),
    };
    Ok(build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::sets::SetKind;
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
        fn an_encoded_entry_decodes_to_the_same_entry((set_type, entry) in any_entry()) {
            let bytes = encode_entry(&entry);
            prop_assert_eq!(parse_entry(set_type, bytes.as_bytes()).unwrap(), Some(entry));
        }

        #[test]
        fn no_dump_part_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_part(&bytes, &mut Map::default());
        }
    }

    #[test]
    fn host_bits_of_a_network_are_ignored() {
        let [ip, net] = [[10, 96, 0, 1], [172, 16, 0, 64]].map(IpAddr::from);
        let mut attrs = Attributes::default();
        put_ip(&mut attrs, DATA_IP, ip);
        put_ip(&mut attrs, DATA_IP2, net);
        attrs.put(DATA_CIDR2, &[12]).put_be(DATA_PORT, &[0, 80]).put(DATA_PROTO, &[6]);
        let expected = Entry::IpPortNet(ip, Protocol::Tcp, 80, "172.16.0.0/12".parse().unwrap());
        assert_eq!(parse_entry(SetType::HashIpPortNet, attrs.as_bytes()).unwrap(), Some(expected));
    }

    #[test]
    fn a_set_of_another_type_is_a_misfit_and_foreign_sets_are_ignored() {
        let part = |name: &str, type_name: &str| {
            let mut attrs = Attributes::default();
            attrs.put_str(ATTR_SETNAME, name).put_str(ATTR_TYPENAME, type_name).put(ATTR_FAMILY, &[2]);
            attrs
        };
        let mut sets = Map::default();
        parse_part(part("KUBE-CLUSTER-IP", "hash:net").as_bytes(), &mut sets).unwrap();
        parse_part(part("KUBE-IPVS-IPS", "hash:ip").as_bytes(), &mut sets).unwrap();
        parse_part(part("CALICO", "hash:ip").as_bytes(), &mut sets).unwrap();
        assert_eq!(sets.len(), 2);
        assert!(sets[&SetId { kind: SetKind::ClusterIp, family: Family::V4 }].misfit);
        assert!(!sets[&SetId { kind: SetKind::IpvsIps, family: Family::V4 }].misfit);
    }
}
