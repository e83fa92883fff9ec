// SPDX-License-Identifier: Apache-2.0
//! The decoders by themselves, for fuzzing: each function takes what a kernel may send and panics when what it reads
//! breaks a rule. No part of the API.

#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

use netlink_batch::{Attributes, Message, Received};

use crate::{
    Chain, Command, Expression, Generation, Notification, Rule, Set, Table, TraceEvent, Transaction,
    parse_elements,
};

/// A decoder: its name, and what reads an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every decoder.
pub const TARGETS: &[Target] =
    &[("nft-expression", expression), ("nft-notification", notification), ("nft-object", object)];

/// An expression. What is read survives being written and read again.
pub fn expression(bytes: &[u8]) {
    let Ok(read) = Expression::parse(bytes) else { return };
    let mut written = Attributes::default();
    read.write(&mut written);
    assert_eq!(Expression::parse(written.as_bytes()).unwrap(), read);
}

/// A notification: the message, then what follows its header.
pub fn notification(bytes: &[u8]) {
    let [subsystem, message, payload @ ..] = bytes else { return };
    let kind = u16::from_be_bytes([*subsystem, *message]);
    let received = Received { kind, flags: 0, seq: 0, port: 0, payload };
    let _ = Notification::parse(&received);
    let _ = TraceEvent::parse(&received);
}

/// An entry of every list, with its header. What is read survives being written and read again, but for its handle.
pub fn object(payload: &[u8]) {
    let _ = Generation::parse(payload);
    if let Ok(mut table) = Table::parse(payload) {
        table.handle = None;
        assert_eq!(Table::parse(&body(Command::AddTable(table.clone()))).unwrap(), table);
    }
    if let Ok(mut chain) = Chain::parse(payload) {
        chain.handle = None;
        assert_eq!(Chain::parse(&body(Command::AddChain(chain.clone()))).unwrap(), chain);
    }
    if let Ok(mut set) = Set::parse(payload) {
        set.handle = None;
        assert_eq!(Set::parse(&body(Command::AddSet(set.clone()))).unwrap(), set);
    }
    if let Ok(mut rule) = Rule::parse(payload) {
        rule.handle = None;
        assert_eq!(Rule::parse(&body(Command::AddRule(rule.clone()))).unwrap(), rule);
    }
    if let Ok((table, set, elements)) = parse_elements(payload) {
        assert!(elements.len() <= payload.len() / 4);
        if !elements.is_empty() {
            let family = crate::Family::Ipv4;
            let (copy, names) = (elements.clone(), (table.clone(), set.clone()));
            let command = Command::AddElements { family, table: names.0, set: names.1, elements };
            assert_eq!(parse_elements(&body(command)).unwrap(), (table, set, copy));
        }
    }
}

/// What follows the header in the message of a command.
fn body(command: Command) -> Vec<u8> {
    let transaction: Transaction = [command].into_iter().collect();
    let mut bytes = Vec::new();
    transaction.messages()[1].write(&mut bytes);
    bytes
}
