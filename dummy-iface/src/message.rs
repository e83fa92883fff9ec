// SPDX-License-Identifier: Apache-2.0
//! The rtnetlink messages used here (`<linux/if_link.h>`, `<linux/if_addr.h>`): built with
//! netlink-packet-route, read with checked slicing. All multi-byte fields are in host order; only
//! addresses are in network order, and they are byte arrays.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NlasIterator, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::Error;

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;

const IFINFO_LEN: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFF_UP: u32 = 1;

/// The parts of a link message that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
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
    let mut link = Link { index: word(4)?, flags: word(8)?, ..Link::default() };
    for nla in NlasIterator::new(payload.get(IFINFO_LEN..).ok_or(SHORT)?) {
        let nla = nla.map_err(|_| Error::Malformed("a link attribute is cut off"))?;
        match nla.kind() {
            IFLA_IFNAME => link.name = text(nla.value()),
            IFLA_LINKINFO => {
                for info in NlasIterator::new(nla.value()) {
                    let info = info.map_err(|_| Error::Malformed("a link attribute is cut off"))?;
                    if info.kind() == IFLA_INFO_KIND {
                        link.kind = Some(text(info.value()));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(link)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Reads an address message: the index of its link, and the address with its prefix.
pub(crate) fn parse_address(payload: &[u8]) -> Result<(u32, IpNet), Error> {
    if payload.len() < 8 {
        return Err(Error::Malformed("an address message is too short"));
    }
    let message = AddressMessage::parse(payload).map_err(|_| Error::Malformed("an address message"))?;
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => address = Some(*addr),
            _ => {}
        }
    }
    // On a point-to-point link ADDRESS is the peer; IPv6 has only ADDRESS.
    let addr: IpAddr = local.or(address).ok_or(Error::Malformed("an address message without an address"))?;
    let net = IpNet::new(addr, message.header.prefix_len);
    Ok((message.header.index, net.map_err(|_| Error::Malformed("an address with an impossible prefix"))?))
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

    #[test]
    #[cfg(target_endian = "little")]
    fn an_address_as_the_kernel_sends_it() {
        // `ip addr show dev kube-ipvs0` with 10.96.0.1/32 on a device of index 5, captured on Linux 6.1:
        // IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_FLAGS, IFA_CACHEINFO.
        let bytes =
            hex("02208000 05000000 08000100 0a600001 08000200 0a600001 0f000300 6b7562652d6970767330 0000 \
             08000800 80000000 14000600 ffffffff ffffffff 4f020000 4f020000");
        assert_eq!(parse_address(&bytes).unwrap(), (5, "10.96.0.1/32".parse().unwrap()));
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
            prop_assert_eq!(parse_address(&emit(&address(index, net))).unwrap(), (index, net));
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_link(&bytes);
            let _ = parse_address(&bytes);
        }
    }
}
