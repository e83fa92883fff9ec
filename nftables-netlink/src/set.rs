// SPDX-License-Identifier: Apache-2.0
//! Sets (`enum nft_set_attributes`).

use netlink_batch::{AttributeIter, Attributes, Error, text};

use crate::key::KeyField;
use crate::userdata;
use crate::wire::{Family, LIST_ELEM, put_bytes, put_u32, split_header, to_u32, to_u64};

const TABLE: u16 = 1;
const NAME: u16 = 2;
const FLAGS: u16 = 3;
const KEY_TYPE: u16 = 4;
const KEY_LEN: u16 = 5;
const DESC: u16 = 9;
const ID: u16 = 10;
const USERDATA: u16 = 13;
const HANDLE: u16 = 16;
const DESC_SIZE: u16 = 1;
const DESC_CONCAT: u16 = 2;
/// `NFTA_SET_FIELD_LEN`: in bytes, whatever the header says.
const FIELD_LEN: u16 = 1;

flags! {
    /// `enum nft_set_flags`
    SetFlags {
        /// The kernel chooses the name, and the set goes with the rule that uses it.
        ANONYMOUS = 0x1,
        /// Elements cannot change while a rule uses the set.
        CONSTANT = 0x2,
        /// Elements are intervals.
        INTERVAL = 0x4,
        /// Each element has a value.
        MAP = 0x8,
        /// Elements can expire.
        TIMEOUT = 0x10,
        /// Rules can add elements.
        EVAL = 0x20,
        /// Each element has a stateful object.
        OBJECT = 0x40,
        /// The fields of the key have intervals of their own.
        CONCAT = 0x80,
    }
}

/// A set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Set {
    /// The family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Flags.
    pub flags: SetFlags,
    /// The type of its keys for nft(8), see [`KeyField::type_of`].
    pub key_type: u32,
    /// The length of its keys in bytes, at most 64.
    pub key_len: u32,
    /// For [`SetFlags::CONCAT`]: length of each field of a key in bytes, without padding.
    pub fields: Vec<u32>,
    /// The most elements that it may have; more are refused with `ENFILE`. Without intervals such a set has a hash
    /// table of fixed length, which takes elements faster than one that grows.
    pub size: Option<u32>,
    /// Data for user space, see [`userdata`]; at most 256 bytes.
    pub userdata: Vec<u8>,
    /// The kernel's number of it; only ever reported.
    pub handle: Option<u64>,
}

impl Set {
    /// A set of keys.
    pub fn new(family: Family, table: impl Into<String>, name: impl Into<String>, key: &[KeyField]) -> Self {
        Self {
            family,
            table: table.into(),
            name: name.into(),
            flags: SetFlags::default(),
            key_type: KeyField::type_of(key),
            key_len: KeyField::len_of(key),
            fields: Vec::new(),
            size: None,
            userdata: userdata::network_order(),
            handle: None,
        }
    }

    /// A set of intervals. With several fields each field of an element has its own interval, such as a network
    /// ([`Element::range`](crate::Element::range)); with one field, elements are bounds
    /// ([`Element::interval`](crate::Element::interval)).
    pub fn intervals(
        family: Family,
        table: impl Into<String>,
        name: impl Into<String>,
        key: &[KeyField],
    ) -> Self {
        let mut set = Self::new(family, table, name, key);
        set.flags = SetFlags::INTERVAL;
        if key.len() > 1 {
            set.flags = SetFlags::INTERVAL | SetFlags::CONCAT;
            set.fields = key.iter().map(|field| field.bytes()).collect();
        }
        set
    }

    /// Writes the attributes. The kernel requires a number that no other set of the transaction has.
    pub(crate) fn write(&self, id: u32, out: &mut Attributes) {
        Self::write_name(&self.table, &self.name, out);
        put_u32(out, FLAGS, self.flags.bits());
        put_u32(out, KEY_TYPE, self.key_type);
        put_u32(out, KEY_LEN, self.key_len);
        put_u32(out, ID, id);
        if self.size.is_some() || !self.fields.is_empty() {
            out.nest_with(DESC, |desc| self.write_description(desc));
        }
        put_bytes(out, USERDATA, &self.userdata);
    }

    fn write_description(&self, out: &mut Attributes) {
        if let Some(size) = self.size {
            put_u32(out, DESC_SIZE, size);
        }
        if !self.fields.is_empty() {
            out.nest_with(DESC_CONCAT, |list| {
                for len in &self.fields {
                    list.nest_with(LIST_ELEM, |field| put_u32(field, FIELD_LEN, *len));
                }
            });
        }
    }

    pub(crate) fn write_name(table: &str, name: &str, out: &mut Attributes) {
        Self::write_table(table, out);
        out.put_str(NAME, name);
    }

    pub(crate) fn write_table(table: &str, out: &mut Attributes) {
        out.put_str(TABLE, table);
    }

    /// Reads a message (`NFT_MSG_NEWSET`) without its netlink header.
    ///
    /// # Errors
    /// [`Error::Malformed`]
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let (header, attributes) = split_header(payload)?;
        let mut set = Self::new(header.family.into(), "", "", &[]);
        set.userdata.clear();
        for attribute in AttributeIter::new(attributes) {
            match attribute? {
                (TABLE, value) => set.table = text(value),
                (NAME, value) => set.name = text(value),
                (FLAGS, value) => set.flags = SetFlags::from_bits(to_u32(value)?),
                (KEY_TYPE, value) => set.key_type = to_u32(value)?,
                (KEY_LEN, value) => set.key_len = to_u32(value)?,
                (DESC, value) => set.parse_description(value)?,
                (USERDATA, value) => set.userdata = value.to_vec(),
                (HANDLE, value) => set.handle = Some(to_u64(value)?),
                _ => {}
            }
        }
        Ok(set)
    }

    fn parse_description(&mut self, value: &[u8]) -> Result<(), Error> {
        for attribute in AttributeIter::new(value) {
            match attribute? {
                (DESC_SIZE, value) => self.size = Some(to_u32(value)?),
                (DESC_CONCAT, list) => {
                    for field in AttributeIter::new(list) {
                        for attribute in AttributeIter::new(field?.1) {
                            if let (FIELD_LEN, value) = attribute? {
                                self.fields.push(to_u32(value)?);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
