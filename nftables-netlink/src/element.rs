// SPDX-License-Identifier: Apache-2.0
//! Elements of sets (`enum nft_set_elem_list_attributes`, `enum nft_set_elem_attributes`).

use netlink_batch::{AttributeIter, Attributes, Error, text};

use crate::wire::{LIST_ELEM, put_data, put_u32, split_header, to_data, to_u32};

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const KEY: u16 = 1;
const FLAGS: u16 = 3;
const KEY_END: u16 = 10;
/// `NFT_SET_ELEM_INTERVAL_END`
const INTERVAL_END: u32 = 1;
/// The most bytes in a list of elements: the length of an attribute has 16 bits.
const LIST_BYTES: usize = 32 * 1024;

/// An element of a set. Values of maps, timeouts and comments are not read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// The key, see [`Key`](crate::Key); empty for the element that matches everything else.
    pub key: Vec<u8>,
    /// In a set of concatenated intervals: the last key of the interval, field by field.
    pub key_end: Option<Vec<u8>>,
    /// In a set of intervals with one field: the key is the first behind the interval that begins at the element
    /// before.
    pub is_interval_end: bool,
}

impl Element {
    /// A single key.
    pub fn new(key: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), key_end: None, is_interval_end: false }
    }

    /// An element of a set of concatenated intervals: each field from that of `first` up to and with that of `last`.
    pub fn range(first: impl Into<Vec<u8>>, last: impl Into<Vec<u8>>) -> Self {
        Self { key: first.into(), key_end: Some(last.into()), is_interval_end: false }
    }

    /// The bounds of an interval with one field: its first key, and the first key behind it (`None`: the interval
    /// ends with the last possible key).
    pub fn interval(first: impl Into<Vec<u8>>, behind: Option<Vec<u8>>) -> impl Iterator<Item = Element> {
        let end = behind.map(|key| Self { key, key_end: None, is_interval_end: true });
        std::iter::once(Self::new(first)).chain(end)
    }

    /// Length of the element in a list.
    fn encoded_len(&self) -> usize {
        let data = |key: &Vec<u8>| 8 + key.len().next_multiple_of(4);
        let flags = if self.is_interval_end { 8 } else { 0 };
        4 + data(&self.key) + self.key_end.as_ref().map_or(0, data) + flags
    }

    fn write(&self, out: &mut Attributes) {
        if self.is_interval_end {
            put_u32(out, FLAGS, INTERVAL_END);
        }
        put_data(out, KEY, &self.key);
        if let Some(end) = &self.key_end {
            put_data(out, KEY_END, end);
        }
    }

    fn parse(value: &[u8]) -> Result<Self, Error> {
        let mut element = Self::new([]);
        for attribute in AttributeIter::new(value) {
            match attribute? {
                (KEY, value) => element.key = to_data(value)?,
                (KEY_END, value) => element.key_end = Some(to_data(value)?),
                (FLAGS, value) => element.is_interval_end = to_u32(value)? & INTERVAL_END != 0,
                _ => {}
            }
        }
        Ok(element)
    }
}

/// Writes the elements of a set. Without elements all of them are meant.
pub(crate) fn write_elements(table: &str, set: &str, elements: &[Element], out: &mut Attributes) {
    out.put_str(LIST_TABLE, table).put_str(LIST_SET, set);
    if !elements.is_empty() {
        out.nest_with(LIST_ELEMENTS, |list| {
            for element in elements {
                list.nest_with(LIST_ELEM, |out| element.write(out));
            }
        });
    }
}

/// Splits elements into lists of at most [`LIST_BYTES`].
pub(crate) fn lists(mut elements: &[Element]) -> impl Iterator<Item = &[Element]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |element: &&Element| {
            bytes += element.encoded_len();
            bytes <= LIST_BYTES
        };
        // A longer element than the limit is refused by the kernel anyway.
        let count = elements.iter().take_while(fits).count().max(1).min(elements.len());
        let (list, rest) = elements.split_at(count);
        elements = rest;
        (!list.is_empty()).then_some(list)
    })
}

/// Reads a message (`NFT_MSG_NEWSETELEM`) without its netlink header: the table, the set, and its elements.
///
/// # Errors
/// [`Error::Malformed`]
pub fn parse_elements(payload: &[u8]) -> Result<(String, String, Vec<Element>), Error> {
    let (_, attributes) = split_header(payload)?;
    let (mut table, mut set, mut elements) = (String::new(), String::new(), Vec::new());
    for attribute in AttributeIter::new(attributes) {
        match attribute? {
            (LIST_TABLE, value) => table = text(value),
            (LIST_SET, value) => set = text(value),
            (LIST_ELEMENTS, list) => {
                for element in AttributeIter::new(list) {
                    elements.push(Element::parse(element?.1)?);
                }
            }
            _ => {}
        }
    }
    Ok((table, set, elements))
}
