// SPDX-License-Identifier: Apache-2.0
//! Runs passes when they are due, and takes mail between them.

use crate::core::plan::pass::{Due, Pass};
use std::time::{Duration, Instant};

use super::Reconciler;
use crate::core::plan::subject::Part;
use crate::inbox::{Inbox, Mail};
use crate::kernel::Kernel;
use crate::memory;
use crate::reconcile::schedule::{Schedule, Waiting};

/// The longest pause of the loop: it reports its heartbeat at least this often.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The time since the loop started.
pub(super) type Clock<'a> = &'a dyn Fn() -> Duration;

impl<K: Kernel> Reconciler<K> {
    /// Runs until the inbox has a stop request. Before the store is in sync, only the priority Services are programmed,
    /// on a node without Service state, and addresses that block the way to the API server are released.
    pub fn run(&mut self, inbox: &Inbox, mut schedule: Schedule) {
        let start = Instant::now();
        loop {
            let pause = self.run_once(&|| start.elapsed(), &mut schedule);
            let mail = inbox.wait(Some(pause));
            if mail.stop {
                return;
            }
            if mail.audit {
                schedule.audit_soon();
            }
            self.take_mail(&mail);
            self.take_checked(&mail.checked, start.elapsed());
            let state = self.state(start.elapsed());
            mail.questions.into_iter().for_each(|question| question(&state));
        }
    }

    /// Does what is due. Returns the pause until the next call if no mail arrives.
    pub(crate) fn run_once(&mut self, clock: Clock<'_>, schedule: &mut Schedule) -> Duration {
        self.reporting.health.beat();
        let finished = self.kernel.finished(Duration::ZERO);
        self.take_finished(finished, clock());
        let pause = if self.is_ready() {
            self.work(clock, schedule)
        } else {
            self.work_early(clock);
            self.release(clock());
            HEARTBEAT
        };
        self.report_due(clock());
        pause.min(HEARTBEAT)
    }

    /// Reports new failures, ended failures, and periodic summaries.
    pub fn report_due(&mut self, now: Duration) {
        self.report_unprogrammed(now);
        self.count_checks(now);
        self.reporter.tick(&self.retries, now);
    }

    /// Does what is possible before every list is complete.
    fn work_early(&mut self, clock: Clock<'_>) {
        let before = clock();
        if let Some(pass) = self.sync_early(before) {
            self.report(&pass, Due::Changes, clock() - before, clock());
            self.reporter.programmed_early(&pass);
        }
    }

    /// Does what is due. Returns the pause until something else is due.
    fn work(&mut self, clock: Clock<'_>, schedule: &mut Schedule) -> Duration {
        let now = clock();
        self.retry_readings(schedule, now);
        if !self.recheck.is_empty() {
            schedule.recheck();
        }
        let waiting = Waiting {
            dirty: self.store.is_dirty()
                || !self.pending.is_empty()
                || self.has_postponed()
                || self.found.is_some()
                || self.slow_starts.next_at().is_some_and(|at| at <= now),
            draining: !self.drains.is_empty(),
            retry_at: self.retries.next_at(),
        };
        let (at, due) = schedule.next(&waiting);
        let is_due = now >= at;
        let starts_audit = is_due && due == Due::Audit && self.is_whole();
        if is_due && !starts_audit {
            match due {
                Due::Audit => schedule.begin_audit(now),
                Due::Recheck => schedule.begin_recheck(now),
                Due::Changes | Due::Retry | Due::Drains => {}
            }
            let pass = if due == Due::Recheck { self.recheck(now) } else { self.sync(due, now) };
            self.finish_pass(pass, due, now, clock, schedule);
        }
        // One piece after every pass: an audit ends even if changes never stop.
        if self.mirror.is_auditing() || starts_audit {
            self.continue_audit(clock, schedule);
        } else if !is_due {
            return self.idle(at, now, schedule);
        }
        Duration::ZERO
    }

    /// Nothing is due before `at`: probes a few objects.
    fn idle(&mut self, at: Duration, now: Duration, schedule: &mut Schedule) -> Duration {
        if !self.is_whole() {
            return at.saturating_sub(now);
        }
        if now >= schedule.probe_at() {
            schedule.probed(now);
            if self.probe() {
                self.reporter.flushed(now);
                schedule.audit_soon();
                return Duration::ZERO;
            }
        }
        let later = self.bind_later(now);
        // A step that is due is part of `at`, which may be later.
        let step = self.slow_starts.next_at().filter(|step| *step > now).unwrap_or(Duration::MAX);
        at.min(schedule.probe_at()).min(later).min(step).saturating_sub(now)
    }

    /// Runs one step of the audit, the first one if none is in progress.
    fn continue_audit(&mut self, clock: Clock<'_>, schedule: &mut Schedule) {
        let before = clock();
        if !self.mirror.is_auditing() {
            schedule.begin_audit(before);
        }
        let pass = self.audit_step(before);
        schedule.add_audit_time(clock() - before);
        if let Some(pass) = pass {
            self.finish_pass(pass, Due::Audit, before, clock, schedule);
        }
    }

    /// Reports a pass that started at `before`.
    fn finish_pass(
        &mut self,
        pass: Pass,
        due: Due,
        before: Duration,
        clock: Clock<'_>,
        schedule: &mut Schedule,
    ) {
        let now = clock();
        schedule.ended(now, due, pass.unreadable.is_none());
        self.later.passed(now - before, now);
        self.report(&pass, due, now - before, now);
        if due == Due::Audit {
            drop(pass);
            memory::trim();
        }
        let is_ready_now = self.reporter.ready && self.until_ready.take().is_some();
        if is_ready_now || due == Due::Audit {
            memory::unmap_code();
        }
    }

    pub(super) fn take_mail(&mut self, mail: &Mail) {
        if !mail.changed.is_empty() && !self.is_whole() {
            self.mirror.outdated();
        }
        mail.changed.iter().for_each(|part| self.recheck.add_part(*part));
        if mail.addresses.iter().any(|(net, added)| self.contradicts(net, *added)) {
            self.recheck.add_part(Part::Addresses);
        }
        self.learn_gateways(&mail.gateways);
    }
}

#[cfg(test)]
#[path = "failure_tests.rs"]
mod tests;
