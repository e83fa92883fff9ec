// SPDX-License-Identifier: Apache-2.0
//! Attributes (`struct nlattr`) as bytes, both ways.

use netlink_packet_core::{NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLA_HEADER_SIZE, NLA_TYPE_MASK, Nla};

use crate::Error;

/// The longest value of an attribute, header and padding counted.
const MAX_VALUE: usize = u16::MAX as usize - 3 - NLA_HEADER_SIZE;

/// Builds attributes one after the other. Numbers are written as the bytes given: most families take host order.
///
/// A value too long for the 16 bits of its length is cut off, so that it can never be taken for further
/// attributes; the kernel refuses it as too long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    /// Adds what `fill` writes to `out`, without another buffer.
    pub fn append_to(out: &mut Vec<u8>, fill: impl FnOnce(&mut Self)) {
        let mut attributes = Self { bytes: std::mem::take(out) };
        fill(&mut attributes);
        *out = attributes.bytes;
    }

    /// Adds an attribute with these bytes.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.add(kind, |bytes| bytes.extend_from_slice(value))
    }

    /// Adds a number in network byte order, marked as such (`NLA_F_NET_BYTEORDER`).
    pub fn put_be(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.put(kind | NLA_F_NET_BYTEORDER, value)
    }

    /// Adds a text with its terminating zero.
    pub fn put_str(&mut self, kind: u16, text: &str) -> &mut Self {
        self.add(kind, |bytes| {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        })
    }

    /// Adds an attribute of a rust-netlink codec, with both flags of its kind.
    pub fn put_nla(&mut self, nla: &impl Nla) -> &mut Self {
        self.add(nla.kind(), |bytes| {
            let start = bytes.len();
            bytes.resize(start + nla.value_len(), 0);
            nla.emit_value(&mut bytes[start..]);
        })
    }

    /// Adds nested attributes.
    pub fn nest(&mut self, kind: u16, inner: &Attributes) -> &mut Self {
        self.nest_bytes(kind, &inner.bytes)
    }

    /// Adds nested attributes that are encoded already, for example as the kernel sent them.
    pub fn nest_bytes(&mut self, kind: u16, inner: &[u8]) -> &mut Self {
        self.put(kind | NLA_F_NESTED, inner)
    }

    /// Adds nested attributes, written in place by `fill`.
    pub fn nest_with(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.add(kind | NLA_F_NESTED, |bytes| Self::append_to(bytes, fill))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds the attributes of another builder on the same level.
    pub fn append(&mut self, other: &Attributes) {
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// The encoded attributes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn add(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; NLA_HEADER_SIZE]);
        fill(&mut self.bytes);
        self.bytes.truncate(start + NLA_HEADER_SIZE + MAX_VALUE);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }
}

/// Walks encoded attributes: kind without flags, and value. Ends after the first error.
#[derive(Clone, Copy, Debug)]
pub struct AttributeIter<'a>(&'a [u8]);

impl<'a> AttributeIter<'a> {
    /// Walks these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for AttributeIter<'a> {
    type Item = Result<(u16, &'a [u8]), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut take = || {
            let len = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
            let value = self.0.get(4..len)?;
            self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        };
        let item = take().ok_or(Error::Malformed("an attribute is longer than its message"));
        if item.is_err() {
            self.0 = &[];
        }
        Some(item)
    }
}

/// A text as attributes have it: up to its first zero; a byte that is no UTF-8 becomes U+FFFD.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut inner = Attributes::default();
        inner.put_be(1, &[10, 96, 0, 1]);
        let mut attributes = Attributes::default();
        attributes.put(5, &[7]).put_str(2, "abc").nest(7, &inner);
        assert_eq!(attributes.len() % 4, 0);
        let read: Vec<_> = AttributeIter::new(attributes.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(read[0], (5, &[7][..]));
        assert_eq!(read[1], (2, &b"abc\0"[..]));
        assert_eq!(AttributeIter::new(read[2].1).next().unwrap().unwrap(), (1, &[10, 96, 0, 1][..]));
        let mut in_place = Attributes::default();
        in_place.put(5, &[7]).put_str(2, "abc").nest_with(7, |inner| _ = inner.put_be(1, &[10, 96, 0, 1]));
        assert_eq!(in_place, attributes);
    }

    #[test]
    fn an_attribute_of_a_codec_keeps_its_flags() {
        let kind = NLA_F_NESTED | NLA_F_NET_BYTEORDER | 9;
        let (mut by_nla, mut by_hand) = (Attributes::default(), Attributes::default());
        by_nla.put_nla(&DefaultNla::new(kind, vec![1, 2, 3]));
        by_hand.put(kind, &[1, 2, 3]);
        assert_eq!(by_nla, by_hand);
    }

    #[test]
    fn what_is_too_long_stays_one_attribute() {
        let mut attributes = Attributes::default();
        attributes.nest_with(1, |inner| {
            inner.put_str(2, &"x".repeat(70_000)).put(3, &[1; 70_000]);
        });
        attributes.put(4, &[7]);
        let kinds: Vec<_> = AttributeIter::new(attributes.as_bytes()).map(|a| a.unwrap().0).collect();
        assert_eq!(kinds, [1, 4]);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(AttributeIter::new(&bytes).count() <= bytes.len());
        }
    }
}
