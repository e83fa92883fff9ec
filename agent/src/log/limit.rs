// SPDX-License-Identifier: Apache-2.0
//! At most so many lines a second, whatever the cause; the rest is counted.
//!
//! Lines that only `-v 2` and more show are not limited: whoever asks for them wants all of them.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// Lines in any second.
pub const PER_SECOND: usize = 10;
/// One of them is kept for the line that counts the others.
const OWN: usize = 1;
/// The target of that line.
const TARGET: &str = "kube_ipvs::suppressed";

/// Counts the lines of the last second. Pure: the time is an argument.
#[derive(Debug, Default)]
struct Window {
    /// When each of the last lines was written.
    lines: VecDeque<Duration>,
    /// Not written since the last line about that.
    suppressed: u64,
    total: u64,
}

impl Window {
    /// Whether a line may be written at the time `now`.
    fn admit(&mut self, now: Duration) -> bool {
        while self.lines.front().is_some_and(|line| *line + Duration::from_secs(1) <= now) {
            self.lines.pop_front();
        }
        if self.lines.len() < PER_SECOND - OWN {
            self.lines.push_back(now);
            return true;
        }
        self.suppressed += 1;
        self.total += 1;
        false
    }

    /// How many lines were not written since the last call, if any.
    fn take_suppressed(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.suppressed)).filter(|count| *count > 0)
    }
}

static WINDOW: LazyLock<(Instant, Mutex<Window>)> = LazyLock::new(|| (Instant::now(), Mutex::default()));

fn with_window<R>(use_it: impl FnOnce(&mut Window, Duration) -> R) -> R {
    let (start, window) = &*WINDOW;
    use_it(&mut window.lock().unwrap_or_else(PoisonError::into_inner), start.elapsed())
}

/// Lines that were not written since the start.
pub fn suppressed() -> u64 {
    with_window(|window, _| window.total)
}

/// Writes how many lines were not written, if any. To be called once a second.
pub fn tell_suppressed() {
    if let Some(count) = with_window(|window, _| window.take_suppressed()) {
        tracing::warn!(
            target: TARGET,
            suppressed = count,
            "{count} more log lines were suppressed: the limit is {PER_SECOND} lines a second"
        );
    }
}

/// The filter of the log.
pub(super) struct Limit;

impl<S: Subscriber> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &tracing::Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() > Level::INFO
            || metadata.target() == TARGET
            || with_window(|window, now| window.admit(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_lines_and_the_rest_is_counted() {
        let mut window = Window::default();
        let written: Vec<u64> = (5600..9600).filter(|ms| window.admit(Duration::from_millis(*ms))).collect();
        for second in 5600..8600 {
            let lines = written.iter().filter(|ms| (second..second + 1000).contains(*ms)).count();
            assert!(lines < PER_SECOND, "{lines} from {second} ms on, and one more about the others");
        }
        assert_eq!(written.len(), 4 * 9);
        assert_eq!((window.take_suppressed(), window.take_suppressed()), (Some(4000 - 36), None));
        assert_eq!(window.total, 4000 - 36);
    }
}
