// SPDX-License-Identifier: Apache-2.0
//! Takes a node over from another kube-proxy mode: its rules stay in place until ours are, then they are removed, once
//! per start.

use crate::core::mirror::Observed;
use crate::core::mirror::comparison::NftTables;
use crate::core::model::{Family, PerFamily};
use crate::core::plan::op::{Op, Plan};
use crate::core::plan::outcome::{Outcome, Report};
use crate::core::plan::subject::Subject;

/// After this many consecutive failures of the objects that they wait for, the rules of the other mode are removed
/// anyway: each change of a Service makes them more outdated.
const MAX_FAILURES: u32 = 3;

/// Progress of the takeover.
#[derive(Debug, Default)]
pub struct Takeover {
    /// The highest number of consecutive failures that the removal waited for.
    failures: u32,
    /// Whether the leftovers of each family are removed.
    removed: PerFamily<bool>,
    warned: bool,
}

impl Takeover {
    /// Whether the rules of the other mode stay in place while objects of ours fail.
    pub fn waits(&self) -> bool {
        self.failures < MAX_FAILURES
    }

    /// Checks rules that were read. On a node shared with another proxy its rules are ignored. If rules
    /// reappear after they were removed, a kube-proxy is running: warn, and leave them alone.
    pub fn review(&mut self, observed: &mut Observed, shares_node: bool) {
        let mut found = false;
        for family in Family::ALL {
            if shares_node || self.removed[family] {
                found |= ignore_leftovers(observed, family);
                continue;
            }
            observed.rules[family].leftovers.kept.iter().for_each(|chain| {
                tracing::warn!(
                    "{chain}, so this chain of another kube-proxy mode is not removed; delete the rule that jumps to it"
                );
            });
        }
        if shares_node {
            return;
        }
        if found && !self.warned {
            tracing::warn!(
                "rules of another kube-proxy mode came back: a kube-proxy runs on this node and takes traffic \
                 from this agent; stop it, then restart the agent to remove what it leaves"
            );
        }
        self.warned = found;
    }

    /// Takes the results of a pass. `unread`: families whose leftovers are unknown. `tries` returns the number of
    /// consecutive failures of a subject, or of the subject that blocks it.
    pub fn follow(
        &mut self,
        plan: &Plan,
        report: &Report,
        (audit, unread): (bool, PerFamily<bool>),
        tries: impl Fn(&Subject) -> u32,
    ) {
        for family in Family::ALL {
            let both = plan.ops.iter().zip(&report.outcomes);
            let of_family =
                both.filter(|(op, _)| matches!(op, Op::RemoveLeftovers(other) if other.family == family));
            let outcomes: Vec<&Outcome> = of_family.map(|(_, outcome)| outcome).collect();
            let failures = outcomes.iter().filter_map(|outcome| match outcome {
                Outcome::Blocked(cause) => Some(tries(cause)),
                _ => None,
            });
            self.failures = self.failures.max(failures.max().unwrap_or(0));
            let done = outcomes.iter().all(|outcome| **outcome == Outcome::Done);
            let compared = audit || !outcomes.is_empty();
            self.removed[family] |= done && compared && !unread[family];
        }
    }
}

/// Ignores the leftovers of a family; true: there were some.
fn ignore_leftovers(observed: &mut Observed, family: Family) -> bool {
    let rules = !std::mem::take(&mut observed.rules[family].leftovers).is_empty();
    let tables = std::mem::take(&mut observed.node.nft_tables[family]) != NftTables::default();
    let sets = observed.node.other_sets.len();
    observed.node.other_sets.retain(|set, _| set.family != family);
    rules | tables | (observed.node.other_sets.len() < sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::plan::op::OpKind;
    use crate::core::plan::pass::Due;
    use crate::core::rules::save::parse_save;
    use crate::kernel::fake::FakeKernel;
    use crate::testing::cluster::Cluster;
    use crate::testing::{Agent, kernel};
    use serde_json::json;

    fn leave_rules(kernel: &mut FakeKernel) {
        kernel.state.rules[Family::V4] = parse_save(
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A\nCOMMIT\n",
        );
    }

    fn agent() -> Agent {
        let ports = json!([{"name": "p", "port": 80}]);
        let cluster = Cluster::default().service("a", json!({"clusterIP": "10.96.0.1", "ports": ports}), &[]);
        let mut kernel = kernel();
        leave_rules(&mut kernel);
        Agent::start(kernel, &cluster)
    }

    #[test]
    fn leftovers_that_reappear_are_not_removed() {
        let mut agent = agent();
        agent.converge(Due::Audit, 1);
        assert_eq!(agent.kernel().count(OpKind::RemoveLeftovers), 1);
        leave_rules(agent.kernel());
        for _ in 0..2 {
            assert!(agent.sync(Due::Audit).is_clean());
        }
        assert_eq!(agent.kernel().count(OpKind::RemoveLeftovers), 1, "once per start");
        assert!(!agent.kernel().state.rules[Family::V4].leftovers.is_empty());
    }

    #[test]
    fn old_rules_stay_in_place_for_three_failed_passes() {
        let mut agent = agent();
        for pass in 0..=MAX_FAILURES {
            agent.kernel().fail_next(OpKind::Bind);
            assert!(!agent.sync(if pass == 0 { Due::Audit } else { Due::Changes }).is_clean());
            let there = !agent.kernel().state.rules[Family::V4].leftovers.is_empty();
            assert_eq!(there, pass < MAX_FAILURES, "pass {pass}");
        }
    }

    #[test]
    fn a_failed_removal_of_leftovers_is_retried() {
        let mut agent = agent();
        agent.kernel().fail_next(OpKind::RemoveLeftovers);
        assert!(!agent.sync(Due::Audit).is_clean());
        assert!(agent.sync(Due::Changes).is_clean());
        assert!(agent.kernel().state.rules[Family::V4].leftovers.is_empty());
    }

    #[test]
    fn rules_of_another_proxy_on_a_shared_node_are_no_leftovers() {
        let mut observed = Observed::default();
        observed.node.nft_tables[Family::V4].kube_proxy = true;
        let mut takeover = Takeover::default();
        takeover.review(&mut observed, false);
        let found = |observed: &Observed| PerFamily::of(|family| observed.node.nft_tables[family].kube_proxy);
        assert_eq!(
            found(&observed),
            PerFamily::new(true, false),
            "on a node that is not shared they are removed"
        );
        takeover.review(&mut observed, true);
        assert_eq!(found(&observed), PerFamily::new(false, false));
    }
}
