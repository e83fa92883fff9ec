// SPDX-License-Identifier: Apache-2.0
//! TCP checks of the endpoints of Services that ask for them by annotation: what to check, and what the results change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Reconciler;
use crate::core::model::{ObjectName, ProbeSpec, RsKey};
use crate::core::service::fragment::Fragment;
use crate::core::service::probed;
use crate::kernel::Kernel;
use crate::pace::Pace;
use crate::probe::{ProbeCounters, Prober, Targets};
use crate::words;

/// Names in one line.
const NAMED: usize = 3;

/// Who checks endpoints.
pub trait EndpointChecker: Send {
    /// Replaces the endpoints to check. Results come by mail.
    fn check(&self, targets: Arc<Targets>);

    fn counters(&self) -> ProbeCounters;
}

impl EndpointChecker for Prober {
    fn check(&self, targets: Arc<Targets>) {
        self.set_targets(targets);
    }

    fn counters(&self) -> ProbeCounters {
        Prober::counters(self)
    }
}

/// The checked endpoints.
#[derive(Default)]
pub(super) struct EndpointChecks {
    checker: Option<Box<dyn EndpointChecker>>,
    services: BTreeMap<ObjectName, BTreeSet<(RsKey, ProbeSpec)>>,
    /// The endpoints that do not answer.
    pub(super) dead: BTreeSet<RsKey>,
    changed: bool,
    /// The lines about results.
    lines: Pace,
}

impl fmt::Debug for EndpointChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointChecks").field("dead", &self.dead).finish_non_exhaustive()
    }
}

impl EndpointChecks {
    /// Takes the endpoints of a Service over, and takes those out that are dead.
    pub(super) fn take_over(&mut self, name: &ObjectName, fragment: Option<&mut Fragment>) {
        let targets = fragment.as_deref().map(probed::targets).unwrap_or_default();
        if let Some(fragment) = fragment
            && !targets.is_empty()
        {
            probed::take_out(fragment, &self.dead);
        }
        let before = match targets.is_empty() {
            true => self.services.remove(name),
            false => self.services.insert(name.clone(), targets),
        };
        self.changed |= before.as_ref() != self.services.get(name);
    }

    /// Tells the checker what to check, if that changed. An endpoint of several Services is checked as often as the most
    /// frequent of them asks for, with the longest timeout and the most failures.
    pub(super) fn send(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut targets = Targets::new();
        for (rs, spec) in self.services.values().flatten() {
            let chosen = targets.entry(*rs).or_insert(*spec);
            // No Service makes the check of another one stricter.
            *chosen = ProbeSpec {
                interval: chosen.interval.min(spec.interval),
                timeout: chosen.timeout.max(spec.timeout),
                threshold: chosen.threshold.max(spec.threshold),
            };
        }
        if let Some(checker) = &self.checker {
            checker.check(Arc::new(targets));
        }
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Has endpoints checked. Without a checker none is dead.
    pub fn check_endpoints(&mut self, checker: Box<dyn EndpointChecker>) {
        self.endpoint_checks.checker = Some(checker);
    }

    /// Takes results: whether each endpoint is dead. The next pass changes the weights.
    pub(super) fn take_checked(&mut self, changes: &[(RsKey, bool)], now: Duration) {
        if changes.is_empty() {
            return;
        }
        let checks = &mut self.endpoint_checks;
        for (rs, is_dead) in changes {
            let _ = if *is_dead { checks.dead.insert(*rs) } else { checks.dead.remove(rs) };
        }
        let changed: BTreeSet<RsKey> = changes.iter().map(|(rs, _)| *rs).collect();
        let concerns =
            |targets: &BTreeSet<(RsKey, ProbeSpec)>| targets.iter().any(|(rs, _)| changed.contains(rs));
        let of_changed = checks.services.iter().filter(|(_, targets)| concerns(targets));
        let names: Vec<&ObjectName> = of_changed.map(|(name, _)| name).collect();
        self.store.touch(names.iter().copied());
        // Without a Service it is no target any more.
        if !names.is_empty() && checks.lines.happened(changes.len(), now) {
            let dead: Vec<&RsKey> = changes.iter().filter(|(_, dead)| *dead).map(|(rs, _)| rs).collect();
            let (which, what) = match dead.is_empty() {
                true => (changed.iter().collect(), "answer TCP checks of this node again"),
                false => (dead, "do not answer TCP checks of this node"),
            };
            tracing::warn!(
                "endpoints of Service {}: {} {what}",
                words::some(&names, NAMED, names.len()),
                words::some(&which, NAMED, which.len()),
            );
        }
    }

    /// Updates the metrics, and logs what was held back.
    pub(super) fn count_checks(&mut self, now: Duration) {
        let checks = &mut self.endpoint_checks;
        if let Some((count, time)) = checks.lines.due(now) {
            tracing::warn!(
                "{} of endpoints to TCP checks of this node changed in {}; {} do not answer now",
                words::count(count, "result"),
                words::time(time),
                words::count(checks.dead.len(), "endpoint"),
            );
        }
        if let Some(checker) = &self.endpoint_checks.checker {
            self.reporting.metrics.endpoint_checks.set(checker.counters());
        }
    }
}
