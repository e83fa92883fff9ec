// SPDX-License-Identifier: Apache-2.0
//! Transactions: commands that apply as a whole or not at all.

use netlink_batch::{Attributes, Message};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};

use crate::chain::Chain;
use crate::command::Command;
use crate::element::{Element, lists, write_elements};
use crate::rule::Rule;
use crate::set::Set;
use crate::table::Table;
use crate::wire::{BATCH_BEGIN, BATCH_END, Family, SUBSYSTEM, kind, message, put_header, put_u32};

/// `NFNL_BATCH_GENID`
const BATCH_GENERATION: u16 = 1;

/// Commands in order. A command sees what those before it did: a new set can be used by the rules after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    commands: Vec<Command>,
    generation: Option<u32>,
}

impl Transaction {
    /// A transaction without a command.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a command.
    pub fn push(&mut self, command: Command) -> &mut Self {
        self.commands.push(command);
        self
    }

    /// The transaction is refused unless the ruleset has this generation, see [`Client::generation`](crate::Client::generation):
    /// nothing changed since it was read.
    pub fn require_generation(&mut self, id: u32) -> &mut Self {
        self.generation = Some(id);
        self
    }

    /// The commands so far.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// Whether there is no command.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// The messages: one that begins the transaction, those of each command, and one that ends it. Elements take several
    /// messages if they are many.
    pub fn messages(&self) -> Vec<TransactionMessage<'_>> {
        let mut messages = vec![TransactionMessage { command: None, body: Body::Begin(self.generation) }];
        for (index, command) in self.commands.iter().enumerate() {
            match command {
                Command::AddElements { elements, .. } | Command::DeleteElements { elements, .. } => {
                    for list in lists(elements) {
                        let body = Body::Elements(command, list);
                        messages.push(TransactionMessage { command: Some(index), body });
                    }
                }
                other => {
                    let body = Body::Command(other);
                    messages.push(TransactionMessage { command: Some(index), body });
                }
            }
        }
        messages.push(TransactionMessage { command: None, body: Body::End });
        messages
    }
}

impl Extend<Command> for Transaction {
    fn extend<T: IntoIterator<Item = Command>>(&mut self, commands: T) {
        self.commands.extend(commands);
    }
}

impl FromIterator<Command> for Transaction {
    fn from_iter<T: IntoIterator<Item = Command>>(commands: T) -> Self {
        Self { commands: commands.into_iter().collect(), generation: None }
    }
}

/// A message of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct TransactionMessage<'a> {
    /// Index of its command; `None` for the messages that begin and end the transaction.
    pub command: Option<usize>,
    body: Body<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Body<'a> {
    Begin(Option<u32>),
    Command(&'a Command),
    /// Some of the command's elements.
    Elements(&'a Command, &'a [Element]),
    End,
}

impl Body<'_> {
    /// Message and flags of `<linux/netlink.h>`.
    fn message(&self) -> (u8, u16) {
        const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
        let (Body::Command(command) | Body::Elements(command, _)) = self else { return (0, 0) };
        match command {
            Command::AddTable(_) => (message::NEW_TABLE, NLM_F_CREATE),
            Command::CreateTable(_) => (message::NEW_TABLE, CREATE),
            Command::DeleteTable { .. } => (message::DEL_TABLE, 0),
            Command::AddChain(_) => (message::NEW_CHAIN, NLM_F_CREATE),
            Command::CreateChain(_) => (message::NEW_CHAIN, CREATE),
            Command::DeleteChain { .. } => (message::DEL_CHAIN, 0),
            Command::AddRule(_) => (message::NEW_RULE, NLM_F_CREATE | NLM_F_APPEND),
            Command::InsertRule(_) => (message::NEW_RULE, NLM_F_CREATE),
            Command::FlushChain { .. } | Command::DeleteRule { .. } => (message::DEL_RULE, 0),
            Command::AddSet(_) => (message::NEW_SET, NLM_F_CREATE),
            Command::CreateSet(_) => (message::NEW_SET, CREATE),
            Command::DeleteSet { .. } => (message::DEL_SET, 0),
            Command::AddElements { .. } => (message::NEW_ELEMENTS, NLM_F_CREATE),
            Command::FlushSet { .. } | Command::DeleteElements { .. } => (message::DEL_ELEMENTS, 0),
        }
    }

    fn family(&self) -> Family {
        let (Body::Command(command) | Body::Elements(command, _)) = self else {
            return Family::Other(Family::ANY);
        };
        match command {
            Command::AddTable(table) | Command::CreateTable(table) => table.family,
            Command::AddChain(chain) | Command::CreateChain(chain) => chain.family,
            Command::AddRule(rule) | Command::InsertRule(rule) => rule.family,
            Command::AddSet(set) | Command::CreateSet(set) => set.family,
            Command::DeleteTable { family, .. }
            | Command::DeleteChain { family, .. }
            | Command::FlushChain { family, .. }
            | Command::DeleteRule { family, .. }
            | Command::DeleteSet { family, .. }
            | Command::FlushSet { family, .. }
            | Command::AddElements { family, .. }
            | Command::DeleteElements { family, .. } => *family,
        }
    }

    /// Writes the attributes. The index of a command is also the number of the set that it creates.
    fn write(&self, index: usize, out: &mut Attributes) {
        let (command, elements) = match self {
            Body::Begin(Some(generation)) => return put_u32(out, BATCH_GENERATION, *generation),
            Body::Begin(None) | Body::End => return,
            Body::Command(command) => (command, &[][..]),
            Body::Elements(command, elements) => (command, *elements),
        };
        match command {
            Command::AddTable(table) | Command::CreateTable(table) => table.write(out),
            Command::DeleteTable { table, .. } => Table::write_name(table, out),
            Command::AddChain(chain) | Command::CreateChain(chain) => chain.write(out),
            Command::DeleteChain { table, chain, .. } => Chain::write_name(table, chain, out),
            Command::AddRule(rule) | Command::InsertRule(rule) => rule.write(out),
            Command::FlushChain { table, chain, .. } => Rule::write_chain(table, chain, None, out),
            Command::DeleteRule { table, chain, handle, .. } => {
                Rule::write_chain(table, chain, Some(*handle), out);
            }
            Command::AddSet(set) | Command::CreateSet(set) => {
                set.write(u32::try_from(index).unwrap_or(u32::MAX), out);
            }
            Command::DeleteSet { table, set, .. } => Set::write_name(table, set, out),
            Command::FlushSet { table, set, .. }
            | Command::AddElements { table, set, .. }
            | Command::DeleteElements { table, set, .. } => write_elements(table, set, elements, out),
        }
    }
}

impl Message for TransactionMessage<'_> {
    fn kind(&self) -> u16 {
        match self.body {
            Body::Begin(_) => BATCH_BEGIN,
            Body::End => BATCH_END,
            body => kind(body.message().0),
        }
    }

    fn flags(&self) -> u16 {
        self.body.message().1
    }

    fn write(&self, out: &mut Vec<u8>) {
        let resource = if self.command.is_none() { SUBSYSTEM.into() } else { 0 };
        put_header(out, self.body.family().into(), resource);
        let index = self.command.unwrap_or_default();
        Attributes::append_to(out, |attributes| self.body.write(index, attributes));
    }
}
