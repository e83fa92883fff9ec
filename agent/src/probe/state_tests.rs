// SPDX-License-Identifier: Apache-2.0
//! Tests of the checks without connects, in a time of their own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::ProbeTarget;
use super::state::{
    BATCH, Check, Checks, MAX_CONCURRENT, MAX_SILENT, MAX_STARTS, MAX_UNKNOWN, ProbeCounters, Reply, WINDOW,
};
use crate::core::model::{ProbeSpec, RsKey};

use Reply::{Answered, Failed, Fault};

type Targets = BTreeMap<RsKey, ProbeSpec>;

const INTERVAL: Duration = Duration::from_secs(10);
/// What is due after an interval is not due before its end.
const TICK: Duration = Duration::from_millis(1);

fn key(n: usize) -> RsKey {
    let addr = std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(n).unwrap());
    RsKey { addr: addr.into(), port: 80 }
}

fn spec(interval: Duration, threshold: u32) -> ProbeSpec {
    ProbeSpec { interval, timeout: Duration::from_secs(1), threshold }
}

/// The first endpoints, all with this interval.
fn targets(count: usize, interval: Duration) -> Arc<Targets> {
    Arc::new((0..count).map(|n| (key(n), spec(interval, 3))).collect())
}

/// Checks with a clock.
#[derive(Default)]
struct Clock {
    checks: Checks,
    targets: Arc<Targets>,
    now: Duration,
    reports: Vec<Vec<(RsKey, bool)>>,
}

impl Clock {
    fn with(targets: Arc<Targets>) -> Self {
        let mut clock = Self::default();
        clock.set(targets);
        clock
    }

    /// Replaces the targets.
    fn set(&mut self, targets: Arc<Targets>) {
        let removed = self.targets.keys().filter(|key| !targets.contains_key(key)).map(|key| (*key, None));
        let wanted =
            targets.iter().map(|(key, spec)| (*key, Some(ProbeTarget { spec: *spec, is_dead: false })));
        self.checks.change_targets(&removed.chain(wanted).collect::<Vec<_>>(), self.now);
        self.targets = targets;
    }

    /// Goes to the next moment at which something is to be done, at most to `end`, and does it. Returns the started
    /// checks, none at the end.
    fn step(&mut self, end: Duration) -> Option<Vec<Check>> {
        let wake = self.checks.wake_at().filter(|wake| *wake <= end);
        self.now = wake.unwrap_or(end).max(self.now);
        let before = self.reports.len();
        self.reports.extend(self.checks.report(self.now));
        let started: Vec<Check> = std::iter::from_fn(|| self.checks.start(self.now)).collect();
        assert!(wake.is_none() || !started.is_empty() || self.reports.len() > before, "woken for nothing");
        wake.map(|_| started)
    }

    /// Runs for this time; each check gets its answer at once. Returns the times of the checks.
    fn run(&mut self, time: Duration, answer: impl Fn(RsKey) -> Reply) -> Vec<(Duration, RsKey)> {
        let (end, mut checks) = (self.now + time, Vec::new());
        while let Some(started) = self.step(end) {
            for check in started {
                checks.push((self.now, check.key));
                self.checks.finish(&check, answer(check.key), self.now);
            }
        }
        checks
    }

    /// Gives the next checks of the only endpoint these answers, and waits for a report.
    fn answers(&mut self, answers: &[Reply]) {
        for answer in answers {
            let check = self.next_check();
            self.checks.finish(&check, *answer, self.now);
        }
        self.now += BATCH;
        self.reports.extend(self.checks.report(self.now));
    }

    fn next_check(&mut self) -> Check {
        loop {
            let mut started = self.step(Duration::MAX).unwrap();
            assert!(started.len() < 2);
            if let Some(check) = started.pop() {
                return check;
            }
        }
    }

    /// What was reported since the last call, each report by itself.
    fn reported(&mut self) -> Vec<Vec<(RsKey, bool)>> {
        std::mem::take(&mut self.reports)
    }

    fn dead(&self) -> usize {
        self.checks.counters().dead
    }
}

#[test]
fn so_many_failures_in_a_row_are_death_and_one_answer_is_life() {
    for threshold in 1..5 {
        let mut clock = Clock::with(Arc::new(Targets::from([(key(0), spec(INTERVAL, threshold))])));
        let failures = vec![Failed; threshold as usize];
        let fewer = &failures[1..];
        clock.answers(&[Answered]);
        clock.answers(fewer);
        clock.answers(&[Answered]);
        clock.answers(fewer);
        assert_eq!((clock.reported(), clock.dead()), (vec![], 0), "{threshold}");
        clock.answers(&[Failed]);
        assert_eq!((clock.reported(), clock.dead()), (vec![vec![(key(0), true)]], 1), "{threshold}");
        clock.answers(&failures);
        assert_eq!((clock.reported(), clock.dead()), (vec![], 1), "it is reported once");
        clock.answers(&[Answered]);
        assert_eq!((clock.reported(), clock.dead()), (vec![vec![(key(0), false)]], 0), "{threshold}");
        clock.answers(&failures);
        assert_eq!(clock.reported(), [[(key(0), true)]], "it dies again");
        let numbers = clock.checks.counters();
        let failed = u64::from(4 * threshold - 1);
        let expected =
            ProbeCounters { targets: 1, dead: 1, connects: failed + 3, failures: failed, faults: 0 };
        assert_eq!(numbers, expected);
    }
}

#[test]
fn an_endpoint_that_never_answered_does_not_die() {
    let mut clock = Clock::with(targets(1, INTERVAL));
    clock.answers(&[Failed; 50]);
    assert_eq!((clock.reported(), clock.dead()), (vec![], 0));
    clock.answers(&[Answered, Failed, Failed]);
    assert_eq!(clock.dead(), 0, "the failures before count for nothing");
    clock.answers(&[Failed]);
    assert_eq!(clock.reported(), [[(key(0), true)]]);
}

#[test]
fn faults_of_the_node_are_neither_failures_nor_answers() {
    let mut clock = Clock::with(targets(1, INTERVAL));
    clock.answers(&[Answered]);
    clock.answers(&[Fault; 20]);
    clock.answers(&[Failed, Fault, Failed, Fault]);
    assert_eq!((clock.reported(), clock.dead()), (vec![], 0));
    clock.answers(&[Failed]);
    assert_eq!(clock.reported(), [[(key(0), true)]]);
    clock.answers(&[Fault; 20]);
    assert_eq!((clock.reported(), clock.dead()), (vec![], 1));
    assert_eq!(clock.checks.counters().faults, 42);
}

#[test]
fn changes_within_a_short_time_are_one_report() {
    let mut clock = Clock::with(targets(200, INTERVAL));
    clock.run(INTERVAL, |_| Answered);
    clock.run(3 * INTERVAL + BATCH, |_| Failed);
    let reports = clock.reported();
    assert_eq!(reports.iter().flatten().filter(|(_, is_dead)| *is_dead).count(), 200);
    let most = usize::try_from(INTERVAL.as_millis() / BATCH.as_millis()).unwrap() + 1;
    assert!(reports.len() <= most, "{} reports", reports.len());
    assert!(reports.iter().all(|report| report.is_sorted()));
    clock.set(Arc::default());
    assert_eq!(clock.checks.wake_at(), Some(clock.now + BATCH));
    clock.run(BATCH, |_| Failed);
    let all: Vec<(RsKey, bool)> = (0..200).map(|n| (key(n), false)).collect();
    assert_eq!((clock.reported(), clock.dead()), (vec![all], 0));
    assert_eq!(clock.checks.wake_at(), None, "nothing is to be done");
}

#[test]
fn what_changed_back_before_the_report_is_not_reported() {
    let short = BATCH / 10;
    let mut clock = Clock::with(Arc::new(Targets::from([(key(0), spec(short, 1))])));
    clock.answers(&[Answered]);
    for answer in [Failed, Answered, Failed, Answered] {
        let check = clock.next_check();
        clock.checks.finish(&check, answer, clock.now);
    }
    clock.run(2 * BATCH, |_| Answered);
    assert_eq!((clock.reported(), clock.dead()), (vec![], 0));
}

#[test]
fn unchanged_targets_keep_their_state_and_their_time() {
    let mut clock = Clock::with(targets(1, INTERVAL));
    clock.answers(&[Answered, Failed, Failed]);
    let due = clock.checks.wake_at();
    for count in [2, 1] {
        clock.set(targets(count, INTERVAL));
    }
    assert_eq!(clock.checks.wake_at(), due);
    clock.answers(&[Failed]);
    assert_eq!(clock.reported(), [[(key(0), true)]]);
    clock.set(Arc::new(Targets::from([(key(0), spec(INTERVAL, 9))])));
    assert_eq!(clock.dead(), 1, "a higher threshold does not make it alive");
    clock.answers(&[Answered]);
    clock.answers(&[Failed; 8]);
    assert_eq!(clock.reported(), [[(key(0), false)]]);
    clock.answers(&[Failed]);
    assert_eq!(clock.reported(), [[(key(0), true)]]);
}

#[test]
fn a_shorter_interval_holds_at_once_and_a_longer_one_from_the_next_check() {
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(3600));
    let mut clock = Clock::with(targets(100, long));
    let first = clock.run(2 * long - TICK, |_| Answered);
    assert_eq!(first.len(), 200);
    clock.set(targets(100, short));
    let changed = clock.now;
    let checks = clock.run(10 * short, |_| Answered);
    let mut by_key = BTreeMap::<RsKey, Vec<Duration>>::new();
    checks.iter().for_each(|(time, key)| by_key.entry(*key).or_default().push(*time));
    assert_eq!(by_key.len(), 100);
    assert!(by_key.values().all(|times| times[0] < changed + short && times.len() >= 10));
    clock.set(targets(100, long));
    assert_eq!(clock.run(short, |_| Answered).len(), 100, "the next check keeps its time");
    assert_eq!(clock.run(long - short - TICK, |_| Answered).len(), 0);
}

#[test]
fn removed_targets_are_forgotten_and_no_longer_dead() {
    let mut clock = Clock::with(targets(1, INTERVAL));
    clock.answers(&[Answered, Failed, Failed, Failed]);
    assert_eq!(clock.reported(), [[(key(0), true)]]);
    clock.set(Arc::default());
    assert_eq!((clock.dead(), clock.checks.counters().targets), (0, 0));
    clock.run(INTERVAL, |_| Failed);
    assert_eq!(clock.reported(), [[(key(0), false)]]);
    clock.set(targets(1, INTERVAL));
    clock.answers(&[Failed; 5]);
    assert_eq!((clock.reported(), clock.dead()), (vec![], 0), "it did not answer since it is a target again");
}

#[test]
fn a_target_that_is_dead_from_the_start_is_alive_after_one_answer() {
    for answer in [Failed, Fault] {
        let mut clock = Clock::default();
        let dead = ProbeTarget { spec: spec(INTERVAL, 3), is_dead: true };
        clock.checks.change_targets(&[(key(0), Some(dead))], clock.now);
        clock.answers(&[answer; 20]);
        assert_eq!((clock.reported(), clock.dead()), (vec![], 1));
        clock.checks.change_targets(&[(key(0), Some(dead))], clock.now);
        clock.answers(&[Answered]);
        assert_eq!((clock.reported(), clock.dead()), (vec![vec![(key(0), false)]], 0));
        clock.checks.change_targets(&[(key(0), Some(dead))], clock.now);
        assert_eq!(clock.dead(), 0, "it is no new target");
        clock.answers(&[Failed; 3]);
        assert_eq!(clock.reported(), [[(key(0), true)]]);
    }
}

#[test]
fn the_answer_of_a_removed_target_counts_for_nothing() {
    let mut clock = Clock::with(Arc::new(Targets::from([(key(0), spec(INTERVAL, 1))])));
    let old = clock.next_check();
    clock.set(Arc::default());
    clock.set(Arc::new(Targets::from([(key(0), spec(INTERVAL, 1))])));
    clock.checks.finish(&old, Answered, clock.now);
    clock.answers(&[Failed]);
    assert_eq!(clock.dead(), 0, "the old answer is none of the new target");
    let old = clock.next_check();
    clock.set(Arc::default());
    clock.checks.finish(&old, Failed, clock.now);
    assert_eq!((clock.checks.wake_at(), clock.checks.counters().failures), (None, 1));
}

#[test]
fn first_checks_are_spread_over_the_interval_and_differ_between_nodes() {
    let interval = Duration::from_secs(100);
    let order = || {
        let mut clock = Clock::with(targets(5000, interval));
        let checks = clock.run(interval - TICK, |_| Answered);
        let mut slices = [0; 10];
        checks.iter().for_each(|(time, _)| slices[(time.as_secs() / 10).min(9) as usize] += 1);
        assert!(slices.iter().all(|count| (350..650).contains(count)), "{slices:?}");
        assert_eq!(checks.len(), 5000);
        checks
    };
    assert_ne!(order(), order());
}

#[test]
fn a_late_check_is_not_made_up_for() {
    let mut clock = Clock::with(targets(1, INTERVAL));
    clock.answers(&[Answered]);
    clock.now += 10 * INTERVAL;
    let late = clock.now;
    clock.answers(&[Answered]);
    assert_eq!(clock.checks.wake_at(), Some(late + INTERVAL));
}

#[test]
fn too_many_targets_stretch_the_intervals_of_all_alike() {
    let second = Duration::from_secs(1);
    let mut clock = Clock::with(targets(5000, second));
    let checks = clock.run(60 * second, |_| Answered);
    let per_second = MAX_STARTS * usize::try_from(second.as_millis() / WINDOW.as_millis()).unwrap();
    for (time, _) in &checks {
        let within = |(other, _): &&(Duration, RsKey)| (*time..*time + second).contains(other);
        let first = checks.partition_point(|(other, _)| other < time);
        let count = checks[first..].iter().take_while(within).count();
        assert!(count <= per_second + MAX_STARTS, "{count} starts in a second");
    }
    assert!(checks.len() > 55 * per_second, "{} checks", checks.len());
    let mut by_key = BTreeMap::<RsKey, usize>::new();
    checks.iter().for_each(|(_, key)| *by_key.entry(*key).or_default() += 1);
    let (least, most) = (by_key.values().min().unwrap(), by_key.values().max().unwrap());
    assert!(by_key.len() == 5000 && most - least <= 1, "{least} to {most} checks of an endpoint");
}

/// Runs for this time; the checks of these endpoints never end, the others are answered at once. Returns the numbers of
/// both.
fn hang(clock: &mut Clock, time: Duration, hangs: impl Fn(RsKey) -> bool) -> (usize, usize) {
    let (end, mut hanging, mut answered) = (clock.now + time, 0, 0);
    while let Some(started) = clock.step(end) {
        for check in started {
            if hangs(check.key) {
                hanging += 1;
            } else {
                answered += 1;
                clock.checks.finish(&check, Answered, clock.now);
            }
        }
    }
    (hanging, answered)
}

#[test]
fn endpoints_that_do_not_answer_leave_room_for_the_others() {
    let second = Duration::from_secs(1);
    let is_bad = |other: RsKey| other >= key(200);
    let mut clock = Clock::with(targets(400, second));
    clock.run(second, |_| Answered);
    clock.run(second, |other| if is_bad(other) { Failed } else { Answered });
    let (hanging, answered) = hang(&mut clock, 10 * second, is_bad);
    assert_eq!(hanging, MAX_SILENT);
    assert!(answered >= 200 * 10, "{answered}");
    let (hanging, _) = hang(&mut clock, 10 * second, |_| true);
    assert_eq!(hanging, MAX_CONCURRENT - MAX_SILENT);
    assert_eq!(clock.checks.wake_at(), None, "nothing has a place");
}

#[test]
fn endpoints_that_never_answered_leave_room_for_those_that_may_be_dead() {
    let second = Duration::from_secs(1);
    let is_known = |other: RsKey| other < key(100);
    let mut clock = Clock::with(targets(1000, second));
    // A new endpoint is checked once as those that may be dead.
    clock.run(5 * second, |other| if is_known(other) { Answered } else { Failed });
    let (hanging, answered) = hang(&mut clock, 5 * second, |other| !is_known(other));
    assert_eq!(hanging, MAX_UNKNOWN);
    assert!(answered >= 100 * 4, "{answered}");
    clock.run(second, |other| if is_known(other) { Failed } else { panic!("{other} has no place") });
}

#[test]
fn connects_at_once_are_limited() {
    let second = Duration::from_secs(1);
    let mut unknown = Clock::with(targets(1000, second));
    assert_eq!(hang(&mut unknown, 10 * second, |_| true), (MAX_SILENT, 0));
    let mut clock = Clock::with(targets(200, second));
    clock.run(second, |_| Answered);
    assert_eq!(hang(&mut clock, 10 * second, |_| true), (MAX_CONCURRENT, 0));
}

#[test]
fn a_check_holds_its_place_until_it_ends_even_if_its_target_is_removed() {
    let mut clock = Clock::default();
    for _ in 0..3 {
        clock.set(targets(1000, INTERVAL));
        let end = clock.now + INTERVAL;
        let mut held: Vec<Check> = std::iter::from_fn(|| clock.step(end)).flatten().collect();
        assert_eq!(held.len(), MAX_SILENT);
        clock.set(Arc::default());
        clock.set(targets(1000, INTERVAL));
        assert_eq!(clock.checks.wake_at(), None);
        held.drain(..).for_each(|check| clock.checks.finish(&check, Failed, clock.now));
        clock.set(Arc::default());
    }
    assert_eq!(clock.checks.counters().connects, 3 * MAX_SILENT as u64);
}
