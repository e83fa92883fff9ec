// SPDX-License-Identifier: Apache-2.0
//! The timeouts of the API source, and its pauses between failures.

use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::core::model::backoff::Backoff;

/// See [`Timing::patience`].
const PATIENCE: Duration = Duration::from_secs(5);

/// Timeouts and pauses of the API source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Timeout of the lists of the priority Services together.
    pub priority: Duration,
    /// A list fails when no data of it arrives for this long; a page fails when it takes this long.
    pub stall: Duration,
    /// Timeout of a whole streamed list.
    pub list: Duration,
    /// After a failed streamed list, lists are read in pages for this long.
    pub no_streaming: Duration,
    /// Timeout until an answer begins. A watch is answered at once, and so is a page.
    pub answer: Duration,
    /// A watch that is silent for this long is checked: servers send bookmarks once a minute.
    pub silence: Duration,
    /// The same while the state of the server is uncertain, which is after a list or a watch that ended early: the
    /// server may have gone back to an older state.
    pub uncertain: Duration,
    /// First pause after a failure; doubles up to `max_pause`. Each pause is up to half shorter or longer by chance,
    /// so that the nodes of a cluster do not retry all at the same moment.
    pub min_pause: Duration,
    pub max_pause: Duration,
    /// After this long without a failure the pauses begin with `min_pause` again.
    pub reset: Duration,
}

impl Timing {
    /// How long a start, or a new VIP, waits for a list that it can do without.
    pub(super) fn patience(&self) -> Duration {
        PATIENCE.min(self.stall)
    }
}

/// Waits for `work`, and calls `late` if it takes longer than `patience`.
pub(super) async fn wait_patiently<T>(
    patience: Duration,
    work: impl Future<Output = T>,
    late: impl FnOnce(),
) -> T {
    tokio::pin!(work);
    match tokio::time::timeout(patience, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            late();
            work.await
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            priority: Duration::from_secs(2),
            stall: Duration::from_secs(45),
            list: Duration::from_secs(120),
            no_streaming: Duration::from_secs(1800),
            answer: Duration::from_secs(40),
            silence: Duration::from_secs(150),
            uncertain: Duration::from_secs(10),
            min_pause: Duration::from_millis(800),
            max_pause: Duration::from_secs(30),
            reset: Duration::from_secs(120),
        }
    }
}

/// The pauses between failures. A list that begins or ends does not reset them: a server whose watches fail right
/// after their lists would be listed all the time.
#[derive(Debug)]
pub(super) struct RetryPauses {
    backoff: Backoff,
    reset: Duration,
    last: Option<Instant>,
    failures: u32,
    chance: Chance,
}

impl RetryPauses {
    pub fn new(timing: Timing) -> Self {
        let backoff = Backoff::new(timing.min_pause, timing.max_pause);
        Self { backoff, reset: timing.reset, last: None, failures: 0, chance: Chance::default() }
    }

    /// The pause after a failure now; at least `requested`, the pause that the server requested.
    pub fn next(&mut self, now: Instant, requested: Duration) -> Duration {
        if self.last.is_some_and(|last| now.duration_since(last) > self.reset) {
            self.backoff.reset();
        }
        self.last = Some(now);
        self.failures = self.failures.wrapping_add(1);
        let pause = self.backoff.next_pause();
        self.about(pause).max(requested)
    }

    /// `time`, up to half shorter or longer by chance; the same until the next failure.
    pub fn about(&self, time: Duration) -> Duration {
        time.mul_f64(0.5 + self.chance.of(self.failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_are_reset_after_a_time_without_failures() {
        let timing = Timing::default();
        let mut pauses = RetryPauses::new(timing);
        let mut now = Instant::now();
        for n in 0..10u32 {
            let wanted = timing.min_pause.saturating_mul(1 << n).min(timing.max_pause);
            let pause = pauses.next(now, Duration::ZERO);
            assert!(pause >= wanted / 2 && pause <= wanted * 3 / 2, "{n}: {pause:?}");
            now += pause;
        }
        assert_eq!(pauses.next(now, Duration::from_secs(100)), Duration::from_secs(100));
        let pause = pauses.next(now + timing.reset * 2, Duration::ZERO);
        assert!(pause <= timing.min_pause * 3 / 2, "{pause:?}");
    }

    #[test]
    fn pauses_differ_between_nodes() {
        let first = |_| RetryPauses::new(Timing::default()).next(Instant::now(), Duration::ZERO);
        let pauses: std::collections::HashSet<Duration> = (0..100).map(first).collect();
        assert!(pauses.len() > 20, "{pauses:?}");
    }
}
