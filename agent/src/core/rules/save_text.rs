// SPDX-License-Identifier: Apache-2.0
//! Splits the output of `iptables-save` by table.

use std::collections::{BTreeMap, BTreeSet};

/// Chains and rules of one table, as text.
#[derive(Debug, Default)]
pub struct SavedTable<'a> {
    pub chains: BTreeSet<&'a str>,
    /// Rules in order: the chain, and the text after `-A CHAIN `.
    pub rules: Vec<(&'a str, &'a str)>,
}

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
