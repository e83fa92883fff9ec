// SPDX-License-Identifier: Apache-2.0
//! The loop: the one thread that owns the kernel.

mod ahead;
mod audit;
mod changes;
mod keys;
mod run;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::sync::watch;

use crate::core::audit::Audit;
use crate::core::desired::{Changes, Desired};
use crate::core::drain::{self, Drains};
use crate::core::map::Set;
use crate::core::model::{Family, Node, VsKey};
use crate::core::node::NodeFacts;
use crate::core::observed::Observed;
use crate::core::op::{Op, Plan};
use crate::core::plan::{Goal, RulesBasis, all_keys, build_plan};
use crate::core::settings::Settings;
use crate::events::EventSink;
use crate::handover::Handover;
use crate::inbox::Owners;
use crate::kernel::{Kernel, ObserveError, Outcome, Report, apply};
use crate::metrics::Metrics;
use crate::notices;
use crate::schedule::Due;
use crate::serve::health::{Health, SharedHealth};
use crate::serve::node_ports::HealthChecks;
use crate::store::Store;
use ahead::Stage;
use keys::{remember, touches};

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

    /// True when all traffic of the family is now as wanted.
    pub fn serves(&self, family: Family) -> bool {
        let mut failed =
            self.plan.ops.iter().zip(&self.report.outcomes).filter(|(_, o)| **o != Outcome::Done);
        self.unreadable.is_none() && !failed.any(|(op, _)| op.serves(family))
    }
}

/// Where the loop tells what it found.
#[derive(Clone, Debug)]
pub struct Outlets {
    /// Events for operators.
    pub events: EventSink,
    /// Numbers for Prometheus.
    pub metrics: Metrics,
    /// What the health endpoints answer.
    pub health: SharedHealth,
    /// What the health-check node ports answer.
    pub health_checks: watch::Sender<HealthChecks>,
}

impl Outlets {
    /// Outlets that reach nobody but the log.
    ///
    /// # Errors
    /// When the metrics cannot be set up.
    pub fn log_only() -> prometheus::Result<Self> {
        Ok(Self {
            events: EventSink::log_only(),
            metrics: Metrics::new()?,
            health: SharedHealth::new(Health::new(&Family::ALL, Duration::MAX)),
            health_checks: watch::channel(HealthChecks::default()).0,
        })
    }
}

/// Wanted and observed state, and the kernel that they are about.
pub struct Reconciler<K> {
    kernel: K,
    store: Arc<Store>,
    settings: Settings,
    local_from_node: bool,
    /// The Node object as last seen: one that is deleted changes nothing, as in kube-proxy.
    node_object: Option<Node>,
    node: NodeFacts,
    desired: Desired,
    observed: Option<Observed>,
    drains: Drains,
    handover: Handover,
    pending: Changes,
    outlets: Outlets,
    /// The health-check node ports do not answer yet as they must.
    health_checks_changed: bool,
    /// The last pass left ops undone: doing them now repairs nobody else's change.
    failed: bool,
    stage: Stage,
    /// When the kernel was read before the first whole pass.
    looked_at: Duration,
    /// An audit that goes on.
    comparison: Option<Audit>,
    /// What the rules were made of, if all is well with them.
    rules: Option<RulesBasis>,
    /// How long it has worked.
    audit_worked: Duration,
}

/// What a pass looks at, besides the changes of objects.
enum Look {
    /// Nothing else.
    Changes,
    /// Of the changes only the first Services.
    Ahead,
    /// What an audit found to differ from the mirror.
    Found(Changes),
    /// All that is wanted or there: the mirror is new.
    Everything,
}

fn unreadable(error: &ObserveError) -> Pass {
    Pass { unreadable: Some(error.to_string()), ..Pass::default() }
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that has not looked at anything yet. `local_from_node`: the local CIDRs are
    /// the Node's pod CIDRs (`detectLocalMode: NodeCIDR`).
    pub fn new(
        kernel: K,
        store: Arc<Store>,
        settings: Settings,
        node: &str,
        local_from_node: bool,
        outlets: Outlets,
    ) -> Self {
        Self {
            kernel,
            store,
            settings,
            local_from_node,
            node_object: None,
            node: NodeFacts { name: node.into(), ..NodeFacts::default() },
            desired: Desired::default(),
            observed: None,
            drains: Drains::default(),
            handover: Handover::default(),
            pending: Changes::default(),
            outlets,
            health_checks_changed: false,
            failed: false,
            stage: Stage::default(),
            looked_at: Duration::ZERO,
            comparison: None,
            rules: None,
            audit_worked: Duration::ZERO,
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

    /// Whether the objects are known well enough to write to the kernel: every list is complete,
    /// and the Node has its pod CIDRs where local traffic is told by them.
    pub fn is_ready(&self) -> bool {
        self.store.is_synced() && (self.is_whole() || self.knows_local_traffic())
    }

    fn knows_local_traffic(&self) -> bool {
        let has_cidrs = || self.store.node().is_some_and(|n| n.pod_cidrs.iter().any(Option::is_some));
        !self.local_from_node || has_cidrs()
    }

    /// One pass at the time `now` (since some fixed start): take the changes, plan, apply, follow
    /// what was acknowledged. An audit is made in one go.
    pub fn sync(&mut self, due: Due, now: Duration) -> Pass {
        if due != Due::Audit && self.is_whole() {
            return self.pass(due, Look::Changes, now);
        }
        match self.audit(now) {
            Ok(look) => self.audited(look, now),
            Err(error) => unreadable(&error),
        }
    }

    fn pass(&mut self, due: Due, look: Look, now: Duration) -> Pass {
        let first = matches!(look, Look::Everything);
        if first {
            self.stage = Stage::Whole;
        }
        let mut changes = self.take_changes(&look);
        if due != Due::Changes {
            changes.virtual_servers.append(&mut self.drains.virtual_servers());
        }
        let Some(mut observed) = self.observed.take() else {
            return Pass::default();
        };
        let audit = !matches!(look, Look::Changes | Look::Ahead);
        let keys = match look {
            Look::Everything => all_keys(&self.desired, &observed),
            Look::Found(found) => {
                let mut keys = changes.clone();
                keys.append(found);
                keys
            }
            Look::Changes | Look::Ahead => changes.clone(),
        };
        if audit {
            self.drains.adopt(&self.desired, &observed, &keys.virtual_servers, now);
        }
        self.look_for_connections(&mut observed, &keys);
        let expired = self.drains.expired(now, self.settings.drain_deadline);
        let (desired, settings) = (&self.desired, &self.settings);
        let hands_over = self.handover.waits();
        let settled = if audit { None } else { self.rules.as_ref() };
        let goal = Goal { desired, observed: &observed, settings, expired: &expired, hands_over, settled };
        let plan = build_plan(goal, &keys, &changes.flows);
        // The rest of the keys is not needed any more, and there may be many.
        let servers = keys.virtual_servers;
        let report = apply(&mut self.kernel, &plan);
        let drift = if audit && !first && !self.failed { self.drift(&plan, &report, &changes) } else { 0 };
        self.failed = !report.is_clean();
        self.follow(&plan, &report, &mut observed, now);
        self.handover.follow(&plan, &report, audit);
        for key in servers {
            if let (Some(server), Some(wanted)) =
                (observed.virtual_servers.get_mut(&key), self.desired.virtual_server(&key))
            {
                server.real_servers.share(&wanted.real_servers);
            }
        }
        // Rules that an audit found as they must be are looked at again when what they follow from changes.
        self.rules = report.is_clean().then(|| RulesBasis::build(&self.desired, &observed));
        // Who has connections is asked anew whenever it matters.
        observed.busy = Set::default();
        self.outlets.metrics.applied(&plan, &report, &self.desired, &observed);
        self.observed = Some(observed);
        self.tell(&changes);
        let pass = Pass { plan, report, drift, unreadable: None };
        // Before that the node does not serve what it must.
        if self.is_whole() {
            self.tell_health(&pass);
        }
        pass
    }

    /// How many ops repaired what somebody else changed.
    fn drift(&self, plan: &Plan, report: &Report, changes: &Changes) -> usize {
        let repaired = |(op, outcome): &(&Op, &Outcome)| {
            // The end of a drain that an audit happens to find is nobody's doing.
            let ends_drain = matches!(op, Op::RemoveRealServer(vs, rs) if self.drains.contains(*vs, *rs));
            **outcome == Outcome::Done && !touches(op, changes) && !ends_drain
        };
        let repairs = plan.ops.iter().zip(&report.outcomes).filter(repaired);
        repairs.inspect(|(op, _)| self.outlets.metrics.repaired(op.kind())).count()
    }

    /// The mirror follows what the kernel acknowledged; the rest is looked at again.
    fn follow(&mut self, plan: &Plan, report: &Report, observed: &mut Observed, now: Duration) {
        for (op, outcome) in plan.ops.iter().zip(&report.outcomes) {
            match outcome {
                Outcome::Done => {
                    self.outlets.metrics.done(op, observed);
                    observed.record(op);
                    self.drains.record(op, now);
                    // Somebody's wider prefix of a wanted address went: now there is room for ours.
                    if let Op::Unbind(net) = op
                        && self.desired.wants_address(net.addr())
                    {
                        self.pending.addresses.insert(net.addr());
                    }
                }
                _ => remember(op, &mut self.pending),
            }
        }
    }

    /// Finds out which real servers that are about to go have connections. When that cannot be read
    /// they are taken to have some: they drain until it can.
    fn look_for_connections(&mut self, observed: &mut Observed, changes: &Changes) {
        let servers = drain::closing(&self.desired, observed, &changes.virtual_servers);
        if servers.is_empty() {
            return;
        }
        let busy = self.kernel.busy(&servers).unwrap_or_else(|error| {
            tracing::warn!("{error}; the real servers that go are drained");
            let all = |vs: &VsKey| {
                let real_servers = observed.virtual_servers.get(vs).map(|s| s.real_servers.keys());
                real_servers.into_iter().flatten().map(|rs| (*vs, *rs)).collect::<Vec<_>>()
            };
            servers.iter().flat_map(all).collect()
        });
        let asked: Set<VsKey> = servers.into_iter().collect();
        observed.busy.retain(|(vs, _)| !asked.contains(vs));
        observed.busy.extend(busy);
    }

    /// Tells the operator what changed in conflicts and remarks.
    fn tell(&self, changes: &Changes) {
        notices::log_own_addresses(&self.desired, changes);
        self.outlets.events.send(notices::build(&self.desired, changes));
        self.outlets.metrics.changed(&self.desired, changes, self.drains.len());
    }

    /// Tells the health endpoints what is programmed now.
    fn tell_health(&mut self, pass: &Pass) {
        let served: Vec<Family> =
            self.settings.families.iter().copied().filter(|f| pass.serves(*f)).collect();
        let now = SystemTime::now();
        self.outlets.health.with(|health| {
            health.set_families(&self.settings.families);
            served.iter().for_each(|family| health.synced(*family, now));
        });
        if served != self.settings.families || !std::mem::take(&mut self.health_checks_changed) {
            return;
        }
        self.outlets.health_checks.send_replace(HealthChecks {
            services: self.desired.health_checks().clone(),
            addresses: self.node.health_check_addresses(&self.settings),
        });
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
}
