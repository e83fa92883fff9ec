// SPDX-License-Identifier: Apache-2.0
//! The loop: the one thread that owns the kernel.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::core::desired::{Changes, Desired};
use crate::core::fragment::build_fragment;
use crate::core::model::{LocalTraffic, NodeFacts, Settings};
use crate::core::observed::Observed;
use crate::core::op::{Op, Plan};
use crate::core::plan::{Scope, build_plan};
use crate::inbox::{Inbox, Mail, Owners};
use crate::kernel::{Kernel, Outcome, Report, apply};
use crate::schedule::{Due, Schedule};
use crate::store::{Dirty, Store};

/// Failures logged per pass; the rest is counted.
const FAILURES_LOGGED: usize = 10;

/// How one pass ended.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// What was planned.
    pub plan: Plan,
    /// How it went.
    pub report: Report,
    /// Ops that repaired what somebody else changed.
    pub drift: usize,
    /// Why the kernel could not be read, if so. Nothing was written then.
    pub unreadable: Option<String>,
}

impl Pass {
    /// True when the node is now as wanted.
    pub fn is_clean(&self) -> bool {
        self.unreadable.is_none() && self.report.is_clean()
    }
}

/// Wanted and observed state, and the kernel that they are about.
pub struct Reconciler<K> {
    kernel: K,
    store: Arc<Store>,
    settings: Settings,
    local_from_node: bool,
    node: NodeFacts,
    desired: Desired,
    observed: Option<Observed>,
    pending: Changes,
    /// The last pass left ops undone: doing them now repairs nobody else's change.
    failed: bool,
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that has not looked at anything yet. `local_from_node`: the local CIDRs are
    /// the Node's pod CIDRs (`detectLocalMode: NodeCIDR`).
    pub fn new(kernel: K, store: Arc<Store>, settings: Settings, node: &str, local_from_node: bool) -> Self {
        Self {
            kernel,
            store,
            settings,
            local_from_node,
            node: NodeFacts { name: node.into(), addresses: Vec::new() },
            desired: Desired::default(),
            observed: None,
            pending: Changes::default(),
            failed: false,
        }
    }

    /// The kernel, for tests.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// The wanted state, for tests and questions.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// One pass: take the changes, plan, apply, follow what was acknowledged.
    pub fn sync(&mut self, due: Due) -> Pass {
        let audit = due == Due::Audit || self.observed.is_none();
        let first = self.observed.is_none() && self.desired.services().next().is_none();
        let mut all = false;
        if audit {
            match self.kernel.observe() {
                Ok(observed) => {
                    all = observed.node_addresses != self.node.addresses;
                    self.node.addresses.clone_from(&observed.node_addresses);
                    self.observed = Some(observed);
                }
                Err(error) => return Pass { unreadable: Some(error.to_string()), ..Pass::default() },
            }
        }
        self.follow_node();
        let changes = self.take_changes(all);
        let Some(observed) = &mut self.observed else {
            return Pass::default();
        };
        let scope = if audit { Scope::All } else { Scope::Changes(&changes) };
        let plan = build_plan(&self.desired, observed, &self.settings, scope);
        let report = apply(&mut self.kernel, &plan);
        let repaired = |(op, outcome): &(&Op, &Outcome)| **outcome == Outcome::Done && !touches(op, &changes);
        let drift = if audit && !first && !self.failed {
            plan.ops.iter().zip(&report.outcomes).filter(repaired).count()
        } else {
            0
        };
        self.failed = !report.is_clean();
        for (op, outcome) in plan.ops.iter().zip(&report.outcomes) {
            match outcome {
                Outcome::Done => observed.record(op),
                _ => remember(op, &mut self.pending),
            }
        }
        Pass { plan, report, drift, unreadable: None }
    }

    fn follow_node(&mut self) {
        if self.local_from_node {
            let cidrs = self.store.node().map(|n| n.pod_cidrs).unwrap_or_default();
            self.settings.local = LocalTraffic::Cidrs(cidrs);
        }
    }

    /// Moves changes from the store to the wanted state; `all` rebuilds every fragment.
    fn take_changes(&mut self, all: bool) -> Changes {
        let mut changes = std::mem::take(&mut self.pending);
        let mut dirty = self.store.take_dirty();
        if all {
            dirty.extend(self.store.all());
        }
        for Dirty { name, service, slices } in dirty {
            let slices = slices.iter().map(|slice| &**slice);
            let fragment = service.map(|s| build_fragment(&s, slices, &self.node, &self.settings));
            self.desired.update(&name, fragment, &mut changes);
        }
        changes
    }

    /// Whether an address that came or went is not as wanted.
    fn contradicts(&self, net: &IpNet, added: bool) -> bool {
        let wanted = net.prefix_len() == net.max_prefix_len() && self.desired.wants_address(net.addr());
        added != wanted
    }

    /// The owners of all virtual servers.
    pub fn owners(&self) -> Owners {
        let mut text = String::new();
        for vs in self.desired.virtual_servers() {
            let colon = if vs.port_name.is_empty() { "" } else { ":" };
            let _ = writeln!(text, "{} {}{colon}{}", vs.key, vs.service, vs.port_name);
        }
        text
    }

    /// Runs until asked to stop. Nothing is written before the store is in sync.
    pub fn run(&mut self, inbox: &Inbox, mut schedule: Schedule) {
        let start = Instant::now();
        loop {
            let wait = if self.store.is_synced() {
                let (at, due) = schedule.next(self.store.is_dirty());
                let now = start.elapsed();
                if now >= at {
                    self.sync_and_log(due, start, &mut schedule);
                    continue_after(inbox, Some(Duration::ZERO), self, &mut schedule)
                } else {
                    continue_after(inbox, Some(at - now), self, &mut schedule)
                }
            } else {
                continue_after(inbox, None, self, &mut schedule)
            };
            if wait.stop {
                return;
            }
        }
    }

    fn sync_and_log(&mut self, due: Due, start: Instant, schedule: &mut Schedule) {
        let before = start.elapsed();
        let pass = self.sync(due);
        let now = start.elapsed();
        schedule.ended(now, due, pass.is_clean(), pass.unreadable.is_none());
        if pass.report.in_doubt() {
            schedule.doubt();
        }
        log_pass(&pass, due, now - before, schedule.failures());
    }
}

/// Takes the mail and answers it.
fn continue_after<K: Kernel>(
    inbox: &Inbox,
    timeout: Option<Duration>,
    reconciler: &Reconciler<K>,
    schedule: &mut Schedule,
) -> Mail {
    let mail = inbox.wait(timeout);
    if mail.doubt || mail.addresses.iter().any(|(net, added)| reconciler.contradicts(net, *added)) {
        schedule.doubt();
    }
    for question in &mail.questions {
        // The asker may have gone away.
        let _ = question.send(reconciler.owners());
    }
    mail
}

fn touches(op: &Op, changes: &Changes) -> bool {
    match op {
        Op::AddEntry(set, entry) | Op::RemoveEntry(set, entry) => changes.entries.contains(&(*set, *entry)),
        Op::AddVirtualServer(vs, _)
        | Op::EditVirtualServer(vs, _)
        | Op::RemoveVirtualServer(vs)
        | Op::AddRealServer(vs, _)
        | Op::EditRealServer(vs, _)
        | Op::RemoveRealServer(vs, _) => changes.virtual_servers.contains(vs),
        Op::Bind(addr) => changes.addresses.contains(addr),
        Op::Unbind(net) => changes.addresses.contains(&net.addr()),
        // A rule follows from sets that changed.
        Op::WriteRules(rules) => rules.missing_jumps.is_empty() && !changes.is_empty(),
        Op::SetSysctl(_) | Op::CreateDevice | Op::CreateSet(_) => false,
    }
}

/// Keeps the keys of an op that did not succeed, so that the next pass looks at them again.
fn remember(op: &Op, pending: &mut Changes) {
    match op {
        Op::AddEntry(set, entry) | Op::RemoveEntry(set, entry) => {
            pending.entries.insert((*set, *entry));
        }
        Op::AddVirtualServer(vs, _)
        | Op::EditVirtualServer(vs, _)
        | Op::RemoveVirtualServer(vs)
        | Op::AddRealServer(vs, _)
        | Op::EditRealServer(vs, _)
        | Op::RemoveRealServer(vs, _) => {
            pending.virtual_servers.insert(*vs);
        }
        Op::Bind(addr) => {
            pending.addresses.insert(*addr);
        }
        Op::Unbind(net) => {
            pending.addresses.insert(net.addr());
        }
        // Looked at in every pass.
        Op::SetSysctl(_) | Op::CreateDevice | Op::CreateSet(_) | Op::WriteRules(_) => {}
    }
}

fn log_pass(pass: &Pass, due: Due, took: Duration, failures: u32) {
    if let Some(error) = &pass.unreadable {
        tracing::error!(tries = failures, "{error}; nothing was changed, trying again");
        return;
    }
    if pass.plan.is_empty() {
        tracing::debug!(?due, ?took, "in sync, nothing to do");
        return;
    }
    let (ops, done) = (pass.plan.ops.len(), pass.report.done());
    if pass.drift > 0 {
        tracing::warn!(repaired = pass.drift, "somebody else changed what this agent keeps");
    }
    tracing::info!(?due, ops, done, ?took, "sync");
    tracing::debug!("plan:\n{}", pass.plan);
    let failed = pass.plan.ops.iter().zip(&pass.report.outcomes).filter_map(|(op, outcome)| match outcome {
        Outcome::Failed(error) => Some((op, error)),
        _ => None,
    });
    let mut count = 0;
    for (op, error) in failed {
        count += 1;
        if count <= FAILURES_LOGGED {
            tracing::error!(%op, "failed: {error}");
        }
    }
    if count > 0 {
        let skipped = ops - done - count;
        tracing::error!(failed = count, skipped, tries = failures, "sync incomplete, trying again");
    }
}
