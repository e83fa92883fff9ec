// SPDX-License-Identifier: Apache-2.0
//! Set entries, each with a value. A large cluster has tens of thousands of them, in the wanted state and in the
//! mirror. An IPv4 entry takes 12 bytes here instead of the 40 bytes of [`Entry`].

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::Protocol;
use super::map::Map;
use super::sets::Entry;

/// An entry without IPv6 addresses. `rest` holds port, prefix length, protocol and variant, from the highest bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Small {
    addr: u32,
    other: u32,
    rest: u32,
}

impl Small {
    fn pack(entry: &Entry) -> Option<Self> {
        let v4 = |ip: IpAddr| if let IpAddr::V4(ip) = ip { Some(ip.to_bits()) } else { None };
        let of = |variant, ip, protocol, port: u16, other, prefix: u8| {
            let rest = u32::from(port) << 16 | u32::from(prefix) << 8 | (protocol as u32) << 4 | variant;
            Some(Self { addr: v4(ip)?, other, rest })
        };
        match *entry {
            Entry::Ip(ip) => of(0, ip, Protocol::Tcp, 0, 0, 0),
            Entry::IpPort(ip, protocol, port) => of(1, ip, protocol, port, 0, 0),
            Entry::IpPortIp(ip, protocol, port, other) => of(2, ip, protocol, port, v4(other)?, 0),
            Entry::IpPortNet(ip, protocol, port, net) => {
                of(3, ip, protocol, port, v4(net.addr())?, net.prefix_len())
            }
            Entry::Port(port) => of(4, Ipv4Addr::UNSPECIFIED.into(), Protocol::Tcp, port, 0, 0),
        }
    }

    fn unpack(self) -> Entry {
        let ip = IpAddr::V4(self.addr.into());
        let other = Ipv4Addr::from(self.other);
        let [port_high, port_low, prefix, last] = self.rest.to_be_bytes();
        let port = u16::from_be_bytes([port_high, port_low]);
        let protocol = Protocol::ALL[usize::from(last >> 4)];
        match last & 0xf {
            0 => Entry::Ip(ip),
            1 => Entry::IpPort(ip, protocol, port),
            2 => Entry::IpPortIp(ip, protocol, port, other.into()),
            3 => Entry::IpPortNet(ip, protocol, port, IpNet::V4(Ipv4Net::new_assert(other, prefix))),
            _ => Entry::Port(port),
        }
    }
}

/// Unique entries, in no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members<V = ()> {
    small: Map<Small, V>,
    large: Map<Entry, V>,
}

impl<V> Members<V> {
    pub fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn contains(&self, entry: &Entry) -> bool {
        match Small::pack(entry) {
            Some(small) => self.small.contains_key(&small),
            None => self.large.contains_key(entry),
        }
    }

    pub fn get_mut(&mut self, entry: &Entry) -> Option<&mut V> {
        match Small::pack(entry) {
            Some(small) => self.small.get_mut(&small),
            None => self.large.get_mut(entry),
        }
    }

    pub fn remove(&mut self, entry: &Entry) -> Option<V> {
        match Small::pack(entry) {
            Some(small) => self.small.remove(&small),
            None => self.large.remove(entry),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        self.small.keys().map(|small| small.unpack()).chain(self.large.keys().copied())
    }
}

impl<V: Default> Members<V> {
    /// The value of an entry; adds the entry if it is missing.
    pub fn value_of(&mut self, entry: Entry) -> &mut V {
        match Small::pack(&entry) {
            Some(small) => self.small.entry(small).or_default(),
            None => self.large.entry(entry).or_default(),
        }
    }
}

impl Members {
    /// Entries that `other` does not have.
    pub fn difference(&self, other: &Self) -> impl Iterator<Item = Entry> {
        self.iter().filter(|entry| !other.contains(entry))
    }

    /// Adds an entry; false if it was present already.
    pub fn insert(&mut self, entry: Entry) -> bool {
        match Small::pack(&entry) {
            Some(small) => self.small.insert(small, ()).is_none(),
            None => self.large.insert(entry, ()).is_none(),
        }
    }
}

impl<V> Default for Members<V> {
    fn default() -> Self {
        Self { small: Map::default(), large: Map::default() }
    }
}

impl Extend<Entry> for Members {
    fn extend<I: IntoIterator<Item = Entry>>(&mut self, entries: I) {
        for entry in entries {
            self.insert(entry);
        }
    }
}

impl FromIterator<Entry> for Members {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut members = Self::default();
        members.extend(entries);
        members
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn any_ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<Ipv4Addr>().prop_map_into(), any::<std::net::Ipv6Addr>().prop_map_into()]
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        (any_ip(), 0..=128u8).prop_map(|(ip, prefix)| {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            IpNet::new(ip, prefix.min(most)).unwrap()
        })
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let protocol = || prop::sample::select(Protocol::ALL.to_vec());
        prop_oneof![
            any_ip().prop_map(Entry::Ip),
            (any_ip(), protocol(), any::<u16>()).prop_map(|(ip, p, port)| Entry::IpPort(ip, p, port)),
            (any_ip(), protocol(), any::<u16>(), any_ip())
                .prop_map(|(ip, p, port, o)| Entry::IpPortIp(ip, p, port, o)),
            (any_ip(), protocol(), any::<u16>(), any_net())
                .prop_map(|(ip, p, port, net)| Entry::IpPortNet(ip, p, port, net)),
            any::<u16>().prop_map(Entry::Port),
        ]
    }

    proptest! {
        #[test]
        fn members_behave_as_a_set(steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..60),
                       entries in prop::collection::vec(any_entry(), 1..20)) {
            let (mut members, mut model) = (Members::default(), BTreeSet::new());
            for (index, add) in steps {
                let entry = *index.get(&entries);
                if add {
                    prop_assert_eq!(members.insert(entry), model.insert(entry));
                } else {
                    prop_assert_eq!(members.remove(&entry).is_some(), model.remove(&entry));
                }
            }
            prop_assert!(entries.iter().all(|entry| members.contains(entry) == model.contains(entry)));
            prop_assert_eq!((members.len(), members.is_empty()), (model.len(), model.is_empty()));
            prop_assert_eq!(&members, &model.iter().copied().collect());
            prop_assert_eq!(members.iter().collect::<BTreeSet<_>>(), model);
        }
    }

    #[test]
    fn different_entries_are_packed_differently() {
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let zero: IpAddr = "0.0.0.0".parse().unwrap();
        let net = |text: &str| Entry::IpPortNet(ip, Protocol::Tcp, 80, text.parse().unwrap());
        let entries = [
            Entry::Ip(zero),
            Entry::Port(0),
            Entry::IpPort(zero, Protocol::Tcp, 0),
            Entry::IpPort(zero, Protocol::Udp, 0),
            Entry::IpPortIp(zero, Protocol::Tcp, 0, zero),
            net("0.0.0.0/0"),
            net("0.0.0.0/32"),
            net("::/0"),
        ];
        assert_eq!(entries.into_iter().collect::<Members>().len(), entries.len());
    }

    #[test]
    fn most_entries_are_small() {
        assert_eq!((size_of::<Small>(), size_of::<(Small, u32)>()), (12, 16));
        assert!(size_of::<Entry>() <= 40);
    }
}
