// SPDX-License-Identifier: Apache-2.0
//! Attributes as bytes. Host byte order but where a function says otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, DefaultNla, NlaBuffer, NlasIterator, Parseable};

use crate::types::{Family, raw_attribute};

const HEADER: usize = 4;
/// The longest value of an attribute, header and padding counted.
pub(crate) const MAX_VALUE: usize = u16::MAX as usize - 3 - HEADER;
pub(crate) const NLA_F_NESTED: u16 = 0x8000;

/// Writes attributes one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writer {
    pub bytes: Vec<u8>,
}

impl Writer {
    /// A value too long for the 16 bits of its length is cut off, so that it can never be taken for
    /// further attributes; the kernel refuses it as too long.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let value = value.get(..MAX_VALUE).unwrap_or(value);
        let len = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub fn put_u8(&mut self, kind: u16, value: u8) {
        self.put(kind, &[value]);
    }

    pub fn put_u16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// A port: network byte order.
    pub fn put_port(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_be_bytes());
    }

    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    pub fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// A zero-terminated text.
    pub fn put_text(&mut self, kind: u16, text: &str) {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value);
    }

    /// An address: 4 or 16 bytes in network order.
    pub fn put_addr(&mut self, kind: u16, addr: IpAddr) {
        match addr {
            IpAddr::V4(addr) => self.put(kind, &addr.octets()),
            IpAddr::V6(addr) => self.put(kind, &addr.octets()),
        }
    }

    pub fn put_nested(&mut self, kind: u16, inner: &[u8]) {
        self.put(kind | NLA_F_NESTED, inner);
    }

    /// Attributes that were kept because nobody knew them, with the flags of their kinds.
    pub fn put_others(&mut self, others: &[DefaultNla]) {
        for other in others {
            let (kind, value) = raw_attribute(other);
            self.put(kind, &value);
        }
    }
}

pub(crate) fn attributes(bytes: &[u8]) -> NlasIterator<&[u8]> {
    NlasIterator::new(bytes)
}

/// Keeps an attribute as it is.
pub(crate) fn keep(nla: &NlaBuffer<&[u8]>) -> Result<DefaultNla, DecodeError> {
    DefaultNla::parse(nla)
}

fn array<const N: usize>(value: &[u8], what: &str) -> Result<[u8; N], DecodeError> {
    value
        .get(..N)
        .and_then(|v| v.try_into().ok())
        .ok_or_else(|| DecodeError::from(format!("{what}: {} bytes, not {N}", value.len())))
}

pub(crate) fn get_u8(value: &[u8], what: &str) -> Result<u8, DecodeError> {
    array::<1>(value, what).map(|[v]| v)
}

pub(crate) fn get_u16(value: &[u8], what: &str) -> Result<u16, DecodeError> {
    array(value, what).map(u16::from_ne_bytes)
}

pub(crate) fn get_port(value: &[u8], what: &str) -> Result<u16, DecodeError> {
    array(value, what).map(u16::from_be_bytes)
}

pub(crate) fn get_u32(value: &[u8], what: &str) -> Result<u32, DecodeError> {
    array(value, what).map(u32::from_ne_bytes)
}

/// 64-bit attributes are aligned to 4 bytes only, so they are copied, never cast.
pub(crate) fn get_u64(value: &[u8], what: &str) -> Result<u64, DecodeError> {
    array(value, what).map(u64::from_ne_bytes)
}

pub(crate) fn get_text(value: &[u8], what: &str) -> Result<String, DecodeError> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    let text = std::str::from_utf8(&value[..end]);
    text.map(str::to_owned).map_err(|_| DecodeError::from(format!("{what} is not text")))
}

/// An address of a known family. The kernel pads IPv4 addresses to 16 bytes.
pub(crate) fn get_addr(value: &[u8], family: Family, what: &str) -> Result<IpAddr, DecodeError> {
    match family {
        Family::Inet => array::<4>(value, what).map(|v| Ipv4Addr::from(v).into()),
        Family::Inet6 => array::<16>(value, what).map(|v| Ipv6Addr::from(v).into()),
    }
}
