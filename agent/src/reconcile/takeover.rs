// SPDX-License-Identifier: Apache-2.0
//! Taking a node over from another mode of kube-proxy: its rules serve until ours do, then what it left
//! is removed, once per start.

use crate::core::mirror::Observed;
use crate::core::model::Family;
use crate::core::plan::op::{Op, Plan};
use crate::core::plan::outcome::{Outcome, Report};
use crate::core::plan::subject::Subject;

/// What another mode's rules wait for may fail so many times in a row before they go all the same: they get
/// older with every change of a Service.
const PATIENCE: u32 = 3;

/// How far it is.
#[derive(Debug, Default)]
pub struct Takeover {
    held: u32,
    /// What the other mode left of each family is gone, by [`Family::index`].
    gone: [bool; 2],
    warned: bool,
}

impl Takeover {
    /// Whether the other mode's rules may go on serving while something of ours does not.
    pub fn waits(&self) -> bool {
        self.held < PATIENCE
    }

    /// Looks at rules that were read. On a node shared with another proxy its rules are ignored. If rules
    /// reappear after they were removed, a kube-proxy is running: warn, and leave them alone.
    pub fn review(&mut self, observed: &mut Observed, shares_node: bool) {
        let mut found = false;
        for family in Family::ALL {
            if shares_node || self.gone[family.index()] {
                found |= ignore_leftovers(observed, family);
                continue;
            }
            observed.rules[family.index()].leftovers.kept.iter().for_each(|chain| {
                tracing::warn!(
                    "chain {chain} of another kube-proxy mode is still referenced, not removed; delete the rule that \
                     jumps to it"
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

    /// Follows a pass. Of `unread` families nobody knows yet what another mode left. `tries` tells how many
    /// times a subject, or what blocks it, failed in a row.
    pub fn follow(
        &mut self,
        plan: &Plan,
        report: &Report,
        (audit, unread): (bool, [bool; 2]),
        tries: impl Fn(&Subject) -> u32,
    ) {
        for family in Family::ALL {
            let of_family =
                |op: &Op| matches!(op, Op::RemoveLeftovers(leftovers) if leftovers.family == family);
            let both = plan.ops.iter().zip(&report.outcomes);
            let outcomes: Vec<&Outcome> =
                both.filter_map(|(op, outcome)| of_family(op).then_some(outcome)).collect();
            let held = outcomes.iter().filter_map(|outcome| match outcome {
                Outcome::Blocked(cause) => Some(tries(cause)),
                _ => None,
            });
            self.held = self.held.max(held.max().unwrap_or(0));
            let done = outcomes.iter().all(|outcome| **outcome == Outcome::Done);
            let looked = audit || !outcomes.is_empty();
            self.gone[family.index()] |= done && looked && !unread[family.index()];
        }
    }
}

/// Takes the leftovers of a family for not seen; true when there were some.
fn ignore_leftovers(observed: &mut Observed, family: Family) -> bool {
    let rules = !std::mem::take(&mut observed.rules[family.index()].leftovers).is_empty();
    rules | std::mem::take(&mut observed.nft_tables[family.index()])
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
        kernel.state.rules[0] = parse_save(
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
    fn what_comes_back_is_somebody_elses() {
        let mut agent = agent();
        agent.converge(Due::Audit, 1);
        assert_eq!(agent.kernel().count(OpKind::RemoveLeftovers), 1);
        leave_rules(agent.kernel());
        for _ in 0..2 {
            assert!(agent.sync(Due::Audit).is_clean());
        }
        assert_eq!(agent.kernel().count(OpKind::RemoveLeftovers), 1, "once per start");
        assert!(!agent.kernel().state.rules[0].leftovers.is_empty());
    }

    #[test]
    fn old_rules_serve_for_three_failed_passes_and_no_more() {
        let mut agent = agent();
        for pass in 0..=PATIENCE {
            agent.kernel().fail_next(OpKind::Bind);
            assert!(!agent.sync(if pass == 0 { Due::Audit } else { Due::Changes }).is_clean());
            let there = !agent.kernel().state.rules[0].leftovers.is_empty();
            assert_eq!(there, pass < PATIENCE, "pass {pass}");
        }
    }

    #[test]
    fn what_could_not_be_removed_is_tried_again() {
        let mut agent = agent();
        agent.kernel().fail_next(OpKind::RemoveLeftovers);
        assert!(!agent.sync(Due::Audit).is_clean());
        assert!(agent.sync(Due::Changes).is_clean());
        assert!(agent.kernel().state.rules[0].leftovers.is_empty());
    }

    #[test]
    fn beside_another_proxy_its_rules_are_no_leftovers() {
        let mut observed = Observed { nft_tables: [true, false], ..Observed::default() };
        let mut takeover = Takeover::default();
        takeover.review(&mut observed, false);
        assert_eq!(observed.nft_tables, [true, false], "alone they are to go");
        takeover.review(&mut observed, true);
        assert_eq!(observed.nft_tables, [false, false]);
    }
}
