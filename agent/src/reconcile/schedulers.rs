// SPDX-License-Identifier: Apache-2.0
//! Schedulers that the kernel does not have: Services for which an annotation or a default chooses one are served with that of
//! `ipvs.scheduler`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Reconciler;
use crate::core::mirror::Observed;
use crate::core::model::VsKey;
use crate::core::plan::op::{Op, Plan};
use crate::core::plan::outcome::{Cause, Outcome, Report};
use crate::kernel::Kernel;

/// After this time the kernel is asked again: its module may have been installed.
const AGAIN: Duration = Duration::from_secs(600);

/// The schedulers, and when the first of them was found missing.
#[derive(Debug, Default)]
pub(super) struct MissingSchedulers {
    pub(super) names: Arc<BTreeSet<Arc<str>>>,
    since: Duration,
}

/// Changes of schedulers in one sync.
const CHANGES: usize = 16;

/// Virtual servers whose scheduler a later sync changes, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct PostponedSchedulers {
    order: VecDeque<VsKey>,
    members: BTreeSet<VsKey>,
}

impl PostponedSchedulers {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn add(&mut self, vs: VsKey) {
        if self.members.insert(vs) {
            self.order.push_back(vs);
        }
    }

    /// The virtual servers whose turn it is.
    pub(super) fn take(&mut self) -> BTreeSet<VsKey> {
        let turn: BTreeSet<VsKey> = self.order.drain(..CHANGES.min(self.order.len())).collect();
        for vs in &turn {
            self.members.remove(vs);
        }
        turn
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Leaves changes of schedulers to later syncs if there are many. `turn`: virtual servers whose turn it is; those that
    /// have come since then wait behind them.
    pub(super) fn postpone_schedulers(
        &mut self,
        plan: &mut Plan,
        observed: &Observed,
        turn: &BTreeSet<VsKey>,
    ) {
        let mut left = if turn.is_empty() { CHANGES } else { 0 };
        plan.remove_if(|op| {
            let Op::EditVirtualServer(vs, spec) = op else { return false };
            let before = observed.virtual_servers.get(vs);
            // A failed one has its own turns.
            let fails = self.retries.fails(&op.subject());
            if fails
                || turn.contains(vs)
                || before.is_none_or(|before| before.spec.scheduler == spec.scheduler)
            {
                return false;
            }
            if left > 0 {
                left -= 1;
                return false;
            }
            self.postponed_schedulers.add(*vs);
            true
        });
    }

    /// Schedulers that a running agent found missing, for commands that only look.
    pub fn know_missing_schedulers(&mut self, names: Vec<String>) {
        let names = names.into_iter().map(Arc::from).collect();
        self.missing_schedulers = MissingSchedulers { names: Arc::new(names), since: Duration::ZERO };
        self.pending.common = true;
    }

    /// Looks whether modules were installed meanwhile.
    fn look_for_schedulers(&mut self, now: Duration) {
        let missing = &mut self.missing_schedulers;
        if missing.names.is_empty() || now.saturating_sub(missing.since) < AGAIN {
            return;
        }
        missing.since = now;
        let kernel = &mut self.kernel;
        let left: BTreeSet<Arc<str>> =
            missing.names.iter().filter(|name| !kernel.has_scheduler(name)).cloned().collect();
        if left.len() < missing.names.len() {
            missing.names = Arc::new(left);
            self.pending.common = true;
        }
    }

    /// Learns from failed ops. The next pass builds the Services again.
    pub(super) fn learn_schedulers(&mut self, plan: &Plan, report: &mut Report, now: Duration) {
        self.look_for_schedulers(now);
        let missing = &mut self.missing_schedulers;
        let outcomes = report.outcomes.iter_mut();
        let failed = plan.ops.iter().zip(outcomes).filter_map(|(op, outcome)| match (op, &*outcome) {
            (Op::AddVirtualServer(_, spec) | Op::EditVirtualServer(_, spec), Outcome::Failed(error))
                if error.cause == Cause::NoScheduler && spec.scheduler != self.settings.scheduler =>
            {
                // The next sync uses the configured one: this is no failure to report.
                *outcome = Outcome::Waiting;
                Some(spec.scheduler.clone())
            }
            _ => None,
        });
        for name in failed {
            if missing.names.contains(&name) {
                continue;
            }
            if missing.names.is_empty() {
                missing.since = now;
            }
            Arc::make_mut(&mut missing.names).insert(name);
            self.pending.common = true;
        }
    }
}
