// SPDX-License-Identifier: Apache-2.0
//! The cost of probes, the flushes that they detect, and a set that was replaced.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use serde_json::json;

use super::recheck::PROBED;
use crate::core::mirror::ObservedSet;
use crate::core::model::Family;
use crate::core::model::sets::{SetId, SetKind};
use crate::core::plan::op::OpKind;
use crate::core::plan::outcome::{Cause, OpError};
use crate::core::plan::pass::Due;
use crate::core::plan::subject::Part;
use crate::core::rules::references_set;
use crate::kernel::fake::FakeKernel;
use crate::testing::cluster::Cluster;
use crate::testing::{Agent, Clocked, kernel};

/// A converged loop over this many Services.
fn converged(services: usize) -> Clocked {
    let cluster = (0..services).fold(Cluster::default(), |cluster, n| {
        let (name, [_, _, a, b]) = (format!("web-{n}"), (n as u32).to_be_bytes());
        let spec = json!({"clusterIP": format!("10.96.{a}.{b}"), "ports": [{"name": "p", "port": 80}]});
        let endpoint = format!("10.244.{a}.{b}@n1");
        cluster.service(&name, spec, &[]).slice(&name, &[&endpoint], &["p/TCP/8080"])
    });
    let mut node = Clocked::new(Agent::start(kernel(), &cluster));
    node.pass_time(Duration::from_millis(5_370));
    assert!(node.agent.reconciler.retries().is_empty());
    node
}

/// Probes in ten seconds, and the virtual servers and the members of ipsets that they read.
fn cost(services: usize) -> [usize; 3] {
    let mut node = converged(services);
    let so_far = |node: &mut Clocked| {
        let counts = &node.agent.kernel().counts;
        [counts.probes, counts.probed_servers, counts.probed_sets]
    };
    let before = so_far(&mut node);
    node.pass_time(Duration::from_secs(10));
    let after = so_far(&mut node);
    std::array::from_fn(|n| after[n] - before[n])
}

#[test]
fn a_probe_costs_the_same_for_any_number_of_services() {
    let few = cost(5);
    let sets = Family::ALL.into_iter().flat_map(SetId::all).count();
    assert_eq!(few, [10, 10 * PROBED, 10 * sets]);
    assert_eq!(cost(3000), few);
}

#[test]
fn a_flush_is_detected_although_a_probe_cannot_read_other_objects() {
    const CLUSTER_IP: SetId = SetId { kind: SetKind::ClusterIp, family: Family::V4 };
    const LOOP_BACK: SetId = SetId { kind: SetKind::LoopBack, family: Family::V4 };
    const EMPTY: SetId = SetId { kind: SetKind::NodePortUdp, family: Family::V6 };
    type Flush = fn(&mut FakeKernel);
    let cases: [(Part, Flush); 4] = [
        (Part::Set(CLUSTER_IP), |kernel| kernel.state.virtual_servers.clear()),
        (Part::Set(CLUSTER_IP), |kernel| {
            kernel.state.sets.get_mut(&LOOP_BACK).unwrap().members = Default::default()
        }),
        (Part::Ipvs, |kernel| _ = kernel.state.sets.remove(&LOOP_BACK)),
        (Part::Ipvs, |kernel| _ = kernel.state.sets.remove(&EMPTY)),
    ];
    for (part, flush) in cases {
        let mut node = converged(5);
        let good = node.agent.kernel().state.clone();
        assert!([CLUSTER_IP, LOOP_BACK].iter().all(|set| !good.sets[set].members.is_empty()));
        let error = OpError::plain(Cause::Other, "refused by the test");
        node.agent.kernel().set_unreadable(part, Some(error));
        node.pass_time(Duration::from_secs(3));
        let audits = node.agent.kernel().counts.observations;
        flush(node.agent.kernel());
        node.pass_time(Duration::from_secs(2));
        assert!(node.agent.kernel().counts.observations > audits, "{part}: the flush was not detected");
        assert_eq!(node.agent.kernel().state.virtual_servers, good.virtual_servers, "{part}");
        assert_eq!(node.agent.kernel().state.sets, good.sets, "{part}");
    }
}

#[test]
fn a_set_of_another_type_that_our_rules_hold_is_replaced() {
    let kind = SetKind::ClusterIp;
    let set = SetId { kind, family: Family::V4 };
    let mut kernel = kernel();
    kernel.holds_sets = true;
    let cluster =
        Cluster::default().service("a", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}), &[]);
    let mut agent = Agent::start(kernel, &cluster);
    agent.converge(Due::Changes, 3);
    let before = agent.kernel().state.clone();
    assert!(references_set(&before.rules[Family::V4].chains, set));
    agent.kernel().state.sets.insert(set, ObservedSet { misfit: true, ..ObservedSet::default() });
    let _ = agent.sync(Due::Audit);
    assert_eq!(agent.kernel().count(OpKind::DestroySet), 1, "the rules hold it");
    agent.converge(Due::Retry, 5);
    agent.converge(Due::Changes, 3);
    assert_eq!(agent.kernel().state, before);
    assert!(agent.sync(Due::Audit).plan.is_empty());
}
