// SPDX-License-Identifier: Apache-2.0
//! Limits log lines about repeated events: the first one is logged at once, later ones as a count at growing
//! intervals. Pure: the time is an argument.

use std::time::Duration;

/// The first interval; doubles up to [`LAST`].
const FIRST: Duration = Duration::from_secs(10);
/// The longest interval.
const LAST: Duration = Duration::from_secs(600);

/// Limits the lines about one kind of event.
#[derive(Debug, Default)]
pub struct Pace {
    interval: Duration,
    /// The earliest time of the next line; `None`: now.
    next: Option<Duration>,
    held: usize,
}

impl Pace {
    /// The event happened `count` times at the time `now`. True: log it now; otherwise [`Pace::due`] counts it.
    pub fn happened(&mut self, count: usize, now: Duration) -> bool {
        match self.next {
            Some(next) if now < next || self.held > 0 => {
                self.held += count;
                false
            }
            _ => {
                self.begin(now);
                true
            }
        }
    }

    /// If a line is due: how many times the event happened since the last line, and in which time.
    pub fn due(&mut self, now: Duration) -> Option<(usize, Duration)> {
        let next = self.next.filter(|next| *next <= now)?;
        if self.held == 0 {
            // After a whole interval without an event the next one is logged at once.
            if now >= next.saturating_add(self.interval) {
                *self = Self::default();
            }
            return None;
        }
        let (held, interval) = (std::mem::take(&mut self.held), self.interval);
        self.begin(now);
        Some((held, interval))
    }

    fn begin(&mut self, now: Duration) {
        self.interval = (self.interval * 2).clamp(FIRST, LAST);
        self.next = Some(now.saturating_add(self.interval));
    }
}

/// Limits the lines about a failure: another cause is logged at once.
#[derive(Debug, Default)]
pub struct FailurePace {
    pace: Pace,
    cause: String,
}

impl FailurePace {
    /// It failed with this cause at the time `now`. `Some`: log it; 0 for a new cause, else the number of failures since
    /// the last line.
    pub fn failed(&mut self, cause: &str, now: Duration) -> Option<usize> {
        if self.cause != cause {
            *self = Self { pace: Pace::default(), cause: cause.to_owned() };
        }
        if self.pace.happened(1, now) {
            return Some(0);
        }
        self.pace.due(now).map(|(count, _)| count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn another_cause_is_logged_at_once() {
        let mut pace = FailurePace::default();
        let logged: Vec<Option<usize>> = (0..12).map(|now| pace.failed("full", s(now))).collect();
        assert_eq!(
            (logged[0], &logged[1..10], logged[10], logged[11]),
            (Some(0), &[None; 9][..], Some(10), None)
        );
        assert_eq!(pace.failed("gone", s(12)), Some(0));
    }

    #[test]
    fn the_first_is_logged_at_once_and_the_others_at_growing_intervals() {
        let mut pace = Pace::default();
        let mut lines = Vec::new();
        for now in 0..3600 {
            if pace.happened(2, s(now)) {
                lines.push((now, 2));
            }
            if let Some((count, _)) = pace.due(s(now)) {
                lines.push((now, count));
            }
        }
        assert_eq!(lines[..4], [(0, 2), (10, 20), (30, 40), (70, 80)]);
        assert!(lines.len() < 12, "{lines:?}");
        let logged: usize = lines.iter().map(|(_, count)| count).sum();
        assert!(logged > 2 * 3600 - 1300, "nothing is lost but what is still held: {logged}");
    }

    #[test]
    fn after_a_quiet_interval_the_next_is_logged_at_once() {
        let mut pace = Pace::default();
        assert!(pace.happened(1, s(0)) && !pace.happened(1, s(1)));
        assert_eq!(pace.due(s(10)), Some((1, s(10))));
        assert_eq!((pace.due(s(35)), pace.due(s(60))), (None, None));
        assert!(pace.happened(1, s(61)));
        assert_eq!(pace.interval, FIRST);
    }
}
