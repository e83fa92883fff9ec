// SPDX-License-Identifier: Apache-2.0
//! Runs passes when they are due, and answers mail between them.

use std::time::{Duration, Instant, SystemTime};

use super::{Pass, Reconciler};
use crate::inbox::{Inbox, Mail};
use crate::kernel::{Kernel, Outcome};
use crate::memory;
use crate::schedule::{Due, Schedule};

/// Failures logged per pass; the rest is counted.
const FAILURES_LOGGED: usize = 10;

impl<K: Kernel> Reconciler<K> {
    /// Runs until asked to stop. Nothing is written before the store is in sync.
    pub fn run(&mut self, inbox: &Inbox, mut schedule: Schedule) {
        let start = Instant::now();
        loop {
            let timeout = if self.is_ready() {
                Some(self.turn(start, &mut schedule))
            } else {
                self.turn_ahead(start);
                None
            };
            if continue_after(inbox, timeout, self, &mut schedule).stop {
                return;
            }
        }
    }

    /// Does what can be done before every list is complete.
    fn turn_ahead(&mut self, start: Instant) {
        let before = start.elapsed();
        if let Some(pass) = self.prepare(before) {
            tracing::info!("the API server's Service and DNS come first; the other objects are awaited");
            log_pass(&pass, Due::Changes, start.elapsed() - before, 0);
        }
    }

    /// Does what is due, if anything; how long to wait then.
    fn turn(&mut self, start: Instant, schedule: &mut Schedule) -> Duration {
        let changed = self.store.is_dirty();
        if changed {
            self.outlets.health.with(|health| health.changed(SystemTime::now()));
        }
        let dirty = changed || !self.pending.addresses.is_empty();
        let (at, due) = schedule.next(dirty, !self.drains.is_empty());
        let now = start.elapsed();
        let is_due = now >= at;
        if self.is_auditing() && !is_due || is_due && due == Due::Audit && self.is_whole() {
            self.audit_a_little(start, schedule);
        } else if is_due {
            if due == Due::Audit {
                schedule.began_audit();
            }
            let pass = self.sync(due, now);
            self.ended(pass, due, now, start, schedule);
        } else {
            return at - now;
        }
        Duration::ZERO
    }

    /// Reads and compares one more piece, and carries out what follows after the last one.
    fn audit_a_little(&mut self, start: Instant, schedule: &mut Schedule) {
        let before = start.elapsed();
        if !self.is_auditing() {
            schedule.began_audit();
            self.audit_worked = Duration::ZERO;
        }
        let pass = self.audit_step(before);
        self.audit_worked += start.elapsed() - before;
        if let Some(pass) = pass {
            schedule.audit_cost(self.audit_worked);
            self.ended(pass, Due::Audit, before, start, schedule);
        }
    }

    /// Tells about a pass that began at `before`.
    fn ended(&mut self, pass: Pass, due: Due, before: Duration, start: Instant, schedule: &mut Schedule) {
        let now = start.elapsed();
        self.outlets.metrics.pass(&pass, due, now - before);
        schedule.ended(now, due, pass.is_clean(), pass.unreadable.is_none());
        if pass.report.in_doubt() {
            schedule.doubt();
        }
        log_pass(&pass, due, now - before, schedule.failures());
        if due == Due::Audit {
            drop(pass);
            memory::trim();
        }
    }
}

/// Takes the mail and answers it.
fn continue_after<K: Kernel>(
    inbox: &Inbox,
    timeout: Option<Duration>,
    reconciler: &mut Reconciler<K>,
    schedule: &mut Schedule,
) -> Mail {
    let mail = inbox.wait(timeout);
    if mail.doubt || mail.addresses.iter().any(|(net, added)| reconciler.contradicts(net, *added)) {
        schedule.doubt();
        reconciler.doubted();
    }
    for question in &mail.questions {
        // The asker may have gone away.
        let _ = question.send(reconciler.owners());
    }
    mail
}

fn log_pass(pass: &Pass, due: Due, took: Duration, failures: u32) {
    if let Some(error) = &pass.unreadable {
        tracing::error!(tries = failures, "{error}; nothing was changed, trying again");
        return;
    }
    if pass.plan.is_empty() {
        tracing::debug!(?due, ?took, "in sync, nothing to do");
        return;
    }
    let (ops, done) = (pass.plan.ops.len(), pass.report.done());
    if pass.drift > 0 {
        tracing::warn!(repaired = pass.drift, "somebody else changed what this agent keeps");
    }
    tracing::info!(?due, ops, done, ?took, "sync");
    tracing::trace!("plan:\n{}", pass.plan);
    let failed = pass.plan.ops.iter().zip(&pass.report.outcomes).filter_map(|(op, outcome)| match outcome {
        Outcome::Failed(error) => Some((op, error)),
        _ => None,
    });
    let mut count = 0;
    for (op, error) in failed {
        count += 1;
        if count <= FAILURES_LOGGED {
            tracing::error!(%op, "failed: {error}");
        }
    }
    if count > 0 {
        let skipped = ops - done - count;
        tracing::error!(failed = count, skipped, tries = failures, "sync incomplete, trying again");
    }
}
