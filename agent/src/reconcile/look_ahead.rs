// SPDX-License-Identifier: Apache-2.0
//! The plan of a start, without running it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{PassScope, Reconciler};
use crate::core::mirror::Observed;
use crate::core::model::changes::Changes;
use crate::core::model::map::Set;
use crate::core::model::real_servers::RsState;
use crate::core::plan::all_keys;
use crate::core::plan::op::Op;
use crate::core::plan::outcome::ObserveError;
use crate::core::plan::ownership;
use crate::core::plan::preview::Preview;
use crate::kernel::Kernel;

/// How long programs may take to read rules.
const RULES_TIMEOUT: Duration = Duration::from_secs(10);

impl<K: Kernel> Reconciler<K> {
    /// Reads the kernel, takes the changes of objects, and plans a start at the time `now`.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn preview(&mut self, now: Duration) -> Result<Preview, ObserveError> {
        self.read_everything(now)?;
        let began = Instant::now();
        while self.has_unread_rules() && began.elapsed() < RULES_TIMEOUT {
            let finished = self.kernel.finished(RULES_TIMEOUT / 10);
            self.take_finished(finished, now);
        }
        let changes = self.take_changes(&PassScope::Everything, now);
        let Some(mut observed) = self.mirror.lend() else { return Ok(Preview::default()) };
        self.fill_limits(&mut observed, now);
        let keys = Changes { flows: changes.flows, ..all_keys(&self.desired, &observed) };
        self.drains.adopt(&self.desired, &observed, &keys.virtual_servers, now);
        self.read_connections(&mut observed, &keys, now);
        let plan = self.plan(&observed, &keys, true, &BTreeSet::new(), now);
        let bound: Set<_> = observed.addresses.iter().map(ipnet::IpNet::addr).collect();
        let is_foreign = |op: &Op| {
            matches!(op, Op::RemoveVirtualServer(vs)
                if !ownership::is_provably_ours(vs, &bound, &observed.sets))
        };
        let foreign = (0..plan.ops.len()).filter(|i| is_foreign(&plan.ops[*i])).collect();
        let held_back = (0..plan.ops.len()).filter(|i| self.holds_back(&plan.ops[*i], &observed)).collect();
        let unread = self.settings.families.iter().copied().filter(|f| observed.unread_rules[f]).collect();
        self.mirror.put_back(observed);
        Ok(Preview { plan, foreign, held_back, unread })
    }

    /// Whether the op only raises a weight that a running agent may keep low.
    fn holds_back(&self, op: &Op, observed: &Observed) -> bool {
        let Op::EditRealServer(vs, rs, state) = op else { return false };
        let may_be_low =
            self.desired.options(vs).is_some_and(|o| o.slow_start.is_some() || o.probe.is_some());
        let now = observed.virtual_servers.get(vs).and_then(|server| server.real_servers.get(rs));
        may_be_low
            && now.is_some_and(|now| {
                now.weight < state.weight && RsState { weight: state.weight, ..now } == *state
            })
    }

    fn has_unread_rules(&self) -> bool {
        let Some(observed) = self.mirror.observed() else { return false };
        self.settings.families.iter().any(|family| observed.unread_rules[family])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::model::settings::{RulesMode, Settings};
    use crate::core::plan::pass::Due;
    use crate::kernel::fake::FakeKernel;
    use crate::kernel::read_only::ReadOnly;
    use crate::store::Store;
    use crate::testing::cluster::Cluster;
    use crate::testing::{Agent, kernel, reporting, scenarios, settings};

    fn looker(mut kernel: FakeKernel, cluster: &Cluster) -> Reconciler<ReadOnly<FakeKernel>> {
        kernel.sets_grow = cluster.rules == RulesMode::Nftables;
        let store = Arc::new(Store::new(Arc::default()));
        cluster.put(&store);
        let settings = Settings { routed: cluster.routed.clone(), rules: cluster.rules, ..settings() };
        Reconciler::new(ReadOnly(kernel), store, settings, "n1", false, reporting())
    }

    #[test]
    fn a_preview_is_the_plan_of_a_start_and_changes_nothing() {
        for scenario in scenarios::all() {
            let mut before = Agent::start(kernel(), &scenario.before);
            before.converge(Due::Changes, 6);
            let mut found = before.kill();
            (scenario.meanwhile)(&mut found);
            let state = found.state.clone();
            let mut looks = looker(found, &scenario.after);
            let preview = looks.preview(Duration::ZERO).unwrap();
            let kernel = std::mem::take(&mut looks.kernel().0);
            assert_eq!(kernel.state, state, "{}: nothing was written", scenario.name);
            let mut starts = Agent::start(kernel, &scenario.after);
            let pass = starts.sync(Due::Changes);
            assert_eq!(pass.plan, preview.plan, "{}", scenario.name);
            starts.converge(Due::Audit, 6);
            let plan = looker(starts.kill(), &scenario.after).preview(Duration::ZERO).unwrap().plan;
            let is_nothing = |op: &Op| matches!(op, Op::ForgetFlows(_));
            assert!(plan.ops.iter().all(is_nothing), "{}:\n{plan}", scenario.name);
        }
    }
}
