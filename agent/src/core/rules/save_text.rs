// SPDX-License-Identifier: Apache-2.0
//! The text that `iptables-save` prints, by table.

use std::collections::{BTreeMap, BTreeSet};

/// Chains and rules of one table, as printed.
#[derive(Debug, Default)]
pub struct SavedTable<'a> {
    /// Declared chains.
    pub chains: BTreeSet<&'a str>,
    /// Rules in order: the chain, and the text after `-A CHAIN `.
    pub rules: Vec<(&'a str, &'a str)>,
}

/// Splits the text by the name of the table.
pub fn split_save(text: &str) -> BTreeMap<&str, SavedTable<'_>> {
    let mut tables: BTreeMap<&str, SavedTable<'_>> = BTreeMap::new();
    let mut table = "";
    for line in text.lines().map(str::trim_end) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(declaration) = line.strip_prefix(':') {
            let chain = declaration.split_whitespace().next().unwrap_or_default();
            tables.entry(table).or_default().chains.insert(chain);
        } else if let Some(rule) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            tables.entry(table).or_default().rules.push(rule);
        }
    }
    tables
}
