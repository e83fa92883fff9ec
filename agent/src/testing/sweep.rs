// SPDX-License-Identifier: Apache-2.0
//! Sweeps of all scenarios: every op fails once, and the agent is killed between any two ops.

use crate::core::plan::pass::Due;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::cluster::Cluster;
use super::scenarios::{Scenario, all};
use super::{Agent, kernel};
use crate::core::mirror::Observed;
use crate::core::plan::op::{Op, OpKind};
use crate::store::Object;

/// An agent that has programmed `before`; then the kernel changed and the objects became those of `after`. Only an audit
/// finds the change of the kernel.
fn prepare(scenario: &Scenario) -> Agent {
    let mut agent = Agent::start(kernel(), &scenario.before);
    agent.converge(Due::Audit, 1);
    (scenario.meanwhile)(agent.kernel());
    if scenario.restarts {
        return Agent::start(agent.kill(), &scenario.after);
    }
    scenario.after.put(&agent.store);
    agent
}

/// The expected final state of a scenario, with its drains.
fn target(scenario: &Scenario) -> Observed {
    let mut agent = prepare(scenario);
    agent.converge(Due::Audit, 2);
    agent.kill().state
}

/// The state of a new node after a sync of the cluster, without drains.
fn scratch(cluster: &Cluster) -> Observed {
    let mut agent = Agent::start(kernel(), cluster);
    agent.converge(Due::Audit, 1);
    agent.kill().state
}

/// The virtual IPs of the scenario that are local now.
fn cluster_ips(scenario: &Scenario, kernel: &Observed) -> Vec<IpAddr> {
    let service = |object: &Object| match object {
        Object::Service(service) => service.cluster_ips.iter().flatten().copied().collect(),
        _ => Vec::new(),
    };
    let all = scenario.before.objects.values().flat_map(service);
    all.filter(|addr| kernel.is_local(*addr)).collect()
}

/// Those of `local` that are local in the final state, too, and are not now.
fn cut_off(local: &[IpAddr], kernel: &Observed, target: &Observed) -> Vec<IpAddr> {
    local.iter().copied().filter(|addr| target.is_local(*addr) && !kernel.is_local(*addr)).collect()
}

#[test]
fn every_op_fails_once_in_every_scenario_and_the_next_sync_converges() {
    let no_address: [IpAddr; 0] = [];
    let mut failed: BTreeSet<OpKind> = BTreeSet::new();
    for scenario in all() {
        let target = target(&scenario);
        for doubt in [false, true] {
            for n in 0.. {
                let mut agent = prepare(&scenario);
                let exposed = agent.kernel().exposed();
                let local = cluster_ips(&scenario, &agent.kernel().state);
                agent.kernel().fail_at(n, doubt);
                let pass = agent.sync(Due::Audit);
                if pass.is_clean() {
                    break;
                }
                let culprit = pass.report.outcomes.iter().position(|o| format!("{o:?}").contains("injected"));
                failed.extend(culprit.map(|i| pass.plan.ops[i].kind()));
                assert!(agent.kernel().exposed().is_subset(&exposed), "{}: op {n}", scenario.name);
                assert_eq!(
                    cut_off(&local, &agent.kernel().state, &target),
                    no_address,
                    "{}: op {n}",
                    scenario.name
                );
                agent.converge(if doubt { Due::Audit } else { Due::Changes }, 1);
                assert_eq!(agent.kill().state, target, "{}: op {n}", scenario.name);
            }
        }
    }
    let missing: Vec<OpKind> = OpKind::ALL.iter().copied().filter(|kind| !failed.contains(kind)).collect();
    assert!(missing.is_empty(), "no scenario has {missing:?}");
}

#[test]
fn a_restart_after_a_kill_between_any_two_ops_converges() {
    let no_address: [IpAddr; 0] = [];
    for scenario in all() {
        let target = target(&scenario);
        for n in 0.. {
            let mut agent = prepare(&scenario);
            let exposed = agent.kernel().exposed();
            let local = cluster_ips(&scenario, &agent.kernel().state);
            agent.kernel().stop_after(Some(n));
            let finished = agent.sync(Due::Audit).is_clean();
            let mut kernel = agent.kill();
            kernel.stop_after(None);
            assert_eq!(
                cut_off(&local, &kernel.state, &target),
                no_address,
                "{}: killed after {n} ops",
                scenario.name
            );
            assert!(kernel.exposed().is_subset(&exposed), "{}: killed after {n} ops", scenario.name);
            let mut again = Agent::start(kernel, &scenario.after);
            again.converge(Due::Audit, 2);
            assert_eq!(again.kill().state, target, "{}: killed after {n} ops", scenario.name);
            if finished {
                break;
            }
        }
    }
}

#[test]
fn every_scenario_ends_as_a_sync_of_a_new_node() {
    for scenario in all() {
        let mut agent = prepare(&scenario);
        agent.converge(Due::Audit, 2);
        // Connections end, and so do the drains.
        agent.kernel().state.busy.clear();
        agent.converge(Due::Drains, 1);
        let mut state = agent.kill().state;
        let mut fresh = scratch(&scenario.after);
        // A set that grew keeps its capacity.
        for observed in [&mut state, &mut fresh] {
            observed.sets.values_mut().for_each(|set| set.capacity = 0);
        }
        assert_eq!(state, fresh, "{}", scenario.name);
    }
}

#[test]
fn a_restart_after_every_scenario_writes_nothing() {
    for scenario in all() {
        let mut again = Agent::start(
            {
                let mut agent = prepare(&scenario);
                agent.converge(Due::Audit, 2);
                agent.kill()
            },
            &scenario.after,
        );
        let pass = again.sync(Due::Audit);
        let writes: Vec<String> = pass
            .plan
            .ops
            .iter()
            .filter(|op| !matches!(op, Op::ForgetFlows(_)))
            .map(ToString::to_string)
            .collect();
        assert!(writes.is_empty(), "{}: {writes:?}", scenario.name);
    }
}

#[test]
fn changes_of_objects_are_programmed_without_an_audit() {
    // A change of the routes needs a restart.
    for scenario in all().into_iter().filter(|scenario| scenario.before.routed == scenario.after.routed) {
        let mut agent = Agent::start(kernel(), &scenario.before);
        agent.converge(Due::Audit, 1);
        let readings = agent.kernel().counts.observations;
        scenario.after.put(&agent.store);
        agent.converge(Due::Changes, 2);
        assert_eq!(agent.kernel().counts.observations, readings, "{}", scenario.name);
        let audit = agent.sync(Due::Audit);
        let left: Vec<String> = audit.plan.ops.iter().map(ToString::to_string).collect();
        assert!(left.is_empty(), "{}: an audit still finds {left:?}", scenario.name);
    }
}
