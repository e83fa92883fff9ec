// SPDX-License-Identifier: Apache-2.0
//! Our iptables chains and the jumps to them, exactly as in kube-proxy.

use std::collections::BTreeSet;

use strum::IntoStaticStr;

use super::OUT_FILTER;

/// A table of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Table {
    Nat,
    Filter,
    /// The table of rules mode `nftables`: not a table of iptables.
    #[strum(serialize = "kube-ipvs")]
    KubeIpvs,
}

impl Table {
    /// Both tables of iptables, in the order of writes.
    pub const ALL: [Table; 2] = [Table::Nat, Table::Filter];

    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Our chains, in the order in which kube-proxy declares them.
pub const CHAINS: [(Table, &str); 11] = [
    (Table::Nat, "KUBE-SERVICES"),
    (Table::Nat, "KUBE-POSTROUTING"),
    (Table::Nat, "KUBE-NODE-PORT"),
    (Table::Nat, "KUBE-LOAD-BALANCER"),
    (Table::Nat, "KUBE-MARK-MASQ"),
    (Table::Filter, "KUBE-FORWARD"),
    (Table::Filter, "KUBE-NODE-PORT"),
    (Table::Filter, "KUBE-PROXY-FIREWALL"),
    (Table::Filter, "KUBE-SOURCE-RANGES-FIREWALL"),
    (Table::Filter, "KUBE-IPVS-FILTER"),
    OUT_FILTER,
];

pub fn is_ours(table: &str, chain: &str) -> bool {
    CHAINS.iter().any(|(t, c)| t.name() == table && *c == chain)
}

/// A jump from a built-in chain to one of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Jump {
    pub table: Table,
    /// Built-in chain.
    pub from: &'static str,
    /// Our chain.
    pub to: &'static str,
    pub comment: &'static str,
}

const fn jump(table: Table, from: &'static str, to: &'static str, comment: &'static str) -> Jump {
    Jump { table, from, to, comment }
}

/// The jumps, in the order in which they are inserted at the top of their chains: a later jump ends up before an
/// earlier one.
pub const JUMPS: [Jump; 9] = [
    jump(Table::Nat, "OUTPUT", "KUBE-SERVICES", "kubernetes service portals"),
    jump(Table::Nat, "PREROUTING", "KUBE-SERVICES", "kubernetes service portals"),
    jump(Table::Nat, "POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
    jump(Table::Filter, "FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules"),
    jump(Table::Filter, "INPUT", "KUBE-NODE-PORT", "kubernetes health check rules"),
    jump(Table::Filter, "INPUT", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    jump(Table::Filter, "FORWARD", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    jump(Table::Filter, "INPUT", "KUBE-IPVS-FILTER", "kubernetes ipvs access filter"),
    jump(Table::Filter, "OUTPUT", OUT_FILTER.1, "kubernetes ipvs access filter"),
];

/// A repair of the jumps in a built-in chain: removes our jumps that are in it, and inserts the wanted ones at the
/// top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JumpFix {
    pub table: Table,
    /// Built-in chain.
    pub from: &'static str,
    /// Our jumps in the chain, from the top, by their indexes in [`JUMPS`], with duplicates.
    pub present: Vec<usize>,
}

/// The built-in chains that have jumps to our chains.
pub fn jump_chains() -> BTreeSet<(Table, &'static str)> {
    JUMPS.iter().map(|jump| (jump.table, jump.from)).collect()
}

/// The wanted jumps of a built-in chain, from the top, by their indexes in [`JUMPS`].
pub fn wanted_jumps(table: Table, from: &str) -> Vec<usize> {
    (0..JUMPS.len()).rev().filter(|i| JUMPS[*i].table == table && JUMPS[*i].from == from).collect()
}

impl Jump {
    /// The rule as `iptables-save` prints it, after `-A FROM `.
    pub fn spec(&self) -> String {
        format!("-m comment --comment \"{}\" -j {}", self.comment, self.to)
    }
}
