// SPDX-License-Identifier: Apache-2.0
//! Metrics for Prometheus. Labels come from closed sets, except the names of Services, whose number is limited.
//!
//! `proxy` has the metrics of kube-proxy, with its names, labels and buckets; `work`, `objects` and `input` have ours,
//! `kube_ipvs_*`; [`rest`] counts requests to the API server; `process` is about this process; `services` counts
//! traffic per Service. docs/metrics.md explains each metric.

mod checked;
mod input;
mod objects;
pub(crate) mod process;
mod programming;
mod proxy;
mod register;
pub mod rest;
mod services;
mod work;

use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use hyper::{Method, StatusCode};
use k8s_openapi::apimachinery::pkg::version::Info;
use prometheus::process_collector::ProcessCollector;
use prometheus::{IntGaugeVec, Registry, TextEncoder};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::core::mirror::Observed;
use crate::core::model::changes::Changes;
use crate::core::model::settings::RulesMode;
use crate::core::plan::op::{Op, Plan};
use crate::core::plan::outcome::{OpError, Report};
use crate::core::plan::pass::{Due, Pass};
use crate::core::service::desired::Desired;
use crate::events::EventSink;
use crate::kernel::ipvs::traffic::ReadCounters;
use crate::lock::lock;
use crate::source::monitor::{Monitor, WatchState};
use crate::store::{Kind, Store};
use checked::EndpointCheckMetrics;
use input::InputMetrics;
pub use input::WatchReport;
use objects::ObjectMetrics;
use process::ProcessMetrics;
use programming::Programming;
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

impl Deref for Metrics {
    type Target = AllMetrics;

    fn deref(&self) -> &AllMetrics {
        &self.0
    }
}

#[derive(Debug)]
pub struct AllMetrics {
    registry: Registry,
    versions: VersionMetrics,
    pub proxy: ProxyMetrics,
    pub work: SyncMetrics,
    pub objects: ObjectMetrics,
    pub endpoint_checks: EndpointCheckMetrics,
    input: InputMetrics,
    rest: RequestMetrics,
    process: ProcessMetrics,
    pub programming: Programming,
    /// Read at every scrape.
    sources: OnceLock<(Arc<Store>, EventSink)>,
    services: OnceLock<ServiceTraffic>,
    /// The version of the API server.
    kubernetes: Mutex<Option<String>>,
    /// One scrape at a time.
    scrape: Mutex<()>,
}

declare! {
    struct VersionMetrics {
        agent: IntGaugeVec = "kube_ipvs_build_info" ["version"] => "1; the label is the version of this agent.";
        rules: IntGaugeVec = "kube_ipvs_rules_mode" ["mode"]
            => "1; the label is what sets and rules are made of: iptables or nftables.";
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
        let proxy = ProxyMetrics::register(&registry)?;
        let inner = AllMetrics {
            versions: VersionMetrics::register(&registry)?,
            programming: Programming::new(proxy.programming.clone()),
            proxy,
            work: SyncMetrics::register(&registry)?,
            objects: ObjectMetrics::register(&registry)?,
            endpoint_checks: EndpointCheckMetrics::register(&registry)?,
            input: InputMetrics::register(&registry)?,
            rest: RequestMetrics::register(&registry)?,
            process: ProcessMetrics::register(&registry)?,
            sources: OnceLock::new(),
            services: OnceLock::new(),
            kubernetes: Mutex::default(),
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
        let _ = self.sources.set((store.clone(), events.clone()));
    }

    /// Includes the traffic of Services, at most `limit` of them by name. The first reading is the base, so call this
    /// before the first sync.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn serve_traffic(&self, limit: usize, reader: ReadCounters) -> anyhow::Result<()> {
        let services = ServiceTraffic::start(&self.registry, limit, services::MIN_PAUSE, reader)?;
        let _ = self.services.set(services);
        Ok(())
    }

    /// Sets what sets and rules are made of.
    pub fn set_rules_mode(&self, mode: RulesMode) {
        self.versions.rules.with_label_values(&[mode.to_string()]).set(1);
    }

    /// Sets the version of the API server. The agent reports that version as its own Kubernetes version: alerts
    /// that compare the versions of components would fire at the agent's.
    pub fn set_kubernetes(&self, info: &Info) {
        *lock(&self.kubernetes) = Some(info.git_version.clone());
        let kubernetes = &self.versions.kubernetes;
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

    /// The version of the API server, if it is known.
    pub fn kubernetes(&self) -> Option<String> {
        lock(&self.kubernetes).clone()
    }

    /// The state of watching each kind; none if objects come from files.
    pub fn watches(&self) -> Vec<WatchReport> {
        self.input.watches()
    }

    /// An op that a program executed has ended.
    pub fn ended(&self, op: &Op, result: &Result<(), OpError>) {
        self.work.ended(op, result.is_ok());
        if let (Op::WriteRules(rules), Err(_)) = (op, result) {
            self.proxy.restore_failed(rules.family);
        }
    }

    /// A plan was executed; `desired` and `observed` are the state after it.
    pub fn applied(&self, plan: &Plan, report: &Report, desired: &Desired, observed: &Observed) {
        self.programming.applied(plan, report, desired, SystemTime::now());
        self.objects.set_sizes(desired, observed);
        self.proxy.set_no_local(desired);
    }

    /// The desired state changed.
    pub fn changed(&self, desired: &Desired, changes: &Changes, drains: usize) {
        if !changes.contested.is_empty() {
            self.objects.set_conflicts(desired);
        }
        if !changes.noticed.is_empty() || changes.everything {
            self.objects.set_unbound(desired);
        }
        self.objects.drains.set(drains as i64);
        if let Some(services) = self.services.get() {
            let owner = |vs| desired.virtual_server(vs).map(|wanted| wanted.service.clone());
            services.own(changes.virtual_servers.iter().map(|vs| (*vs, owner(vs))));
        }
    }

    /// A sync ended.
    pub fn pass(&self, pass: &Pass, due: Due, took: Duration) {
        let now = SystemTime::now();
        self.proxy.pass(pass, took, now);
        self.work.pass(pass, due, now);
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
        let _one = lock(&self.scrape);
        self.services.get().into_iter().for_each(ServiceTraffic::refresh);
        if let Some((store, events)) = self.sources.get() {
            let tally = store.tally();
            self.proxy.set_tally(&tally);
            self.input.refresh(&tally, &store.waiting_for(), events.dropped());
            self.work.refresh(&tally);
        }
        self.process.refresh();
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl Monitor for Metrics {
    fn request_done(&self, host: &str, method: &Method, code: Option<StatusCode>, time: Duration) {
        self.rest.count(host, method, code, time);
    }

    fn watch_state(&self, kind: Kind, state: WatchState) {
        self.input.set_watch_state(kind, state);
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
