// SPDX-License-Identifier: Apache-2.0
//! Numbers and headers as bytes. All numbers of nf_tables are big-endian.

use netlink_batch::{AttributeIter, Attributes, Error};

numbers! {
    /// What the rules of a table see (`NFPROTO_*` of `<linux/netfilter.h>`).
    Family: u8 {
        /// `NFPROTO_INET`: IPv4 and IPv6.
        Inet = 1,
        /// `NFPROTO_IPV4`; `ip` in nft(8).
        Ipv4 = 2,
        /// `NFPROTO_IPV6`; `ip6` in nft(8).
        Ipv6 = 10,
    }
}

impl Family {
    /// `NFPROTO_UNSPEC`: every family, in requests for lists.
    pub(crate) const ANY: u8 = 0;
}

/// `NFNL_SUBSYS_NFTABLES`
pub(crate) const SUBSYSTEM: u8 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`
pub(crate) const BATCH_BEGIN: u16 = 16;
pub(crate) const BATCH_END: u16 = 17;
/// `NFTA_LIST_ELEM`
pub(crate) const LIST_ELEM: u16 = 1;
/// `NFTA_DATA_VALUE`
const DATA_VALUE: u16 = 1;

/// Messages (`enum nf_tables_msg_types`).
pub(crate) mod message {
    pub const NEW_TABLE: u8 = 0;
    pub const GET_TABLE: u8 = 1;
    pub const DEL_TABLE: u8 = 2;
    pub const NEW_CHAIN: u8 = 3;
    pub const GET_CHAIN: u8 = 4;
    pub const DEL_CHAIN: u8 = 5;
    pub const NEW_RULE: u8 = 6;
    pub const GET_RULE: u8 = 7;
    pub const DEL_RULE: u8 = 8;
    pub const NEW_SET: u8 = 9;
    pub const GET_SET: u8 = 10;
    pub const DEL_SET: u8 = 11;
    pub const NEW_ELEMENTS: u8 = 12;
    pub const GET_ELEMENTS: u8 = 13;
    pub const DEL_ELEMENTS: u8 = 14;
    pub const NEW_GENERATION: u8 = 15;
    pub const GET_GENERATION: u8 = 16;
    pub const TRACE: u8 = 17;
}

/// The type of a message of nf_tables.
pub(crate) fn kind(message: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, message])
}

/// Adds `struct nfgenmsg`.
pub(crate) fn put_header(out: &mut Vec<u8>, family: u8, resource: u16) {
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
}

/// `struct nfgenmsg` as read: the family, and the low half of the generation in messages of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub family: u8,
    pub resource: u16,
}

/// Splits what follows the header of a netlink message.
pub(crate) fn split_header(payload: &[u8]) -> Result<(Header, &[u8]), Error> {
    match payload {
        [family, _version, high, low, attributes @ ..] => {
            Ok((Header { family: *family, resource: u16::from_be_bytes([*high, *low]) }, attributes))
        }
        _ => Err(Error::Malformed("a message of nf_tables is too short")),
    }
}

pub(crate) fn put_u32(out: &mut Attributes, kind: u16, number: u32) {
    out.put(kind, &number.to_be_bytes());
}

pub(crate) fn put_u64(out: &mut Attributes, kind: u16, number: u64) {
    out.put(kind, &number.to_be_bytes());
}

/// Adds bytes as `struct nft_data`.
pub(crate) fn put_data(out: &mut Attributes, kind: u16, value: &[u8]) {
    out.nest_with(kind, |data| _ = data.put(DATA_VALUE, value));
}

/// Adds bytes, if any.
pub(crate) fn put_bytes(out: &mut Attributes, kind: u16, value: &[u8]) {
    if !value.is_empty() {
        out.put(kind, value);
    }
}

const WRONG_LENGTH: Error = Error::Malformed("a number of nf_tables has the wrong length");

pub(crate) fn to_u32(value: &[u8]) -> Result<u32, Error> {
    value.try_into().map(u32::from_be_bytes).map_err(|_| WRONG_LENGTH)
}

pub(crate) fn to_u64(value: &[u8]) -> Result<u64, Error> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| WRONG_LENGTH)
}

/// The bytes of `struct nft_data`; empty for a verdict.
pub(crate) fn to_data(value: &[u8]) -> Result<Vec<u8>, Error> {
    for attribute in AttributeIter::new(value) {
        if let (DATA_VALUE, bytes) = attribute? {
            return Ok(bytes.to_vec());
        }
    }
    Ok(Vec::new())
}

/// The name of the family in nft(8), or its number.
impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Family::Inet => f.write_str("inet"),
            Family::Ipv4 => f.write_str("ip"),
            Family::Ipv6 => f.write_str("ip6"),
            Family::Other(number) => write!(f, "family {number}"),
        }
    }
}
