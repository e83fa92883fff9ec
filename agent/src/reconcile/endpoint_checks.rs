// SPDX-License-Identifier: Apache-2.0
//! TCP checks of the endpoints of Services that ask for them by annotation: what to check, and what the results change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::Reconciler;
use crate::core::mirror::Observed;
use crate::core::model::map::Map;
use crate::core::model::{ObjectName, ProbeSpec, RsKey};
use crate::core::service::fragment::Fragment;
use crate::core::service::probed;
use crate::kernel::Kernel;
use crate::pace::Pace;
use crate::probe::{ProbeCounters, ProbeTarget, Prober, TargetChanges};
use crate::words;

/// Names in one line.
const NAMED: usize = 3;

/// Who checks endpoints.
pub trait EndpointChecker: Send {
    /// Changes the endpoints to check. Results come by mail.
    fn check(&self, changes: TargetChanges);

    fn counters(&self) -> ProbeCounters;
}

impl EndpointChecker for Prober {
    fn check(&self, changes: TargetChanges) {
        self.change_targets(changes);
    }

    fn counters(&self) -> ProbeCounters {
        Prober::counters(self)
    }
}

/// The checked endpoints.
#[derive(Default)]
pub(super) struct EndpointChecks {
    checker: Option<Box<dyn EndpointChecker>>,
    services: BTreeMap<ObjectName, (ProbeSpec, BTreeSet<RsKey>)>,
    endpoints: Map<RsKey, Checked>,
    /// Endpoints that the checker may have to be told of.
    changed: BTreeSet<RsKey>,
    /// The endpoints that do not answer.
    pub(super) dead: BTreeSet<RsKey>,
    /// Endpoints that an earlier agent took out, until the checker is told of them.
    inherited: BTreeSet<RsKey>,
    /// The numbers that the metrics have.
    counted: Option<ProbeCounters>,
    /// The lines about results.
    lines: Pace,
}

/// An endpoint, and who has it checked.
#[derive(Default)]
struct Checked {
    /// Few: nearly always one.
    services: Vec<(ObjectName, ProbeSpec)>,
    /// What the checker was told.
    told: Option<ProbeSpec>,
}

impl Checked {
    /// An endpoint of several Services is checked as often as the most frequent of them asks for, with the longest timeout
    /// and the most failures: no Service makes the check of another one stricter.
    fn spec(&self) -> Option<ProbeSpec> {
        self.services.iter().map(|(_, spec)| *spec).reduce(|one, other| ProbeSpec {
            interval: one.interval.min(other.interval),
            timeout: one.timeout.max(other.timeout),
            threshold: one.threshold.max(other.threshold),
        })
    }
}

impl fmt::Debug for EndpointChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointChecks").field("dead", &self.dead).finish_non_exhaustive()
    }
}

impl EndpointChecks {
    /// Takes the endpoints of a Service over, and takes those out that are dead. `found`: the kernel at the start of the
    /// agent; who gets no new connections there is dead until it answers.
    pub(super) fn take_over(
        &mut self,
        name: &ObjectName,
        fragment: Option<&mut Fragment>,
        found: Option<&Observed>,
    ) {
        let targets = fragment.as_deref().and_then(probed::targets);
        if let Some(fragment) = fragment
            && targets.is_some()
        {
            if let Some(found) = found.filter(|_| self.checker.is_some()) {
                for rs in probed::closed(fragment, found) {
                    self.inherited.insert(rs);
                    self.dead.insert(rs);
                }
            }
            probed::take_out(fragment, &self.dead);
        }
        let before = self.services.remove(name);
        if before == targets {
            self.services.extend(targets.map(|targets| (name.clone(), targets)));
            return;
        }
        for rs in before.iter().flat_map(|(_, endpoints)| endpoints) {
            if let Some(endpoint) = self.endpoints.get_mut(rs) {
                endpoint.services.retain(|(service, _)| service != name);
            }
            self.changed.insert(*rs);
        }
        if let Some((spec, endpoints)) = targets {
            for rs in &endpoints {
                self.endpoints.entry(*rs).or_default().services.push((name.clone(), spec));
                self.changed.insert(*rs);
            }
            self.services.insert(name.clone(), (spec, endpoints));
        }
    }

    /// Tells the checker what changed. Returns the Services of endpoints that an earlier agent took out: they may have been
    /// built before this was known.
    pub(super) fn send(&mut self) -> Vec<ObjectName> {
        let inherited = std::mem::take(&mut self.inherited);
        let mut changes = TargetChanges::new();
        for rs in std::mem::take(&mut self.changed) {
            let Some(endpoint) = self.endpoints.get_mut(&rs) else { continue };
            let spec = endpoint.spec();
            let told = std::mem::replace(&mut endpoint.told, spec);
            if spec.is_none() {
                self.endpoints.remove(&rs);
            }
            if spec != told {
                changes.push((rs, spec.map(|spec| ProbeTarget { spec, is_dead: inherited.contains(&rs) })));
            }
        }
        if let Some(checker) = self.checker.as_ref().filter(|_| !changes.is_empty()) {
            checker.check(changes);
        }
        if !inherited.is_empty() {
            tracing::info!(
                "endpoints that have weight 0 in the kernel get new connections when they answer a TCP check, or if more than \
                 half of a port have it: {}",
                self.some(&inherited),
            );
        }
        self.of_services(&inherited).into_iter().cloned().collect()
    }

    /// Names some of these endpoints, each with a Service.
    fn some(&self, endpoints: &BTreeSet<RsKey>) -> String {
        let named =
            endpoints.iter().map(|rs| match self.endpoints.get(rs).and_then(|e| e.services.first()) {
                Some((name, _)) => format!("{rs} of Service {name}"),
                None => rs.to_string(),
            });
        words::some(named, NAMED, endpoints.len())
    }

    /// The Services that have one of these endpoints checked.
    fn of_services(&self, endpoints: &BTreeSet<RsKey>) -> BTreeSet<&ObjectName> {
        let checked = endpoints.iter().filter_map(|rs| self.endpoints.get(rs));
        checked.flat_map(|endpoint| &endpoint.services).map(|(name, _)| name).collect()
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
        // One that was removed is no target any more, and did not answer.
        let known = changes.iter().filter(|(rs, _)| checks.endpoints.contains_key(rs));
        let (dead, again): (Vec<_>, Vec<_>) = known.partition(|(_, is_dead)| *is_dead);
        let [dead, again] = [dead, again].map(|part| part.iter().map(|(rs, _)| *rs).collect::<BTreeSet<_>>());
        let changed = &dead | &again;
        let names: Vec<ObjectName> = checks.of_services(&changed).into_iter().cloned().collect();
        self.store.touch(&names);
        if !names.is_empty() && checks.lines.happened(changes.len(), now) {
            if !dead.is_empty() {
                tracing::warn!(
                    "no answer to TCP checks of this node: {}; they get no new connections from it, unless more than half of \
                     a port fail; see `kube-ipvs explain NAMESPACE/NAME`",
                    checks.some(&dead),
                );
            }
            if !again.is_empty() {
                tracing::warn!("TCP checks of this node are answered again: {}", checks.some(&again));
            }
        }
    }

    /// Updates the metrics, and logs what was held back.
    pub(super) fn count_checks(&mut self, now: Duration) {
        let checks = &mut self.endpoint_checks;
        if let Some((count, time)) = checks.lines.due(now) {
            let some = if checks.dead.is_empty() {
                String::new()
            } else {
                format!(": {}", checks.some(&checks.dead))
            };
            tracing::warn!(
                "{} of endpoints to TCP checks of this node changed in {}; {} do not answer now{some}",
                words::count(count, "result"),
                words::time(time),
                words::count(checks.dead.len(), "endpoint"),
            );
        }
        let counters = checks.checker.as_ref().map(|checker| checker.counters());
        if let Some(counters) = counters
            && checks.counted.replace(counters) != Some(counters)
        {
            self.reporting.metrics.endpoint_checks.set(counters);
        }
    }
}
