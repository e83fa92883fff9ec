// SPDX-License-Identifier: Apache-2.0
//! What a probe looks at, and what it makes of the answers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use serde_json::json;

use super::recheck::PROBED;
use crate::core::model::Family;
use crate::core::model::sets::{SetId, SetKind};
use crate::core::plan::outcome::{Cause, OpError};
use crate::core::plan::subject::Part;
use crate::kernel::fake::FakeKernel;
use crate::testing::cluster::Cluster;
use crate::testing::{Agent, Clocked, kernel};

/// A loop over so many Services that has come to rest.
fn at_rest(services: usize) -> Clocked {
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

/// How many probes there are in ten seconds, and how many virtual servers and headers of ipsets they look at.
fn cost(services: usize) -> [usize; 3] {
    let mut node = at_rest(services);
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
fn a_probe_looks_at_as_much_with_thousands_of_services_as_with_a_few() {
    let few = cost(5);
    let sets = Family::ALL.into_iter().flat_map(SetId::all).count();
    assert_eq!(few, [10, 10 * PROBED, 10 * sets]);
    assert_eq!(cost(3000), few);
}

/// A flush is found although some other part of the probe is not answered.
#[test]
fn what_a_probe_cannot_read_hides_nothing_else() {
    const CLUSTER_IP: SetId = SetId { kind: SetKind::ClusterIp, family: Family::V4 };
    const LOOP_BACK: SetId = SetId { kind: SetKind::LoopBack, family: Family::V4 };
    const EMPTY: SetId = SetId { kind: SetKind::NodePortUdp, family: Family::V6 };
    type Flush = fn(&mut FakeKernel);
    let cases: [(Part, Flush); 4] = [
        (Part::Set(CLUSTER_IP), |kernel| kernel.state.virtual_servers.clear()),
        (Part::Set(CLUSTER_IP), |kernel| kernel.state.sets.get_mut(&LOOP_BACK).unwrap().members.clear()),
        (Part::Ipvs, |kernel| _ = kernel.state.sets.remove(&LOOP_BACK)),
        (Part::Ipvs, |kernel| _ = kernel.state.sets.remove(&EMPTY)),
    ];
    for (part, flush) in cases {
        let mut node = at_rest(5);
        let good = node.agent.kernel().state.clone();
        assert!([CLUSTER_IP, LOOP_BACK].iter().all(|set| !good.sets[set].members.is_empty()));
        let error = OpError::plain(Cause::Other, "refused by the test");
        node.agent.kernel().set_unreadable(part, Some(error));
        node.pass_time(Duration::from_secs(3));
        let audits = node.agent.kernel().counts.observations;
        flush(node.agent.kernel());
        node.pass_time(Duration::from_secs(2));
        assert!(node.agent.kernel().counts.observations > audits, "{part}: nothing was noticed");
        assert_eq!(node.agent.kernel().state.virtual_servers, good.virtual_servers, "{part}");
        assert_eq!(node.agent.kernel().state.sets, good.sets, "{part}");
    }
}
