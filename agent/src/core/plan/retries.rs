// SPDX-License-Identifier: Apache-2.0
//! Failed subjects and their retries. Each subject has its own backoff.
//!
//! [`Retries::begin`] adds the subjects that are due to the keys of a sync. Ops of other failing subjects are held
//! back, together with the ops that depend on them. All other ops run normally. Blocked subjects are compared again
//! when the subject that blocks them is retried.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::op::{Op, Plan};
use super::outcome::{Cause, OpError, Outcome, Report};
use super::subject::{Part, Subject, SubjectKind};
use crate::core::model::Family;
use crate::core::model::backoff::Backoff;
use crate::core::model::changes::Changes;
use crate::core::model::sets::SetId;

/// The pauses between retries.
pub const BACKOFF: Backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
/// First pause after a failure.
pub const MIN_BACKOFF: Duration = Duration::from_millis(250);
/// Longest pause between retries.
pub const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Most subjects retried in one sync, so that a new change does not wait for long.
const TURNS: usize = 512;

/// A subject that failed, and its next retry.
#[derive(Clone, Debug)]
pub struct Failing {
    pub error: OpError,
    /// Time of the first failure.
    pub since: Duration,
    /// Number of failures.
    pub tries: u32,
    /// The op that failed; `None` for a read.
    op: Option<Op>,
    last: Duration,
    next: Duration,
    /// The current sync retries it.
    in_turn: bool,
}

impl Failing {
    /// Time until the next retry.
    pub fn pause(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }
}

/// Failures that began or ended since the last [`Retries::take_news`].
#[derive(Debug, Default)]
pub struct News {
    /// Subjects that began to fail, or fail with another cause than before.
    pub began: BTreeSet<Subject>,
    /// Subjects that recovered or are no longer wanted, with their last failure.
    pub ended: Vec<(Subject, Failing)>,
}

impl News {
    pub fn is_empty(&self) -> bool {
        self.began.is_empty() && self.ended.is_empty()
    }
}

/// The failing, running and blocked subjects. Times are durations since a fixed start.
#[derive(Debug, Default)]
pub struct Retries {
    failing: BTreeMap<Subject, Failing>,
    /// Ops that a program still works on.
    running: BTreeMap<Subject, Op>,
    /// Subjects that a failing or running subject blocks.
    blocked: BTreeMap<Subject, BTreeSet<Subject>>,
    news: News,
    /// Differs between the agents of a cluster, so that their retries spread.
    seed: u64,
    passes: u64,
}

impl Retries {
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Begins a sync: adds the subjects that are due at the time `now` to `keys`. True if there are any.
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

    /// Adds the subjects that `subject` blocks, directly or through others, to `keys`.
    pub fn release(&mut self, subject: &Subject, keys: &mut Changes) {
        for blocked in self.blocked.remove(subject).unwrap_or_default() {
            keys.add_subject(&blocked);
            self.release(&blocked, keys);
        }
    }

    /// Before a plan runs: retries a subject soon if the plan has another op for it than the one that failed, because
    /// that op may succeed.
    pub fn expedite(&mut self, plan: &Plan) {
        if self.failing.is_empty() {
            return;
        }
        // A plan can have several ops for a subject, such as to destroy a set and to create it again.
        let is_same = |op: &&Op| self.failing.get(&op.subject()).is_some_and(|f| f.op.as_ref() == Some(*op));
        let same: BTreeSet<Subject> = plan.ops.iter().filter(is_same).map(Op::subject).collect();
        for op in &plan.ops {
            if let Some(failing) = self.failing.get_mut(&op.subject())
                && !same.contains(&op.subject())
            {
                failing.next = failing.next.min(failing.last.saturating_add(MIN_BACKOFF));
            }
        }
    }

    /// `None`: the op may run at the time `now`. Otherwise the op is held back, and the value says whether this blocks
    /// the ops that depend on it.
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

    /// Records a sync of `keys` that ended at the time `now`. Adds the subjects that are no longer blocked to
    /// `pending`.
    pub fn record(
        &mut self,
        keys: &Changes,
        plan: &Plan,
        report: &Report,
        now: Duration,
        pending: &mut Changes,
    ) {
        if self.is_empty() && report.is_clean() {
            return;
        }
        let (mut seen, mut failed) = (BTreeSet::new(), BTreeSet::new());
        for (op, outcome) in plan.ops.iter().zip(&report.outcomes) {
            let subject = op.subject();
            seen.insert(subject);
            match outcome {
                Outcome::Done => self.end(&subject, pending),
                Outcome::Started => _ = self.running.insert(subject, op.clone()),
                // What fails next of the same subject follows from it: a set that cannot be destroyed exists.
                Outcome::Failed(error) if failed.insert(subject) => self.fail(subject, Some(op), error, now),
                Outcome::Failed(_) => {}
                Outcome::Blocked(cause) => self.block(subject, *cause, now),
                Outcome::Waiting => {}
            }
        }
        self.forget_unwanted(keys, &seen, pending);
    }

    /// Ends the failures of subjects that were compared and need no op.
    fn forget_unwanted(&mut self, keys: &Changes, seen: &BTreeSet<Subject>, pending: &mut Changes) {
        let is_over = |(subject, failing): &(&Subject, &Failing)| {
            (failing.in_turn || keys.contains(subject))
                && !seen.contains(subject)
                && !matches!(subject, Subject::Reading(_))
                && !self.running.contains_key(subject)
        };
        let over: Vec<Subject> = self.failing.iter().filter(is_over).map(|(subject, _)| *subject).collect();
        over.iter().for_each(|subject| self.end(subject, pending));
        // A subject that neither fails nor runs blocks no other subject.
        let gone: Vec<Subject> = self.blocked.keys().filter(|cause| !self.is_open(cause)).copied().collect();
        gone.iter().for_each(|cause| self.release(cause, pending));
    }

    /// Whether the subject fails, runs, is blocked, or is an unfinished read.
    fn is_open(&self, subject: &Subject) -> bool {
        self.failing.contains_key(subject)
            || self.running.contains_key(subject)
            || matches!(subject, Subject::Reading(_))
            || self.blocked.values().any(|blocked| blocked.contains(subject))
    }

    /// Ends the failure of a subject.
    fn end(&mut self, subject: &Subject, pending: &mut Changes) {
        if let Some(failing) = self.failing.remove(subject)
            && !self.news.began.remove(subject)
        {
            self.news.ended.push((*subject, failing));
        }
        self.release(subject, pending);
    }

    fn block(&mut self, subject: Subject, cause: Subject, now: Duration) {
        let pause = self.failing.get(&subject).map(|failing| self.backoff(failing.tries));
        if let (Some(pause), Some(failing)) = (pause, self.failing.get_mut(&subject)) {
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

    /// The pause after a number of failures, with jitter. All failures of one sync get the same jitter, so that one sync
    /// retries them together. Other syncs and other agents get another jitter.
    fn backoff(&self, tries: u32) -> Duration {
        let pause = BACKOFF.after(tries);
        // A Weyl sequence: spreads well and is the same in every run of a test.
        let jitter = (self.seed.wrapping_add(self.passes).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as u32;
        let percent = 100 + jitter % 25;
        if pause == MAX_BACKOFF { pause * 100 / percent } else { pause * percent / 100 }
    }

    /// Records the end of a program that worked on an op. Returns the op if it was known to run. Adds the subjects that
    /// are no longer blocked to `keys`.
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

    /// Records a failed read of a part of the kernel.
    pub fn fail_reading(&mut self, part: Part, error: &OpError, now: Duration) {
        self.fail(Subject::Reading(part), None, error, now);
    }

    /// Records a read of a part of the kernel. Adds the subjects that are no longer blocked to `keys`.
    pub fn read(&mut self, part: Part, keys: &mut Changes) {
        self.end(&Subject::Reading(part), keys);
    }

    /// The parts to read again at the time `now`. Call [`Retries::read`] or [`Retries::fail_reading`] for each.
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

    /// Time of the next retry.
    pub fn next_at(&self) -> Option<Duration> {
        self.failing.values().filter(|failing| !failing.in_turn).map(|failing| failing.next).min()
    }

    /// Whether a program still works on an op.
    pub fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether nothing fails, runs or is blocked.
    pub fn is_empty(&self) -> bool {
        self.failing.is_empty() && self.running.is_empty() && self.blocked.is_empty()
    }

    /// Why the subject itself fails.
    pub fn cause(&self, subject: &Subject) -> Option<Cause> {
        self.failing.get(subject).map(|failing| failing.error.cause)
    }

    /// Whether the subject itself fails.
    pub fn fails(&self, subject: &Subject) -> bool {
        self.failing.contains_key(subject)
    }

    /// Number of failures in a row of the subject, or of the subject that blocks it.
    pub fn tries(&self, subject: &Subject) -> u32 {
        // Subjects may block each other, such as the tidy write of rules and an address that these rules guard.
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

    /// The failing subjects, in a stable order.
    pub fn failing(&self) -> impl Iterator<Item = (&Subject, &Failing)> {
        self.failing.iter()
    }

    /// The blocked subjects, each with the failing or running subject that blocks it.
    pub fn blocked(&self) -> impl Iterator<Item = (&Subject, &Subject)> {
        self.blocked.iter().flat_map(|(cause, blocked)| blocked.iter().map(move |subject| (subject, cause)))
    }

    /// The subjects that any of `causes` blocks, directly or through others.
    pub fn blocked_by(&self, causes: &[&Subject]) -> BTreeSet<Subject> {
        let (mut found, mut open) = (BTreeSet::new(), causes.iter().map(|cause| **cause).collect::<Vec<_>>());
        while let Some(cause) = open.pop() {
            let blocked = self.blocked.get(&cause).into_iter().flatten();
            open.extend(blocked.copied().filter(|subject| found.insert(*subject)));
        }
        found
    }

    /// Whether the guard of the family is in place: without it no address is bound.
    pub fn guard_is_ready(&self, family: Family, needs: &dyn Fn(SetId) -> bool) -> bool {
        let guards = |subject: &Subject| subject.guards(family, needs);
        let fails = |(subject, failing): (&Subject, &Failing)| guards(subject) && !failing.error.degraded;
        !self.failing.iter().any(fails)
            && !self.running.keys().any(guards)
            && !self.blocked.keys().any(guards)
    }

    /// Number of subjects that are not programmed, by kind and cause.
    pub fn counts(&self) -> BTreeMap<(SubjectKind, Cause), usize> {
        let mut counts = BTreeMap::new();
        for (subject, failing) in &self.failing {
            *counts.entry((subject.kind(), failing.error.cause)).or_default() += 1;
        }
        for (cause, blocked) in &self.blocked {
            // Subjects that wait for a running program have not failed.
            if self.running.contains_key(cause) && !self.failing.contains_key(cause) {
                continue;
            }
            for subject in blocked {
                *counts.entry((subject.kind(), Cause::Blocked)).or_default() += 1;
            }
        }
        counts
    }

    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }
}

#[cfg(test)]
#[path = "retries_tests.rs"]
mod tests;
