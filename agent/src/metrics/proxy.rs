// SPDX-License-Identifier: Apache-2.0
//! kube-proxy's metrics, with the same names, types, labels and buckets, so that its dashboards and alerts work.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::register::{catch_up, declare, label, seconds};
use crate::core::model::Family;
use crate::core::plan::op::Op;
use crate::core::plan::outcome::Outcome;
use crate::core::plan::pass::Pass;
use crate::core::service::desired::Desired;
use crate::kernel::linux::FlowObserver;
use crate::lock::lock;
use crate::store::Tally;

const POLICIES: [&str; 2] = ["internal", "external"];

/// A millisecond and its doubles up to 16 seconds.
fn sync_buckets() -> Vec<f64> {
    (0..15).map(|power| 0.001 * f64::from(1 << power)).collect()
}

/// 0.25, 0.5, every second to 60, every 5 s to 120, every 30 s to 300.
fn programming_buckets() -> Vec<f64> {
    let steps = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(steps.map(f64::from)).collect()
}

declare! {
    pub struct ProxyMetrics {
        sync: HistogramVec = "kubeproxy_sync_proxy_rules_duration_seconds" ["ip_family"], sync_buckets()
            => "Duration of a sync, successful or not.";
        synced: GaugeVec = "kubeproxy_sync_proxy_rules_last_timestamp_seconds" ["ip_family"]
            => "Time of the last successful sync of this IP family.";
        queued: GaugeVec = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds" ["ip_family"]
            => "Time of the newest change of an object.";
        slices_pending: IntGauge = "kubeproxy_sync_proxy_rules_endpoint_changes_pending"
            => "Changes of EndpointSlices that no sync has taken yet.";
        slices: IntCounter = "kubeproxy_sync_proxy_rules_endpoint_changes_total"
            => "Changes of EndpointSlices that were received.";
        services_pending: IntGauge = "kubeproxy_sync_proxy_rules_service_changes_pending"
            => "Services with a change that no sync has taken yet.";
        services: IntCounter = "kubeproxy_sync_proxy_rules_service_changes_total"
            => "Changes of Services that were received; as in kube-proxy each counts once per IP family.";
        pub healthz: IntCounterVec = "kubeproxy_proxy_healthz_total" ["code"] => "Answers of /healthz.";
        pub livez: IntCounterVec = "kubeproxy_proxy_livez_total" ["code"] => "Answers of /livez.";
        no_local: IntGaugeVec = "kubeproxy_sync_proxy_rules_no_local_endpoints_total" ["ip_family", "traffic_policy"]
            => "Services with a Local traffic policy that have endpoints, but none on this node.";
        restore_failures: IntCounterVec = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total" ["ip_family"]
            => "Failures to write iptables rules.";
        flow_duration: HistogramVec = "kubeproxy_conntrack_reconciler_sync_duration_seconds" ["ip_family"], sync_buckets()
            => "Duration of finding and deleting stale UDP flows.";
        flows_deleted: IntCounterVec = "kubeproxy_conntrack_reconciler_deleted_entries_total" ["ip_family"]
            => "Stale UDP flows that were deleted.";
        pub programming: HistogramVec = "kubeproxy_network_programming_duration_seconds" ["ip_family"], programming_buckets()
            => "Time from the change of a pod or Service until this node has programmed the change.";
    }
    with {
        families: Mutex<Vec<Family>> = Mutex::default();
    }
}

impl ProxyMetrics {
    /// Shows the counters of health answers from zero.
    pub fn show_health(&self) {
        for code in ["200", "503"] {
            self.healthz.with_label_values(&[code]);
            self.livez.with_label_values(&[code]);
        }
    }

    /// Sets the families that are programmed. Shows exactly these, each from zero: a rate needs a first value.
    pub fn set_families(&self, families: &[Family]) {
        let mut shown = lock(&self.families);
        if *shown == families {
            return;
        }
        for family in Family::ALL {
            let of = &[label(family)];
            let histograms = [&self.sync, &self.flow_duration, &self.programming];
            let counters = [&self.restore_failures, &self.flows_deleted];
            if families.contains(&family) {
                histograms.iter().for_each(|histogram| _ = histogram.with_label_values(of));
                counters.iter().for_each(|counter| _ = counter.with_label_values(of));
                continue;
            }
            // An error means that the series was not shown.
            histograms.iter().for_each(|histogram| _ = histogram.remove_label_values(of));
            counters.iter().for_each(|counter| _ = counter.remove_label_values(of));
            [&self.synced, &self.queued].iter().for_each(|gauge| _ = gauge.remove_label_values(of));
            POLICIES.iter().for_each(|policy| _ = self.no_local.remove_label_values(&[of[0], *policy]));
        }
        *shown = families.to_vec();
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

    /// Updates what the store counts.
    pub fn set_tally(&self, tally: &Tally) {
        let families = lock(&self.families);
        self.slices_pending.set(tally.pending_slices as i64);
        self.services_pending.set(tally.pending_services.len() as i64);
        catch_up(&self.services, tally.services * families.len() as u64);
        catch_up(&self.slices, families.iter().map(|family| tally.slices[family]).sum());
        for family in families.iter() {
            self.queued.with_label_values(&[label(*family)]).set(seconds(tally.changed_at));
        }
    }

    /// Counts the stale flows that the kernel side deletes.
    pub fn flow_observer(&self) -> FlowObserver {
        let (duration, deleted) = (self.flow_duration.clone(), self.flows_deleted.clone());
        Box::new(move |family, took, count| {
            duration.with_label_values(&[label(family)]).observe(took.as_secs_f64());
            deleted.with_label_values(&[label(family)]).inc_by(count);
        })
    }
}
