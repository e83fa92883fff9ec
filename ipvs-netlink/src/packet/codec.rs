// SPDX-License-Identifier: Apache-2.0
//! How single values are written and read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_batch::Attributes;
use netlink_packet_core::{DecodeError, NLA_F_NESTED};

use super::attributes;
use super::stats::StatsAttribute;
use crate::stats::Stats;
use crate::types::{Family, ServiceFlags};

/// The longest value of an attribute, header and padding counted. What is longer is cut off.
pub(crate) const MAX_VALUE: usize = u16::MAX as usize - 7;

/// How a value of type `T` is written in an attribute.
pub(crate) trait Codec<T> {
    /// Flags in the kind of the attribute.
    const FLAGS: u16 = 0;
    /// Length in bytes.
    fn len(value: &T) -> usize;
    /// Writes a value into a buffer of this length.
    fn emit(value: &T, buffer: &mut [u8]);
    /// Reads a value. What is behind it is not read.
    fn parse(bytes: &[u8]) -> Result<T, DecodeError>;
}

/// Numbers in host order.
pub(crate) struct Host;
/// Numbers in network order.
pub(crate) struct Network;
/// A text with its terminating zero.
pub(crate) struct Text;
/// Bytes as they are.
pub(crate) struct Bytes;
/// `struct ip_vs_flags`: flags, and a mask of those that count, which is always full.
pub(crate) struct WithMask;
/// Counters of 32 or 64 bits, written with 64.
pub(crate) struct Counter;
/// Attributes of another level.
pub(crate) struct Nested;

pub(crate) fn array<const N: usize>(value: &[u8]) -> Result<[u8; N], DecodeError> {
    let first = value.get(..N).and_then(|bytes| bytes.try_into().ok());
    first.ok_or_else(|| DecodeError::from(format!("{} bytes, not {N}", value.len())))
}

macro_rules! numbers {
    ($($codec:ident: $type:ty, $from:ident, $to:ident;)*) => {$(
        impl Codec<$type> for $codec {
            fn len(_: &$type) -> usize {
                size_of::<$type>()
            }

            fn emit(value: &$type, buffer: &mut [u8]) {
                buffer.copy_from_slice(&value.$to());
            }

            fn parse(bytes: &[u8]) -> Result<$type, DecodeError> {
                array(bytes).map(<$type>::$from)
            }
        }
    )*};
}

numbers! {
    Host: u8, from_ne_bytes, to_ne_bytes;
    Host: u16, from_ne_bytes, to_ne_bytes;
    Host: u32, from_ne_bytes, to_ne_bytes;
    Network: u16, from_be_bytes, to_be_bytes;
}

impl Codec<String> for Text {
    fn len(value: &String) -> usize {
        (value.len() + 1).min(MAX_VALUE)
    }

    fn emit(value: &String, buffer: &mut [u8]) {
        buffer.iter_mut().zip(value.bytes().chain([0])).for_each(|(to, byte)| *to = byte);
    }

    fn parse(bytes: &[u8]) -> Result<String, DecodeError> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = std::str::from_utf8(&bytes[..end]);
        text.map(str::to_owned).map_err(|_| DecodeError::from("not a text"))
    }
}

impl Codec<[u8; 4]> for Bytes {
    fn len(_: &[u8; 4]) -> usize {
        4
    }

    fn emit(value: &[u8; 4], buffer: &mut [u8]) {
        buffer.copy_from_slice(value);
    }

    fn parse(bytes: &[u8]) -> Result<[u8; 4], DecodeError> {
        array(bytes)
    }
}

impl Codec<Ipv4Addr> for Bytes {
    fn len(_: &Ipv4Addr) -> usize {
        4
    }

    fn emit(value: &Ipv4Addr, buffer: &mut [u8]) {
        buffer.copy_from_slice(&value.octets());
    }

    fn parse(bytes: &[u8]) -> Result<Ipv4Addr, DecodeError> {
        array::<4>(bytes).map(Ipv4Addr::from)
    }
}

impl Codec<Ipv6Addr> for Bytes {
    fn len(_: &Ipv6Addr) -> usize {
        16
    }

    fn emit(value: &Ipv6Addr, buffer: &mut [u8]) {
        buffer.copy_from_slice(&value.octets());
    }

    fn parse(bytes: &[u8]) -> Result<Ipv6Addr, DecodeError> {
        array::<16>(bytes).map(Ipv6Addr::from)
    }
}

impl Codec<RawAddress> for Bytes {
    fn len(value: &RawAddress) -> usize {
        value.as_bytes().len()
    }

    fn emit(value: &RawAddress, buffer: &mut [u8]) {
        buffer.copy_from_slice(value.as_bytes());
    }

    fn parse(bytes: &[u8]) -> Result<RawAddress, DecodeError> {
        Ok(RawAddress::new(bytes))
    }
}

impl Codec<ServiceFlags> for WithMask {
    fn len(_: &ServiceFlags) -> usize {
        8
    }

    fn emit(value: &ServiceFlags, buffer: &mut [u8]) {
        buffer[..4].copy_from_slice(&value.bits().to_ne_bytes());
        buffer[4..].copy_from_slice(&u32::MAX.to_ne_bytes());
    }

    fn parse(bytes: &[u8]) -> Result<ServiceFlags, DecodeError> {
        Host::parse(bytes).map(ServiceFlags::from_bits)
    }
}

/// 64-bit attributes are aligned to 4 bytes only, so they are copied, never cast.
impl Codec<u64> for Counter {
    fn len(_: &u64) -> usize {
        8
    }

    fn emit(value: &u64, buffer: &mut [u8]) {
        buffer.copy_from_slice(&value.to_ne_bytes());
    }

    fn parse(bytes: &[u8]) -> Result<u64, DecodeError> {
        match bytes.first_chunk() {
            Some(wide) => Ok(u64::from_ne_bytes(*wide)),
            None => array(bytes).map(u32::from_ne_bytes).map(u64::from),
        }
    }
}

impl Codec<Stats> for Nested {
    const FLAGS: u16 = NLA_F_NESTED;

    fn len(_: &Stats) -> usize {
        Stats::COUNT * 12
    }

    fn emit(value: &Stats, buffer: &mut [u8]) {
        nest(buffer, |out| value.write(out));
    }

    fn parse(bytes: &[u8]) -> Result<Stats, DecodeError> {
        Stats::from_attributes(attributes::<StatsAttribute>(bytes))
    }
}

/// Writes nested attributes into a buffer of their length, or of [`MAX_VALUE`].
pub(crate) fn nest(buffer: &mut [u8], write: impl FnOnce(&mut Attributes)) {
    let mut inner = Attributes::default();
    write(&mut inner);
    buffer.copy_from_slice(&inner.as_bytes()[..buffer.len()]);
}

/// An address as bytes: its family is in another attribute. The kernel pads IPv4 addresses to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawAddress {
    bytes: [u8; 16],
    len: u8,
}

impl RawAddress {
    /// The first 16 of these bytes.
    pub fn new(value: &[u8]) -> Self {
        let mut bytes = [0; 16];
        let len = value.len().min(bytes.len());
        bytes[..len].copy_from_slice(&value[..len]);
        Self { bytes, len: len as u8 }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The address, if it is of this family.
    ///
    /// # Errors
    /// When there are too few bytes.
    pub fn of_family(&self, family: Family) -> Result<IpAddr, DecodeError> {
        match family {
            Family::Inet => array::<4>(self.as_bytes()).map(IpAddr::from),
            Family::Inet6 => array::<16>(self.as_bytes()).map(IpAddr::from),
        }
    }
}

impl From<IpAddr> for RawAddress {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => Self::new(&addr.octets()),
            IpAddr::V6(addr) => Self::new(&addr.octets()),
        }
    }
}

/// Defines the attributes of one level: each is a variant with the type of its value, how that is written, and the
/// number of its kind.
macro_rules! attribute_level {
    ($(#[$doc:meta])* $level:ident {
        $($(#[$variant_doc:meta])* $variant:ident($type:ty as $codec:ident) = $kind:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum $level {
            $($(#[$variant_doc])* $variant($type),)*
            /// A kind that this version does not know, kept as it is.
            Other(netlink_packet_core::DefaultNla),
        }

        impl netlink_packet_core::Nla for $level {
            fn value_len(&self) -> usize {
                match self {
                    $($level::$variant(value) => <$codec as Codec<$type>>::len(value),)*
                    $level::Other(nla) => nla.value_len(),
                }
            }

            fn kind(&self) -> u16 {
                match self {
                    $($level::$variant(_) => $kind | <$codec as Codec<$type>>::FLAGS,)*
                    $level::Other(nla) => nla.kind(),
                }
            }

            fn emit_value(&self, buffer: &mut [u8]) {
                match self {
                    $($level::$variant(value) => <$codec as Codec<$type>>::emit(value, buffer),)*
                    $level::Other(nla) => nla.emit_value(buffer),
                }
            }
        }

        impl<'a, T: AsRef<[u8]> + ?Sized> netlink_packet_core::Parseable<netlink_packet_core::NlaBuffer<&'a T>>
            for $level
        {
            fn parse(
                nla: &netlink_packet_core::NlaBuffer<&'a T>,
            ) -> Result<Self, netlink_packet_core::DecodeError> {
                match nla.kind() {
                    $($kind => match <$codec as Codec<$type>>::parse(nla.value()) {
                        Ok(value) => Ok($level::$variant(value)),
                        Err(error) => Err(format!("{}: {error}", stringify!($variant)).into()),
                    },)*
                    _ => Ok($level::Other(netlink_packet_core::DefaultNla::parse(nla)?)),
                }
            }
        }
    };
}
pub(crate) use attribute_level;
