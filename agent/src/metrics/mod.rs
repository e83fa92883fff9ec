// SPDX-License-Identifier: Apache-2.0
//! What the agent tells Prometheus. One value is made at start and handed to whoever counts; labels
//! come from closed sets, but for the names of Services, of which only so many are shown.
//!
//! `proxy` has the families of kube-proxy, with its names, labels and buckets; `work`, `holdings` and
//! `input` ours, `kube_ipvs_*`; [`rest`] requests to the API server; `process` this process;
//! [`services`] traffic per Service. docs/metrics.md explains each family.

mod holdings;
pub mod input;
pub(crate) mod process;
pub mod programming;
pub mod proxy;
mod register;
pub mod rest;
pub mod services;
mod work;

use crate::core::plan::outcome::{OpError, Report};
use crate::core::plan::pass::{Due, Pass};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::apimachinery::pkg::version::Info;
use prometheus::{IntGaugeVec, Registry, TextEncoder};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::core::mirror::Observed;
use crate::core::model::changes::Changes;
use crate::core::model::{Family, ObjectName};
use crate::core::plan::op::{Op, OpKind, Plan};
use crate::core::plan::outcome::Cause;
use crate::core::plan::subject::SubjectKind;
use crate::core::service::desired::Desired;
use crate::events::EventSink;
use crate::serve::health::Probe;
use crate::store::{Kind, Store};
use holdings::Holdings;
use input::{Input, Watch};
use process::Process;
use programming::{Programming, Trigger};
use proxy::{FlowCounter, Proxy};
use register::{
    catch_up, label, lock, register_counter, register_counters, register_float, register_floats,
    register_gauge, register_gauges, register_histogram, seconds,
};
use rest::{CountRequests, Rest};
use services::{Reader, ServiceTraffic};
use work::Work;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    proxy: Proxy,
    work: Work,
    holdings: Holdings,
    input: Input,
    rest: Rest,
    process: Process,
    kubernetes: IntGaugeVec,
    programming: Mutex<Programming>,
    /// What is asked when somebody scrapes.
    sources: OnceLock<(Arc<Store>, EventSink)>,
    services: OnceLock<ServiceTraffic>,
    /// One scrape after another.
    scrape: Mutex<()>,
}

impl Metrics {
    /// Metrics that nobody has counted in yet.
    ///
    /// # Errors
    /// When two of them have one name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        build_info(&registry)?;
        let inner = Inner {
            proxy: Proxy::new(&registry)?,
            work: Work::new(&registry)?,
            holdings: Holdings::new(&registry)?,
            input: Input::new(&registry)?,
            rest: Rest::new(&registry)?,
            process: Process::new(&registry)?,
            kubernetes: register_gauges(
                &registry,
                "kubernetes_build_info",
                "1; the labels are the version of the API server, whose nodes this agent is part of.",
                &[
                    "major",
                    "minor",
                    "git_version",
                    "git_commit",
                    "git_tree_state",
                    "build_date",
                    "go_version",
                    "compiler",
                    "platform",
                ],
            )?,
            programming: Mutex::new(Programming::new(&registry)?),
            sources: OnceLock::new(),
            services: OnceLock::new(),
            scrape: Mutex::default(),
            registry,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Shows what comes into the store, and how many Events are dropped.
    pub fn watch(&self, store: &Arc<Store>, events: &EventSink) {
        // There is one of each in a process.
        let _ = self.0.sources.set((store.clone(), events.clone()));
    }

    /// Shows the traffic of Services, at most `limit` of them by name. Reads the kernel at once, so call
    /// it before anything is programmed.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn serve_traffic(&self, limit: usize, reader: Reader) -> anyhow::Result<()> {
        let services = ServiceTraffic::start(&self.0.registry, limit, services::MIN_PAUSE, reader)?;
        let _ = self.0.services.set(services);
        Ok(())
    }

    /// A layer for the client's stack that counts requests to `host`, given as `HOST:PORT`.
    pub fn count_requests(&self, host: &str) -> CountRequests {
        self.0.rest.layer(host)
    }

    /// The state of following one kind of the API.
    pub fn api_watch(&self, kind: Kind) -> Watch {
        self.0.input.watch(kind)
    }

    /// Counts stale flows.
    pub fn flows(&self) -> FlowCounter {
        self.0.proxy.flows()
    }

    /// The version of the API server. The agent takes part in the cluster as a component of that
    /// version: alerts that compare the versions of components would fire at ours.
    pub fn set_kubernetes(&self, info: &Info) {
        self.0.kubernetes.reset();
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
        self.0.kubernetes.with_label_values(&labels).set(1);
    }

    /// `/healthz` or `/livez` was answered.
    pub fn answered(&self, probe: Probe, code: u16) {
        self.0.proxy.answered(probe, code);
    }

    /// Which families are programmed.
    pub fn set_families(&self, families: &[Family]) {
        if self.0.proxy.set_families(families) {
            lock(&self.0.programming).set_families(families);
        }
    }

    /// Changes that came in since then are about to be programmed.
    pub fn working_on(&self, since: Option<Instant>) {
        self.0.work.working_on(since);
    }

    /// The Service is about to be programmed because of these.
    pub fn triggered(&self, service: &ObjectName, triggers: Vec<Trigger>) {
        lock(&self.0.programming).add(service, triggers);
    }

    /// An op repaired what somebody else had changed.
    pub fn repaired(&self, kind: OpKind) {
        self.0.work.repaired(kind);
    }

    /// An op was acknowledged; `observed` is the mirror before it.
    pub fn done(&self, op: &Op, observed: &Observed) {
        self.0.holdings.done(op, observed);
    }

    /// An op that a program worked on has ended.
    pub fn ended(&self, op: &Op, result: &Result<(), OpError>) {
        self.0.work.ended(op, result.is_ok());
        if let (Op::WriteRules(rules), Err(_)) = (op, result) {
            self.0.proxy.restore_failed(rules.family);
        }
    }

    /// How many objects cannot be programmed, by kind and cause.
    pub fn set_unprogrammed(&self, counts: &BTreeMap<(SubjectKind, Cause), usize>) {
        self.0.work.set_unprogrammed(counts);
    }

    /// The kernel was read completely.
    pub fn audited(&self, observed: &Observed) {
        self.0.holdings.count_servers(observed);
    }

    /// A plan was carried out; wanted and observed state after it.
    pub fn applied(&self, plan: &Plan, report: &Report, desired: &Desired, observed: &Observed) {
        lock(&self.0.programming).applied(plan, report, desired, SystemTime::now());
        self.0.holdings.set_sizes(desired, observed);
        self.0.proxy.set_no_local(desired);
    }

    /// Shows what changed among the Services.
    pub fn changed(&self, desired: &Desired, changes: &Changes, drains: usize) {
        if !changes.contested.is_empty() {
            self.0.holdings.set_conflicts(desired);
        }
        if !changes.noticed.is_empty() || changes.everything {
            self.0.holdings.set_unbound(desired);
        }
        self.0.holdings.set_drains(drains);
        if let Some(services) = self.0.services.get() {
            let owner = |vs| desired.virtual_server(vs).map(|wanted| wanted.service.clone());
            services.own(changes.virtual_servers.iter().map(|vs| (*vs, owner(vs))));
        }
    }

    /// A pass ended.
    pub fn pass(&self, pass: &Pass, due: Due, took: Duration) {
        let now = SystemTime::now();
        self.0.proxy.pass(pass, took, now);
        self.0.work.pass(pass, due, now);
    }

    /// The text that Prometheus reads. May take a moment: the kernel is asked for the traffic of
    /// Services.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub fn render(&self) -> prometheus::Result<String> {
        // Other tasks of this thread go on elsewhere meanwhile.
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

fn build_info(registry: &Registry) -> prometheus::Result<()> {
    let help = "1; the version of this agent is a label.";
    let info = register_gauges(registry, "kube_ipvs_build_info", help, &["version"])?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    Ok(())
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
