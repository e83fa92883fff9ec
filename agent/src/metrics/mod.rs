// SPDX-License-Identifier: Apache-2.0
//! Metrics for Prometheus. Labels come from closed sets, except the names of Services, whose number is limited.
//!
//! `proxy` has the metrics of kube-proxy, with its names, labels and buckets; `work`, `objects` and `input` have ours,
//! `kube_ipvs_*`; [`rest`] counts requests to the API server; `process` is about this process; `services` counts
//! traffic per Service. docs/metrics.md explains each metric.

mod input;
mod objects;
pub(crate) mod process;
mod programming;
mod proxy;
mod register;
pub mod rest;
mod services;
mod work;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use hyper::{Method, StatusCode};
use k8s_openapi::apimachinery::pkg::version::Info;
use prometheus::process_collector::ProcessCollector;
use prometheus::{IntGaugeVec, Registry, TextEncoder};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::core::mirror::Observed;
use crate::core::model::changes::Changes;
use crate::core::model::trigger::Trigger;
use crate::core::model::{Family, ObjectName};
use crate::core::plan::op::{Op, OpKind, Plan};
use crate::core::plan::outcome::{Cause, OpError, Report};
use crate::core::plan::pass::{Due, Pass};
use crate::core::plan::subject::SubjectKind;
use crate::core::service::desired::Desired;
use crate::events::EventSink;
use crate::kernel::ipvs::traffic::ReadCounters;
use crate::kernel::linux::FlowObserver;
use crate::lock::lock;
use crate::source::monitor::{Monitor, WatchState};
use crate::store::{Kind, Store};
use input::InputMetrics;
use objects::ObjectMetrics;
use process::ProcessMetrics;
use programming::ProgrammingMetrics;
use proxy::ProxyMetrics;
use register::declare;
use rest::RequestMetrics;
use services::ServiceTraffic;
use work::SyncMetrics;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<AllMetrics>);

#[derive(Debug)]
struct AllMetrics {
    registry: Registry,
    versions: VersionMetrics,
    proxy: ProxyMetrics,
    work: SyncMetrics,
    objects: ObjectMetrics,
    input: InputMetrics,
    rest: RequestMetrics,
    process: ProcessMetrics,
    programming: Mutex<ProgrammingMetrics>,
    /// Read at every scrape.
    sources: OnceLock<(Arc<Store>, EventSink)>,
    services: OnceLock<ServiceTraffic>,
    /// One scrape at a time.
    scrape: Mutex<()>,
}

declare! {
    struct VersionMetrics {
        agent: IntGaugeVec = "kube_ipvs_build_info" ["version"] => "1; the label is the version of this agent.";
        kubernetes: IntGaugeVec = "kubernetes_build_info" [
            "major", "minor", "git_version", "git_commit", "git_tree_state", "build_date", "go_version", "compiler",
            "platform"
        ] => "1; the labels are the version of the API server of this node.";
    }
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let inner = AllMetrics {
            versions: VersionMetrics::register(&registry)?,
            proxy: ProxyMetrics::register(&registry)?,
            work: SyncMetrics::register(&registry)?,
            objects: ObjectMetrics::register(&registry)?,
            input: InputMetrics::register(&registry)?,
            rest: RequestMetrics::register(&registry)?,
            process: ProcessMetrics::register(&registry)?,
            programming: Mutex::new(ProgrammingMetrics::register(&registry)?),
            sources: OnceLock::new(),
            services: OnceLock::new(),
            scrape: Mutex::default(),
            registry,
        };
        inner.versions.agent.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        inner.proxy.show_health();
        inner.input.show_watches();
        Ok(Self(Arc::new(inner)))
    }

    /// Includes what the store counts, and the number of dropped Events.
    pub fn watch(&self, store: &Arc<Store>, events: &EventSink) {
        // There is one of each in a process.
        let _ = self.0.sources.set((store.clone(), events.clone()));
    }

    /// Includes the traffic of Services, at most `limit` of them by name. The first reading is the base, so call this
    /// before the first sync.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn serve_traffic(&self, limit: usize, reader: ReadCounters) -> anyhow::Result<()> {
        let services = ServiceTraffic::start(&self.0.registry, limit, services::MIN_PAUSE, reader)?;
        let _ = self.0.services.set(services);
        Ok(())
    }

    /// Counts the stale flows that the kernel deletes.
    pub fn flow_observer(&self) -> FlowObserver {
        self.0.proxy.flow_observer()
    }

    /// Sets the version of the API server. The agent reports that version as its own Kubernetes version: alerts
    /// that compare the versions of components would fire at the agent's.
    pub fn set_kubernetes(&self, info: &Info) {
        let kubernetes = &self.0.versions.kubernetes;
        kubernetes.reset();
        let labels = [
            &info.major,
            &info.minor,
            &info.git_version,
            &info.git_commit,
            &info.git_tree_state,
            &info.build_date,
            &info.go_version,
            &info.compiler,
            &info.platform,
        ];
        kubernetes.with_label_values(&labels).set(1);
    }

    pub fn answered_healthz(&self, code: u16) {
        self.0.proxy.answered_healthz(code);
    }

    pub fn answered_livez(&self, code: u16) {
        self.0.proxy.answered_livez(code);
    }

    /// Sets the families that are programmed.
    pub fn set_families(&self, families: &[Family]) {
        if self.0.proxy.set_families(families) {
            lock(&self.0.programming).set_families(families);
        }
    }

    /// Changes received since then are about to be programmed.
    pub fn working_on(&self, since: Option<Instant>) {
        self.0.work.working_on(since);
    }

    /// The Service is about to be programmed because of these triggers.
    pub fn triggered(&self, service: &ObjectName, triggers: Vec<Trigger>) {
        lock(&self.0.programming).add(service, triggers);
    }

    /// An op repaired a change of another program.
    pub fn repaired(&self, kind: OpKind) {
        self.0.work.repaired(kind);
    }

    /// The kernel acknowledged an op; `observed` is the mirror before it.
    pub fn done(&self, op: &Op, observed: &Observed) {
        self.0.objects.done(op, observed);
    }

    /// An op that a program executed has ended.
    pub fn ended(&self, op: &Op, result: &Result<(), OpError>) {
        self.0.work.ended(op, result.is_ok());
        if let (Op::WriteRules(rules), Err(_)) = (op, result) {
            self.0.proxy.restore_failed(rules.family);
        }
    }

    /// Sets the number of objects that cannot be programmed, by kind and cause.
    pub fn set_unprogrammed(&self, counts: &BTreeMap<(SubjectKind, Cause), usize>) {
        self.0.work.set_unprogrammed(counts);
    }

    /// The kernel was read completely.
    pub fn audited(&self, observed: &Observed) {
        self.0.objects.count_servers(observed);
    }

    /// A plan was executed; `desired` and `observed` are the state after it.
    pub fn applied(&self, plan: &Plan, report: &Report, desired: &Desired, observed: &Observed) {
        lock(&self.0.programming).applied(plan, report, desired, SystemTime::now());
        self.0.objects.set_sizes(desired, observed);
        self.0.proxy.set_no_local(desired);
    }

    /// The desired state changed.
    pub fn changed(&self, desired: &Desired, changes: &Changes, drains: usize) {
        if !changes.contested.is_empty() {
            self.0.objects.set_conflicts(desired);
        }
        if !changes.noticed.is_empty() || changes.everything {
            self.0.objects.set_unbound(desired);
        }
        self.0.objects.set_drains(drains);
        if let Some(services) = self.0.services.get() {
            let owner = |vs| desired.virtual_server(vs).map(|wanted| wanted.service.clone());
            services.own(changes.virtual_servers.iter().map(|vs| (*vs, owner(vs))));
        }
    }

    /// A sync ended.
    pub fn pass(&self, pass: &Pass, due: Due, took: Duration) {
        let now = SystemTime::now();
        self.0.proxy.pass(pass, took, now);
        self.0.work.pass(pass, due, now);
    }

    /// All metrics in Prometheus' text format. May block on a reading of the kernel's traffic counters.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn render(&self) -> prometheus::Result<String> {
        // Other tasks move to another thread meanwhile.
        match Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| self.gather()),
            _ => self.gather(),
        }
    }

    fn gather(&self) -> prometheus::Result<String> {
        let inner = &*self.0;
        let _one = lock(&inner.scrape);
        inner.services.get().into_iter().for_each(ServiceTraffic::refresh);
        if let Some((store, events)) = inner.sources.get() {
            let tally = store.tally();
            inner.proxy.set_tally(&tally);
            inner.input.refresh(&tally, &store.waiting_for(), events.dropped());
            inner.work.refresh(&tally);
        }
        inner.process.refresh();
        TextEncoder::new().encode_to_string(&inner.registry.gather())
    }
}

impl Monitor for Metrics {
    fn request_done(&self, host: &str, method: &Method, code: Option<StatusCode>, time: Duration) {
        self.0.rest.count(host, method, code, time);
    }

    fn watch_state(&self, kind: Kind, state: WatchState) {
        self.0.input.set_watch_state(kind, state);
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
