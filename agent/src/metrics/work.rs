// SPDX-License-Identifier: Apache-2.0
//! `kube_ipvs_*`: operations on the kernel, syncs, and the age of what is not in the kernel yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, Result};

use super::register::{Metric, declare, seconds};
use crate::core::plan::op::{Op, OpKind};
use crate::core::plan::outcome::{Cause, Outcome};
use crate::core::plan::pass::{Due, Pass};
use crate::core::plan::subject::SubjectKind;
use crate::lock::lock;
use crate::store::Tally;

const RESULTS: [&str; 3] = ["done", "failed", "blocked"];

declare! {
    pub struct SyncMetrics {
        operations: Vec<[IntCounter; RESULTS.len()]> = "kube_ipvs_operations_total" ["kind", "result"]
            => "Operations on the kernel by kind and result; blocked: an operation that this one depends on failed.";
        drift: Vec<IntCounter> = "kube_ipvs_drift_repaired_total" ["kind"]
            => "Changes by other programs that were repaired, by the operation that repaired them.";
        passes: IntCounterVec = "kube_ipvs_passes_total" ["reason", "result"]
            => "Syncs by reason and result; unreadable: the kernel could not be read, so nothing was changed.";
        audited: Gauge = "kube_ipvs_last_audit_timestamp_seconds"
            => "Time of the last complete reading of the kernel; 0 before the first.";
        mirror_age: Gauge = "kube_ipvs_mirror_age_seconds"
            => "Time since the last complete reading of the kernel, or since the start.";
        change_age: Gauge = "kube_ipvs_oldest_change_age_seconds"
            => "Age of the oldest change that is not in the kernel yet; 0 when all are.";
        unprogrammed: IntGaugeVec = "kube_ipvs_unprogrammed_objects" ["kind", "reason"]
            => "Kernel objects that cannot be programmed now, by kind and reason; each is retried by itself. \
                blocked: an object that this one depends on fails.";
    }
    with {
        times: Mutex<Times> = Mutex::new(Times { audit: Instant::now(), unapplied: None });
        /// Label values of `unprogrammed` that are shown: once shown they stay, with 0.
        shown: Mutex<BTreeSet<(SubjectKind, Cause)>> = Mutex::default();
    }
}

/// By [`OpKind`] and result, looked up once: ops are many.
impl Metric for Vec<[IntCounter; RESULTS.len()]> {
    fn register(registry: &Registry, opts: Opts, labels: &[&str], buckets: Vec<f64>) -> Result<Self> {
        let all = IntCounterVec::register(registry, opts, labels, buckets)?;
        let by_result =
            |kind: &OpKind| RESULTS.map(|result| all.with_label_values(&[<&str>::from(kind), result]));
        Ok(OpKind::ALL.iter().map(by_result).collect())
    }
}

/// By [`OpKind`].
impl Metric for Vec<IntCounter> {
    fn register(registry: &Registry, opts: Opts, labels: &[&str], buckets: Vec<f64>) -> Result<Self> {
        let all = IntCounterVec::register(registry, opts, labels, buckets)?;
        Ok(OpKind::ALL.iter().map(|kind| all.with_label_values(&[<&str>::from(kind)])).collect())
    }
}

/// Base of the ages.
#[derive(Debug)]
struct Times {
    /// The last complete audit, or the start.
    audit: Instant,
    /// The oldest change that a sync took and that is not in the kernel.
    unapplied: Option<Instant>,
}

impl SyncMetrics {
    pub fn repaired(&self, kind: OpKind) {
        self.drift[kind as usize].inc();
    }

    /// Changes received since then are about to be programmed.
    pub fn working_on(&self, since: Option<Instant>) {
        let mut times = lock(&self.times);
        times.unapplied = times.unapplied.or(since);
    }

    pub fn pass(&self, pass: &Pass, due: Due, now: SystemTime) {
        for (op, outcome) in pass.plan.ops.iter().zip(&pass.report.outcomes) {
            let result = match outcome {
                Outcome::Done => 0,
                Outcome::Failed(_) => 1,
                Outcome::Blocked(_) => 2,
                // Counted when the op runs, or ends.
                Outcome::Waiting | Outcome::Started => continue,
            };
            self.operations[op.kind() as usize][result].inc();
        }
        let result = match pass {
            pass if pass.is_clean() => "complete",
            Pass { unreadable: Some(_), .. } => "unreadable",
            _ => "incomplete",
        };
        self.passes.with_label_values(&[due.into(), result]).inc();
        let mut times = lock(&self.times);
        if due == Due::Audit && pass.unreadable.is_none() {
            self.audited.set(seconds(now));
            times.audit = Instant::now();
        }
        // Single objects that the kernel refuses are counted in `unprogrammed`.
        if pass.unreadable.is_none() && !pass.incomplete {
            times.unapplied = None;
        }
    }

    /// An op that a program executed has ended.
    pub fn ended(&self, op: &Op, done: bool) {
        self.operations[op.kind() as usize][usize::from(!done)].inc();
    }

    pub fn set_unprogrammed(&self, counts: &BTreeMap<(SubjectKind, Cause), usize>) {
        let mut shown = lock(&self.shown);
        for (kind, cause) in shown.iter().filter(|key| !counts.contains_key(key)) {
            self.unprogrammed.with_label_values(&[kind.label(), cause.label()]).set(0);
        }
        for ((kind, cause), count) in counts {
            self.unprogrammed.with_label_values(&[kind.label(), cause.label()]).set(*count as i64);
            shown.insert((*kind, *cause));
        }
    }

    /// Updates the ages.
    pub fn refresh(&self, tally: &Tally) {
        let times = lock(&self.times);
        self.mirror_age.set(times.audit.elapsed().as_secs_f64());
        let oldest = times.unapplied.or(tally.waiting_since);
        self.change_age.set(oldest.map_or(0.0, |since| since.elapsed().as_secs_f64()));
    }
}
