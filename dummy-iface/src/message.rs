// SPDX-License-Identifier: Apache-2.0
//! The rtnetlink messages used here (`<linux/if_link.h>`, `<linux/if_addr.h>`): built with
//! netlink-packet-route, read with checked slicing. All multi-byte fields are in host order; only
//! addresses are in network order, and they are byte arrays.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_batch::{AttributeIter, Error, text};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::device::HostAddress;

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFADDR_LEN: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFINFO_LEN: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFF_UP: u32 = 1;

/// The parts of a link message that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub family: u8,
    pub index: u32,
    pub flags: u32,
    pub name: String,
    pub kind: Option<String>,
}

/// Asks for, or names, a link.
pub(crate) fn link_by_name(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// Names a link by its index.
pub(crate) fn link_by_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// A new dummy device, as kube-proxy makes it: only a name, and no transmit queue.
pub(crate) fn new_dummy(name: &str) -> LinkMessage {
    let mut message = link_by_name(name);
    message.attributes.push(LinkAttribute::TxQueueLen(0));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
    message
}

/// An address on a link: scope global, no label, broadcast or flags.
pub(crate) fn address(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    message
}

/// Reads a link message.
pub(crate) fn parse_link(payload: &[u8]) -> Result<Link, Error> {
    const SHORT: Error = Error::Malformed("a link message is too short");
    let word = |at: usize| -> Result<u32, Error> {
        let bytes = payload.get(at..at + 4).ok_or(SHORT)?;
        bytes.try_into().map(u32::from_ne_bytes).map_err(|_| SHORT)
    };
    let family = *payload.first().ok_or(SHORT)?;
    let mut link = Link { family, index: word(4)?, flags: word(8)?, ..Link::default() };
    for attribute in AttributeIter::new(payload.get(IFINFO_LEN..).ok_or(SHORT)?) {
        match attribute? {
            (IFLA_IFNAME, value) => link.name = text(value),
            (IFLA_LINKINFO, value) => {
                for info in AttributeIter::new(value) {
                    if let (IFLA_INFO_KIND, kind) = info? {
                        link.kind = Some(text(kind));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(link)
}

/// Reads an address message; `None` for one that is of neither IPv4 nor IPv6 (MCTP, Phonet: a dump
/// of all families has them, too).
pub(crate) fn parse_address(payload: &[u8]) -> Result<Option<HostAddress>, Error> {
    if payload.len() < IFADDR_LEN {
        return Err(Error::Malformed("an address message is too short"));
    }
    if !payload.first().is_some_and(|family| [AF_INET, AF_INET6].contains(family)) {
        return Ok(None);
    }
    let (prefix, scope, index) = (payload[1], payload[3], &payload[4..IFADDR_LEN]);
    let (mut local, mut address) = (None, None);
    for attribute in AttributeIter::new(&payload[IFADDR_LEN..]) {
        match attribute? {
            (IFA_LOCAL, value) => local = Some(ip(value)?),
            (IFA_ADDRESS, value) => address = Some(ip(value)?),
            _ => {}
        }
    }
    // On a point-to-point link ADDRESS is the peer; IPv6 has only ADDRESS.
    let addr: IpAddr = local.or(address).ok_or(Error::Malformed("an address message without an address"))?;
    let net = IpNet::new(addr, prefix);
    let addr = net.map_err(|_| Error::Malformed("an address with an impossible prefix"))?;
    let index = index.try_into().map_or(0, u32::from_ne_bytes);
    Ok(Some(HostAddress { addr, index, scope }))
}

fn ip(bytes: &[u8]) -> Result<IpAddr, Error> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4().or_else(|_| v6()).map_err(|_| Error::Malformed("an address of an impossible length"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;
    use proptest::prelude::*;

    fn emit(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }

    /// The answer of Linux 6.1 to RTM_GETLINK for a dummy device made by `ip link add kube-ipvs0`.
    #[cfg(target_endian = "little")]
    const RT_LINK: &str = "\
        000001000300000082000000000000000f0003006b7562652d6970767330000008000d00000000000500100002\
        000000050011000000000008000400dc0500000800320000000000080033000000000008001b00000000000800\
        1e000000000008003d000000000008001f000100000008002800ffff0000080029000000010008003a00000001\
        0008003b000000010008003c00ffff00000500210001000000090006006e6f6f70000000000800230000000000\
        08002f00000000000800300000000000050027000000000024000e000000000000000000000000000000000000\
        0000000000000000000000000000000a0001005216357963fe00000a000200ffffffffffff000004002a00cc00\
        170000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000006400070000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        00000000000000000000000000000000000000000000000000000000000000000c002b00050002000000000010\
        0012000a00010064756d6d7900000024031a008c00020088000100000000000000000000000000010000000100\
        000001000000010000000000000001000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000010270000\
        e8030000000000000000000000000000000000000100000094020a00080001000000000014000500ffff000075\
        080000a6540000e8030000f00002000000000040000000dc05000001000000010000000100000001000000ffff\
        ffffa00f0000e803000000000000803a0900805101000300000058020000100000000000000001000000010000\
        000100000060ea0000000000000000000000000000000000000000000000000000ffffffff0000000000000000\
        10270000e803000001000000000000000000000001000000000000000000000001000000000000000000000000\
        0000000000000080ee360000000000000000000100000000000000000000000000000000000000000000000004\
        000000000000ffff0000ffffffff0100000000000000000000002c010300250000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        00000000000000000000003c000600070000000000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000000000000000000000014000700000000000000000000000000000000\
        000500080000000000";

    #[test]
    #[cfg(target_endian = "little")]
    fn an_address_as_the_kernel_sends_it() {
        // `ip addr show dev kube-ipvs0` with 10.96.0.1/32 on a device of index 5, captured on Linux 6.1:
        // IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_FLAGS, IFA_CACHEINFO.
        let bytes =
            hex("02208000 05000000 08000100 0a600001 08000200 0a600001 0f000300 6b7562652d6970767330 0000 \
             08000800 80000000 14000600 ffffffff ffffffff 4f020000 4f020000");
        let expected = HostAddress { addr: "10.96.0.1/32".parse().unwrap(), index: 5, scope: 0 };
        assert_eq!(parse_address(&bytes).unwrap(), Some(expected));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_request_for_an_address_is_these_bytes() {
        let bytes = emit(&address(5, "10.96.0.1/32".parse().unwrap()));
        assert_eq!(bytes, hex("02200000 05000000 08000200 0a600001 08000100 0a600001"));
        let bytes = emit(&address(5, "fd00::1/128".parse().unwrap()));
        assert_eq!(bytes.len(), 8 + 2 * 20);
        assert_eq!(bytes[..8], hex("0a800000 05000000"));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_as_a_dump_has_them() {
        // RTM_GETADDR of all families on Linux 6.1: lo, a device with a link-local address, a dummy.
        let dump = [
            (
                "020880fe01000000080001007f000001080002007f000001070003006c6f00000800080080000000\
              14000600ffffffffffffffffe5000000e5000000",
                "127.0.0.1/8",
                1,
                254,
            ),
            (
                "0a8080fe01000000140001000000000000000000000000000000000114000600ffffffffffffffff\
              2401000024010000080008008000000005000b0001000000",
                "::1/128",
                1,
                254,
            ),
            (
                "0a4080fd0200000014000100fe800000000000002c01e2fffe60af8e14000600ffffffffffffffff\
              f9030000f9030000080008008000000005000b0003000000",
                "fe80::2c01:e2ff:fe60:af8e/64",
                2,
                253,
            ),
            (
                "0a8080000300000014000100fd00009600000000000000000000000114000600ffffffffffffffff\
              7a0800007a0800000800080080000000",
                "fd00:96::1/128",
                3,
                0,
            ),
        ];
        for (bytes, net, index, scope) in dump {
            let expected = HostAddress { addr: net.parse().unwrap(), index, scope };
            assert_eq!(parse_address(&hex(bytes)).unwrap(), Some(expected));
        }
    }

    #[test]
    fn other_families_are_passed_over() {
        // AF_MCTP has addresses of one byte.
        let bytes = [45, 0, 0, 0, 1, 0, 0, 0, 5, 0, 2, 0, 9, 0, 0, 0];
        assert_eq!(parse_address(&bytes).unwrap(), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_link_as_the_kernel_sends_it() {
        let bytes = hex(RT_LINK);
        let expected =
            Link { family: 0, index: 3, flags: 0x82, name: "kube-ipvs0".into(), kind: Some("dummy".into()) };
        assert_eq!(parse_link(&bytes).unwrap(), expected);
    }

    #[test]
    fn a_new_dummy_reads_back_as_one() {
        let link = parse_link(&emit(&new_dummy("kube-ipvs0"))).unwrap();
        assert_eq!((link.name.as_str(), link.kind.as_deref()), ("kube-ipvs0", Some("dummy")));
        assert_eq!(link.flags & IFF_UP, 0);
    }

    proptest! {
        #[test]
        fn addresses_survive_the_wire(index: u32, addr: IpAddr, len in 0..=128u8) {
            let max = if addr.is_ipv4() { 32 } else { 128 };
            let net = IpNet::new(addr, len.min(max)).unwrap();
            let expected = HostAddress { addr: net, index, scope: 0 };
            prop_assert_eq!(parse_address(&emit(&address(index, net))).unwrap(), Some(expected));
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_link(&bytes);
            let _ = parse_address(&bytes);
        }
    }
}
