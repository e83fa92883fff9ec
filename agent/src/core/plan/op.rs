// SPDX-License-Identifier: Apache-2.0
//! One difference between wanted and observed state is an [`Op`]; all of them are a [`Plan`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use strum::{EnumDiscriminants, IntoStaticStr, VariantArray};

use super::subject::Subject;
use crate::core::model::changes::Changes;
use crate::core::model::flows::FlowFilter;
use crate::core::model::sets::{Entry, SetId};
use crate::core::model::settings::{Sysctl, Timeouts};
use crate::core::model::{Family, ObjectName, RsKey, VsKey, VsSpec};
use crate::core::rules::Chains;
use crate::core::rules::chains::JumpFix;
use crate::core::rules::removal::Removal;

/// When an op runs: closed before open, additive before subtractive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Sysctls and the dummy device: everything assumes them.
    Prepare,
    /// Sets, entries and rules: a bound address exposes host listeners until the filter stands.
    Guard,
    /// Virtual servers, then real servers: an address without them refuses connections.
    Serve,
    /// Bind addresses: traffic starts.
    Open,
    /// Unbind addresses: traffic stops before its servers go.
    Close,
    /// Remove real servers and virtual servers.
    Remove,
    /// Remove entries and rules that nobody needs, and forget stale flows.
    Tidy,
}

/// The kernel subsystem that an op goes to. Ops of one phase and subsystem travel together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subsystem {
    Sysctl,
    Device,
    Sets,
    Rules,
    Ipvs,
    Addresses,
    Conntrack,
    Leftovers,
}

/// The rules of one family, to be written in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesOp {
    /// Family: `iptables` or `ip6tables`.
    pub family: Family,
    /// The chains as they must be.
    pub chains: Chains,
    /// Built-in chains whose jumps to ours are to be written anew, all of them in order.
    pub jumps: Vec<JumpFix>,
    /// False while traffic is being set up, true when only clearing away what nobody needs.
    pub tidy: bool,
    /// It removes jumps of another kube-proxy mode: it runs only when all of ours is in place.
    pub is_takeover: bool,
}

/// What other modes of kube-proxy left in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftoversOp {
    /// Family.
    pub family: Family,
    /// Chains and jumps.
    pub removal: Removal,
    /// The table of the nftables mode is to go.
    pub nft_table: bool,
    /// It runs only when all of ours is in place.
    pub is_takeover: bool,
}

/// A set that has become too small, to be made anew with its members and put in its place at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowOp {
    /// Which set.
    pub set: SetId,
    /// Its new room.
    pub capacity: u32,
    /// Every entry that it is to hold, sorted.
    pub entries: Vec<Entry>,
}

/// UDP flows to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowsOp {
    /// The Services whose endpoints changed.
    pub services: BTreeSet<ObjectName>,
    /// Which flows are stale.
    pub filter: FlowFilter,
}

/// One change to the kernel. Its fields are the kernel objects that the variant names.
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
    /// Add a real server with weight 1, masqueraded.
    AddRealServer(VsKey, RsKey),
    /// Set a real server to weight 1, masqueraded.
    EditRealServer(VsKey, RsKey),
    /// Bind an address to `kube-ipvs0`.
    Bind(IpAddr),
    /// Remove an address, with the prefix it has, from `kube-ipvs0`.
    Unbind(IpNet),
    /// Set a real server to weight 0: its connections go on, it gets no new ones.
    DrainRealServer(VsKey, RsKey),
    /// Remove a real server.
    RemoveRealServer(VsKey, RsKey),
    /// Remove a virtual server with its real servers.
    RemoveVirtualServer(VsKey),
    /// Remove a member from a set.
    RemoveEntry(SetId, Entry),
    /// Forget stale UDP flows.
    ForgetFlows(Box<FlowsOp>),
    /// Remove what other modes of kube-proxy left.
    RemoveLeftovers(Box<LeftoversOp>),
}

impl OpKind {
    /// Every kind, in the order of [`Op`].
    pub const ALL: &'static [OpKind] = OpKind::VARIANTS;
}

impl Op {
    /// The kind.
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
            Op::Bind(_) => Phase::Open,
            Op::Unbind(_) => Phase::Close,
            Op::DrainRealServer(..) | Op::RemoveRealServer(..) | Op::RemoveVirtualServer(_) => Phase::Remove,
            Op::RemoveEntry(..) | Op::ForgetFlows(_) | Op::RemoveLeftovers(_) => Phase::Tidy,
        }
    }

    /// The subsystem that executes it.
    pub fn subsystem(&self) -> Subsystem {
        self.subject().subsystem()
    }

    /// Whether traffic of the family depends on it. Sysctls, stale flows and what other modes left leave
    /// what is programmed as it is.
    pub fn serves(&self, family: Family) -> bool {
        match self.subsystem() {
            Subsystem::Sysctl | Subsystem::Conntrack | Subsystem::Leftovers => false,
            Subsystem::Device
            | Subsystem::Sets
            | Subsystem::Rules
            | Subsystem::Ipvs
            | Subsystem::Addresses => self.subject().family().is_none_or(|of| of == family),
        }
    }

    /// Whether it belongs to the first part of a plan: every Service needs it, or its object is among `keys`.
    /// What closes or removes comes last in any case.
    fn is_priority(&self, keys: &Changes) -> bool {
        match self.phase() {
            Phase::Prepare => true,
            Phase::Guard => match self.subject() {
                entry @ Subject::Entry(..) => keys.contains(&entry),
                _ => true,
            },
            Phase::Serve | Phase::Open => keys.contains(&self.subject()),
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
            Op::AddRealServer(vs, rs) => write!(f, "+ real server {vs} -> {rs}"),
            Op::EditRealServer(vs, rs) => write!(f, "= real server {vs} -> {rs}"),
            Op::Bind(addr) => write!(f, "+ address {addr}"),
            Op::Unbind(net) => write!(f, "- address {net}"),
            Op::DrainRealServer(vs, rs) => write!(f, "0 real server {vs} -> {rs}"),
            Op::RemoveRealServer(vs, rs) => write!(f, "- real server {vs} -> {rs}"),
            Op::RemoveVirtualServer(vs) => write!(f, "- virtual server {vs}"),
            Op::RemoveEntry(set, entry) => write!(f, "- entry {set} {entry}"),
            Op::ForgetFlows(flows) => {
                let filter = &flows.filter;
                let places = filter.frontends.len() + filter.node_ports.len();
                write!(f, "- stale {} UDP flows of {places} frontends", filter.family)
            }
            Op::RemoveLeftovers(leftovers) => {
                let (chains, rules) = leftovers.removal.count();
                write!(f, "- {} leftovers of other modes: {chains} chains, {rules} rules", leftovers.family)?;
                f.write_str(if leftovers.nft_table { ", the nftables table" } else { "" })
            }
        }
    }
}

/// What to do, in the order in which to do it: what the priority Services need, then the rest; each by
/// phase, then subsystem, then object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The ops.
    pub ops: Vec<Op>,
    /// So many of them, at the start, are for the priority Services or for all.
    pub priority: usize,
}

impl Plan {
    /// A plan of these ops, put into order. `keys` are those of the priority Services.
    /// Ops of one phase and subsystem keep their relative order.
    pub fn new(mut ops: Vec<Op>, keys: &Changes) -> Self {
        let is_priority = |op: &Op| !keys.is_empty() && op.is_priority(keys);
        ops.sort_by_cached_key(|op| (!is_priority(op), op.phase(), op.subsystem()));
        let priority = ops.partition_point(is_priority);
        Self { ops, priority }
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// True when a real server begins to drain: the next pass looks at its connections.
    pub fn begins_drain(&self) -> bool {
        self.ops.iter().any(|op| op.kind() == OpKind::DrainRealServer)
    }
}

/// One line per op under a heading per phase: the form of golden tests and debug logs.
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
