// SPDX-License-Identifier: Apache-2.0
//! kube-proxy's families: same names, types, labels and buckets, so that dashboards and alerts that
//! were made for it work.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{
    catch_up, label, lock, register_counter, register_counters, register_floats, register_gauge,
    register_gauges, register_histogram, seconds,
};
use crate::core::model::Family;
use crate::core::plan::op::Op;
use crate::core::service::desired::Desired;
use crate::kernel::Outcome;
use crate::reconcile::Pass;
use crate::serve::health::Probe;
use crate::store::Tally;

const FAMILY: &[&str] = &["ip_family"];
/// The codes of a health answer.
const CODES: [&str; 2] = ["200", "503"];
const POLICIES: [&str; 2] = ["internal", "external"];

/// A millisecond and its doubles up to 16 seconds.
fn sync_buckets() -> Vec<f64> {
    (0..15).map(|power| 0.001 * f64::from(1 << power)).collect()
}

#[derive(Debug)]
pub(super) struct Proxy {
    families: Mutex<Vec<Family>>,
    sync: HistogramVec,
    synced: GaugeVec,
    queued: GaugeVec,
    slices_pending: IntGauge,
    slices: IntCounter,
    services_pending: IntGauge,
    services: IntCounter,
    healthz: IntCounterVec,
    livez: IntCounterVec,
    no_local: IntGaugeVec,
    restore_failures: IntCounterVec,
    flows: FlowCounter,
}

impl Proxy {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        const SYNC: &str = "kubeproxy_sync_proxy_rules_";
        let name = |rest: &str| format!("{SYNC}{rest}");
        let proxy = Self {
            families: Mutex::default(),
            sync: register_histogram(
                registry,
                &name("duration_seconds"),
                "Duration of a pass, whatever became of it.",
                FAMILY,
                sync_buckets(),
            )?,
            synced: register_floats(
                registry,
                &name("last_timestamp_seconds"),
                "End of the last pass that did everything.",
                FAMILY,
            )?,
            queued: register_floats(
                registry,
                &name("last_queued_timestamp_seconds"),
                "When the newest change came in.",
                FAMILY,
            )?,
            slices_pending: register_gauge(
                registry,
                &name("endpoint_changes_pending"),
                "Changes of EndpointSlices that no pass has taken yet.",
            )?,
            slices: register_counter(
                registry,
                &name("endpoint_changes_total"),
                "Changes of EndpointSlices that came in.",
            )?,
            services_pending: register_gauge(
                registry,
                &name("service_changes_pending"),
                "Services with a change that no pass has taken yet.",
            )?,
            services: register_counter(
                registry,
                &name("service_changes_total"),
                "Changes of Services that came in; as in kube-proxy each counts once per IP family.",
            )?,
            healthz: register_counters(
                registry,
                "kubeproxy_proxy_healthz_total",
                "Answers of /healthz.",
                &["code"],
            )?,
            livez: register_counters(
                registry,
                "kubeproxy_proxy_livez_total",
                "Answers of /livez.",
                &["code"],
            )?,
            no_local: register_gauges(
                registry,
                &name("no_local_endpoints_total"),
                "Services with a Local traffic policy and endpoints, but none on this node.",
                &["ip_family", "traffic_policy"],
            )?,
            restore_failures: register_counters(
                registry,
                &name("iptables_restore_failures_total"),
                "Failures to write the rules.",
                FAMILY,
            )?,
            flows: FlowCounter::new(registry)?,
        };
        for code in CODES {
            proxy.healthz.with_label_values(&[code]);
            proxy.livez.with_label_values(&[code]);
        }
        Ok(proxy)
    }

    /// Shows these families and no others, each from zero: a rate needs a first value.
    pub fn set_families(&self, families: &[Family]) -> bool {
        let mut shown = lock(&self.families);
        if *shown == families {
            return false;
        }
        for family in Family::ALL {
            let of = &[label(family)];
            if families.contains(&family) {
                self.sync.with_label_values(of);
                self.restore_failures.with_label_values(of);
                self.flows.show(family);
                continue;
            }
            // Nothing is there to remove where the family was never shown.
            let _ = self.sync.remove_label_values(of);
            let _ = self.synced.remove_label_values(of);
            let _ = self.queued.remove_label_values(of);
            let _ = self.restore_failures.remove_label_values(of);
            for policy in POLICIES {
                let _ = self.no_local.remove_label_values(&[of[0], policy]);
            }
            self.flows.hide(family);
        }
        *shown = families.to_vec();
        true
    }

    pub fn pass(&self, pass: &Pass, took: Duration, now: SystemTime) {
        for family in lock(&self.families).iter() {
            let of = &[label(*family)];
            self.sync.with_label_values(of).observe(took.as_secs_f64());
            if pass.synced.contains(family) {
                self.synced.with_label_values(of).set(seconds(now));
            }
        }
        for (op, outcome) in pass.plan.ops.iter().zip(&pass.report.outcomes) {
            if let (Op::WriteRules(rules), Outcome::Failed(_)) = (op, outcome) {
                self.restore_failed(rules.family);
            }
        }
    }

    pub fn restore_failed(&self, family: Family) {
        self.restore_failures.with_label_values(&[label(family)]).inc();
    }

    pub fn set_no_local(&self, desired: &Desired) {
        for family in lock(&self.families).iter() {
            for (policy, count) in POLICIES.into_iter().zip(desired.no_local(*family)) {
                self.no_local.with_label_values(&[label(*family), policy]).set(i64::from(count));
            }
        }
    }

    pub fn answered(&self, probe: Probe, code: u16) {
        let counter = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        counter.with_label_values(&[CODES[usize::from(code != 200)]]).inc();
    }

    /// Follows what came into the store.
    pub fn set_tally(&self, tally: &Tally) {
        let families = lock(&self.families);
        self.slices_pending.set(tally.pending_slices as i64);
        self.services_pending.set(tally.pending_services.len() as i64);
        catch_up(&self.services, tally.services * families.len() as u64);
        catch_up(&self.slices, families.iter().map(|family| tally.slices[family.index()]).sum());
        for family in families.iter() {
            self.queued.with_label_values(&[label(*family)]).set(seconds(tally.changed_at));
        }
    }

    pub fn flows(&self) -> FlowCounter {
        self.flows.clone()
    }
}

/// Counts stale flows that were looked for and forgotten.
#[derive(Clone, Debug)]
pub struct FlowCounter {
    duration: HistogramVec,
    deleted: IntCounterVec,
}

impl FlowCounter {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            duration: register_histogram(
                registry,
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "Duration of looking for stale UDP flows and forgetting them.",
                FAMILY,
                sync_buckets(),
            )?,
            deleted: register_counters(
                registry,
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "Stale UDP flows that were forgotten.",
                FAMILY,
            )?,
        })
    }

    fn show(&self, family: Family) {
        self.duration.with_label_values(&[label(family)]);
        self.deleted.with_label_values(&[label(family)]);
    }

    fn hide(&self, family: Family) {
        let _ = self.duration.remove_label_values(&[label(family)]);
        let _ = self.deleted.remove_label_values(&[label(family)]);
    }

    /// The table was read, and so many flows forgotten; not called when it could not be read.
    pub fn forgot(&self, family: Family, took: Duration, deleted: u64) {
        self.duration.with_label_values(&[label(family)]).observe(took.as_secs_f64());
        self.deleted.with_label_values(&[label(family)]).inc_by(deleted);
    }
}
