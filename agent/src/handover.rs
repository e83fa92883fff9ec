// SPDX-License-Identifier: Apache-2.0
//! Taking a node over from another mode of kube-proxy: its rules serve until ours do, then what it left
//! is removed, once per start.

use crate::core::model::Family;
use crate::core::observed::Observed;
use crate::core::op::{Op, Plan};
use crate::kernel::{Outcome, Report};

/// So many passes may leave something undone before the other mode's rules go all the same: they get
/// older with every change of a Service.
const PATIENCE: usize = 3;

/// How far it is.
#[derive(Debug, Default)]
pub struct Handover {
    held: usize,
    gone: bool,
    warned: bool,
}

impl Handover {
    /// Whether the other mode's rules may go on serving while something of ours does not.
    pub fn waits(&self) -> bool {
        self.held < PATIENCE
    }

    /// Looks at what an audit found. Beside another proxy all of it is that one's. What comes after everything was removed comes from a kube-proxy that
    /// runs now: it is left alone, and the operator is told.
    pub fn look(&mut self, observed: &mut Observed, beside_another: bool) {
        if beside_another {
            pass_over(observed);
            return;
        }
        if !self.gone {
            let kept = observed.rules.iter().flat_map(|rules| &rules.leftovers.kept);
            kept.for_each(|chain| {
                tracing::warn!("another mode of kube-proxy left it and it stays, for it is in use: {chain}");
            });
            return;
        }
        let found = pass_over(observed);
        if found && !self.warned {
            tracing::warn!(
                "rules of another mode of kube-proxy came back: a kube-proxy runs on this node and takes \
                 traffic from this agent; stop it, then restart the agent to remove what it leaves"
            );
        }
        self.warned = found;
    }

    /// Follows a pass.
    pub fn follow(&mut self, plan: &Plan, report: &Report, audit: bool) {
        let outcomes: Vec<&Outcome> = plan
            .ops
            .iter()
            .zip(&report.outcomes)
            .filter_map(|(op, outcome)| matches!(op, Op::RemoveLeftovers(_)).then_some(outcome))
            .collect();
        self.held += usize::from(outcomes.iter().any(|outcome| matches!(outcome, Outcome::Skipped(_))));
        let done = outcomes.iter().all(|outcome| **outcome == Outcome::Done);
        self.gone |= done && (audit || !outcomes.is_empty());
    }
}

/// Takes the leftovers for not seen; true when there were some.
fn pass_over(observed: &mut Observed) -> bool {
    let mut found = false;
    for family in Family::ALL {
        let index = family.index();
        found |= !std::mem::take(&mut observed.rules[index].leftovers).is_empty();
        found |= std::mem::take(&mut observed.nft_tables[index]);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_another_proxy_its_rules_are_no_leftovers() {
        let mut observed = Observed { nft_tables: [true, false], ..Observed::default() };
        let mut handover = Handover::default();
        handover.look(&mut observed, false);
        assert_eq!(observed.nft_tables, [true, false], "alone they are to go");
        handover.look(&mut observed, true);
        assert_eq!(observed.nft_tables, [false, false]);
    }
}
