// SPDX-License-Identifier: Apache-2.0
//! The reconcile loop: the only thread that changes the kernel.

#[cfg(test)]
mod answer_tests;
mod audit;
#[cfg(test)]
mod cut_off_tests;
#[cfg(test)]
mod default_tests;
mod drift;
pub mod endpoint_checks;
mod later;
mod limits;
mod look_ahead;
mod minute;
mod mirror;
#[cfg(test)]
mod option_tests;
#[cfg(test)]
mod probe_tests;
#[cfg(test)]
mod real_server_tests;
mod recheck;
mod release;
mod report;
mod report_health;
#[cfg(test)]
mod report_tests;
#[cfg(test)]
mod route_tests;
mod run_loop;
pub mod schedule;
mod schedulers;
#[cfg(test)]
mod setting_event_tests;
mod shadow;
mod shared_failures;
mod start;
mod sync;
mod take_changes;
pub mod takeover;

use crate::core::plan::pass::{Due, Pass, Touched};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::core::loop_state::LoopState;
use crate::core::model::changes::Changes;
use crate::core::model::settings::Settings;
use crate::core::model::{Family, Node, PerFamily, VsKey};
use crate::core::plan::RulesBasis;
use crate::core::plan::drain::Drains;
use crate::core::plan::outcome::{Finished, Outcome};
use crate::core::plan::retries::Retries;
use crate::core::plan::subject::Subject;
use crate::core::service::desired::Desired;
use crate::core::service::node_facts::NodeFacts;
use crate::core::service::protected::Protected;
use crate::core::service::slow_start::SlowStarts;
use crate::events::EventSink;
use crate::kernel::Kernel;
use crate::metrics::Metrics;
use crate::reconcile::takeover::Takeover;
use crate::serve::health::{Health, SharedHealth};
use crate::serve::node_ports::HealthChecks;
use crate::store::Store;
use endpoint_checks::EndpointChecks;
use later::LaterBinds;
use mirror::Mirror;
use recheck::Recheck;
use report::Reporter;
pub use report::{CHANGES, READY};
use shadow::Shadows;
use shared_failures::SharedFailures;

/// Outputs of the loop.
#[derive(Clone, Debug)]
pub struct Reporting {
    /// Kubernetes Events.
    pub events: EventSink,
    pub metrics: Metrics,
    /// State of the health endpoints.
    pub health: SharedHealth,
    /// State of the health-check node ports.
    pub health_checks: watch::Sender<HealthChecks>,
}

impl Reporting {
    /// Outputs that are only logged.
    ///
    /// # Errors
    /// When the metrics cannot be registered.
    pub fn log_only() -> prometheus::Result<Self> {
        Ok(Self {
            events: EventSink::log_only(),
            metrics: Metrics::new()?,
            health: SharedHealth::new(Health::new(&Family::ALL, Duration::MAX)),
            health_checks: watch::channel(HealthChecks::default()).0,
        })
    }
}

/// The wanted state, the mirror of the kernel, and the kernel.
pub struct Reconciler<K> {
    kernel: K,
    store: Arc<Store>,
    settings: Settings,
    local_from_node: bool,
    /// The last version of the Node object: its deletion changes nothing, as in kube-proxy.
    node_object: Option<Node>,
    node: NodeFacts,
    /// Addresses of other hosts that this node must reach.
    protected: Arc<Protected>,
    desired: Desired,
    mirror: Mirror,
    drains: Drains,
    takeover: Takeover,
    /// Kernel objects of the next pass, besides those of changed Kubernetes objects.
    pending: Changes,
    /// Failed subjects and the times of their retries.
    retries: Retries,
    reporting: Reporting,
    reporter: Reporter,
    shadows: Shadows,
    shared_failures: SharedFailures,
    /// The health-check node ports need an update.
    health_checks_changed: bool,
    /// The priority Services have been programmed, or cannot be programmed before the lists are complete.
    priority_done: bool,
    /// Inputs of the installed rules of each family; `None`: unknown.
    rules: PerFamily<Option<RulesBasis>>,
    /// Parts of the kernel that must be read again.
    recheck: Recheck,
    /// Virtual servers of the current sample that have not been probed.
    unprobed: Vec<VsKey>,
    /// Differences between the mirror and rules that another thread read.
    found: Option<Changes>,
    /// Changed Services of the next pass.
    touched: Touched,
    /// Some health-check node port reports 0 endpoints because its Service is not completely programmed.
    served_in_part: bool,
    /// Addresses that were bound when VIPs began to wait for the addresses of other Nodes.
    kept: Option<Arc<BTreeSet<IpAddr>>>,
    /// Addresses whose release failed and was reported.
    released: BTreeSet<IpAddr>,
    /// Addresses that a route serves and that are bound slowly.
    later: LaterBinds,
    /// Subjects of started ops that repair drift.
    repairing: BTreeSet<Subject>,
    missing_schedulers: schedulers::MissingSchedulers,
    postponed_schedulers: schedulers::PostponedSchedulers,
    slow_starts: SlowStarts,
    endpoint_checks: EndpointChecks,
    limits: limits::LimitReadings,
    /// Dropped when the agent is ready.
    until_ready: Option<Sender<()>>,
}

/// The kernel objects that a pass compares.
enum PassScope {
    /// Those of changed Kubernetes objects.
    Changes,
    /// Those of the priority Services.
    Priority,
    /// Those of changed Kubernetes objects, and those that differ from the mirror.
    Found(Changes),
    /// All that are wanted or exist: the first pass.
    Everything,
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler with an unread mirror. `local_from_node`: the local CIDRs are the Node's pod CIDRs
    /// (`detectLocalMode: NodeCIDR`).
    pub fn new(
        kernel: K,
        store: Arc<Store>,
        settings: Settings,
        node: &str,
        local_from_node: bool,
        reporting: Reporting,
    ) -> Self {
        let protected = Protected { listed: settings.protected.clone(), ..Protected::default() };
        // The same seed after a restart, and different seeds on different nodes.
        let seed = node.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let order_seed = settings.order_seed.map(|_| seed);
        Self {
            kernel,
            store,
            settings: Settings { order_seed, ..settings },
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
            rules: PerFamily::default(),
            recheck: Recheck::default(),
            unprobed: Vec::new(),
            found: None,
            touched: Touched::default(),
            served_in_part: false,
            kept: None,
            released: BTreeSet::new(),
            later: LaterBinds::default(),
            repairing: BTreeSet::new(),
            missing_schedulers: schedulers::MissingSchedulers::default(),
            postponed_schedulers: schedulers::PostponedSchedulers::default(),
            slow_starts: SlowStarts::default(),
            endpoint_checks: EndpointChecks::default(),
            limits: limits::LimitReadings::default(),
            until_ready: None,
        }
    }

    /// Drops `sender` when the agent is ready, as a signal.
    pub fn when_ready(&mut self, sender: Sender<()>) {
        self.until_ready = Some(sender);
    }

    /// The kernel, for tests.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// The state of the health endpoints, for tests.
    #[cfg(test)]
    pub fn health(&self) -> SharedHealth {
        self.reporting.health.clone()
    }

    /// What the loop knows, for a question.
    pub fn state(&self, now: Duration) -> LoopState<'_> {
        LoopState {
            settings: &self.settings,
            node: &self.node,
            pod_cidrs: self.node_object.as_ref().map(|node| node.pod_cidrs).unwrap_or_default(),
            desired: &self.desired,
            observed: self.mirror.observed(),
            retries: &self.retries,
            drains: &self.drains,
            history: &self.reporter.history,
            dead: &self.endpoint_checks.dead,
            is_whole: self.is_whole(),
            now,
        }
    }

    /// The wanted state.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Whether some schedulers are changed by later syncs.
    pub fn has_postponed(&self) -> bool {
        !self.postponed_schedulers.is_empty()
    }

    /// Failed subjects.
    pub fn retries(&self) -> &Retries {
        &self.retries
    }

    /// Whether whole passes can run: every list is complete, and the Node has its pod CIDRs if they define local
    /// traffic.
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

    /// One pass, which waits up to `limit` for each program that it starts, and runs the passes that follow. For tests
    /// and benchmarks: the loop does not wait.
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
                let waits = matches!(outcome, Outcome::Started | Outcome::Blocked(_));
                if waits && !self.retries.fails(&op.subject()) {
                    *outcome = Outcome::Done;
                }
            }
            pass.plan.ops.extend(more.plan.ops);
            pass.report.outcomes.extend(more.report.outcomes);
            (pass.synced, pass.incomplete) = (more.synced, more.incomplete);
        }
        pass
    }

    /// One pass at the time `now` since a fixed start: takes the changes, plans, applies the plan and updates the mirror.
    /// An audit runs to its end.
    pub fn sync(&mut self, due: Due, now: Duration) -> Pass {
        if due != Due::Audit && self.is_whole() {
            let scope = self.found.take().map_or(PassScope::Changes, PassScope::Found);
            return self.pass(due, scope, now);
        }
        match self.audit_at_once(now) {
            Ok(scope) => self.finish_audit(scope, now),
            Err(error) => Pass { unreadable: Some(error), ..Pass::default() },
        }
    }

    /// Whether an added or removed address differs from the wanted state.
    fn contradicts(&self, net: &IpNet, added: bool) -> bool {
        let wanted = net.prefix_len() == net.max_prefix_len() && self.desired.wants_address(net.addr());
        added != wanted
    }

    /// Takes the results of work on other threads. Returns them for tests.
    pub fn poll_finished(&mut self, now: Duration) -> Vec<Finished> {
        let finished = self.kernel.finished(Duration::ZERO);
        self.take_finished(finished.clone(), now);
        finished
    }
}
