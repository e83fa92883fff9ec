// SPDX-License-Identifier: Apache-2.0
//! Schedulers that the kernel does not have: Services for which an annotation or a default chooses one are served with that of
//! `ipvs.scheduler`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Reconciler;
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

impl<K: Kernel> Reconciler<K> {
    /// Learns from failed ops. The next pass builds the Services again.
    pub(super) fn learn_schedulers(&mut self, plan: &Plan, report: &Report, now: Duration) {
        let missing = &mut self.missing_schedulers;
        if !missing.names.is_empty() && now.saturating_sub(missing.since) >= AGAIN {
            *missing = MissingSchedulers::default();
            self.pending.common = true;
        }
        let failed = plan.ops.iter().zip(&report.outcomes).filter_map(|(op, outcome)| match (op, outcome) {
            (Op::AddVirtualServer(_, spec) | Op::EditVirtualServer(_, spec), Outcome::Failed(error))
                if error.cause == Cause::NoScheduler && spec.scheduler != self.settings.scheduler =>
            {
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
