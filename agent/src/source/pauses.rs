// SPDX-License-Identifier: Apache-2.0
//! How patient a follower is, and its pauses between failures.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// How patient a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long the small lists may take that come before all others.
    pub ahead: Duration,
    /// A list in which nothing comes for so long is given up, and a page that takes so long.
    pub stall: Duration,
    /// A streamed list that has not ended after so long is given up.
    pub list: Duration,
    /// After a streamed list that failed, lists come in pages for so long.
    pub no_streaming: Duration,
    /// How long a server may take to begin an answer. A watch is answered at once, and so is a page.
    pub answer: Duration,
    /// A watch that was silent for so long is looked into: servers send bookmarks once a minute.
    pub silence: Duration,
    /// The same for a watch after a list or a watch that ended early: the server may have gone back to an
    /// older state.
    pub doubt: Duration,
    /// First pause after a failure; doubles up to `max_pause`, and is made up to half shorter or
    /// longer by chance, so that the nodes of a cluster do not come back all at once.
    pub min_pause: Duration,
    /// Longest pause.
    pub max_pause: Duration,
    /// After so long without a failure the pauses start anew.
    pub calm: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ahead: Duration::from_secs(2),
            stall: Duration::from_secs(45),
            list: Duration::from_secs(120),
            no_streaming: Duration::from_secs(1800),
            answer: Duration::from_secs(40),
            silence: Duration::from_secs(150),
            doubt: Duration::from_secs(10),
            min_pause: Duration::from_millis(800),
            max_pause: Duration::from_secs(30),
            calm: Duration::from_secs(120),
        }
    }
}

/// The pauses between failures. Neither a list that begins nor one that ends makes them short again:
/// a server whose watches fail right after their lists would be listed all the time.
#[derive(Debug)]
pub(super) struct Pauses {
    limits: Limits,
    failures: u32,
    last: Option<Instant>,
    chance: RandomState,
}

impl Pauses {
    /// No failure yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, failures: 0, last: None, chance: RandomState::new() }
    }

    /// The pause after a failure now; at least as long as the server asked for.
    pub fn next(&mut self, now: Instant, asked: Duration) -> Duration {
        if self.last.is_some_and(|last| now.duration_since(last) > self.limits.calm) {
            self.failures = 0;
        }
        self.last = Some(now);
        let pause =
            self.limits.min_pause.saturating_mul(1 << self.failures.min(16)).min(self.limits.max_pause);
        self.failures = self.failures.saturating_add(1);
        self.about(pause).max(asked)
    }

    /// Up to half shorter or longer, by chance.
    pub fn about(&self, time: Duration) -> Duration {
        let chance = (self.chance.hash_one(self.failures) % 1000) as u32;
        time * (500 + chance) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_anew_after_a_calm_time() {
        let limits = Limits::default();
        let mut pauses = Pauses::new(limits);
        let mut now = Instant::now();
        for n in 0..10u32 {
            let wanted = limits.min_pause.saturating_mul(1 << n).min(limits.max_pause);
            let pause = pauses.next(now, Duration::ZERO);
            assert!(pause >= wanted / 2 && pause <= wanted * 3 / 2, "{n}: {pause:?}");
            now += pause;
        }
        assert_eq!(pauses.next(now, Duration::from_secs(100)), Duration::from_secs(100));
        let pause = pauses.next(now + limits.calm * 2, Duration::ZERO);
        assert!(pause <= limits.min_pause * 3 / 2, "{pause:?}");
    }

    #[test]
    fn pauses_differ_between_nodes() {
        let first = |_| Pauses::new(Limits::default()).next(Instant::now(), Duration::ZERO);
        let pauses: std::collections::HashSet<Duration> = (0..100).map(first).collect();
        assert!(pauses.len() > 20, "{pauses:?}");
    }
}
