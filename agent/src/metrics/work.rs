// SPDX-License-Identifier: Apache-2.0
//! `kube_ipvs_*`: what the agent does to the kernel, and how far it is behind.

use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use prometheus::{Gauge, IntCounter, IntCounterVec, Registry};

use super::{lock, register_counters, register_float, seconds};
use crate::core::op::OpKind;
use crate::kernel::Outcome;
use crate::reconcile::Pass;
use crate::schedule::Due;
use crate::tally::Tally;

const RESULTS: [&str; 3] = ["done", "failed", "skipped"];
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
            "Changes to the kernel by kind and result; skipped: something that it depends on failed.",
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
            times.audit = Instant::now();
        }
        if pass.is_clean() {
            times.unapplied = None;
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
