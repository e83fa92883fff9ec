// SPDX-License-Identifier: Apache-2.0
//! Walks a packet through our rules as they are in the kernel, and notes each rule that matched it.

use std::collections::HashMap;
use std::net::IpAddr;

use super::chains::{JUMPS, Table};
use super::nftables::{self, NftChains, NftRule};
use super::save::ObservedRules;
use super::{match_iptables, match_nft};
use crate::core::model::sets::{Entry, SetId};
use crate::core::model::settings::RulesMode;
use crate::core::model::{Family, Protocol};

/// Deepest chain of jumps.
const DEPTH: usize = 8;

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub protocol: Protocol,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: u16,
    /// The interface it came in by; `None`: a process of the node sent it.
    pub input: Option<String>,
    pub mark: u32,
}

/// What rules ask about the node.
pub trait RuleFacts {
    fn has_entry(&self, set: SetId, entry: &Entry) -> bool;
    /// Whether the address is of the type LOCAL: packets to it are for this node.
    fn is_local(&self, addr: IpAddr) -> bool;
}

/// What a chain does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No later rule of this hook sees it.
    Accepted,
    Dropped,
    /// Refused with "port unreachable".
    Rejected,
    /// Its source becomes an address of this node.
    Masqueraded,
}

/// The effect of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleEffect {
    Jump(String),
    Return,
    End(Fate),
    /// The packet has this mark now.
    Mark(u32),
    /// A rule of another program in our chain, or one of a later version: not understood.
    Unknown,
}

/// A rule that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    pub table: Table,
    pub chain: String,
    pub rule: String,
    pub effect: RuleEffect,
}

/// A hook of netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Output,
    /// Filter rules for packets of the node itself.
    OutputFilter,
    Postrouting,
}

impl Hook {
    /// Table and built-in chain of iptables.
    fn of_iptables(self) -> (Table, &'static str) {
        match self {
            Hook::Prerouting => (Table::Nat, "PREROUTING"),
            Hook::Input => (Table::Filter, "INPUT"),
            Hook::Output => (Table::Nat, "OUTPUT"),
            Hook::OutputFilter => (Table::Filter, "OUTPUT"),
            Hook::Postrouting => (Table::Nat, "POSTROUTING"),
        }
    }

    /// Base chain of nf_tables.
    fn of_nftables(self) -> &'static str {
        match self {
            Hook::Prerouting => "nat-prerouting",
            Hook::Input => "filter-input",
            Hook::Output => "nat-output",
            Hook::OutputFilter => "filter-output",
            Hook::Postrouting => "nat-postrouting",
        }
    }
}

/// The rules of one family.
pub struct RuleWalk<'a> {
    rules: &'a ObservedRules,
    facts: &'a dyn RuleFacts,
    /// The rules of nf_tables by their text; `None`: iptables.
    nft: Option<HashMap<String, NftRule>>,
    /// The rules that matched so far.
    pub matched: Vec<Matched>,
}

impl<'a> RuleWalk<'a> {
    /// `known`: the rules that the texts of nf_tables may stand for.
    pub fn new(
        family: Family,
        mode: RulesMode,
        rules: &'a ObservedRules,
        known: NftChains,
        facts: &'a dyn RuleFacts,
    ) -> Self {
        let by_text = |rule: NftRule| (rule.text(family), rule);
        let nft = (mode == RulesMode::Nftables).then(|| known.into_values().flatten().map(by_text).collect());
        Self { rules, facts, nft, matched: Vec::new() }
    }

    /// What the rules of a hook do with the packet; `None`: it goes on.
    pub fn run(&mut self, hook: Hook, packet: &mut Packet) -> Option<Fate> {
        if self.nft.is_some() {
            return self.walk(Table::KubeIpvs, hook.of_nftables(), packet, 0);
        }
        let (table, from) = hook.of_iptables();
        let jumps = self.rules.jumps.get(&(table, from)).cloned().unwrap_or_default();
        jumps.into_iter().find_map(|jump| self.walk(table, JUMPS.get(jump)?.to, packet, 0))
    }

    fn walk(&mut self, table: Table, chain: &str, packet: &mut Packet, depth: usize) -> Option<Fate> {
        let rules = self.rules.chains.get(&(table, chain.to_owned()))?;
        for rule in rules {
            let effect = match &self.nft {
                // The first "rule" of a base chain is its hook.
                Some(_) if rule.starts_with("type ") => continue,
                Some(known) => match known.get(rule) {
                    Some(known) if self.matches_nft(known, packet) => match_nft::effect(known, packet),
                    Some(_) => continue,
                    None => RuleEffect::Unknown,
                },
                None => match match_iptables::effect(rule, packet, self.facts) {
                    Some(effect) => effect,
                    None => continue,
                },
            };
            let chain = chain.to_owned();
            self.matched.push(Matched { table, chain, rule: rule.clone(), effect: effect.clone() });
            match effect {
                RuleEffect::Jump(to) if depth < DEPTH => {
                    if let Some(fate) = self.walk(table, &to, packet, depth + 1) {
                        return Some(fate);
                    }
                }
                RuleEffect::Return => return None,
                RuleEffect::End(fate) => return Some(fate),
                RuleEffect::Mark(mark) => packet.mark = mark,
                RuleEffect::Jump(_) | RuleEffect::Unknown => {}
            }
        }
        None
    }

    fn matches_nft(&self, rule: &NftRule, packet: &Packet) -> bool {
        rule.matches.iter().all(|matched| match_nft::holds(matched, packet, self))
    }

    /// Whether a set of nf_tables without an ipset has an element that `is_it`.
    pub(super) fn own_set_has(&self, set: &str, is_it: impl Fn(&str) -> bool) -> bool {
        let elements = self.rules.chains.get(&nftables::set_key(set));
        elements.is_some_and(|elements| elements.iter().any(|element| is_it(element)))
    }

    pub(super) fn facts(&self) -> &dyn RuleFacts {
        self.facts
    }
}

/// Whether a set of source ranges has the source.
pub(super) fn has_range(facts: &dyn RuleFacts, set: SetId, packet: &Packet) -> bool {
    let longest = if packet.source.is_ipv4() { 32 } else { 128 };
    (0..=longest).any(|prefix| in_range(facts, set, packet, prefix))
}

/// The same for ranges of one prefix length.
pub(super) fn in_range(facts: &dyn RuleFacts, set: SetId, packet: &Packet, prefix: u8) -> bool {
    let net = ipnet::IpNet::new(packet.source, prefix).map(|net| net.trunc());
    net.is_ok_and(|net| {
        facts.has_entry(set, &Entry::IpPortNet(packet.destination, packet.protocol, packet.port, net))
    })
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
