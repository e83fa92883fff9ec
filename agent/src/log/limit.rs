// SPDX-License-Identifier: Apache-2.0
//! At most so many lines a second, whatever the cause; the rest is counted. What matters more finds places that
//! the rest cannot take: no storm of notices or warnings hides an error, and nothing hides that the node is ready.
//!
//! Lines that only `-v 2` and more show are not limited: whoever asks for them wants all of them.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

use crate::reconcile::READY;

/// Lines in any second.
pub const PER_SECOND: usize = 10;
/// One of them is kept for the line that counts the others.
const OWN: usize = 1;
/// The target of that line.
const TARGET: &str = "kube_ipvs::suppressed";
/// In a second with so many lines there are no more warnings, …
const WITH_WARNINGS: usize = 7;
/// … and in one with so many no more lines of a lower level.
const WITH_NOTICES: usize = 6;

/// In a second with so many lines there is no more such line. The last place is for the line that ends the
/// start, the one before for errors.
fn places(line: &Metadata<'_>) -> usize {
    match *line.level() {
        _ if line.target() == READY => PER_SECOND - OWN,
        Level::ERROR => PER_SECOND - OWN - 1,
        Level::WARN => WITH_WARNINGS,
        _ => WITH_NOTICES,
    }
}

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
    /// Whether a line may be written at the time `now` that finds no place among so many others.
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
            "{count} more log lines were suppressed: the limit is {PER_SECOND} lines a second, some of them kept for \
             errors"
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
            || with_window(|window, now| window.admit(now, places(metadata)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::{Layer, SubscriberExt};

    use super::*;

    const MOST: usize = PER_SECOND - OWN;

    /// Notes how many places each line has.
    #[derive(Clone, Default)]
    struct Places(Arc<Mutex<Vec<usize>>>);

    impl<S: Subscriber> Layer<S> for Places {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(places(event.metadata()));
        }
    }

    #[test]
    fn no_second_has_more_lines_and_the_rest_is_counted() {
        let mut window = Window::default();
        let places = [WITH_NOTICES, WITH_WARNINGS, MOST - 1, MOST];
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
    fn what_matters_more_finds_places_that_the_rest_cannot_take() {
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
