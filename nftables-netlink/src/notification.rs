// SPDX-License-Identifier: Apache-2.0
//! Notifications: what changed, and the generation that each transaction ends with.

use netlink_batch::{AttributeIter, Error, Listener, Received, protocols, text};

use crate::generation::Generation;
use crate::wire::{Family, SUBSYSTEM, message, split_header, to_u64};

/// `NFNLGRP_NFTABLES`: the multicast group.
pub const GROUP: u32 = 7;

/// Whether an object is new, or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is new or has other properties.
    New,
    /// It is gone.
    Delete,
}

/// What changed, inside of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Object {
    /// The table itself.
    Table,
    /// The chain with this name.
    Chain(String),
    /// A rule.
    Rule {
        /// Its chain.
        chain: String,
        /// The kernel's number of it.
        handle: u64,
    },
    /// The set with this name.
    Set(String),
    /// Elements of the set with this name.
    Elements(String),
}

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notification {
    /// An object changed.
    Change {
        /// How.
        action: Action,
        /// The family of the table.
        family: Family,
        /// The table.
        table: String,
        /// What changed.
        object: Object,
    },
    /// The end of a transaction. A flush of a table or an empty transaction has only this.
    Generation(Generation),
    /// A message that this version does not know, such as of an object or a flow table.
    Other(u16),
}

/// Joins the multicast group in the current network namespace. [`Received::port`] is the netlink port of the socket
/// that changed something.
///
/// # Errors
/// When the kernel has no nf_tables, or the process may not join.
pub fn listen() -> Result<Listener, Error> {
    Listener::open(protocols::NETLINK_NETFILTER, &[GROUP])
}

impl Notification {
    /// Reads a notification.
    ///
    /// # Errors
    /// [`Error::Malformed`]
    pub fn parse(received: &Received<'_>) -> Result<Self, Error> {
        let [SUBSYSTEM, kind] = received.kind.to_be_bytes() else {
            return Ok(Notification::Other(received.kind));
        };
        let names = Names::parse(received.payload)?;
        let (action, object) = match kind {
            message::NEW_TABLE => (Action::New, Object::Table),
            message::DEL_TABLE => (Action::Delete, Object::Table),
            message::NEW_CHAIN => (Action::New, names.chain()),
            message::DEL_CHAIN => (Action::Delete, names.chain()),
            message::NEW_RULE => (Action::New, names.rule()?),
            message::DEL_RULE => (Action::Delete, names.rule()?),
            message::NEW_SET => (Action::New, names.set()),
            message::DEL_SET => (Action::Delete, names.set()),
            message::NEW_ELEMENTS => (Action::New, names.elements()),
            message::DEL_ELEMENTS => (Action::Delete, names.elements()),
            message::NEW_GENERATION => {
                return Generation::parse(received.payload).map(Notification::Generation);
            }
            _ => return Ok(Notification::Other(received.kind)),
        };
        Ok(Notification::Change { action, family: names.family, table: text(names.first), object })
    }
}

/// The attributes 1 to 3 of an object. The first is the name of the table in all of them.
struct Names<'a> {
    family: Family,
    first: &'a [u8],
    second: &'a [u8],
    third: &'a [u8],
}

impl<'a> Names<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, Error> {
        let (header, attributes) = split_header(payload)?;
        let mut names = Self { family: header.family.into(), first: &[], second: &[], third: &[] };
        for attribute in AttributeIter::new(attributes) {
            match attribute? {
                (1, value) => names.first = value,
                (2, value) => names.second = value,
                (3, value) => names.third = value,
                _ => {}
            }
        }
        Ok(names)
    }

    /// `NFTA_CHAIN_NAME`
    fn chain(&self) -> Object {
        Object::Chain(text(self.third))
    }

    /// `NFTA_RULE_CHAIN`, `NFTA_RULE_HANDLE`
    fn rule(&self) -> Result<Object, Error> {
        Ok(Object::Rule { chain: text(self.second), handle: to_u64(self.third)? })
    }

    /// `NFTA_SET_NAME`
    fn set(&self) -> Object {
        Object::Set(text(self.second))
    }

    /// `NFTA_SET_ELEM_LIST_SET`
    fn elements(&self) -> Object {
        Object::Elements(text(self.second))
    }
}
