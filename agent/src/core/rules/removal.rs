// SPDX-License-Identifier: Apache-2.0
//! Removal of chains and jumps: finds those of one family in the output of `iptables-save`, and renders the input for
//! `iptables-restore` that removes them. Rules of other programs are never changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::chains::{JUMPS, Table, is_ours};
use super::save_text::split_save;

/// Rules and chains to remove from one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRemoval {
    /// Rules in chains that stay: the chain, and the text of the rule after `-A CHAIN `.
    pub rules: Vec<(String, String)>,
    /// Chains with all their rules.
    pub chains: Vec<String>,
}

/// Rules and chains to remove from the tables of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// By the name of the table; no removal is empty.
    pub tables: BTreeMap<String, TableRemoval>,
    /// A message for each chain that stays because a rule of another program jumps to it.
    pub kept: Vec<String>,
}

/// Which chains and jumps to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Those of other kube-proxy modes. The chains of the ipvs mode are in use.
    OtherModes,
    /// Those of this agent, which are those of kube-proxy's ipvs mode.
    Ours,
    /// As [`Extent::Ours`], without those that kube-proxy's iptables mode also uses, because that mode is active.
    OursAlone,
    /// Those of all kube-proxy modes.
    EveryMode,
}

/// Comes before the kernel's number of a rule, in the text of rules that were not read by a program of iptables.
pub const HANDLE: &str = " --handle ";

/// Prefixes of the iptables mode's chains whose names end with a hash.
const HASHED: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// Other chains of the iptables mode and of the userspace mode, which ended with Kubernetes 1.25.
const OTHERS: [(&str, &str); 12] = [
    ("nat", "KUBE-NODEPORTS"),
    ("filter", "KUBE-NODEPORTS"),
    ("filter", "KUBE-SERVICES"),
    ("filter", "KUBE-EXTERNAL-SERVICES"),
    ("nat", "KUBE-PROXY-CANARY"),
    ("filter", "KUBE-PROXY-CANARY"),
    ("mangle", "KUBE-PROXY-CANARY"),
    ("nat", "KUBE-PORTALS-CONTAINER"),
    ("nat", "KUBE-PORTALS-HOST"),
    ("nat", "KUBE-NODEPORT-CONTAINER"),
    ("nat", "KUBE-NODEPORT-HOST"),
    ("filter", "KUBE-NODEPORT-NON-LOCAL"),
];

/// Chains that our rules and the iptables mode share.
const SHARED: [(Table, &str); 5] = [
    (Table::Nat, "KUBE-SERVICES"),
    (Table::Nat, "KUBE-POSTROUTING"),
    (Table::Nat, "KUBE-MARK-MASQ"),
    (Table::Filter, "KUBE-FORWARD"),
    (Table::Filter, "KUBE-PROXY-FIREWALL"),
];

/// Comments of the jumps that kube-proxy modes insert into built-in chains.
const COMMENTS: [&str; 12] = [
    "kubernetes service portals",
    "kubernetes externally-visible service portals",
    "kubernetes health check service ports",
    "kubernetes load balancer firewall",
    "kubernetes forwarding rules",
    "kubernetes postrouting rules",
    "kubernetes health check rules",
    "kubernetes ipvs access filter",
    IPVS_FIREWALL,
    "handle ClusterIPs; NOTE: this must be before the NodePort rules",
    "handle service NodePorts; NOTE: this must be the last rule in the chain",
    "Ensure that non-local NodePort traffic can flow",
];

/// Comment of the jumps to the shared `KUBE-PROXY-FIREWALL` that only the ipvs mode makes.
const IPVS_FIREWALL: &str = "kube-proxy firewall rules";

/// Whether another kube-proxy mode makes the chain and the ipvs mode does not. False for chains of the kubelet
/// (`KUBE-FIREWALL`, `KUBE-MARK-DROP`, `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`).
pub fn is_of_other_modes(table: &str, chain: &str) -> bool {
    OTHERS.contains(&(table, chain)) || (table == "nat" && HASHED.iter().any(|p| chain.starts_with(p)))
}

/// Whether a rule of `KUBE-SERVICES` jumps to a Service of the iptables mode.
pub fn dispatches(rule: &str) -> bool {
    target(rule).is_some_and(|to| is_of_other_modes("nat", to))
}

/// The chain or target that a rule jumps to.
pub fn target(rule: &str) -> Option<&str> {
    // A comment may contain `-j`. It is in quotes and comes before the target.
    let mut words = rule.rsplit('"').next()?.split_whitespace();
    words.find(|word| matches!(*word, "-j" | "-g"))?;
    words.next()
}

fn without_handle(rule: &str) -> &str {
    rule.split(HANDLE).next().unwrap_or(rule)
}

fn comment(rule: &str) -> Option<&str> {
    let rest = rule.split_once("--comment ")?.1;
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split(' ').next(),
    }
}

impl Extent {
    fn has_chain(self, table: &str, chain: &str) -> bool {
        let shared = || SHARED.iter().any(|(t, c)| t.name() == table && *c == chain);
        match self {
            Extent::OtherModes => is_of_other_modes(table, chain),
            Extent::Ours => is_ours(table, chain),
            Extent::OursAlone => is_ours(table, chain) && !shared(),
            Extent::EveryMode => is_ours(table, chain) || is_of_other_modes(table, chain),
        }
    }

    /// Whether the rule is a jump to remove from a chain that stays.
    fn has_jump(self, table: &str, from: &str, rule: &str) -> bool {
        let Some(to) = target(rule) else { return false };
        let exactly = || {
            let spec = without_handle(rule);
            JUMPS.iter().any(|jump| jump.table.name() == table && jump.from == from && jump.spec() == spec)
        };
        let kube_proxys = || comment(rule).is_some_and(|comment| COMMENTS.contains(&comment));
        match self {
            _ if from.starts_with("KUBE-") => false,
            Extent::OtherModes => {
                kube_proxys() && (is_of_other_modes(table, to) || is_ours(table, to)) && !exactly()
            }
            Extent::Ours => exactly(),
            Extent::OursAlone => {
                exactly() && (self.has_chain(table, to) || comment(rule) == Some(IPVS_FIREWALL))
            }
            Extent::EveryMode => kube_proxys() && self.has_chain(table, to),
        }
    }

    /// Whether the agent rewrites this chain anyway, so that its rules block no removal.
    fn is_rewritten(self, table: &str, from: &str) -> bool {
        self == Extent::OtherModes && is_ours(table, from)
    }
}

/// Finds the rules and chains to remove in the output of `iptables-save`.
pub fn find_removal(text: &str, extent: Extent) -> Removal {
    let mut removal = Removal::default();
    for (table, saved) in split_save(text) {
        let mut removed: BTreeSet<&str> =
            saved.chains.iter().copied().filter(|chain| extent.has_chain(table, chain)).collect();
        let mut found = TableRemoval::default();
        let mut used: Vec<&str> = Vec::new();
        for (from, rule) in saved.rules.iter().filter(|(from, _)| !removed.contains(from)) {
            let to = target(rule).filter(|to| removed.contains(to));
            if extent.has_jump(table, from, rule) {
                found.rules.push(((*from).to_owned(), (*rule).to_owned()));
            } else if let Some(to) = to.filter(|_| !extent.is_rewritten(table, from)) {
                let rule = without_handle(rule);
                removal.kept.push(format!("chain {to} of table {table}: `-A {from} {rule}` jumps to it"));
                used.push(to);
            }
        }
        // A chain that stays keeps its rules and so the chains that they jump to.
        while let Some(chain) = used.pop() {
            if removed.remove(chain) {
                let rules = saved.rules.iter().filter(|(from, _)| *from == chain);
                used.extend(rules.filter_map(|(_, rule)| target(rule)).filter(|to| removed.contains(to)));
            }
        }
        found.chains = removed.into_iter().map(str::to_owned).collect();
        if found != TableRemoval::default() {
            removal.tables.insert(table.to_owned(), found);
        }
    }
    removal
}

/// Whether the iptables mode is active in this family: `KUBE-SERVICES` jumps to its Services.
pub fn iptables_mode_is_active(text: &str) -> bool {
    let is_active = |(from, rule): &(&str, &str)| *from == "KUBE-SERVICES" && dispatches(rule);
    split_save(text).get("nat").is_some_and(|nat| nat.rules.iter().any(is_active))
}

impl Removal {
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Number of chains and of rules in all tables.
    pub fn count(&self) -> (usize, usize) {
        let sum = |of: fn(&TableRemoval) -> usize| self.tables.values().map(of).sum();
        (sum(|table| table.chains.len()), sum(|table| table.rules.len()))
    }

    /// The input for `iptables-restore --noflush`. Each table changes atomically: if another program now uses one of the
    /// chains, nothing of its table is removed.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (table, removal) in &self.tables {
            let _ = writeln!(text, "*{table}");
            // A declaration flushes the chain, so that no removed chain jumps to another one.
            for chain in &removal.chains {
                let _ = writeln!(text, ":{chain} - [0:0]");
            }
            for (from, rule) in &removal.rules {
                let _ = writeln!(text, "-D {from} {rule}");
            }
            for chain in &removal.chains {
                let _ = writeln!(text, "-X {chain}");
            }
            text.push_str("COMMIT\n");
        }
        text
    }
}

#[cfg(test)]
#[path = "removal_tests.rs"]
mod tests;
