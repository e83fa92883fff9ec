// SPDX-License-Identifier: Apache-2.0
//! Ops, the single changes to the kernel, and plans, their ordered lists.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use strum::{EnumDiscriminants, IntoStaticStr, VariantArray};

use super::subject::Subject;
use crate::core::mirror::comparison::NftTables;
use crate::core::model::changes::Changes;
use crate::core::model::flows::FlowFilter;
use crate::core::model::real_servers::RsState;
use crate::core::model::sets::{Entry, SetId};
use crate::core::model::settings::{Sysctl, Timeouts};
use crate::core::model::{Family, ObjectName, RsKey, VsKey, VsSpec};
use crate::core::rules::Chains;
use crate::core::rules::chains::JumpFix;
use crate::core::rules::removal::Removal;

/// When an op runs: the access filter before addresses, additions before removals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Sysctls and the dummy device: all other ops depend on them.
    Prepare,
    /// Sets, entries and rules: without the access filter a bound address exposes sockets of the node.
    Guard,
    /// Virtual servers, then real servers: without them a bound address refuses connections.
    Serve,
    /// Bind addresses: traffic starts.
    Open,
    /// Unbind addresses: traffic stops before virtual servers are removed.
    Close,
    /// Begin drains (weight 0), and remove real servers and virtual servers.
    Remove,
    /// Remove unused entries and rules, and delete stale flows.
    Tidy,
}

/// The kernel subsystem that executes an op. Consecutive ops of one phase and subsystem form a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subsystem {
    Sysctl,
    Device,
    Sets,
    Rules,
    Ipvs,
    Addresses,
    Routes,
    Conntrack,
    Leftovers,
}

/// A write of all rules of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesOp {
    pub family: Family,
    pub chains: Chains,
    /// Built-in chains whose jumps to our chains must be replaced.
    pub jumps: Vec<JumpFix>,
    /// True for the write of the tidy phase, which only removes unused rules.
    pub tidy: bool,
    /// The write removes jumps of another kube-proxy mode: it runs only when everything of ours is in place.
    pub is_takeover: bool,
}

/// A removal of the rules of other kube-proxy modes in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftoversOp {
    pub family: Family,
    /// Chains and jumps.
    pub removal: Removal,
    /// ipsets that are not in use.
    pub sets: BTreeSet<SetId>,
    /// Tables of nf_tables.
    pub nft_tables: NftTables,
    /// The removal runs only when everything of ours is in place.
    pub is_takeover: bool,
}

/// An atomic replacement of a set that is too small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowOp {
    pub set: SetId,
    /// The new `maxelem`.
    pub capacity: u32,
    /// Every wanted entry, sorted.
    pub entries: Vec<Entry>,
}

/// A deletion of stale UDP flows of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowsOp {
    /// The Services whose endpoints changed.
    pub services: BTreeSet<ObjectName>,
    pub filter: FlowFilter,
}

/// One change to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, EnumDiscriminants)]
#[strum_discriminants(name(OpKind), derive(PartialOrd, Ord, Hash, VariantArray, IntoStaticStr))]
#[strum_discriminants(strum(serialize_all = "snake_case"))]
pub enum Op {
    /// Write a sysctl.
    SetSysctl(Sysctl),
    /// Set the IPVS timeouts.
    SetTimeouts(Timeouts),
    /// Create `kube-ipvs0`.
    CreateDevice,
    /// Destroy an ipset of another type that has the name of one of ours.
    DestroySet(SetId),
    /// Create an ipset.
    CreateSet(SetId),
    /// Replace an ipset by a larger one with these members.
    GrowSet(Box<GrowOp>),
    /// Add a member to a set.
    AddEntry(SetId, Entry),
    /// Write one family's rules.
    WriteRules(Box<RulesOp>),
    /// Add a virtual server.
    AddVirtualServer(VsKey, VsSpec),
    /// Change a virtual server in place; its connections stay.
    EditVirtualServer(VsKey, VsSpec),
    /// Add a real server.
    AddRealServer(VsKey, RsKey, RsState),
    /// Change a real server in place; its connections stay.
    EditRealServer(VsKey, RsKey, RsState),
    /// Bind an address to `kube-ipvs0`.
    Bind(IpAddr),
    /// Make all addresses of a network local by a route.
    AddRoute(IpNet),
    /// Remove an address with its prefix from `kube-ipvs0`.
    Unbind(IpNet),
    /// Remove the route of a network.
    RemoveRoute(IpNet),
    /// Set a real server to weight 0: it keeps its connections and gets no new ones.
    DrainRealServer(VsKey, RsKey),
    /// Remove a real server.
    RemoveRealServer(VsKey, RsKey),
    /// Remove a virtual server with its real servers.
    RemoveVirtualServer(VsKey),
    /// Remove a member from a set.
    RemoveEntry(SetId, Entry),
    /// Delete stale UDP flows.
    ForgetFlows(Box<FlowsOp>),
    /// Remove the rules of other kube-proxy modes.
    RemoveLeftovers(Box<LeftoversOp>),
}

impl OpKind {
    /// Every kind, in the order of [`Op`].
    pub const ALL: &'static [OpKind] = OpKind::VARIANTS;
}

impl Op {
    pub fn kind(&self) -> OpKind {
        self.into()
    }

    /// The phase it runs in.
    pub fn phase(&self) -> Phase {
        match self {
            Op::SetSysctl(_) | Op::SetTimeouts(_) | Op::CreateDevice => Phase::Prepare,
            Op::WriteRules(rules) if rules.tidy => Phase::Tidy,
            Op::DestroySet(_) | Op::CreateSet(_) | Op::GrowSet(_) | Op::AddEntry(..) | Op::WriteRules(_) => {
                Phase::Guard
            }
            Op::AddVirtualServer(..)
            | Op::EditVirtualServer(..)
            | Op::AddRealServer(..)
            | Op::EditRealServer(..) => Phase::Serve,
            Op::Bind(_) | Op::AddRoute(_) => Phase::Open,
            Op::Unbind(_) | Op::RemoveRoute(_) => Phase::Close,
            Op::DrainRealServer(..) | Op::RemoveRealServer(..) | Op::RemoveVirtualServer(_) => Phase::Remove,
            Op::RemoveEntry(..) | Op::ForgetFlows(_) | Op::RemoveLeftovers(_) => Phase::Tidy,
        }
    }

    /// The subsystem that executes it.
    pub fn subsystem(&self) -> Subsystem {
        self.subject().subsystem()
    }

    /// Whether traffic of the family depends on the op. Sysctls, stale flows and rules of other modes do not count.
    pub fn affects_traffic(&self, family: Family) -> bool {
        let subject = self.subject();
        !matches!(subject.subsystem(), Subsystem::Sysctl | Subsystem::Conntrack | Subsystem::Leftovers)
            && subject.family().is_none_or(|of| of == family)
    }

    /// Whether the op belongs to the priority part of a plan: every Service needs it, or its object is among `keys`.
    /// Ops that close or remove something never do.
    fn is_priority(&self, keys: &Changes) -> bool {
        match self.phase() {
            Phase::Prepare => true,
            Phase::Guard => match self.subject() {
                entry @ Subject::Entry(..) => keys.contains(&entry),
                _ => true,
            },
            Phase::Serve | Phase::Open => match self.subject() {
                // Priority Services use it, too. Until the others are programmed, the access filter refuses them.
                Subject::Route(_) => true,
                subject => keys.contains(&subject),
            },
            Phase::Close | Phase::Remove | Phase::Tidy => false,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::SetSysctl(s) => write!(f, "sysctl {} = {}", s.path, s.value),
            Op::SetTimeouts(t) => write!(f, "timeouts {} {} {}", t.tcp, t.tcp_fin, t.udp),
            Op::CreateDevice => write!(f, "+ device"),
            Op::DestroySet(set) => write!(f, "- set {set} of another type"),
            Op::GrowSet(grow) => write!(f, "= set {} with room for {}", grow.set, grow.capacity),
            Op::CreateSet(set) => write!(f, "+ set {set} {}", set.kind.set_type().name()),
            Op::AddEntry(set, entry) => write!(f, "+ entry {set} {entry}"),
            Op::WriteRules(r) => {
                let rules: usize = r.chains.values().map(Vec::len).sum();
                write!(f, "= rules {} ({rules} rules, jumps of {} chains)", r.family, r.jumps.len())
            }
            Op::AddVirtualServer(vs, spec) => write!(f, "+ virtual server {vs} {}", spec.scheduler),
            Op::EditVirtualServer(vs, spec) => write!(f, "= virtual server {vs} {}", spec.scheduler),
            Op::AddRealServer(vs, rs, state) => write!(f, "+ real server {vs} -> {rs}{state}"),
            Op::EditRealServer(vs, rs, state) => write!(f, "= real server {vs} -> {rs}{state}"),
            Op::Bind(addr) => write!(f, "+ address {addr}"),
            Op::Unbind(net) => write!(f, "- address {net}"),
            Op::AddRoute(net) => write!(f, "+ route {net}"),
            Op::RemoveRoute(net) => write!(f, "- route {net}"),
            Op::DrainRealServer(vs, rs) => write!(f, "0 real server {vs} -> {rs}"),
            Op::RemoveRealServer(vs, rs) => write!(f, "- real server {vs} -> {rs}"),
            Op::RemoveVirtualServer(vs) => write!(f, "- virtual server {vs}"),
            Op::RemoveEntry(set, entry) => write!(f, "- entry {set} {entry}"),
            Op::ForgetFlows(flows) => {
                let filter = &flows.filter;
                let frontends = filter.frontends.len() + filter.node_ports.len();
                write!(f, "- stale {} UDP flows of {frontends} frontends", filter.family)
            }
            Op::RemoveLeftovers(leftovers) => {
                let (chains, rules) = leftovers.removal.count();
                write!(f, "- {} leftovers of other modes: {chains} chains, {rules} rules", leftovers.family)?;
                if !leftovers.sets.is_empty() {
                    write!(f, ", {} ipsets", leftovers.sets.len())?;
                }
                let tables = leftovers.nft_tables.names();
                tables.iter().try_for_each(|table| write!(f, ", the nftables table {table}"))
            }
        }
    }
}

/// Ops in order: first those that the priority Services need, then the rest, each part by phase, subsystem and
/// object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub ops: Vec<Op>,
    /// Length of the priority part at the start of `ops`: ops that the priority Services or all Services need.
    pub priority: usize,
}

impl Plan {
    /// Sorts the ops. `keys` are the objects of the priority Services. Ops of one phase and subsystem keep their
    /// relative order.
    pub fn new(mut ops: Vec<Op>, keys: &Changes) -> Self {
        let is_priority = |op: &Op| !keys.is_empty() && op.is_priority(keys);
        ops.sort_by_cached_key(|op| (!is_priority(op), op.phase(), op.subsystem()));
        let priority = ops.partition_point(is_priority);
        Self { ops, priority }
    }

    /// Removes ops.
    pub fn remove_if(&mut self, mut is_unwanted: impl FnMut(&Op) -> bool) {
        let (mut index, mut priority) = (0, self.priority);
        self.ops.retain(|op| {
            let is_kept = !is_unwanted(op);
            if !is_kept && index < self.priority {
                priority -= 1;
            }
            index += 1;
            is_kept
        });
        self.priority = priority;
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// True when a real server begins to drain: the next sync reads its connection counters.
    pub fn begins_drain(&self) -> bool {
        self.ops.iter().any(|op| op.kind() == OpKind::DrainRealServer)
    }
}

/// One line per op under a heading per phase, for golden tests and debug logs.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut phase = None;
        for (i, op) in self.ops.iter().enumerate() {
            if phase != Some(op.phase()) || i == self.priority {
                phase = Some(op.phase());
                writeln!(f, "{:?}", op.phase())?;
            }
            writeln!(f, "  {op}")?;
        }
        Ok(())
    }
}
