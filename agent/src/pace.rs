// SPDX-License-Identifier: Apache-2.0
//! Log lines about something that happens again and again: the first one at once, later ones as a count, at
//! growing intervals. Pure: the time is an argument.

use std::time::Duration;

/// The first interval; doubles up to [`LAST`].
const FIRST: Duration = Duration::from_secs(10);
/// The longest interval.
const LAST: Duration = Duration::from_secs(600);

/// Paces the lines about one thing.
#[derive(Debug, Default)]
pub struct Pace {
    interval: Duration,
    /// When the next line may come; `None`: at once.
    next: Option<Duration>,
    held: usize,
}

impl Pace {
    /// Something happened `count` times at the time `now`. True when it is to be said at once; otherwise it is
    /// counted for [`Pace::due`].
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

    /// How many times it happened since the last line, and in which time, if that is to be said now.
    pub fn due(&mut self, now: Duration) -> Option<(usize, Duration)> {
        let next = self.next.filter(|next| *next <= now)?;
        if self.held == 0 {
            // Calm for a whole interval: the next time is news again.
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

/// Paces the lines about a failure: another cause is news at once.
#[derive(Debug, Default)]
pub struct FailurePace {
    pace: Pace,
    cause: String,
}

impl FailurePace {
    /// It failed for this cause at the time `now`. Whether that is to be said: `Some(0)` for news, else how many
    /// times it failed since the last line.
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
    fn another_cause_is_news() {
        let mut pace = FailurePace::default();
        let said: Vec<Option<usize>> = (0..12).map(|now| pace.failed("full", s(now))).collect();
        assert_eq!((said[0], &said[1..10], said[10], said[11]), (Some(0), &[None; 9][..], Some(10), None));
        assert_eq!(pace.failed("gone", s(12)), Some(0));
    }

    #[test]
    fn the_first_is_said_at_once_and_the_rest_in_growing_intervals() {
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
        let said: usize = lines.iter().map(|(_, count)| count).sum();
        assert!(said > 2 * 3600 - 1300, "nothing is lost but what is still held: {said}");
    }

    #[test]
    fn after_a_calm_time_it_is_news_again() {
        let mut pace = Pace::default();
        assert!(pace.happened(1, s(0)) && !pace.happened(1, s(1)));
        assert_eq!(pace.due(s(10)), Some((1, s(10))));
        assert_eq!((pace.due(s(35)), pace.due(s(60))), (None, None));
        assert!(pace.happened(1, s(61)));
        assert_eq!(pace.interval, FIRST);
    }
}
