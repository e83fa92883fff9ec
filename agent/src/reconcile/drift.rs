// SPDX-License-Identifier: Apache-2.0
//! Drift: repairs of changes by other programs, and removed objects of other programs.

use crate::core::plan::outcome::{Outcome, Report};
use std::collections::BTreeSet;

use super::Reconciler;
use crate::core::mirror::Observed;
use crate::core::model::VsKey;
use crate::core::model::changes::Changes;
use crate::core::plan::op::{Op, Plan};
use crate::core::plan::ownership;
use crate::core::rules::save::ObservedRules;
use crate::kernel::Kernel;

impl<K: Kernel> Reconciler<K> {
    /// The ops that repaired drift, by their indexes in the plan.
    pub(super) fn drift(
        &mut self,
        plan: &Plan,
        report: &Report,
        changes: &Changes,
        retried: &Changes,
    ) -> Vec<usize> {
        let mut drift = Vec::new();
        for (i, (op, outcome)) in plan.ops.iter().zip(&report.outcomes).enumerate() {
            let subject = op.subject();
            // The end of a drain that an audit finds is no drift.
            let ends_drain = matches!(op, Op::RemoveRealServer(vs, rs) if self.drains.contains(*vs, *rs));
            let expected = follows_from(op, changes) || retried.contains(&subject) || ends_drain;
            if expected || self.retries.fails(&subject) {
                continue;
            }
            match outcome {
                Outcome::Done => {
                    self.reporting.metrics.work.repaired(op.kind());
                    drift.push(i);
                }
                Outcome::Started => _ = self.repairing.insert(subject),
                _ => {}
            }
        }
        drift
    }

    /// Reports removed virtual servers that show no sign of an agent or kube-proxy as their creator.
    pub(super) fn report_foreign_servers(&mut self, plan: &Plan, report: &Report, observed: &Observed) {
        let removed = plan.ops.iter().zip(&report.outcomes).filter_map(|(op, outcome)| match op {
            Op::RemoveVirtualServer(vs) if *outcome == Outcome::Done => Some(*vs),
            _ => None,
        });
        let bound = observed.addresses.iter().map(ipnet::IpNet::addr).collect();
        let foreign: BTreeSet<VsKey> =
            removed.filter(|vs| !ownership::is_provably_ours(vs, &bound, &observed.sets)).collect();
        self.reporter.removed_foreign_servers(&foreign, &self.reporting.events);
    }
}

/// Whether changed Kubernetes objects explain the op.
fn follows_from(op: &Op, changes: &Changes) -> bool {
    match op {
        // The rules depend on the sets that are in use.
        Op::WriteRules(rules) => rules.jumps.is_empty() && !changes.is_empty(),
        Op::GrowSet(_) | Op::ForgetFlows(_) | Op::RemoveLeftovers(_) => true,
        // False for the device, sets and sysctls: they have no key.
        _ => changes.contains(&op.subject()),
    }
}

/// Describes the chains that differ.
pub(super) fn describe_difference(mirror: &ObservedRules, read: &ObservedRules) -> String {
    let chains: BTreeSet<_> = mirror.chains.keys().chain(read.chains.keys()).collect();
    let mut parts = Vec::new();
    for chain in chains {
        let (has, had) = (read.chains.get(chain), mirror.chains.get(chain));
        if has == had {
            continue;
        }
        let (has, had) = (has.map_or(&[][..], Vec::as_slice), had.map_or(&[][..], Vec::as_slice));
        let missing = had.iter().filter(|rule| !has.contains(rule)).count();
        let foreign = has.iter().filter(|rule| !had.contains(rule)).count();
        let how = match (missing, foreign) {
            (0, 0) => "rules in another order".to_owned(),
            (missing, 0) => format!("{missing} rules missing"),
            (0, foreign) => format!("{foreign} foreign rules"),
            (missing, foreign) => format!("{missing} rules missing, {foreign} foreign"),
        };
        parts.push(format!("{} {}", chain.1, how));
    }
    let jumps = read.broken_jumps().into_iter().map(|fix| format!("jumps of {} changed", fix.from));
    parts.extend(jumps);
    parts.join(", ")
}
