// SPDX-License-Identifier: Apache-2.0
//! The loop: the one thread that owns the kernel.

mod audit;
#[cfg(test)]
mod cut_off_tests;
mod drift;
mod minute;
mod mirror;
#[cfg(test)]
mod probe_tests;
mod recheck;
mod release;
mod report;
mod report_health;
#[cfg(test)]
mod report_tests;
mod run_loop;
pub mod schedule;
mod services_of;
mod shadow;
mod shared_failures;
mod start;
mod sync;
mod take_changes;
pub mod takeover;

use crate::core::plan::outcome::ObserveError;
use crate::core::plan::pass::Due;
use crate::core::plan::pass::{Pass, Touched};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::core::model::changes::Changes;
use crate::core::model::settings::Settings;
use crate::core::model::{Family, Node};
use crate::core::plan::RulesBasis;
use crate::core::plan::drain::Drains;
use crate::core::plan::outcome::Finished;
use crate::core::plan::retries::Retries;
use crate::core::plan::subject::Subject;
use crate::core::service::desired::Desired;
use crate::core::service::node_facts::NodeFacts;
use crate::core::service::protected::Protected;
use crate::events::EventSink;
use crate::kernel::Kernel;
use crate::metrics::Metrics;
use crate::reconcile::takeover::Takeover;
use crate::serve::health::{Health, SharedHealth};
use crate::serve::node_ports::HealthChecks;
use crate::store::Store;
use mirror::Mirror;
use recheck::{ProbeCursor, Recheck};
use report::Reporter;
pub use report::{CHANGES, READY};
use shadow::Shadows;
use shared_failures::SharedFailures;

/// Where the loop tells what it found.
#[derive(Clone, Debug)]
pub struct Reporting {
    /// Events for operators.
    pub events: EventSink,
    /// Numbers for Prometheus.
    pub metrics: Metrics,
    /// What the health endpoints answer.
    pub health: SharedHealth,
    /// What the health-check node ports answer.
    pub health_checks: watch::Sender<HealthChecks>,
}

impl Reporting {
    /// Reporting that reach nobody but the log.
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
    /// Addresses that the node must reach somewhere else.
    protected: Arc<Protected>,
    desired: Desired,
    mirror: Mirror,
    drains: Drains,
    takeover: Takeover,
    /// What the next pass looks at besides the changes of objects.
    pending: Changes,
    /// What failed, and when it is tried again.
    retries: Retries,
    reporting: Reporting,
    reporter: Reporter,
    shadows: Shadows,
    shared_failures: SharedFailures,
    /// The health-check node ports do not answer yet as they must.
    health_checks_changed: bool,
    /// The priority Services had their turn before the lists were complete.
    priority_done: bool,
    /// How long the audit that is not complete has worked.
    audit_time: Duration,
    /// What the installed rules of each family were made of, by [`Family::index`]; `None`: unknown.
    rules: [Option<RulesBasis>; 2],
    /// Parts of the kernel to be read again.
    recheck: Recheck,
    probe: ProbeCursor,
    /// What a reading beside the loop found to differ from the mirror.
    found: Option<Changes>,
    /// The Services that the next pass is about.
    touched: Touched,
    /// Some health-check node port answers that its Service is not served here.
    served_in_part: bool,
    /// What was bound when VIPs began to wait for the addresses of other Nodes.
    kept: Option<Arc<BTreeSet<IpAddr>>>,
    /// Addresses whose release at the start failed and was told.
    released: BTreeSet<IpAddr>,
    /// Ops that a program works on and that repair what another program changed.
    repairing: BTreeSet<Subject>,
}

/// What a pass looks at, besides the changes of objects.
enum PassScope {
    /// Nothing else.
    Changes,
    /// Of the changes only the first Services.
    Priority,
    /// What a reading found to differ from the mirror.
    Found(Changes),
    /// All that is wanted or there: the mirror is new.
    Everything,
}

fn unreadable(error: ObserveError) -> Pass {
    Pass { unreadable: Some(error), ..Pass::default() }
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
        reporting: Reporting,
    ) -> Self {
        let protected = Protected { listed: settings.protected.clone(), ..Protected::default() };
        // The same for every agent of this node, and another on every node.
        let seed = node.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self {
            kernel,
            store,
            settings,
            local_from_node,
            node_object: None,
            node: NodeFacts { name: node.into(), ..NodeFacts::default() },
            protected: Arc::new(protected),
            desired: Desired::default(),
            mirror: Mirror::default(),
            drains: Drains::default(),
            takeover: Takeover::default(),
            pending: Changes::default(),
            retries: Retries::new(seed),
            reporting,
            reporter: Reporter::default(),
            shadows: Shadows::default(),
            shared_failures: SharedFailures::default(),
            health_checks_changed: false,
            priority_done: false,
            audit_time: Duration::ZERO,
            rules: [None, None],
            recheck: Recheck::default(),
            probe: ProbeCursor::default(),
            found: None,
            touched: Touched::default(),
            served_in_part: false,
            kept: None,
            released: BTreeSet::new(),
            repairing: BTreeSet::new(),
        }
    }

    /// The kernel, for tests.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// What the loop tells the health endpoints, for tests.
    #[cfg(test)]
    pub fn health(&self) -> SharedHealth {
        self.reporting.health.clone()
    }

    /// The wanted state, for tests and questions.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What failed, for tests and questions.
    pub fn retries(&self) -> &Retries {
        &self.retries
    }

    /// Whether the objects are known well enough to write to the kernel: every list is complete,
    /// and the Node has its pod CIDRs where local traffic is told by them.
    pub fn is_ready(&self) -> bool {
        self.store.is_synced() && (self.is_whole() || self.knows_local_traffic())
    }

    /// Whether VIPs wait for the addresses of other Nodes.
    fn awaits_nodes(&self) -> bool {
        self.store.awaits_nodes() && self.store.vips().any
    }

    fn knows_local_traffic(&self) -> bool {
        let has_cidrs = || self.store.node().is_some_and(|n| n.pod_cidrs.iter().any(Option::is_some));
        !self.local_from_node || has_cidrs()
    }

    /// One pass at the time `now` (since some fixed start), with everything that it leads to at once: programs
    /// that it started are waited for, up to `limit`. The loop itself goes on meanwhile; this is for tests and
    /// benchmarks.
    pub fn sync_and_wait(&mut self, due: Due, now: Duration, limit: Duration) -> Pass {
        let mut pass = self.sync(due, now);
        while self.retries.is_running() {
            let finished = self.kernel.finished(limit);
            if finished.is_empty() || pass.unreadable.is_some() {
                break;
            }
            self.take_finished(finished, now);
            let more = self.sync(Due::Changes, now);
            for (op, outcome) in pass.plan.ops.iter().zip(&mut pass.report.outcomes) {
                let waits = matches!(
                    outcome,
                    crate::core::plan::outcome::Outcome::Started
                        | crate::core::plan::outcome::Outcome::Blocked(_)
                );
                if waits && !self.retries.fails(&op.subject()) {
                    *outcome = crate::core::plan::outcome::Outcome::Done;
                }
            }
            pass.plan.ops.extend(more.plan.ops);
            pass.report.outcomes.extend(more.report.outcomes);
            (pass.synced, pass.incomplete) = (more.synced, more.incomplete);
        }
        pass
    }

    /// One pass at the time `now` (since some fixed start): take the changes, plan, apply, follow
    /// what was acknowledged. An audit is made in one go.
    pub fn sync(&mut self, due: Due, now: Duration) -> Pass {
        if due != Due::Audit && self.is_whole() {
            let scope = self.found.take().map_or(PassScope::Changes, PassScope::Found);
            return self.pass(due, scope, now);
        }
        match self.audit_at_once(now) {
            Ok(scope) => self.finish_audit(scope, now),
            Err(error) => unreadable(error),
        }
    }

    /// Whether an address that came or went is not as wanted.
    fn contradicts(&self, net: &IpNet, added: bool) -> bool {
        let wanted = net.prefix_len() == net.max_prefix_len() && self.desired.wants_address(net.addr());
        added != wanted
    }

    /// What ended beside the loop, taken for the mirror. For tests, which have no inbox.
    pub fn poll_finished(&mut self, now: Duration) -> Vec<Finished> {
        let finished = self.kernel.finished(Duration::ZERO);
        self.take_finished(finished.clone(), now);
        finished
    }
}
