// SPDX-License-Identifier: Apache-2.0
//! Which endpoint is checked when, and what its answers mean. Pure: the time, since any moment, is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Duration;

use super::ProbeTarget;
use crate::chance::Chance;
use crate::core::model::map::Map;
use crate::core::model::{ProbeSpec, RsKey};

/// The most connects at once: each has a file descriptor, and some hosts allow a process 1,024.
pub(super) const MAX_CONCURRENT: usize = 128;
/// The most connects at once to endpoints that did not answer the last time. They may need their whole timeout. If a
/// zone fails, the others are still checked in time.
pub(super) const MAX_SILENT: usize = MAX_CONCURRENT / 2;
/// The most connects at once to endpoints that never answered: they may never do, and those that may be dead come first.
pub(super) const MAX_UNKNOWN: usize = 16;
/// The most starts in a [`WINDOW`]: 500 a second.
pub(super) const MAX_STARTS: usize = 50;
/// The time in which starts are counted. One wake-up for many starts is cheaper than a pause after each.
pub(super) const WINDOW: Duration = Duration::from_millis(100);
/// Changes that come within this time after the first are one report.
pub(super) const BATCH: Duration = Duration::from_millis(100);

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Answered,
    Failed,
    /// The check failed on this node and says nothing about the endpoint.
    Fault,
}

/// A check that runs. Every one goes back to [`Checks::finish`]: it holds a place.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) key: RsKey,
    pub(super) timeout: Duration,
    number: u64,
    class: usize,
}

/// What is known of an endpoint since it is a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It never answered. It may be behind a NetworkPolicy that does not let the node in: it does not count as dead.
    Nothing,
    Alive,
    Dead,
}

#[derive(Clone, Copy, Debug)]
struct Probed {
    spec: ProbeSpec,
    /// When the next check is due. While a check runs: when that started.
    due: Duration,
    /// The number of the check that runs.
    running: Option<u64>,
    /// Failures since the last answer.
    failures: u32,
    known: Known,
}

impl Probed {
    /// Which queue and which places it has: 0 if it answered the last time; 1 if it may be dead, or is new; 2 if it never
    /// answered.
    fn class(&self) -> usize {
        match (self.known, self.failures) {
            (Known::Nothing, 1..) => 2,
            (Known::Nothing, 0) | (_, 1..) => 1,
            _ => 0,
        }
    }
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounters {
    /// Endpoints that are checked.
    pub targets: usize,
    /// Those of them that count as dead.
    pub dead: usize,
    /// Connects that were started.
    pub connects: u64,
    /// Connects that the endpoint refused or did not answer.
    pub failures: u64,
    /// Connects that failed on the node and count for nothing.
    pub faults: u64,
}

/// Endpoints that wait for their next check, by its time.
type Queue = BTreeSet<(Duration, RsKey)>;

/// The state of all checks.
#[derive(Debug, Default)]
pub(super) struct Checks {
    endpoints: Map<RsKey, Probed>,
    /// Endpoints without a running check, by class.
    waiting: [Queue; 3],
    /// The numbers of running checks, by class.
    running: [usize; 3],
    /// The begin of the window, and the starts in it.
    window: (Duration, usize),
    /// Changes to report: whether the endpoint is dead. An endpoint that changed back is not in it.
    changes: BTreeMap<RsKey, bool>,
    /// When they are reported, if there are any.
    report_at: Duration,
    counters: ProbeCounters,
    chance: Chance,
}

impl Checks {
    /// Changes the targets. All others keep their state and their next time.
    pub(super) fn change_targets(&mut self, changes: &[(RsKey, Option<ProbeTarget>)], now: Duration) {
        for (key, target) in changes {
            match (target, self.endpoints.get(key).map(|endpoint| endpoint.spec)) {
                (None, _) => self.forget(*key, now),
                (Some(target), None) => self.add(*key, *target, now),
                (Some(target), Some(_)) => self.change_spec(*key, target.spec, now),
            }
        }
        self.counters.targets = self.endpoints.len();
    }

    /// A moment within the next interval, evenly spread: endpoints do not start at once, and nodes do not check one
    /// endpoint in step.
    fn within_interval(&self, key: RsKey, spec: &ProbeSpec, now: Duration) -> Duration {
        now.saturating_add(spec.interval.mul_f64(self.chance.of(key)))
    }

    fn add(&mut self, key: RsKey, ProbeTarget { spec, is_dead }: ProbeTarget, now: Duration) {
        // Nobody knows for how long it answers again.
        let due = if is_dead { now } else { self.within_interval(key, &spec, now) };
        let known = if is_dead { Known::Dead } else { Known::Nothing };
        let endpoint = Probed { spec, due, running: None, failures: u32::from(is_dead), known };
        self.counters.dead += usize::from(is_dead);
        self.endpoints.insert(key, endpoint);
        self.wait(key, endpoint);
    }

    fn wait(&mut self, key: RsKey, endpoint: Probed) {
        self.waiting[endpoint.class()].insert((endpoint.due, key));
    }

    fn forget(&mut self, key: RsKey, now: Duration) {
        let Some(endpoint) = self.endpoints.remove(&key) else { return };
        self.waiting[endpoint.class()].remove(&(endpoint.due, key));
        if endpoint.known == Known::Dead {
            self.change(key, false, now);
        }
    }

    /// With another interval, the next check is due within that, or earlier if it was. A running check uses it at its end.
    fn change_spec(&mut self, key: RsKey, spec: ProbeSpec, now: Duration) {
        let latest = self.within_interval(key, &spec, now);
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let before = mem::replace(&mut endpoint.spec, spec);
        if before.interval == spec.interval || endpoint.running.is_some() {
            return;
        }
        self.waiting[endpoint.class()].remove(&(endpoint.due, key));
        endpoint.due = endpoint.due.min(latest);
        let endpoint = *endpoint;
        self.wait(key, endpoint);
    }

    /// The next check that has a place, with its time.
    fn next(&self) -> Option<(Duration, RsKey)> {
        let free = MAX_CONCURRENT.saturating_sub(self.running.iter().sum());
        let silent = self.running[1] + self.running[2];
        let has_place = [true, silent < MAX_SILENT, silent < MAX_SILENT && self.running[2] < MAX_UNKNOWN];
        let queues = self.waiting.iter().zip(has_place).filter(|(_, has_place)| free > 0 && *has_place);
        queues.filter_map(|(waiting, _)| waiting.first()).min().copied()
    }

    /// The next check to start now, if any.
    pub(super) fn start(&mut self, now: Duration) -> Option<Check> {
        let (due, key) = self.next().filter(|(due, _)| *due <= now)?;
        if now >= self.window.0.saturating_add(WINDOW) {
            self.window = (now, 0);
        }
        if self.window.1 == MAX_STARTS {
            return None;
        }
        self.window.1 += 1;
        let endpoint = self.endpoints.get_mut(&key)?;
        let (number, class, timeout) = (self.counters.connects, endpoint.class(), endpoint.spec.timeout);
        endpoint.running = Some(number);
        endpoint.due = now;
        self.waiting[class].remove(&(due, key));
        self.running[class] += 1;
        self.counters.connects += 1;
        Some(Check { key, timeout, number, class })
    }

    /// Takes the answer of a check. That of a target which was removed meanwhile counts for nothing, even if the
    /// endpoint is a target again.
    pub(super) fn finish(&mut self, check: &Check, answer: Reply, now: Duration) {
        self.running[check.class] -= 1;
        let key = check.key;
        let endpoint = self.endpoints.get_mut(&key).filter(|endpoint| endpoint.running == Some(check.number));
        let Some(endpoint) = endpoint else { return };
        let was = endpoint.known;
        match answer {
            Reply::Answered => (endpoint.failures, endpoint.known) = (0, Known::Alive),
            Reply::Failed => {
                self.counters.failures += 1;
                endpoint.failures = endpoint.failures.saturating_add(1);
                if was == Known::Alive && endpoint.failures >= endpoint.spec.threshold {
                    endpoint.known = Known::Dead;
                }
            }
            Reply::Fault => self.counters.faults += 1,
        }
        endpoint.running = None;
        // A check that started late is not made up for: intervals stretch.
        endpoint.due = endpoint.due.saturating_add(endpoint.spec.interval).max(now);
        let endpoint = *endpoint;
        self.wait(key, endpoint);
        if (was == Known::Dead) != (endpoint.known == Known::Dead) {
            self.change(key, endpoint.known == Known::Dead, now);
        }
    }

    fn change(&mut self, key: RsKey, is_dead: bool, now: Duration) {
        if is_dead {
            self.counters.dead += 1;
        } else {
            self.counters.dead -= 1;
        }
        if self.changes.is_empty() {
            self.report_at = now.saturating_add(BATCH);
        }
        // A change that is not reported yet can only be the opposite one.
        if self.changes.remove(&key).is_none() {
            self.changes.insert(key, is_dead);
        }
    }

    /// The endpoints that changed, if they are to be reported now: true = dead.
    pub(super) fn report(&mut self, now: Duration) -> Option<Vec<(RsKey, bool)>> {
        let is_due = !self.changes.is_empty() && self.report_at <= now;
        is_due.then(|| mem::take(&mut self.changes).into_iter().collect())
    }

    /// When [`Checks::start`] or [`Checks::report`] has something next, if no check ends before.
    pub(super) fn wake_at(&self) -> Option<Duration> {
        let (window, starts) = self.window;
        let earliest = if starts == MAX_STARTS { window.saturating_add(WINDOW) } else { Duration::ZERO };
        let start = self.next().map(|(due, _)| due.max(earliest));
        let report = (!self.changes.is_empty()).then_some(self.report_at);
        start.into_iter().chain(report).min()
    }

    pub(super) fn counters(&self) -> ProbeCounters {
        self.counters
    }
}
