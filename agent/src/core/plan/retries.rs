// SPDX-License-Identifier: Apache-2.0
//! What failed, and when it is tried again: each subject by itself, whatever else happens.
//!
//! A pass asks [`Retries::begin`] for the subjects whose turn has come. An op of any other failing subject
//! is held back, and so is what depends on it; everything else runs as if nothing had failed. What a failing
//! subject blocks is looked at again when the subject has its turn.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::op::{Op, Plan};
use super::outcome::{Cause, OpError, Outcome, Report};
use super::subject::{Part, Subject, SubjectKind};
use crate::core::model::Family;
use crate::core::model::backoff::Backoff;
use crate::core::model::changes::Changes;
use crate::core::model::sets::SetId;

/// The pauses between tries.
pub const BACKOFF: Backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
/// First pause after a failure.
pub const MIN_BACKOFF: Duration = Duration::from_millis(250);
/// Longest pause between tries.
pub const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// So many subjects have their turn in one pass: a change that comes meanwhile does not wait for more.
const TURNS: usize = 512;

/// A subject that failed and is to be tried again.
#[derive(Clone, Debug)]
pub struct Failing {
    /// The last failure.
    pub error: OpError,
    /// When it failed first.
    pub since: Duration,
    /// Failures so far.
    pub tries: u32,
    /// The op that failed; `None` for a reading.
    op: Option<Op>,
    last: Duration,
    next: Duration,
    /// It is being tried now.
    in_turn: bool,
}

impl Failing {
    /// How long until the next try.
    pub fn pause(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }
}

/// What changed since somebody last asked.
#[derive(Debug, Default)]
pub struct News {
    /// Subjects that began to fail, or fail for another cause than before.
    pub began: BTreeSet<Subject>,
    /// Subjects that are as they must be again, or not wanted any more, with their last failure.
    pub ended: Vec<(Subject, Failing)>,
}

impl News {
    /// True when nothing changed.
    pub fn is_empty(&self) -> bool {
        self.began.is_empty() && self.ended.is_empty()
    }
}

/// See the module. Times are durations since some fixed start.
#[derive(Debug, Default)]
pub struct Retries {
    failing: BTreeMap<Subject, Failing>,
    /// Ops that a program works on.
    running: BTreeMap<Subject, Op>,
    /// What waits for a subject that fails or runs.
    blocked: BTreeMap<Subject, BTreeSet<Subject>>,
    news: News,
    /// Tells the agents of a cluster apart, so that their retries spread.
    seed: u64,
    passes: u64,
}

impl Retries {
    /// Nothing fails yet.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Begins a pass: adds what is to be tried at the time `now` to `keys`. True when that is anything.
    pub fn begin(&mut self, now: Duration, keys: &mut Changes) -> bool {
        self.passes = self.passes.wrapping_add(1);
        let is_due = |(subject, failing): &(&Subject, &mut Failing)| {
            failing.next <= now && !failing.in_turn && !matches!(subject, Subject::Reading(_))
        };
        let mut due = Vec::new();
        for (subject, failing) in self.failing.iter_mut().filter(is_due).take(TURNS) {
            failing.in_turn = true;
            keys.add_subject(subject);
            failing.op.iter().for_each(|op| keys.add_op(op));
            due.push(*subject);
        }
        due.iter().for_each(|subject| self.release(subject, keys));
        !due.is_empty()
    }

    /// Begins a pass that tries everything, due or not.
    pub fn begin_all(&mut self, keys: &mut Changes) {
        self.failing.values_mut().for_each(|failing| failing.next = Duration::ZERO);
        while self.begin(Duration::MAX, keys) {}
    }

    /// Adds what waits for the subject, and what waits for that in turn, to `keys`.
    pub fn release(&mut self, subject: &Subject, keys: &mut Changes) {
        for blocked in self.blocked.remove(subject).unwrap_or_default() {
            keys.add_subject(&blocked);
            self.release(&blocked, keys);
        }
    }

    /// Looks at a plan before it runs: another op than the one that failed has its turn soon, for it may
    /// succeed.
    pub fn consider(&mut self, plan: &Plan) {
        if self.failing.is_empty() {
            return;
        }
        for op in &plan.ops {
            if let Some(failing) = self.failing.get_mut(&op.subject())
                && failing.op.as_ref() != Some(op)
            {
                failing.next = failing.next.min(failing.last.saturating_add(MIN_BACKOFF));
            }
        }
    }

    /// Whether the op is held back at the time `now`, and if so, whether that blocks what depends on it.
    pub fn holds(&self, op: &Op, now: Duration) -> Option<bool> {
        if self.failing.is_empty() && self.running.is_empty() {
            return None;
        }
        let subject = op.subject();
        if self.running.contains_key(&subject) {
            return Some(true);
        }
        let failing = self.failing.get(&subject)?;
        (!failing.in_turn && failing.next > now).then_some(!failing.error.degraded)
    }

    /// Follows a pass over `keys` that ended at the time `now`. What others wait for and is done or gone
    /// now is added to `pending`.
    pub fn follow(
        &mut self,
        keys: &Changes,
        plan: &Plan,
        report: &Report,
        now: Duration,
        pending: &mut Changes,
    ) {
        let idle = self.failing.is_empty() && self.running.is_empty() && self.blocked.is_empty();
        if idle && report.is_clean() {
            return;
        }
        let mut seen = BTreeSet::new();
        for (op, outcome) in plan.ops.iter().zip(&report.outcomes) {
            let subject = op.subject();
            seen.insert(subject);
            match outcome {
                Outcome::Done => self.end(&subject, pending),
                Outcome::Started => _ = self.running.insert(subject, op.clone()),
                Outcome::Failed(error) => self.fail(subject, Some(op), error, now),
                Outcome::Blocked(cause) => self.block(subject, *cause, now),
                Outcome::Waiting => {}
            }
        }
        self.forget_unwanted(keys, &seen, pending);
    }

    /// Subjects that were looked at and need nothing any more.
    fn forget_unwanted(&mut self, keys: &Changes, seen: &BTreeSet<Subject>, pending: &mut Changes) {
        let is_over = |(subject, failing): &(&Subject, &Failing)| {
            (failing.in_turn || keys.contains(subject))
                && !seen.contains(subject)
                && !matches!(subject, Subject::Reading(_))
                && !self.running.contains_key(subject)
        };
        let over: Vec<Subject> = self.failing.iter().filter(is_over).map(|(subject, _)| *subject).collect();
        over.iter().for_each(|subject| self.end(subject, pending));
        // A cause that is over some other way blocks nobody.
        let gone: Vec<Subject> = self.blocked.keys().filter(|cause| !self.is_open(cause)).copied().collect();
        gone.iter().for_each(|cause| self.release(cause, pending));
    }

    /// Whether the subject fails, runs, is blocked itself, or is a reading that is not done.
    fn is_open(&self, subject: &Subject) -> bool {
        self.failing.contains_key(subject)
            || self.running.contains_key(subject)
            || matches!(subject, Subject::Reading(_))
            || self.blocked.values().any(|blocked| blocked.contains(subject))
    }

    /// The subject needs no retry any more.
    fn end(&mut self, subject: &Subject, pending: &mut Changes) {
        if let Some(failing) = self.failing.remove(subject)
            && !self.news.began.remove(subject)
        {
            self.news.ended.push((*subject, failing));
        }
        self.release(subject, pending);
    }

    fn block(&mut self, subject: Subject, cause: Subject, now: Duration) {
        let tries = self.failing.get(&subject).map(|failing| failing.tries);
        if let Some(pause) = tries.map(|tries| self.backoff(tries))
            && let Some(failing) = self.failing.get_mut(&subject)
        {
            (failing.in_turn, failing.next) = (false, now.saturating_add(pause));
        }
        self.blocked.entry(cause).or_default().insert(subject);
    }

    fn fail(&mut self, subject: Subject, op: Option<&Op>, error: &OpError, now: Duration) {
        let before = self.failing.get(&subject);
        if before.is_none_or(|before| before.error.cause != error.cause) {
            self.news.began.insert(subject);
        }
        let since = before.map_or(now, |before| before.since);
        let tries = before.map_or(1, |before| before.tries.saturating_add(1));
        let next = now.saturating_add(self.backoff(tries));
        let error = error.clone();
        let failing = Failing { error, since, tries, op: op.cloned(), last: now, next, in_turn: false };
        self.failing.insert(subject, failing);
    }

    /// The pause after so many failures. All failures of one pass get the same, so that they are retried in
    /// one pass again; other passes and other agents get others.
    fn backoff(&self, tries: u32) -> Duration {
        let pause = BACKOFF.after(tries);
        // Weyl's sequence: as good as chance here, and the same in every run of a test.
        let chance = (self.seed.wrapping_add(self.passes).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as u32;
        let percent = 100 + chance % 25;
        if pause == MAX_BACKOFF { pause * 100 / percent } else { pause * percent / 100 }
    }

    /// A program that worked on an op has ended. Returns the op, if it was known to run; adds what waited for
    /// it to `keys`.
    pub fn finish(
        &mut self,
        subject: &Subject,
        result: &Result<(), OpError>,
        now: Duration,
        keys: &mut Changes,
    ) -> Option<Op> {
        let op = self.running.remove(subject)?;
        match result {
            Ok(()) => self.end(subject, keys),
            Err(error) => {
                self.fail(*subject, Some(&op), error, now);
                if error.degraded {
                    self.release(subject, keys);
                }
            }
        }
        Some(op)
    }

    /// A part of the kernel could not be read.
    pub fn fail_reading(&mut self, part: Part, error: &OpError, now: Duration) {
        self.fail(Subject::Reading(part), None, error, now);
    }

    /// A part of the kernel was read. What waited for that is added to `keys`.
    pub fn read(&mut self, part: Part, keys: &mut Changes) {
        self.end(&Subject::Reading(part), keys);
    }

    /// The parts to be read again at the time `now`. Each is to end in [`Retries::read`] or
    /// [`Retries::fail_reading`].
    pub fn due_readings(&mut self, now: Duration) -> Vec<Part> {
        let due = |(subject, failing): (&Subject, &mut Failing)| match subject {
            Subject::Reading(part) if failing.next <= now && !failing.in_turn => {
                failing.in_turn = true;
                Some(*part)
            }
            _ => None,
        };
        self.failing.iter_mut().filter_map(due).collect()
    }

    /// When the next subject has its turn.
    pub fn next_at(&self) -> Option<Duration> {
        self.failing.values().filter(|failing| !failing.in_turn).map(|failing| failing.next).min()
    }

    /// Whether a program works on something.
    pub fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether nothing fails, runs or is blocked.
    pub fn is_empty(&self) -> bool {
        self.failing.is_empty() && self.running.is_empty() && self.blocked.is_empty()
    }

    /// Whether the subject itself fails.
    pub fn fails(&self, subject: &Subject) -> bool {
        self.failing.contains_key(subject)
    }

    /// How many times the subject, or what it waits for, failed in a row.
    pub fn tries(&self, subject: &Subject) -> u32 {
        // Subjects may wait for each other: rules that are tidied for an address that they guard.
        let (mut seen, mut open) = (BTreeSet::from([*subject]), vec![*subject]);
        let mut most = 0;
        while let Some(subject) = open.pop() {
            match self.failing.get(&subject) {
                Some(failing) => most = most.max(failing.tries),
                None => {
                    let causes = self.blocked.iter().filter(|(_, blocked)| blocked.contains(&subject));
                    open.extend(causes.map(|(cause, _)| *cause).filter(|cause| seen.insert(*cause)));
                }
            }
        }
        most
    }

    /// What fails, in a stable order.
    pub fn failing(&self) -> impl Iterator<Item = (&Subject, &Failing)> {
        self.failing.iter()
    }

    /// What waits for something else that fails or runs: the subject, and what it waits for.
    pub fn blocked(&self) -> impl Iterator<Item = (&Subject, &Subject)> {
        self.blocked.iter().flat_map(|(cause, blocked)| blocked.iter().map(move |subject| (subject, cause)))
    }

    /// What waits for any of these, directly or by way of something else that waits.
    pub fn waiting_for(&self, causes: &[&Subject]) -> BTreeSet<Subject> {
        let (mut waiting, mut open) =
            (BTreeSet::new(), causes.iter().map(|cause| **cause).collect::<Vec<_>>());
        while let Some(cause) = open.pop() {
            let blocked = self.blocked.get(&cause).into_iter().flatten();
            open.extend(blocked.copied().filter(|subject| waiting.insert(*subject)));
        }
        waiting
    }

    /// Whether the guard of the family, without which no address is opened, is as it must be.
    pub fn guard_stands(&self, family: Family, needs: &dyn Fn(SetId) -> bool) -> bool {
        let guards = |subject: &Subject| subject.guards(family, needs);
        let fails = |(subject, failing): (&Subject, &Failing)| guards(subject) && !failing.error.degraded;
        let is_late = |subject: &Subject| guards(subject);
        !self.failing.iter().any(fails)
            && !self.running.keys().any(is_late)
            && !self.blocked.keys().any(is_late)
    }

    /// How many subjects are not programmed, by kind and cause.
    pub fn counts(&self) -> BTreeMap<(SubjectKind, Cause), usize> {
        let mut counts = BTreeMap::new();
        for (subject, failing) in &self.failing {
            *counts.entry((subject.kind(), failing.error.cause)).or_default() += 1;
        }
        for (cause, blocked) in &self.blocked {
            // What waits for a program that runs is late, not failed.
            if self.running.contains_key(cause) && !self.failing.contains_key(cause) {
                continue;
            }
            for subject in blocked {
                *counts.entry((subject.kind(), Cause::Blocked)).or_default() += 1;
            }
        }
        counts
    }

    /// What changed since the last call.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }
}

#[cfg(test)]
#[path = "retries_tests.rs"]
mod tests;
