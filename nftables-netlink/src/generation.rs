// SPDX-License-Identifier: Apache-2.0
//! Generations (`enum nft_gen_attributes`): each transaction makes a new one.

use netlink_batch::{AttributeIter, Error, text};

use crate::wire::{split_header, to_u32};

const ID: u16 = 1;
const PID: u16 = 2;
const NAME: u16 = 3;

/// A generation of the ruleset of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generation {
    /// Its number. It grows by 1 with each transaction of any process, and is never 0.
    pub id: u32,
    /// In a notification: the process that sent the transaction. In an answer: the process that asked.
    pub pid: u32,
    /// The name of that process.
    pub process: String,
}

impl Generation {
    /// Reads a message (`NFT_MSG_NEWGEN`) without its netlink header.
    ///
    /// # Errors
    /// [`Error::Malformed`]
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let (_, attributes) = split_header(payload)?;
        let mut generation = Self::default();
        for attribute in AttributeIter::new(attributes) {
            match attribute? {
                (ID, value) => generation.id = to_u32(value)?,
                (PID, value) => generation.pid = to_u32(value)?,
                (NAME, value) => generation.process = text(value),
                _ => {}
            }
        }
        Ok(generation)
    }
}
