// SPDX-License-Identifier: Apache-2.0
//! Tables (`enum nft_table_attributes`).

use netlink_batch::{AttributeIter, Attributes, Error, text};

use crate::wire::{Family, put_bytes, put_u32, split_header, to_u32, to_u64};

const NAME: u16 = 1;
const FLAGS: u16 = 2;
const HANDLE: u16 = 4;
const USERDATA: u16 = 6;

flags! {
    /// `enum nft_table_flags`
    TableFlags {
        /// The chains of the table are not in use.
        DORMANT = 1,
        /// The table goes with the socket that created it.
        OWNER = 2,
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Flags.
    pub flags: TableFlags,
    /// Data for user space, see [`userdata`](crate::userdata); at most 256 bytes.
    pub userdata: Vec<u8>,
    /// The kernel's number of it; only ever reported.
    pub handle: Option<u64>,
}

impl Table {
    /// A table without flags.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into(), flags: TableFlags::default(), userdata: Vec::new(), handle: None }
    }

    pub(crate) fn write(&self, out: &mut Attributes) {
        Self::write_name(&self.name, out);
        put_u32(out, FLAGS, self.flags.bits());
        put_bytes(out, USERDATA, &self.userdata);
    }

    pub(crate) fn write_name(name: &str, out: &mut Attributes) {
        out.put_str(NAME, name);
    }

    /// Reads a message (`NFT_MSG_NEWTABLE`) without its netlink header.
    ///
    /// # Errors
    /// [`Error::Malformed`]
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let (header, attributes) = split_header(payload)?;
        let mut table = Self::new(header.family.into(), "");
        for attribute in AttributeIter::new(attributes) {
            match attribute? {
                (NAME, value) => table.name = text(value),
                (FLAGS, value) => table.flags = TableFlags::from_bits(to_u32(value)?),
                (USERDATA, value) => table.userdata = value.to_vec(),
                (HANDLE, value) => table.handle = Some(to_u64(value)?),
                _ => {}
            }
        }
        Ok(table)
    }
}
