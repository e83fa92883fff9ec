// SPDX-License-Identifier: Apache-2.0
//! What a start would do.

use super::op::{Op, Plan};
use crate::core::model::Family;

/// The plan of a start that did not run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    pub plan: Plan,
    /// Indexes of ops that remove virtual servers which show no sign of an agent or kube-proxy as their creator.
    pub foreign: Vec<usize>,
    /// Indexes of ops that raise a weight which a slow start or a check of the agent keeps low.
    pub held_back: Vec<usize>,
    /// Families whose rules could not be read and are not compared.
    pub unread: Vec<Family>,
}

impl Preview {
    /// The ops that change something, with their indexes. A start always looks for stale flows. The rules of a family are
    /// written twice if some must go last: only the last write counts.
    pub fn changes(&self) -> impl Iterator<Item = (usize, &Op)> {
        let is_tidied = |family: Family| {
            let is_it = |op: &Op| matches!(op, Op::WriteRules(rules) if rules.tidy && rules.family == family);
            self.plan.ops.iter().any(is_it)
        };
        self.plan.ops.iter().enumerate().filter(move |(_, op)| match op {
            Op::ForgetFlows(_) => false,
            Op::WriteRules(rules) => rules.tidy || !is_tidied(rules.family),
            _ => true,
        })
    }

    /// The ops without which traffic is not as it should be. The end of a drain is a matter of time.
    pub fn differences(&self) -> impl Iterator<Item = &Op> {
        let differs = |(index, op): &(usize, &Op)| {
            !matches!(op, Op::RemoveRealServer(..) | Op::RemoveLeftovers(_))
                && !self.held_back.contains(index)
        };
        self.changes().filter(differs).map(|(_, op)| op)
    }
}
