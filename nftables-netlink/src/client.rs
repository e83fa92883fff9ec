// SPDX-License-Identifier: Apache-2.0
//! The client: transactions, and lists.

use netlink_batch::{
    Attributes, Channel, Counters, Errno, Error, KernelChannel, Message, Refusals, Socket, protocols,
};

use crate::chain::Chain;
use crate::element::{Element, parse_elements, write_elements};
use crate::error::CommitError;
use crate::generation::Generation;
use crate::rule::Rule;
use crate::set::Set;
use crate::table::Table;
use crate::transaction::Transaction;
use crate::wire::{Family, kind, message, put_header, split_header};

/// How often a list is read when it changes meanwhile.
const TRIES: usize = 3;

/// What a list is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Every table.
    All,
    /// The tables of a family.
    Family(Family),
    /// One table.
    Table(Family, &'a str),
}

impl Scope<'_> {
    fn family(&self) -> u8 {
        match self {
            Scope::All => Family::ANY,
            Scope::Family(family) | Scope::Table(family, _) => (*family).into(),
        }
    }

    fn table(&self) -> Option<&str> {
        match self {
            Scope::Table(_, table) => Some(table),
            Scope::All | Scope::Family(_) => None,
        }
    }

    fn has(&self, table: &str) -> bool {
        self.table().is_none_or(|wanted| wanted == table)
    }
}

/// A request for something; `write` adds its attributes.
struct Request<F> {
    message: u8,
    family: u8,
    write: F,
}

impl<F: Fn(&mut Attributes)> Message for Request<F> {
    fn kind(&self) -> u16 {
        kind(self.message)
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_header(out, self.family, 0);
        Attributes::append_to(out, &self.write);
    }
}

/// What a dump collected so far.
struct List<T> {
    entries: Vec<T>,
    /// The generation that all parts must be from.
    generation: Option<u16>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), generation: None }
    }
}

/// A blocking client, for the network namespace that it was opened in.
///
/// Every list is complete and from one generation, or an error: one that changes while it is read is read again,
/// three times at most.
#[derive(Debug)]
pub struct Client<C = KernelChannel> {
    socket: Socket<C>,
}

impl Client {
    /// Opens a socket. The kernel loads `nf_tables` at the first request.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel has no netfilter.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(protocols::NETLINK_NETFILTER)? })
    }

    /// The netlink port: notifications of changes made through this client carry it.
    pub fn port_number(&self) -> u32 {
        self.socket.port_number()
    }
}

impl<C: Channel> Client<C> {
    /// Talks over another channel than the kernel's, for tests.
    pub fn over(channel: C) -> Self {
        Self { socket: Socket::over(channel) }
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }

    /// Applies all commands of a transaction, or none, in one send of any length.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let messages = transaction.messages();
        let refusals: Refusals = self.socket.transaction(&messages)?;
        let command_of: Vec<Option<usize>> = messages.iter().map(|message| message.command).collect();
        CommitError::of(refusals, transaction, &command_of).map_or(Ok(()), Err)
    }

    /// The generation of the ruleset. [`Error::Refused`] with `EINVAL`: the kernel has no nf_tables.
    ///
    /// # Errors
    /// [`Error::Refused`], and what can go wrong with the conversation.
    pub fn generation(&mut self) -> Result<Generation, Error> {
        let request =
            Request { message: message::GET_GENERATION, family: Family::ANY, write: |_: &mut Attributes| {} };
        Generation::parse(&self.socket.ask(&request)??)
    }

    /// The tables.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn tables(&mut self, scope: Scope<'_>) -> Result<Vec<Table>, Error> {
        self.list(
            message::GET_TABLE,
            scope.family(),
            |_| {},
            |found, payload| {
                found.extend(Some(Table::parse(payload)?).filter(|table| scope.has(&table.name)));
                Ok(())
            },
        )
    }

    /// The chains.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn chains(&mut self, scope: Scope<'_>) -> Result<Vec<Chain>, Error> {
        self.list(
            message::GET_CHAIN,
            scope.family(),
            |_| {},
            |found, payload| {
                found.extend(Some(Chain::parse(payload)?).filter(|chain| scope.has(&chain.table)));
                Ok(())
            },
        )
    }

    /// The sets. None, if there is no such table.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn sets(&mut self, scope: Scope<'_>) -> Result<Vec<Set>, Error> {
        let write = |out: &mut Attributes| {
            if let Some(table) = scope.table() {
                Set::write_table(table, out);
            }
        };
        let list = self.list(message::GET_SET, scope.family(), write, |found, payload| {
            found.extend(Some(Set::parse(payload)?).filter(|set| scope.has(&set.table)));
            Ok(())
        });
        match list {
            Err(Error::Refused(refusal)) if refusal.errno() == Errno::ENOENT => Ok(Vec::new()),
            other => other,
        }
    }

    /// The rules, in the order of each chain.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn rules(&mut self, scope: Scope<'_>) -> Result<Vec<Rule>, Error> {
        let write = |out: &mut Attributes| {
            if let Some(table) = scope.table() {
                Rule::write_table(table, out);
            }
        };
        self.list(message::GET_RULE, scope.family(), write, |found, payload| {
            found.extend(Some(Rule::parse(payload)?).filter(|rule| scope.has(&rule.table)));
            Ok(())
        })
    }

    /// The rules of a chain, in order. None, if there is no such chain.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn chain_rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<Rule>, Error> {
        let write = |out: &mut Attributes| Rule::write_chain(table, chain, None, out);
        self.list(message::GET_RULE, family.into(), write, |found, payload| {
            let rule = Rule::parse(payload)?;
            found.extend(Some(rule).filter(|rule| rule.table == table && rule.chain == chain));
            Ok(())
        })
    }

    /// The elements of a set, in no order.
    ///
    /// Growing of a hash table is no change of the ruleset, but mixes the positions that the kernel counts in a list:
    /// elements come twice, and as many are missing. Such a list is read again. A set with a `size` does not grow.
    ///
    /// # Errors
    /// [`Error::Refused`] with `ENOENT` if there is no such set; a list that could not be read whole.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Element>, Error> {
        let write = |out: &mut Attributes| write_elements(table, set, &[], out);
        for _ in 0..TRIES {
            let elements = self.list(message::GET_ELEMENTS, family.into(), write, |found, payload| {
                found.extend(parse_elements(payload)?.2);
                Ok(())
            })?;
            if !has_duplicate(&elements) {
                return Ok(elements);
            }
        }
        Err(Error::Interrupted)
    }

    /// Reads a list whose parts are all from one generation.
    fn list<T>(
        &mut self,
        message: u8,
        family: u8,
        write: impl Fn(&mut Attributes),
        mut part: impl FnMut(&mut Vec<T>, &[u8]) -> Result<(), Error>,
    ) -> Result<Vec<T>, Error> {
        let request = Request { message, family, write };
        for _ in 0..TRIES {
            let list = self.socket.dump(&request, |list: &mut List<T>, payload| {
                let generation = split_header(payload)?.0.resource;
                if *list.generation.get_or_insert(generation) != generation {
                    return Err(Error::Interrupted);
                }
                part(&mut list.entries, payload)
            });
            match list {
                Err(Error::Interrupted) => {}
                other => return other.map(|list| list.entries),
            }
        }
        Err(Error::Interrupted)
    }
}

fn has_duplicate(elements: &[Element]) -> bool {
    let mut sorted: Vec<&Element> = elements.iter().collect();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}
