// SPDX-License-Identifier: Apache-2.0
//! Commands of a transaction.

use std::fmt;

use crate::chain::Chain;
use crate::element::Element;
use crate::rule::Rule;
use crate::set::Set;
use crate::table::Table;
use crate::wire::Family;

/// A command that changes something. Commands named `Add` accept an object that exists already, those named `Create`
/// are refused then (`EEXIST`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Adds a table, or sets the flags of the existing one. `nft add table`
    AddTable(Table),
    /// Adds a new table. `nft create table`
    CreateTable(Table),
    /// Removes a table with everything in it. `nft delete table`
    DeleteTable {
        /// Its family.
        family: Family,
        /// Its name.
        table: String,
    },
    /// Adds a chain, or sets the policy of the existing one. `nft add chain`
    AddChain(Chain),
    /// Adds a new chain. `nft create chain`
    CreateChain(Chain),
    /// Removes a chain with its rules; `EBUSY` while a rule jumps to it. `nft delete chain`
    DeleteChain {
        /// The family of the table.
        family: Family,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
    /// Removes all rules of a chain. `nft flush chain`
    FlushChain {
        /// The family of the table.
        family: Family,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
    /// Adds a rule at the end of its chain. `nft add rule`
    AddRule(Rule),
    /// Adds a rule at the beginning of its chain. `nft insert rule`
    InsertRule(Rule),
    /// Removes a rule. `nft delete rule`
    DeleteRule {
        /// The family of the table.
        family: Family,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
        /// The kernel's number of the rule.
        handle: u64,
    },
    /// Adds a set; an existing one must have the same properties. `nft add set`
    AddSet(Set),
    /// Adds a new set. `nft create set`
    CreateSet(Set),
    /// Removes a set; `EBUSY` while a rule uses it. `nft delete set`
    DeleteSet {
        /// The family of the table.
        family: Family,
        /// The table.
        table: String,
        /// The set.
        set: String,
    },
    /// Removes all elements of a set. `nft flush set`
    FlushSet {
        /// The family of the table.
        family: Family,
        /// The table.
        table: String,
        /// The set.
        set: String,
    },
    /// Adds elements to a set. `nft add element`
    AddElements {
        /// The family of the table.
        family: Family,
        /// The table.
        table: String,
        /// The set.
        set: String,
        /// The elements; none: nothing is sent.
        elements: Vec<Element>,
    },
    /// Removes elements from a set; `ENOENT` if one of them is missing. `nft delete element`
    DeleteElements {
        /// The family of the table.
        family: Family,
        /// The table.
        table: String,
        /// The set.
        set: String,
        /// The elements; none: nothing is sent.
        elements: Vec<Element>,
    },
}

/// What the command is about, for errors: `add rule to ip kube filter`.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |f: &mut fmt::Formatter<'_>, verb: &str, family: &Family, names: [&str; 2]| {
            write!(f, "{verb} {family} {}", names[0])?;
            if names[1].is_empty() { Ok(()) } else { write!(f, " {}", names[1]) }
        };
        match self {
            Command::AddTable(t) | Command::CreateTable(t) => named(f, "add table", &t.family, [&t.name, ""]),
            Command::DeleteTable { family, table } => named(f, "delete table", family, [table, ""]),
            Command::AddChain(c) | Command::CreateChain(c) => {
                named(f, "add chain", &c.family, [&c.table, &c.name])
            }
            Command::DeleteChain { family, table, chain } => named(f, "delete chain", family, [table, chain]),
            Command::FlushChain { family, table, chain } => named(f, "flush chain", family, [table, chain]),
            Command::AddRule(r) | Command::InsertRule(r) => {
                named(f, "add rule to", &r.family, [&r.table, &r.chain])
            }
            Command::DeleteRule { family, table, chain, handle } => {
                write!(f, "delete rule {handle} of {family} {table} {chain}")
            }
            Command::AddSet(s) | Command::CreateSet(s) => named(f, "add set", &s.family, [&s.table, &s.name]),
            Command::DeleteSet { family, table, set } => named(f, "delete set", family, [table, set]),
            Command::FlushSet { family, table, set } => named(f, "flush set", family, [table, set]),
            Command::AddElements { family, table, set, .. } => {
                named(f, "add elements to", family, [table, set])
            }
            Command::DeleteElements { family, table, set, .. } => {
                named(f, "delete elements from", family, [table, set])
            }
        }
    }
}
