// SPDX-License-Identifier: Apache-2.0
//! What the loop did last, and the drift of the last hour, for `kube-ipvs status`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::op::Op;
use super::outcome::Outcome;
use super::pass::{Due, Pass};
use super::subject::SubjectKind;

/// Minutes that drift is kept.
const MINUTES: u64 = 60;

/// A sync that has ended. Times are durations since a fixed start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedSync {
    pub due: Due,
    pub at: Duration,
    pub took: Duration,
    pub ops: usize,
    /// Ops that failed, or that wait for one that failed.
    pub failed: usize,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The last sync that changed something.
    pub sync: Option<EndedSync>,
    /// The last comparison of the whole kernel state.
    pub audit: Option<EndedSync>,
    /// Repaired objects by minute since the start.
    drift: VecDeque<(u64, BTreeMap<SubjectKind, u64>)>,
}

impl History {
    /// A sync that started `took` before `at` has ended.
    pub fn passed(&mut self, pass: &Pass, due: Due, took: Duration, at: Duration) {
        // Those that a program still works on have not failed.
        let has_failed = |outcome: &&Outcome| matches!(outcome, Outcome::Failed(_) | Outcome::Blocked(_));
        let failed = pass.report.outcomes.iter().filter(has_failed).count();
        let ended = EndedSync { due, at, took, ops: pass.plan.ops.len(), failed };
        if due == Due::Audit && pass.unreadable.is_none() {
            self.audit = Some(ended);
        }
        if ended.ops > 0 {
            self.sync = Some(ended);
        }
    }

    /// These ops repaired what another program changed.
    pub fn repaired<'a>(&mut self, ops: impl IntoIterator<Item = &'a Op>, now: Duration) {
        let minute = now.as_secs() / 60;
        for op in ops {
            if self.drift.back().is_none_or(|(at, _)| *at != minute) {
                self.drift.push_back((minute, BTreeMap::new()));
            }
            if let Some((_, counts)) = self.drift.back_mut() {
                *counts.entry(op.subject().kind()).or_default() += 1;
            }
        }
        while self.drift.front().is_some_and(|(at, _)| *at + MINUTES <= minute) {
            self.drift.pop_front();
        }
    }

    /// Objects repaired in the last hour, by kind.
    pub fn drift(&self, now: Duration) -> BTreeMap<SubjectKind, u64> {
        let minute = now.as_secs() / 60;
        let mut sum = BTreeMap::new();
        for (_, counts) in self.drift.iter().filter(|(at, _)| *at + MINUTES > minute) {
            counts.iter().for_each(|(kind, count)| *sum.entry(*kind).or_default() += count);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_counted_by_kind_for_an_hour() {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        let mut history = History::default();
        let bind = |n: u8| Op::Bind([10, 96, 0, n].into());
        history.repaired([&bind(1), &bind(2)], minutes(0));
        history.repaired([&Op::CreateDevice], minutes(30));
        let both = BTreeMap::from([(SubjectKind::Address, 2), (SubjectKind::Device, 1)]);
        assert_eq!(history.drift(minutes(59)), both);
        assert_eq!(history.drift(minutes(60)), BTreeMap::from([(SubjectKind::Device, 1)]));
        assert!(history.drift(minutes(90)).is_empty());
        for minute in 100..1000 {
            history.repaired([&bind(1)], minutes(minute));
        }
        assert_eq!(history.drift(minutes(999)), BTreeMap::from([(SubjectKind::Address, MINUTES)]));
        assert_eq!(history.drift.len() as u64, MINUTES, "old minutes are dropped");
    }
}
