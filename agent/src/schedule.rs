// SPDX-License-Identifier: Apache-2.0
//! When to run next. Pure: the time passed is an argument.

use std::time::Duration;

/// First pause after a failed pass; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(250);
/// Longest pause between tries.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// How often draining real servers are looked at.
const DRAIN_PERIOD: Duration = Duration::from_secs(10);

/// Auditing takes at most one part in so many of a core: where reading the kernel takes long, audits are
/// further apart than the period.
const AUDIT_SHARE: u32 = 150;

/// Why a pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Something changed.
    Changes,
    /// Real servers drain: those without connections, or past the deadline, are to go.
    Drains,
    /// Everything is to be compared with a fresh reading of the kernel.
    Audit,
}

/// Decides when the next pass runs. Times are durations since some fixed start.
#[derive(Clone, Debug)]
pub struct Schedule {
    min_period: Duration,
    audit_period: Duration,
    last_end: Option<Duration>,
    last_audit: Option<Duration>,
    /// How long the last audit worked.
    audit_cost: Duration,
    /// An audit goes on, a piece at a time; changes go first.
    auditing: bool,
    last_drains: Duration,
    doubt: bool,
    failures: u32,
    failed_at: Duration,
}

impl Schedule {
    /// `min_period`: pause between the end of one pass and the start of the next
    /// (`ipvs.minSyncPeriod`). `audit_period`: `ipvs.syncPeriod`.
    pub fn new(min_period: Duration, audit_period: Duration) -> Self {
        Self {
            min_period,
            audit_period,
            last_end: None,
            last_audit: None,
            audit_cost: Duration::ZERO,
            auditing: false,
            last_drains: Duration::ZERO,
            doubt: false,
            failures: 0,
            failed_at: Duration::ZERO,
        }
    }

    /// Asks for an audit as soon as the pauses allow.
    pub fn doubt(&mut self) {
        self.doubt = true;
    }

    /// Notes that an audit begins. A doubt that comes up from now on is not cleared by it.
    pub fn began_audit(&mut self) {
        self.auditing = true;
        self.doubt = false;
    }

    /// Notes how long the last audit worked, the waiting between its pieces left out.
    pub fn audit_cost(&mut self, cost: Duration) {
        self.audit_cost = cost;
    }

    /// Notes the end of a pass. A failed one is tried again after a pause that doubles. `read`: an
    /// audit read the kernel completely, whatever became of its ops.
    pub fn ended(&mut self, now: Duration, due: Due, ok: bool, read: bool) {
        self.last_end = Some(now);
        if ok {
            self.failures = 0;
        } else if self.failures == 0 || now >= self.failed_at.saturating_add(self.backoff()) {
            self.failures = self.failures.saturating_add(1);
            self.failed_at = now;
        }
        if due != Due::Changes {
            self.last_drains = now;
        }
        if due == Due::Audit {
            self.auditing = false;
            if read {
                self.last_audit = Some(now);
            } else {
                self.doubt = true;
            }
        }
    }

    /// Failed passes in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The pause after the last failure.
    fn backoff(&self) -> Duration {
        match self.failures {
            0 => Duration::ZERO,
            n => MIN_BACKOFF.saturating_mul(1 << (n - 1).min(16)).min(MAX_BACKOFF),
        }
    }

    /// When the next pass is to start, and which. `dirty`: changes are waiting; `draining`: real
    /// servers drain.
    pub fn next(&self, dirty: bool, draining: bool) -> (Duration, Due) {
        let next = self.next_sync(dirty);
        let tick = self.last_drains.saturating_add(DRAIN_PERIOD);
        // A tick adds its own keys to waiting changes.
        if draining && tick < next.0 { (tick, Due::Drains) } else { next }
    }

    fn next_sync(&self, dirty: bool) -> (Duration, Due) {
        let Some(last_end) = self.last_end else {
            return (Duration::ZERO, Due::Audit);
        };
        let audit_at = match self.last_audit {
            _ if self.auditing => Duration::MAX,
            Some(at) if !self.doubt => {
                at.saturating_add(self.audit_period.max(self.audit_cost.saturating_mul(AUDIT_SHARE)))
            }
            _ => Duration::ZERO,
        };
        // What failed is tried again from the mirror; a doubt about the mirror is an audit.
        if self.failures > 0 {
            let retry = self.failed_at.saturating_add(self.backoff().max(self.min_period));
            let change = last_end.saturating_add(self.min_period);
            // New changes do not wait for what keeps failing, unless the mirror is in doubt.
            let at = if dirty && audit_at > retry { change.min(retry) } else { retry };
            return (at, if audit_at <= at { Due::Audit } else { Due::Changes });
        }
        let earliest = last_end.saturating_add(self.min_period);
        let audit = (audit_at.max(earliest), Due::Audit);
        if dirty && audit.0 > earliest { (earliest, Due::Changes) } else { audit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_first_pass_is_an_audit_at_once() {
        assert_eq!(Schedule::new(s(1), s(30)).next(true, false), (s(0), Due::Audit));
    }

    #[test]
    fn changes_wait_for_the_minimum_pause_and_audits_for_their_period() {
        let mut schedule = Schedule::new(s(1), s(30));
        schedule.ended(s(10), Due::Audit, true, true);
        assert_eq!(schedule.next(true, false), (s(11), Due::Changes));
        assert_eq!(schedule.next(false, false), (s(40), Due::Audit));
        schedule.ended(s(39), Due::Changes, true, true);
        assert_eq!(schedule.next(false, false), (s(40), Due::Audit));
        schedule.ended(s(40), Due::Audit, true, true);
        assert_eq!(schedule.next(false, false), (s(70), Due::Audit));
    }

    #[test]
    fn changes_do_not_put_off_an_audit_for_ever() {
        let mut schedule = Schedule::new(s(0), s(30));
        schedule.ended(s(10), Due::Audit, true, true);
        schedule.ended(s(50), Due::Changes, true, true);
        assert_eq!(schedule.next(true, false), (s(50), Due::Audit));
    }

    #[test]
    fn doubt_brings_the_audit_forward_until_one_succeeds() {
        let mut schedule = Schedule::new(s(1), s(30));
        schedule.ended(s(10), Due::Audit, true, true);
        schedule.doubt();
        assert_eq!(schedule.next(false, false), (s(11), Due::Audit));
        schedule.began_audit();
        schedule.ended(s(11), Due::Audit, true, true);
        assert_eq!(schedule.next(false, false), (s(41), Due::Audit));
    }

    #[test]
    fn a_doubt_during_an_audit_and_an_audit_that_failed_bring_another() {
        let mut schedule = Schedule::new(s(0), s(30));
        schedule.began_audit();
        schedule.doubt();
        schedule.ended(s(10), Due::Audit, true, true);
        assert_eq!(schedule.next(false, false), (s(10), Due::Audit));
        schedule.began_audit();
        schedule.ended(s(11), Due::Audit, false, false);
        assert_eq!(schedule.next(false, false), (s(11) + MIN_BACKOFF, Due::Audit));
    }

    #[test]
    fn changes_do_not_wait_for_an_audit_that_goes_on() {
        let mut schedule = Schedule::new(s(1), s(30));
        schedule.ended(s(10), Due::Audit, true, true);
        schedule.began_audit();
        assert_eq!(schedule.next(true, false), (s(11), Due::Changes));
        assert_eq!(schedule.next(false, false), (Duration::MAX, Due::Audit));
        schedule.ended(s(41), Due::Changes, true, true);
        assert_eq!(schedule.next(true, false), (s(42), Due::Changes));
    }

    #[test]
    fn audits_that_take_long_are_further_apart() {
        let mut schedule = Schedule::new(s(1), s(30));
        schedule.ended(s(10), Due::Audit, true, true);
        schedule.audit_cost(Duration::from_millis(100));
        assert_eq!(schedule.next(false, false), (s(40), Due::Audit));
        schedule.audit_cost(Duration::from_millis(800));
        assert_eq!(schedule.next(false, false), (s(130), Due::Audit));
        schedule.doubt();
        assert_eq!(schedule.next(false, false), (s(11), Due::Audit), "a doubt does not wait");
    }

    #[test]
    fn a_plain_failure_is_retried_without_reading_the_kernel_and_doubt_reads_it() {
        let mut schedule = Schedule::new(s(0), s(30));
        schedule.ended(s(10), Due::Audit, true, true);
        schedule.ended(s(11), Due::Changes, false, false);
        assert_eq!(schedule.next(false, false), (s(11) + MIN_BACKOFF, Due::Changes));
        schedule.doubt();
        assert_eq!(schedule.next(false, false), (s(11) + MIN_BACKOFF, Due::Audit));
    }

    #[test]
    fn changes_do_not_wait_for_what_keeps_failing() {
        let mut schedule = Schedule::new(s(0), s(3600));
        schedule.ended(s(1), Due::Audit, false, true);
        for n in 0..8u64 {
            schedule.ended(s(40 * n + 40), Due::Changes, false, false);
        }
        assert_eq!(schedule.next(true, false), (s(320), Due::Changes));
        assert!(schedule.next(false, false).0 > s(340), "the retry itself backs off");
    }

    #[test]
    fn failures_back_off_to_a_limit_and_a_success_forgets_them() {
        let mut schedule = Schedule::new(s(0), s(30));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let now = schedule.next(false, false).0;
            schedule.ended(now, Due::Audit, false, false);
            pauses.push((schedule.next(false, false).0 - now).as_millis());
        }
        assert_eq!(&pauses[..4], [250, 500, 1000, 2000]);
        assert_eq!(pauses[9], 30_000);
        schedule.began_audit();
        schedule.ended(s(900), Due::Audit, true, true);
        assert_eq!(schedule.next(true, false), (s(900), Due::Changes));
    }
}
