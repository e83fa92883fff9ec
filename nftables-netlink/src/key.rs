// SPDX-License-Identifier: Apache-2.0
//! Keys of sets, as nft(8) lays them out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bits of each type in the number of a concatenated type.
const TYPE_BITS: u32 = 6;

/// A field of a key. The kernel knows only lengths; nft(8) prints keys by the types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyField {
    /// `ipv4_addr`
    Ipv4Addr,
    /// `ipv6_addr`
    Ipv6Addr,
    /// `inet_proto`: a number of IANA, such as 6 for TCP.
    InetProto,
    /// `inet_service`: a port.
    InetService,
}

impl KeyField {
    /// Its number in nft(8) (`enum datatypes` of nftables' `datatype.h`).
    pub const fn number(self) -> u32 {
        match self {
            KeyField::Ipv4Addr => 7,
            KeyField::Ipv6Addr => 8,
            KeyField::InetProto => 12,
            KeyField::InetService => 13,
        }
    }

    /// Its length in bytes, without padding.
    pub const fn bytes(self) -> u32 {
        match self {
            KeyField::Ipv4Addr => 4,
            KeyField::Ipv6Addr => 16,
            KeyField::InetProto => 1,
            KeyField::InetService => 2,
        }
    }

    /// The number of a key with these fields: their numbers, six bits each, the first field in the highest bits.
    pub fn type_of(fields: &[KeyField]) -> u32 {
        fields.iter().fold(0, |number, field| number << TYPE_BITS | field.number())
    }

    /// The length of a key with these fields in bytes. Each field of a concatenation is padded to 4 bytes.
    pub fn len_of(fields: &[KeyField]) -> u32 {
        match fields {
            [field] => field.bytes(),
            fields => fields.iter().map(|field| field.bytes().next_multiple_of(4)).sum(),
        }
    }
}

/// Builds a concatenated key: fields in network order, each padded to 4 bytes. The fields of a packet are loaded into
/// registers that follow each other, so they have the same layout there.
///
/// ```
/// use nftables_netlink::Key;
///
/// let key = Key::new().addr([10, 96, 0, 10]).proto(17).port(53).into_bytes();
/// assert_eq!(key, [10, 96, 0, 10, 17, 0, 0, 0, 0, 53, 0, 0]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    /// A key without a field.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an address.
    pub fn addr(self, addr: impl Into<IpAddr>) -> Self {
        match addr.into() {
            IpAddr::V4(addr) => self.ipv4(addr),
            IpAddr::V6(addr) => self.ipv6(addr),
        }
    }

    fn ipv4(self, addr: Ipv4Addr) -> Self {
        self.field(&addr.octets())
    }

    fn ipv6(self, addr: Ipv6Addr) -> Self {
        self.field(&addr.octets())
    }

    /// Adds the number of a protocol.
    pub fn proto(self, number: u8) -> Self {
        self.field(&[number])
    }

    /// Adds a port.
    pub fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// Adds bytes.
    pub fn field(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// The key.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl From<Key> for Vec<u8> {
    fn from(key: Key) -> Self {
        key.0
    }
}
