// SPDX-License-Identifier: Apache-2.0
//! At most [`PER_SECOND`] lines in any second; the others are counted. Lines of higher levels have places that lower
//! levels cannot take: no storm of warnings hides an error, and nothing hides that the node is ready or that the agent
//! stopped.
//!
//! Lines that only `-v 2` and more show are not limited.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

use super::levels::READY;
use crate::lock::lock;

/// Lines in any second.
pub const PER_SECOND: usize = 10;
/// One place is kept for the line that reports the suppressed lines.
const RESERVED: usize = 1;
/// The target of that line.
const TARGET: &str = "kube_ipvs::suppressed";
/// Lines in a second from which on warnings are suppressed.
const WARNINGS: usize = 7;
/// Lines in a second from which on information is suppressed.
const INFORMATION: usize = 6;

/// Lines in a second from which on such a line is suppressed.
fn places(line: &Metadata<'_>) -> usize {
    match *line.level() {
        _ if line.target() == READY => PER_SECOND - RESERVED,
        Level::ERROR => PER_SECOND - RESERVED - 1,
        Level::WARN => WARNINGS,
        _ => INFORMATION,
    }
}

/// Counts the lines of the last second. Pure: the time is an argument.
#[derive(Debug, Default)]
struct Window {
    /// When each line of the last second was written.
    lines: VecDeque<Duration>,
    /// Suppressed and not reported yet.
    suppressed: u64,
    total: u64,
}

impl Window {
    /// Whether a line of the time `now` is written: fewer than `places` lines were written in the last second.
    fn admit(&mut self, now: Duration, places: usize) -> bool {
        while self.lines.front().is_some_and(|line| *line + Duration::from_secs(1) <= now) {
            self.lines.pop_front();
        }
        if self.lines.len() < places {
            self.lines.push_back(now);
            return true;
        }
        self.suppressed += 1;
        self.total += 1;
        false
    }

    /// The number of lines suppressed since the last call, if any.
    fn take_suppressed(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.suppressed)).filter(|count| *count > 0)
    }
}

static WINDOW: LazyLock<(Instant, Mutex<Window>)> = LazyLock::new(|| (Instant::now(), Mutex::default()));

/// The number of lines suppressed since the start.
pub fn suppressed() -> u64 {
    lock(&WINDOW.1).total
}

/// Logs once a second how many lines were suppressed, if any.
pub async fn report_suppressed() {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let suppressed = lock(&WINDOW.1).take_suppressed();
        if let Some(count) = suppressed {
            tracing::warn!(
                target: TARGET,
                suppressed = count,
                "{count} more log lines were suppressed: the limit is {PER_SECOND} lines a second, some of them kept \
                 for errors"
            );
        }
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
        let (start, window) = &*WINDOW;
        *metadata.level() > Level::INFO
            || metadata.target() == TARGET
            || lock(window).admit(start.elapsed(), places(metadata))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::{Layer, SubscriberExt};

    use super::*;

    const MOST: usize = PER_SECOND - RESERVED;

    /// Collects the places of each line.
    #[derive(Clone, Default)]
    struct Places(Arc<Mutex<Vec<usize>>>);

    impl<S: Subscriber> Layer<S> for Places {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(places(event.metadata()));
        }
    }

    #[test]
    fn no_second_has_more_lines_and_the_others_are_counted() {
        let mut window = Window::default();
        let places = [INFORMATION, WARNINGS, MOST - 1, MOST];
        let written: Vec<u64> = (5600..9600)
            .filter(|ms| window.admit(Duration::from_millis(*ms), places[*ms as usize % places.len()]))
            .collect();
        for second in 5600..8600 {
            let lines = written.iter().filter(|ms| (second..second + 1000).contains(*ms)).count();
            assert!(lines < PER_SECOND, "{lines} from {second} ms on, and one more about the others");
        }
        assert_eq!(written.len(), 4 * 9);
        assert_eq!((window.take_suppressed(), window.take_suppressed()), (Some(4000 - 36), None));
        assert_eq!(window.total, 4000 - 36);
    }

    #[test]
    fn higher_levels_have_places_that_lower_ones_cannot_take() {
        let seen = Places::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(seen.clone()), || {
            tracing::info!("a VIP is an address of this node");
            tracing::warn!("malformed");
            tracing::error!("cannot program");
            tracing::info!(target: READY, "ready");
            tracing::warn!(target: READY, "started, but not everything works");
        });
        let places = std::mem::take(&mut *seen.0.lock().unwrap());
        assert_eq!(places, [6, 7, 8, 9, 9]);
        // A hundred of each kind in one second, the least important first.
        let mut window = Window::default();
        let written = |places: &usize| (0..100).filter(|_| window.admit(Duration::ZERO, *places)).count();
        assert_eq!(places.iter().map(written).collect::<Vec<_>>(), [6, 1, 1, 1, 0]);
        assert_eq!(window.total, 500 - 9);
    }
}
