// SPDX-License-Identifier: Apache-2.0
//! `kube_ipvs_*`: what the agent does to the kernel, and how far it is behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGaugeVec, Registry};

use super::{lock, register_counters, register_float, register_gauges, seconds};
use crate::core::plan::op::{Op, OpKind};
use crate::core::plan::outcome::Cause;
use crate::core::plan::subject::SubjectKind;
use crate::kernel::Outcome;
use crate::reconcile::Pass;
use crate::reconcile::schedule::Due;
use crate::store::Tally;

const RESULTS: [&str; 3] = ["done", "failed", "blocked"];
const KINDS: usize = OpKind::ALL.len();

#[derive(Debug)]
pub(super) struct Work {
    /// By [`OpKind`] and result: ops are many, so their counters are looked up once.
    operations: [[IntCounter; RESULTS.len()]; KINDS],
    drift: [IntCounter; KINDS],
    passes: IntCounterVec,
    audited: Gauge,
    mirror_age: Gauge,
    change_age: Gauge,
    times: Mutex<Times>,
    unprogrammed: IntGaugeVec,
    /// The label values that are shown: once shown they stay, with 0.
    shown: Mutex<BTreeSet<(SubjectKind, Cause)>>,
}

/// What ages are reckoned from.
#[derive(Debug)]
struct Times {
    /// The last complete audit, or the start.
    audit: Instant,
    /// The oldest change that was taken and is not in the kernel.
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

impl Work {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let operations = register_counters(
            registry,
            "kube_ipvs_operations_total",
            "Changes to the kernel by kind and result; blocked: something that it depends on failed.",
            &["kind", "result"],
        )?;
        let drift = register_counters(
            registry,
            "kube_ipvs_drift_repaired_total",
            "Changes that somebody else had made to what this agent keeps, by the operation that repaired them.",
            &["kind"],
        )?;
        Ok(Self {
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
            mirror_age: register_float(
                registry,
                "kube_ipvs_mirror_age_seconds",
                "Time since the kernel was last read completely, or since the start.",
            )?,
            change_age: register_float(
                registry,
                "kube_ipvs_oldest_change_age_seconds",
                "Age of the oldest change that is not in the kernel yet; 0 when all are.",
            )?,
            unprogrammed: register_gauges(
                registry,
                "kube_ipvs_unprogrammed_objects",
                "Kernel objects that cannot be programmed now, by kind and reason; each is retried by itself. \
                 blocked: something that it depends on fails.",
                &["kind", "reason"],
            )?,
            shown: Mutex::default(),
            times: Mutex::new(Times { audit: Instant::now(), unapplied: None }),
        })
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
                Outcome::Blocked(_) => 2,
                // It is counted when it runs, or ends.
                Outcome::Waiting | Outcome::Started => continue,
            };
            self.operations[op.kind() as usize][result].inc();
        }
        let reason = match due {
            Due::Changes => "changes",
            Due::Retry => "retry",
            Due::Recheck => "recheck",
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
            times.audit = Instant::now();
        }
        // Single objects that the kernel refuses are told by their number.
        if pass.unreadable.is_none() && !pass.incomplete {
            times.unapplied = None;
        }
    }

    /// An op that a program worked on has ended.
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

    /// Reckons ages.
    pub fn refresh(&self, tally: &Tally) {
        let times = lock(&self.times);
        self.mirror_age.set(times.audit.elapsed().as_secs_f64());
        let oldest = times.unapplied.or(tally.waiting_since);
        self.change_age.set(oldest.map_or(0.0, |since| since.elapsed().as_secs_f64()));
    }
}
