// SPDX-License-Identifier: Apache-2.0
//! Members of sets as elements of nf_tables.

use std::net::IpAddr;

use ipnet::IpNet;
use nftables_netlink::{Element, Key, KeyField, Set};

use super::compile::octets;
use crate::core::model::sets::{Entry, SetId, SetType};
use crate::core::model::{Family, Protocol};
use crate::core::rules::nftables::{CLOSED_TO_NODE, SERVICE_RANGES, TABLE};
use crate::kernel::netfilter::nft_tables::nft_family;

fn addr(family: Family) -> KeyField {
    match family {
        Family::V4 => KeyField::Ipv4Addr,
        Family::V6 => KeyField::Ipv6Addr,
    }
}

/// A set in the place of an ipset. It grows without limit.
pub fn set(id: SetId) -> Set {
    use KeyField::{InetProto as Proto, InetService as Port};
    let addr = addr(id.family);
    let key: &[KeyField] = match id.kind.set_type() {
        SetType::HashIp => &[addr],
        SetType::HashIpPort => &[addr, Proto, Port],
        SetType::HashIpPortIp => &[addr, Proto, Port, addr],
        // The last field is the prefix length: of the types with two bytes, nft(8) prints ports as numbers.
        SetType::HashIpPortNet => &[addr, Proto, Port, addr, Port],
        SetType::BitmapPort => &[Port],
    };
    Set::new(nft_family(id.family), TABLE, id.name(), key)
}

/// One of the sets that have no ipset.
pub fn own_set(name: &str, family: Family) -> Set {
    let (nft, addr) = (nft_family(family), addr(family));
    match name {
        CLOSED_TO_NODE => {
            Set::new(nft, TABLE, name, &[addr, KeyField::InetProto, KeyField::InetService, addr])
        }
        SERVICE_RANGES => Set::intervals(nft, TABLE, name, &[addr]),
        _ => Set::new(nft, TABLE, name, &[addr]),
    }
}

fn vip_key(ip: IpAddr, protocol: Protocol, port: u16) -> Key {
    Key::new().addr(ip).proto(protocol.number()).port(port)
}

pub fn element(entry: &Entry) -> Element {
    match *entry {
        Entry::Ip(ip) => Element::new(octets(ip)),
        Entry::IpPort(ip, protocol, port) => Element::new(vip_key(ip, protocol, port)),
        Entry::IpPortIp(ip, protocol, port, other) => Element::new(vip_key(ip, protocol, port).addr(other)),
        Entry::IpPortNet(ip, protocol, port, net) => {
            let key = vip_key(ip, protocol, port).addr(net.network());
            Element::new(key.port(net.prefix_len().into()))
        }
        Entry::Port(port) => Element::new(port.to_be_bytes()),
    }
}

/// Reads a key field by field.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_at_checked(N.next_multiple_of(4).min(self.0.len()))?;
        self.0 = rest;
        field.get(..N)?.try_into().ok()
    }

    fn addr(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::V4 => self.take::<4>()?.into(),
            Family::V6 => self.take::<16>()?.into(),
        })
    }

    fn port(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn vip(&mut self, family: Family) -> Option<(IpAddr, Protocol, u16)> {
        let addr = self.addr(family)?;
        let [number] = self.take()?;
        Some((addr, Protocol::from_number(number)?, self.port()?))
    }
}

/// The member of a set; `None`: the agent adds no such element.
pub fn entry(element: &Element, id: SetId) -> Option<Entry> {
    let (mut key, family) = (Fields(&element.key), id.family);
    let entry = match id.kind.set_type() {
        SetType::HashIp => Entry::Ip(key.addr(family)?),
        SetType::HashIpPort => {
            let (ip, protocol, port) = key.vip(family)?;
            Entry::IpPort(ip, protocol, port)
        }
        SetType::HashIpPortIp => {
            let (ip, protocol, port) = key.vip(family)?;
            Entry::IpPortIp(ip, protocol, port, key.addr(family)?)
        }
        SetType::HashIpPortNet => {
            let (ip, protocol, port) = key.vip(family)?;
            let network = key.addr(family)?;
            Entry::IpPortNet(ip, protocol, port, IpNet::new(network, key.port()?.try_into().ok()?).ok()?)
        }
        SetType::BitmapPort => Entry::Port(key.port()?),
    };
    key.0.is_empty().then_some(entry)
}

/// The elements of a set that has no ipset, from their text.
pub fn own_elements(name: &str, texts: &[String]) -> Vec<Element> {
    let of = |text: &String| -> Option<Vec<Element>> {
        Some(match name {
            CLOSED_TO_NODE => {
                let (addr, rest) = text.split_once(" . ")?;
                let (protocol, port) = rest.split_once(" . ")?;
                let addr: IpAddr = addr.parse().ok()?;
                let protocol = Protocol::ALL.into_iter().find(|p| p.lower() == protocol)?;
                vec![Element::new(vip_key(addr, protocol, port.parse().ok()?).addr(addr))]
            }
            SERVICE_RANGES => {
                let net: IpNet = text.parse().ok()?;
                Element::interval(octets(net.network()), successor(octets(net.broadcast()))).collect()
            }
            _ => vec![Element::new(octets(text.parse().ok()?))],
        })
    };
    texts.iter().filter_map(of).flatten().collect()
}

/// The text of the elements of a set that has no ipset, sorted.
pub fn own_texts(name: &str, family: Family, mut elements: Vec<Element>) -> Vec<String> {
    let unknown = |element: &Element| format!("unknown element {:02x?}", element.key);
    // The end of an interval comes before the begin of the next one at the same key.
    elements.sort_unstable_by(|a, b| (&a.key, !a.is_interval_end).cmp(&(&b.key, !b.is_interval_end)));
    let text = |n: usize, element: &Element| -> Option<String> {
        let mut key = Fields(&element.key);
        match name {
            // Each interval has a first key and, unless it ends with the last possible key, the one behind it.
            SERVICE_RANGES => {
                let behind = elements.get(n + 1).filter(|next| next.is_interval_end);
                let first = key.addr(family)?;
                let prefix = (0..=8 * element.key.len()).find(|prefix| {
                    let net = IpNet::new(first, u8::try_from(*prefix).unwrap_or(0));
                    net.is_ok_and(|net| {
                        net.network() == first
                            && successor(octets(net.broadcast())).as_ref() == behind.map(|end| &end.key)
                    })
                })?;
                Some(format!("{first}/{prefix}"))
            }
            CLOSED_TO_NODE => {
                let (addr, protocol, port) = key.vip(family)?;
                (key.addr(family)? == addr).then(|| format!("{addr} . {} . {port}", protocol.lower()))
            }
            _ => key.addr(family).map(|addr| addr.to_string()),
        }
    };
    let starts = elements.iter().enumerate().filter(|(_, element)| !element.is_interval_end);
    let mut texts: Vec<String> =
        starts.map(|(n, element)| text(n, element).unwrap_or_else(|| unknown(element))).collect();
    texts.sort_unstable();
    texts
}

/// The key behind this one; `None`: it is the last possible one.
fn successor(mut key: Vec<u8>) -> Option<Vec<u8>> {
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(key);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::sets::SetKind;

    #[test]
    fn entries_are_read_as_they_were_written() {
        for (family, vip, other, net) in [
            (Family::V4, "10.96.0.1", "10.244.1.5", "172.16.0.0/12"),
            (Family::V6, "fd00:96::1", "fd00::5", "2001:db8::/33"),
        ] {
            let (vip, other): (IpAddr, IpAddr) = (vip.parse().unwrap(), other.parse().unwrap());
            let members = [
                (SetKind::IpvsIps, Entry::Ip(vip)),
                (SetKind::ClusterIp, Entry::IpPort(vip, Protocol::Sctp, 9)),
                (SetKind::LoopBack, Entry::IpPortIp(vip, Protocol::Tcp, 53, other)),
                (
                    SetKind::LoadBalancerSourceCidr,
                    Entry::IpPortNet(vip, Protocol::Udp, 443, net.parse().unwrap()),
                ),
                (SetKind::NodePortTcp, Entry::Port(30080)),
            ];
            for (kind, member) in members {
                let (id, element) = (SetId { kind, family }, element(&member));
                assert_eq!(element.key.len(), set(id).key_len as usize, "{member}");
                assert_eq!(entry(&element, id), Some(member));
                assert_eq!(entry(&Element::new([&element.key[..], &[0; 4]].concat()), id), None);
            }
        }
    }

    #[test]
    fn own_sets_are_read_as_they_were_written() {
        for (family, name, texts) in [
            (Family::V4, "node-addresses", &["10.0.0.1", "192.168.50.2"][..]),
            (Family::V4, CLOSED_TO_NODE, &["203.0.113.1 . udp . 53"]),
            (Family::V6, CLOSED_TO_NODE, &["fd00::1 . tcp . 443"]),
            (
                Family::V4,
                SERVICE_RANGES,
                &["10.112.0.0/12", "10.96.0.0/13", "10.104.0.0/14", "255.255.0.0/16"],
            ),
            (Family::V6, SERVICE_RANGES, &["fd00:96::/112", "fd00:97::/108"]),
        ] {
            let mut texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            texts.sort();
            let mut elements = own_elements(name, &texts);
            elements.reverse();
            assert_eq!(own_texts(name, family, elements), texts);
        }
    }
}
