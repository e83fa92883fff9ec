// SPDX-License-Identifier: Apache-2.0
//! When the next pass runs. Pure: the current time is an argument.

use crate::core::plan::pass::Due;
use std::time::Duration;

use crate::core::plan::retries::BACKOFF;

/// How often the connections of draining real servers are read.
const DRAIN_PERIOD: Duration = Duration::from_secs(10);
/// Pause between two readings of the kernel that notifications or refusals cause: a program that keeps changing an
/// object causes one reading a second, not one for every change.
const RECHECK_PAUSE: Duration = Duration::from_secs(1);
/// How often a few objects are probed, to detect a flush.
const PROBE_PERIOD: Duration = Duration::from_secs(1);

/// Audits take at most 1/250 of a core: where reading the kernel takes long, audits are less frequent than the
/// period.
const AUDIT_SHARE: u32 = 250;

/// Reasons for a pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// Objects changed.
    pub dirty: bool,
    /// Real servers drain.
    pub draining: bool,
    /// The time of the next retry.
    pub retry_at: Option<Duration>,
}

/// Decides when the next pass runs. Times are durations since some fixed start.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    min_period: Duration,
    audit_period: Duration,
    last_end: Option<Duration>,
    last_audit: Option<Duration>,
    /// Working time of the last audit, without the pauses between its pieces.
    audit_time: Duration,
    /// An audit is in progress, piece by piece; changes have priority.
    auditing: bool,
    /// Start of the last audit or recheck.
    last_reading: Option<Duration>,
    last_drains: Duration,
    last_probe: Duration,
    /// An audit is requested.
    audit_soon: bool,
    /// A recheck is requested.
    recheck: bool,
    /// Consecutive audits that could not read the kernel.
    failures: u32,
    /// The time of the next try after these failures.
    retry_at: Duration,
}

impl Schedule {
    /// `min_period`: pause between the end of one pass and the start of the next
    /// (`ipvs.minSyncPeriod`). `audit_period`: `ipvs.syncPeriod`.
    pub fn new(min_period: Duration, audit_period: Duration) -> Self {
        Self { min_period, audit_period, ..Self::default() }
    }

    /// Requests an audit as soon as the pauses allow.
    pub fn audit_soon(&mut self) {
        self.audit_soon = true;
    }

    /// Requests a recheck as soon as the pauses allow.
    pub fn recheck(&mut self) {
        self.recheck = true;
    }

    /// An audit starts. A later request leads to another audit.
    pub fn begin_audit(&mut self, now: Duration) {
        self.auditing = true;
        self.audit_time = Duration::ZERO;
        self.audit_soon = false;
        self.last_reading = Some(now);
    }

    /// A recheck starts.
    pub fn begin_recheck(&mut self, now: Duration) {
        self.recheck = false;
        self.last_reading = Some(now);
    }

    /// A probe was made.
    pub fn probed(&mut self, now: Duration) {
        self.last_probe = now;
    }

    /// A piece of the audit took this time.
    pub fn add_audit_time(&mut self, time: Duration) {
        self.audit_time += time;
    }

    /// A pass has ended. `read`: an audit has read the kernel, whether its ops failed or not. An audit that could not
    /// read is retried with exponential backoff.
    pub fn ended(&mut self, now: Duration, due: Due, read: bool) {
        self.last_end = Some(now);
        if matches!(due, Due::Drains | Due::Audit) {
            self.last_drains = now;
        }
        if due != Due::Audit {
            return;
        }
        self.auditing = false;
        if read {
            self.last_audit = Some(now);
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.retry_at = now.saturating_add(BACKOFF.after(self.failures));
        }
    }

    /// The time of the next probe.
    pub fn probe_at(&self) -> Duration {
        self.last_probe.saturating_add(PROBE_PERIOD)
    }

    /// The time and the kind of the next pass.
    pub fn next(&self, waiting: &Waiting) -> (Duration, Due) {
        let Some(last_end) = self.last_end else { return (Duration::ZERO, Due::Audit) };
        let earliest = last_end.saturating_add(self.min_period);
        let mut next = (self.audit_at().max(earliest), Due::Audit);
        if self.last_audit.is_none() {
            return next;
        }
        let mut consider = |at: Duration, due| {
            if at < next.0 {
                next = (at, due);
            }
        };
        if self.recheck {
            consider(self.after_reading().max(earliest), Due::Recheck);
        }
        if waiting.dirty {
            consider(earliest, Due::Changes);
        }
        if let Some(at) = waiting.retry_at {
            consider(at.max(earliest), Due::Retry);
        }
        if waiting.draining {
            consider(self.last_drains.saturating_add(DRAIN_PERIOD), Due::Drains);
        }
        next
    }

    fn audit_at(&self) -> Duration {
        let Some(last) = self.last_audit.filter(|_| self.failures == 0) else {
            return self.retry_at;
        };
        if self.auditing {
            return Duration::MAX;
        }
        if self.audit_soon {
            return self.after_reading();
        }
        last.saturating_add(self.audit_period.max(self.audit_time.saturating_mul(AUDIT_SHARE)))
    }

    /// The earliest time of the next reading.
    fn after_reading(&self) -> Duration {
        self.last_reading.map_or(Duration::ZERO, |at| at.saturating_add(RECHECK_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    const IDLE: Waiting = Waiting { dirty: false, draining: false, retry_at: None };
    const DIRTY: Waiting = Waiting { dirty: true, ..IDLE };

    /// A schedule whose first audit ended at that time.
    fn after_first_audit(min_period: Duration, at: Duration) -> Schedule {
        let mut schedule = Schedule::new(min_period, s(30));
        schedule.begin_audit(at);
        schedule.ended(at, Due::Audit, true);
        schedule
    }

    #[test]
    fn the_first_pass_is_an_immediate_audit() {
        assert_eq!(Schedule::new(s(1), s(30)).next(&DIRTY), (s(0), Due::Audit));
    }

    #[test]
    fn changes_wait_for_the_minimum_pause_and_audits_for_their_period() {
        let mut schedule = after_first_audit(s(1), s(10));
        assert_eq!(schedule.next(&DIRTY), (s(11), Due::Changes));
        assert_eq!(schedule.next(&IDLE), (s(40), Due::Audit));
        schedule.ended(s(39), Due::Changes, true);
        assert_eq!(schedule.next(&IDLE), (s(40), Due::Audit));
        schedule.ended(s(40), Due::Audit, true);
        assert_eq!(schedule.next(&IDLE), (s(70), Due::Audit));
    }

    #[test]
    fn continuous_changes_do_not_delay_an_audit() {
        let mut schedule = after_first_audit(s(0), s(10));
        schedule.ended(s(50), Due::Changes, true);
        assert_eq!(schedule.next(&DIRTY), (s(50), Due::Audit));
    }

    #[test]
    fn a_requested_audit_starts_a_second_after_the_last_reading() {
        let mut schedule = after_first_audit(s(0), s(10));
        schedule.audit_soon();
        assert_eq!(schedule.next(&IDLE), (s(11), Due::Audit));
        schedule.begin_audit(s(11));
        schedule.audit_soon();
        schedule.ended(s(12), Due::Audit, true);
        assert_eq!(schedule.next(&IDLE), (s(12), Due::Audit), "requested while it ran");
    }

    #[test]
    fn rechecks_are_a_second_apart_and_do_not_delay_changes() {
        let mut schedule = after_first_audit(s(0), s(10));
        for now in [s(11), s(12), s(13)] {
            schedule.recheck();
            assert_eq!(schedule.next(&IDLE), (now, Due::Recheck));
            assert_eq!(schedule.next(&DIRTY).1, Due::Changes);
            schedule.begin_recheck(now);
            schedule.ended(now, Due::Recheck, true);
        }
        assert_eq!(schedule.next(&IDLE), (s(40), Due::Audit));
    }

    #[test]
    fn changes_do_not_wait_for_the_end_of_an_audit() {
        let mut schedule = after_first_audit(s(1), s(10));
        schedule.begin_audit(s(40));
        assert_eq!(schedule.next(&DIRTY), (s(11), Due::Changes));
        assert_eq!(schedule.next(&IDLE), (Duration::MAX, Due::Audit));
        schedule.ended(s(41), Due::Changes, true);
        assert_eq!(schedule.next(&DIRTY), (s(42), Due::Changes));
    }

    #[test]
    fn long_audits_are_less_frequent() {
        let mut schedule = after_first_audit(s(1), s(10));
        schedule.add_audit_time(Duration::from_millis(100));
        assert_eq!(schedule.next(&IDLE), (s(40), Due::Audit));
        schedule.add_audit_time(Duration::from_millis(700));
        assert_eq!(schedule.next(&IDLE), (s(210), Due::Audit));
        schedule.audit_soon();
        assert_eq!(schedule.next(&IDLE), (s(11), Due::Audit), "a requested audit does not wait");
    }

    #[test]
    fn changes_and_audits_do_not_wait_for_retries() {
        let schedule = after_first_audit(s(0), s(10));
        let failing = |dirty| Waiting { dirty, draining: false, retry_at: Some(s(35)) };
        assert_eq!(schedule.next(&failing(true)), (s(10), Due::Changes));
        assert_eq!(schedule.next(&failing(false)), (s(35), Due::Retry));
        let late = Waiting { retry_at: Some(s(55)), ..IDLE };
        assert_eq!(schedule.next(&late), (s(40), Due::Audit));
    }

    #[test]
    fn drains_are_checked_every_ten_seconds() {
        let mut schedule = after_first_audit(s(0), s(10));
        let draining = Waiting { draining: true, ..IDLE };
        assert_eq!(schedule.next(&draining), (s(20), Due::Drains));
        schedule.ended(s(20), Due::Drains, true);
        assert_eq!(schedule.next(&draining), (s(30), Due::Drains));
    }

    #[test]
    fn audits_that_cannot_read_back_off_to_a_limit_and_a_success_resets_it() {
        let mut schedule = Schedule::new(s(0), s(30));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let now = schedule.next(&IDLE).0;
            schedule.ended(now, Due::Audit, false);
            pauses.push((schedule.next(&IDLE).0 - now).as_millis());
        }
        assert_eq!(&pauses[..4], [250, 500, 1000, 2000]);
        assert_eq!(pauses[9], 30_000);
        schedule.begin_audit(s(900));
        schedule.ended(s(900), Due::Audit, true);
        assert_eq!(schedule.next(&DIRTY), (s(900), Due::Changes));
    }
}
