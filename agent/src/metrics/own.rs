// SPDX-License-Identifier: Apache-2.0
//! Our own families, `kube_ipvs_*`: what the agent does to the kernel and what it knows.

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{
    catch_up, lock, register_counter, register_counters, register_float, register_floats, register_gauge,
    register_gauges, seconds,
};
use crate::core::desired::Desired;
use crate::core::model::Family;
use crate::core::observed::Observed;
use crate::core::op::{Op, OpKind};
use crate::kernel::Outcome;
use crate::reconcile::Pass;
use crate::schedule::Due;
use crate::store::Kind;
use crate::tally::Tally;

/// Conflicts shown one by one; the gauge without labels counts all.
const CONFLICTS_SHOWN: usize = 100;
const FAMILY: &[&str] = &["ip_family"];
const RESULTS: [&str; 3] = ["done", "failed", "skipped"];
const OPERATIONS: usize = OpKind::ALL.len();

#[derive(Debug)]
pub(super) struct Own {
    contested: IntGauge,
    conflicts: IntGaugeVec,
    drains: IntGauge,
    /// By [`OpKind`] and result: ops are many, so their counters are looked up once.
    operations: [[IntCounter; RESULTS.len()]; OPERATIONS],
    drift: [IntCounter; OPERATIONS],
    passes: IntCounterVec,
    audited: Gauge,
    audit_age: Gauge,
    change_age: Gauge,
    services: IntGauge,
    virtual_servers: IntGaugeVec,
    real_servers: IntGaugeVec,
    entries: IntGaugeVec,
    addresses: IntGauge,
    malformed: IntCounterVec,
    synced: IntGaugeVec,
    events_dropped: IntCounter,
    watches: [Watch; Kind::ALL.len()],
    times: Mutex<Times>,
}

/// What ages are reckoned from.
#[derive(Debug, Default)]
struct Times {
    audit: Option<Instant>,
    unapplied: Option<Instant>,
}

/// `AddVirtualServer` as `add_virtual_server`.
fn snake(kind: OpKind) -> String {
    let mut name = String::new();
    for letter in format!("{kind:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn build_info(registry: &Registry) -> prometheus::Result<()> {
    let info = register_gauges(
        registry,
        "kube_ipvs_build_info",
        "1; the version of this agent is a label.",
        &["version"],
    )?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    Ok(())
}

impl Own {
    #[allow(clippy::too_many_lines, reason = "a list of families")]
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        build_info(registry)?;
        let operations = register_counters(
            registry,
            "kube_ipvs_operations_total",
            "Changes to the kernel by kind and result; skipped: something that it depends on failed.",
            &["kind", "result"],
        )?;
        let drift = register_counters(
            registry,
            "kube_ipvs_drift_repaired_total",
            "Changes that somebody else had made to what this agent keeps, by the operation that repaired them.",
            &["kind"],
        )?;
        let watches = Watches::new(registry)?;
        Ok(Self {
            contested: register_gauge(
                registry,
                "kube_ipvs_contested_virtual_servers",
                "Virtual servers that more than one Service claims; the oldest Service has each.",
            )?,
            conflicts: register_gauges(
                registry,
                "kube_ipvs_address_conflict",
                "1 for a Service that is not served at an address and port because an older one is.",
                &["namespace", "service", "virtual_server", "winner"],
            )?,
            drains: register_gauge(
                registry,
                "kube_ipvs_draining_real_servers",
                "Real servers that take no new connections and wait for the old ones to end.",
            )?,
            operations: OpKind::ALL
                .map(|kind| RESULTS.map(|result| operations.with_label_values(&[&*snake(kind), result]))),
            drift: OpKind::ALL.map(|kind| drift.with_label_values(&[snake(kind)])),
            passes: register_counters(
                registry,
                "kube_ipvs_passes_total",
                "Passes by reason and result; unreadable: the kernel could not be read, so nothing was changed.",
                &["reason", "result"],
            )?,
            audited: register_float(
                registry,
                "kube_ipvs_last_audit_timestamp_seconds",
                "When the kernel was last read completely; 0 before.",
            )?,
            audit_age: register_float(
                registry,
                "kube_ipvs_mirror_age_seconds",
                "Time since the kernel was last read completely, or since the start.",
            )?,
            change_age: register_float(
                registry,
                "kube_ipvs_oldest_change_age_seconds",
                "Age of the oldest change that is not in the kernel yet; 0 when all are.",
            )?,
            services: register_gauge(registry, "kube_ipvs_services", "Services that this node serves.")?,
            virtual_servers: register_gauges(
                registry,
                "kube_ipvs_virtual_servers",
                "Virtual servers in the kernel, those of others included.",
                FAMILY,
            )?,
            real_servers: register_gauges(
                registry,
                "kube_ipvs_real_servers",
                "Real servers in the kernel, draining ones and those of others included.",
                FAMILY,
            )?,
            entries: register_gauges(
                registry,
                "kube_ipvs_set_entries",
                "Entries of the ipsets that exist.",
                &["set"],
            )?,
            addresses: register_gauge(
                registry,
                "kube_ipvs_bound_addresses",
                "Addresses on the device kube-ipvs0.",
            )?,
            malformed: register_counters(
                registry,
                "kube_ipvs_malformed_objects_total",
                "Objects that could not be decoded, each time that they came.",
                &["kind"],
            )?,
            synced: register_gauges(
                registry,
                "kube_ipvs_objects_synced",
                "1 once all objects of a kind have been listed; before, nothing is programmed.",
                &["kind"],
            )?,
            events_dropped: register_counter(
                registry,
                "kube_ipvs_events_dropped_total",
                "Events that were not sent because too many waited.",
            )?,
            watches: Kind::ALL.map(|kind| watches.of(kind)),
            times: Mutex::default(),
        })
    }

    /// Shows the conflicts as they are now.
    pub fn set_conflicts(&self, desired: &Desired) {
        self.contested.set(desired.contested().len() as i64);
        self.conflicts.reset();
        let losers = desired.contested().iter().flat_map(|key| {
            let winner = desired.virtual_server(key).map(|vs| vs.service.to_string()).unwrap_or_default();
            desired.losers(key).map(move |loser| (key, winner.clone(), loser))
        });
        for (key, winner, loser) in losers.take(CONFLICTS_SHOWN) {
            let name = &loser.service;
            let labels = [&*name.namespace, &*name.name, &*key.to_string(), &*winner];
            self.conflicts.with_label_values(&labels).set(1);
        }
    }

    pub fn set_drains(&self, count: usize) {
        self.drains.set(count as i64);
    }

    pub fn repaired(&self, kind: OpKind) {
        self.drift[kind as usize].inc();
    }

    /// Changes that came in then are about to be programmed.
    pub fn working_on(&self, since: Option<Instant>) {
        let mut times = lock(&self.times);
        times.unapplied = times.unapplied.or(since);
    }

    pub fn pass(&self, pass: &Pass, due: Due, now: SystemTime) {
        for (op, outcome) in pass.plan.ops.iter().zip(&pass.report.outcomes) {
            let result = match outcome {
                Outcome::Done => 0,
                Outcome::Failed(_) => 1,
                Outcome::Skipped(_) => 2,
            };
            self.operations[op.kind() as usize][result].inc();
        }
        let reason = match due {
            Due::Changes => "changes",
            Due::Drains => "drains",
            Due::Audit => "audit",
        };
        let result = match pass {
            pass if pass.is_clean() => "complete",
            Pass { unreadable: Some(_), .. } => "unreadable",
            _ => "incomplete",
        };
        self.passes.with_label_values(&[reason, result]).inc();
        let mut times = lock(&self.times);
        if due == Due::Audit && pass.unreadable.is_none() {
            self.audited.set(seconds(now));
            times.audit = Some(Instant::now());
        }
        if pass.is_clean() {
            times.unapplied = None;
        }
    }

    /// Counts servers anew, after an audit.
    pub fn count_servers(&self, observed: &Observed) {
        let (mut virtual_servers, mut real_servers) = ([0; 2], [0; 2]);
        for (vs, server) in &observed.virtual_servers {
            virtual_servers[vs.family().index()] += 1;
            real_servers[vs.family().index()] += server.real_servers.len() as i64;
        }
        for family in Family::ALL {
            let label = &[family.to_string()];
            self.virtual_servers.with_label_values(label).set(virtual_servers[family.index()]);
            self.real_servers.with_label_values(label).set(real_servers[family.index()]);
        }
    }

    /// An op was acknowledged; `observed` is the mirror before it.
    pub fn done(&self, op: &Op, observed: &Observed) {
        let gauge = |gauges: &IntGaugeVec, family: Family| gauges.with_label_values(&[family.to_string()]);
        match op {
            Op::AddVirtualServer(vs, _) => gauge(&self.virtual_servers, vs.family()).inc(),
            Op::RemoveVirtualServer(vs) => {
                gauge(&self.virtual_servers, vs.family()).dec();
                let with_it = observed.virtual_servers.get(vs).map_or(0, |server| server.real_servers.len());
                gauge(&self.real_servers, vs.family()).sub(with_it as i64);
            }
            Op::AddRealServer(vs, _) => gauge(&self.real_servers, vs.family()).inc(),
            Op::RemoveRealServer(vs, _) => gauge(&self.real_servers, vs.family()).dec(),
            _ => {}
        }
    }

    /// Shows what is cheap to count, after every pass.
    pub fn set_sizes(&self, desired: &Desired, observed: &Observed) {
        self.services.set(desired.service_count() as i64);
        self.addresses.set(observed.addresses.len() as i64);
        for (id, set) in &observed.sets {
            self.entries.with_label_values(&[id.name()]).set(set.members.len() as i64);
        }
    }

    /// Follows what came into the store, and reckons ages.
    pub fn set_tally(&self, tally: &Tally, waiting_for: &[Kind]) {
        for kind in Kind::ALL {
            let label = &[kind.to_string()];
            catch_up(&self.malformed.with_label_values(label), tally.malformed[kind as usize]);
            self.synced.with_label_values(label).set(i64::from(!waiting_for.contains(&kind)));
        }
        let oldest = lock(&self.times).unapplied.or(tally.waiting_since);
        self.change_age.set(oldest.map_or(0.0, |since| since.elapsed().as_secs_f64()));
    }

    pub fn set_age(&self, start: Instant) {
        let since = lock(&self.times).audit.unwrap_or(start);
        self.audit_age.set(since.elapsed().as_secs_f64());
    }

    pub fn set_dropped(&self, dropped: u64) {
        catch_up(&self.events_dropped, dropped);
    }

    pub fn watch(&self, kind: Kind) -> Watch {
        self.watches[kind as usize].clone()
    }
}

/// How the API is followed for one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchState {
    /// A list is being read.
    Listing,
    /// Changes come as they happen.
    Following,
    /// The API server cannot be reached, or refuses.
    Failing,
}

impl WatchState {
    const ALL: [WatchState; 3] = [WatchState::Listing, WatchState::Following, WatchState::Failing];

    fn name(self) -> &'static str {
        match self {
            WatchState::Listing => "listing",
            WatchState::Following => "following",
            WatchState::Failing => "failing",
        }
    }
}

struct Watches {
    state: IntGaugeVec,
    since: GaugeVec,
    lists: IntCounterVec,
    failures: IntCounterVec,
}

impl Watches {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            state: register_gauges(
                registry,
                "kube_ipvs_watch_state",
                "1 for the state that following the API is in, by kind of object.",
                &["kind", "state"],
            )?,
            since: register_floats(
                registry,
                "kube_ipvs_watch_state_since_timestamp_seconds",
                "When that state began; 0 when the API is not followed.",
                &["kind"],
            )?,
            lists: register_counters(
                registry,
                "kube_ipvs_watch_lists_total",
                "Lists that were asked for.",
                &["kind"],
            )?,
            failures: register_counters(
                registry,
                "kube_ipvs_watch_failures_total",
                "Failures to list or to watch.",
                &["kind"],
            )?,
        })
    }

    fn of(&self, kind: Kind) -> Watch {
        let label = &[kind.to_string()];
        let state =
            WatchState::ALL.map(|state| self.state.with_label_values(&[&*kind.to_string(), state.name()]));
        Watch(Arc::new(WatchInner {
            now: Mutex::new(None),
            state,
            since: self.since.with_label_values(label),
            lists: self.lists.with_label_values(label),
            failures: self.failures.with_label_values(label),
        }))
    }
}

#[derive(Debug)]
struct WatchInner {
    now: Mutex<Option<WatchState>>,
    state: [IntGauge; WatchState::ALL.len()],
    since: Gauge,
    lists: IntCounter,
    failures: IntCounter,
}

/// The state of following one kind.
#[derive(Clone, Debug)]
pub struct Watch(Arc<WatchInner>);

impl Watch {
    /// Enters a state. Each list and each failure is to be told, also one after another.
    pub fn set(&self, state: WatchState) {
        match state {
            WatchState::Listing => self.0.lists.inc(),
            WatchState::Failing => self.0.failures.inc(),
            WatchState::Following => {}
        }
        let mut now = lock(&self.0.now);
        if *now == Some(state) {
            return;
        }
        *now = Some(state);
        for (gauge, is) in self.0.state.iter().zip(WatchState::ALL.map(|s| s == state)) {
            gauge.set(i64::from(is));
        }
        self.0.since.set(seconds(SystemTime::now()));
    }
}
