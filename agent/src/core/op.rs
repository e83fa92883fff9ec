// SPDX-License-Identifier: Apache-2.0
//! One difference between wanted and observed state is an [`Op`]; all of them are a [`Plan`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::model::{Family, RsKey, Sysctl, VsKey, VsSpec};
use super::rules::Chains;
use super::sets::{Entry, SetId, SetKind};

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
    /// Remove entries and rules that nobody needs.
    Tidy,
}

/// The kernel subsystem that an op goes to. Ops of one phase and lane travel together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "named after the subsystem")]
pub enum Lane {
    Sysctl,
    Device,
    Sets,
    Rules,
    Ipvs,
    Addresses,
}

/// The rules of one family, to be written in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesOp {
    /// Family: `iptables` or `ip6tables`.
    pub family: Family,
    /// The chains as they must be.
    pub chains: Chains,
    /// Indexes of jumps to insert.
    pub missing_jumps: Vec<usize>,
    /// False while traffic is being set up, true when only clearing away what nobody needs.
    pub tidy: bool,
}

/// One change to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the kernel objects that the variant names")]
pub enum Op {
    /// Write a sysctl.
    SetSysctl(Sysctl),
    /// Create `kube-ipvs0`.
    CreateDevice,
    /// Create an ipset.
    CreateSet(SetId),
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
    /// Remove a real server.
    RemoveRealServer(VsKey, RsKey),
    /// Remove a virtual server with its real servers.
    RemoveVirtualServer(VsKey),
    /// Remove a member from a set.
    RemoveEntry(SetId, Entry),
}

/// The kind of an op, for counting and for failing one kind at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "see `Op`")]
pub enum OpKind {
    SetSysctl,
    CreateDevice,
    CreateSet,
    AddEntry,
    WriteRules,
    AddVirtualServer,
    EditVirtualServer,
    AddRealServer,
    EditRealServer,
    Bind,
    Unbind,
    RemoveRealServer,
    RemoveVirtualServer,
    RemoveEntry,
}

impl OpKind {
    /// Every kind.
    pub const ALL: [OpKind; 14] = [
        OpKind::SetSysctl,
        OpKind::CreateDevice,
        OpKind::CreateSet,
        OpKind::AddEntry,
        OpKind::WriteRules,
        OpKind::AddVirtualServer,
        OpKind::EditVirtualServer,
        OpKind::AddRealServer,
        OpKind::EditRealServer,
        OpKind::Bind,
        OpKind::Unbind,
        OpKind::RemoveRealServer,
        OpKind::RemoveVirtualServer,
        OpKind::RemoveEntry,
    ];
}

impl Op {
    /// The kind.
    pub fn kind(&self) -> OpKind {
        match self {
            Op::SetSysctl(_) => OpKind::SetSysctl,
            Op::CreateDevice => OpKind::CreateDevice,
            Op::CreateSet(_) => OpKind::CreateSet,
            Op::AddEntry(..) => OpKind::AddEntry,
            Op::WriteRules(_) => OpKind::WriteRules,
            Op::AddVirtualServer(..) => OpKind::AddVirtualServer,
            Op::EditVirtualServer(..) => OpKind::EditVirtualServer,
            Op::AddRealServer(..) => OpKind::AddRealServer,
            Op::EditRealServer(..) => OpKind::EditRealServer,
            Op::Bind(_) => OpKind::Bind,
            Op::Unbind(_) => OpKind::Unbind,
            Op::RemoveRealServer(..) => OpKind::RemoveRealServer,
            Op::RemoveVirtualServer(_) => OpKind::RemoveVirtualServer,
            Op::RemoveEntry(..) => OpKind::RemoveEntry,
        }
    }

    /// The phase it runs in.
    pub fn phase(&self) -> Phase {
        match self.kind() {
            OpKind::SetSysctl | OpKind::CreateDevice => Phase::Prepare,
            OpKind::CreateSet | OpKind::AddEntry => Phase::Guard,
            OpKind::WriteRules => match self {
                Op::WriteRules(rules) if rules.tidy => Phase::Tidy,
                _ => Phase::Guard,
            },
            OpKind::AddVirtualServer
            | OpKind::EditVirtualServer
            | OpKind::AddRealServer
            | OpKind::EditRealServer => Phase::Serve,
            OpKind::Bind => Phase::Open,
            OpKind::Unbind => Phase::Close,
            OpKind::RemoveRealServer | OpKind::RemoveVirtualServer => Phase::Remove,
            OpKind::RemoveEntry => Phase::Tidy,
        }
    }

    /// The subsystem it goes to.
    pub fn lane(&self) -> Lane {
        match self.kind() {
            OpKind::SetSysctl => Lane::Sysctl,
            OpKind::CreateDevice => Lane::Device,
            OpKind::CreateSet | OpKind::AddEntry | OpKind::RemoveEntry => Lane::Sets,
            OpKind::WriteRules => Lane::Rules,
            OpKind::Bind | OpKind::Unbind => Lane::Addresses,
            _ => Lane::Ipvs,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::SetSysctl(s) => write!(f, "sysctl {} = {}", s.path, s.value),
            Op::CreateDevice => write!(f, "+ device"),
            Op::CreateSet(set) => write!(f, "+ set {set} {}", set.kind.set_type().name()),
            Op::AddEntry(set, entry) => write!(f, "+ entry {set} {entry}"),
            Op::WriteRules(r) => {
                let rules: usize = r.chains.values().map(Vec::len).sum();
                write!(f, "= rules {} ({rules} rules, {} jumps)", r.family, r.missing_jumps.len())
            }
            Op::AddVirtualServer(vs, spec) => write!(f, "+ virtual server {vs} {}", spec.scheduler),
            Op::EditVirtualServer(vs, spec) => write!(f, "= virtual server {vs} {}", spec.scheduler),
            Op::AddRealServer(vs, rs) => write!(f, "+ real server {vs} -> {rs}"),
            Op::EditRealServer(vs, rs) => write!(f, "= real server {vs} -> {rs}"),
            Op::Bind(addr) => write!(f, "+ address {addr}"),
            Op::Unbind(net) => write!(f, "- address {net}"),
            Op::RemoveRealServer(vs, rs) => write!(f, "- real server {vs} -> {rs}"),
            Op::RemoveVirtualServer(vs) => write!(f, "- virtual server {vs}"),
            Op::RemoveEntry(set, entry) => write!(f, "- entry {set} {entry}"),
        }
    }
}

/// What to do, in the order in which to do it: by phase, then lane, then object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The ops.
    pub ops: Vec<Op>,
}

impl Plan {
    /// A plan of these ops, put into order. Ops of one phase and lane keep their relative order.
    pub fn new(mut ops: Vec<Op>) -> Self {
        ops.sort_by_key(|op| (op.phase(), op.lane()));
        Self { ops }
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// One line per op under a heading per phase: the form of golden tests and debug logs.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut phase = None;
        for op in &self.ops {
            if phase != Some(op.phase()) {
                phase = Some(op.phase());
                writeln!(f, "{:?}", op.phase())?;
            }
            writeln!(f, "  {op}")?;
        }
        Ok(())
    }
}

/// The failures of a run so far, as far as later ops depend on them.
#[derive(Debug, Default)]
pub struct Failures {
    device: bool,
    sets: BTreeSet<SetId>,
    entry_addresses: BTreeSet<IpAddr>,
    rules: BTreeSet<Family>,
    virtual_servers: BTreeSet<VsKey>,
    unbound: BTreeSet<IpAddr>,
}

impl Failures {
    /// Notes an op that failed or was skipped.
    pub fn note(&mut self, op: &Op) {
        match op {
            Op::CreateDevice => self.device = true,
            Op::CreateSet(set) => {
                self.sets.insert(*set);
            }
            Op::AddEntry(_, Entry::Ip(ip) | Entry::IpPort(ip, ..)) => {
                self.entry_addresses.insert(*ip);
            }
            Op::WriteRules(rules) if !rules.tidy => {
                self.rules.insert(rules.family);
            }
            Op::AddVirtualServer(vs, _) => {
                self.virtual_servers.insert(*vs);
            }
            Op::Unbind(net) => {
                self.unbound.insert(net.addr());
            }
            _ => {}
        }
    }

    /// Why `op` must not run after these failures, if so.
    pub fn blocks(&self, op: &Op) -> Option<String> {
        match op {
            Op::AddEntry(set, _) if self.sets.contains(set) => {
                Some(format!("set {set} could not be created"))
            }
            Op::WriteRules(rules) if rules.tidy && self.rules.contains(&rules.family) => {
                Some(format!("the {} rules could not be written", rules.family))
            }
            Op::WriteRules(rules) => {
                let set = self.sets.iter().find(|s| s.family == rules.family)?;
                Some(format!("set {set} could not be created"))
            }
            Op::AddRealServer(vs, _) if self.virtual_servers.contains(vs) => {
                Some(format!("virtual server {vs} could not be added"))
            }
            Op::Bind(addr) => self.blocks_bind(*addr),
            Op::RemoveEntry(SetId { kind: SetKind::IpvsIps, .. }, Entry::Ip(ip)) => {
                self.unbound.contains(ip).then(|| format!("address {ip} could not be removed"))
            }
            _ => None,
        }
    }

    /// An address is opened only behind a standing guard and with its virtual servers in place.
    fn blocks_bind(&self, addr: IpAddr) -> Option<String> {
        let family = Family::of(addr);
        if self.device {
            return Some("the device could not be created".to_owned());
        }
        if self.rules.contains(&family) {
            return Some(format!("the {family} rules could not be written"));
        }
        if self.entry_addresses.contains(&addr) {
            return Some(format!("a set entry of {addr} could not be added"));
        }
        let failed = self.virtual_servers.iter().find(|vs| vs.addr == addr)?;
        Some(format!("virtual server {failed} could not be added"))
    }
}
