// SPDX-License-Identifier: Apache-2.0
//! Local routes of ClusterIPs and the hosts that they could cut the node off from.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;

use super::Reconciler;
use crate::core::model::settings::Settings;
use crate::core::plan::outcome::{Cause, OpError};
use crate::core::plan::pass::Due;
use crate::core::plan::subject::Subject;
use crate::inbox::Inbox;
use crate::kernel::fake::FakeKernel;
use crate::reconcile::schedule::Schedule;
use crate::store::Store;
use crate::testing::cluster::Cluster;
use crate::testing::{Agent, Clocked, kernel, lines, reporting, settings};

const GATEWAY: [u8; 4] = [10, 96, 7, 1];

fn range() -> IpNet {
    "10.96.0.0/16".parse().unwrap()
}

/// A Service whose ClusterIP is local by a route.
fn cluster() -> Cluster {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]});
    let cluster =
        Cluster::default().service("web", spec, &[]).slice("web", &["10.244.1.5@n1"], &["p/TCP/8080"]);
    Cluster { routed: vec![range()], ..cluster }
}

/// The routes and the number of bound addresses.
fn local(kernel: &FakeKernel) -> (Vec<IpNet>, usize) {
    (kernel.state.node.routes.iter().copied().collect(), kernel.state.addresses.len())
}

#[test]
fn a_gateway_in_the_range_ends_the_route_once_the_cluster_ips_are_bound() {
    let mut agent = Agent::start(kernel(), &cluster());
    agent.converge(Due::Changes, 1);
    assert_eq!(local(agent.kernel()), (vec![range()], 0));
    let inbox = Inbox::default();
    inbox.gateways(vec![GATEWAY.into()]);
    let log = lines(move || {
        agent.reconciler.take_mail(&inbox.wait(Some(Duration::ZERO)));
        agent.converge(Due::Changes, 1);
        assert_eq!(local(agent.kernel()), (vec![], 1));
    });
    let expected = "no local route for the ClusterIPs of 10.96.0.0/16: 10.96.7.1 is a gateway of this node";
    assert_eq!(log.iter().filter(|line| line.contains(expected)).count(), 1, "{log:?}");
}

#[test]
fn addresses_of_nodes_in_the_range_get_no_route() {
    let mut agent = Agent::start(kernel(), &cluster());
    agent.store.update(|update| update.set_nodes([IpAddr::from([10, 96, 9, 9])].into()));
    agent.converge(Due::Changes, 1);
    assert_eq!(local(agent.kernel()), (vec![], 1));
    let mut node = crate::testing::node();
    node.addresses.push(IpAddr::from([10, 96, 3, 3]));
    let mut agent = Agent::start(kernel(), &Cluster { node, ..cluster() });
    agent.converge(Due::Changes, 1);
    assert_eq!(local(agent.kernel()), (vec![], 1));
}

/// The lists cannot arrive while a route covers the way to the API server.
#[test]
fn a_route_that_covers_a_gateway_or_the_api_server_is_removed_before_any_list_arrives() {
    let first_turn = |gateway: Option<[u8; 4]>, api_server: [u8; 4]| {
        let mut kernel = kernel();
        kernel.state.device = true;
        kernel.state.node.routes.insert(range());
        kernel.state.node.next_hops.extend(gateway.map(IpAddr::from));
        let store = Arc::new(Store::new(Arc::new(Inbox::default())));
        store.update(|update| update.set_api_servers([SocketAddr::from((api_server, 6443))].into()));
        let settings = Settings { routed: vec![range()], ..settings() };
        let reconciler = Reconciler::new(kernel, store.clone(), settings, "n1", false, reporting());
        let mut agent = Agent { store, reconciler, now: Duration::ZERO };
        let mut schedule = Schedule::new(Duration::ZERO, Duration::from_secs(30));
        agent.reconciler.run_once(&|| Duration::ZERO, &mut schedule);
        local(agent.kernel()).0
    };
    let outside = [192, 168, 50, 100];
    assert_eq!(first_turn(None, outside), [range()]);
    assert_eq!(first_turn(Some(GATEWAY), outside), []);
    assert_eq!(first_turn(None, [10, 96, 8, 8]), []);
}

#[test]
fn ranges_of_the_api_are_followed_and_unknown_ones_keep_the_routes_of_an_earlier_run() {
    let mut earlier = kernel();
    earlier.state.device = true;
    earlier.state.node.routes.insert(range());
    let mut agent = Agent::start(earlier, &Cluster { routed: Vec::new(), ..cluster() });
    agent.store.update(|update| update.await_service_cidrs());
    assert!(!agent.store.is_synced());
    agent.store.update(|update| update.skip_service_cidrs());
    agent.converge(Due::Audit, 1);
    assert_eq!(local(agent.kernel()), (vec![range()], 0));
    let other: IpNet = "10.200.0.0/16".parse().unwrap();
    for (ranges, bound) in [(vec![other], 1), (vec![range(), other], 0), (vec![], 1), (vec![range()], 0)] {
        agent.store.update(|update| update.set_service_cidrs(ranges.clone().into()));
        agent.store.update(|update| update.skip_service_cidrs());
        agent.converge(Due::Changes, 1);
        assert_eq!(local(agent.kernel()), (ranges, bound));
        let audit = agent.sync(Due::Audit);
        assert!(audit.plan.is_empty(), "an audit still finds\n{}", audit.plan);
    }
}

/// An agent that also binds the ClusterIPs behind its route, slowly.
fn then_address(kernel: FakeKernel, services: u8) -> Agent {
    let cluster = (0..services).fold(Cluster::default(), |cluster, n| {
        let spec = json!({"clusterIP": format!("10.96.1.{n}"), "ports": [{"name": "p", "port": 80}]});
        cluster.service(&format!("web-{n}"), spec, &[])
    });
    Agent::with_settings(kernel, &cluster, slowly())
}

fn slowly() -> Settings {
    Settings { routed: vec![range()], binds_routed: true, ..settings() }
}

#[test]
fn addresses_behind_a_route_are_bound_a_few_at_a_time() {
    let mut node = Clocked::new(then_address(kernel(), 200));
    node.pass_time(Duration::from_millis(20));
    let (routes, bound) = local(node.agent.kernel());
    assert!(routes == [range()] && bound <= 64, "{bound} addresses at once");
    node.pass_time(Duration::from_secs(2));
    assert_eq!(local(node.agent.kernel()).1, 200);
    let syncs = node.agent.kernel().counts.observations;
    // Another program removes one: it is bound again, and the agent is idle otherwise.
    let removed = IpNet::from(IpAddr::from([10, 96, 1, 7]));
    node.agent.kernel().state.addresses.remove(&removed);
    node.pass_time(Duration::from_secs(70));
    assert!(node.agent.kernel().state.addresses.contains(&removed));
    assert!(node.agent.kernel().counts.observations - syncs <= 4);
}

#[test]
fn an_address_that_the_kernel_refuses_holds_up_no_other() {
    let mut start = kernel();
    let refused = IpAddr::from([10, 96, 1, 0]);
    start.refuse(Subject::Address(refused), OpError::plain(Cause::Other, "refused by the test"));
    let mut node = Clocked::new(then_address(start, 150));
    node.pass_time(Duration::from_secs(40));
    assert_eq!(local(node.agent.kernel()), (vec![range()], 149));
}

/// Each address stays local and guarded, whichever op fails.
#[test]
fn a_route_is_added_to_addresses_that_are_bound() {
    let mut before = Agent::start(kernel(), &Cluster { routed: Vec::new(), ..cluster() });
    before.converge(Due::Audit, 1);
    let state = before.kill().state;
    let changed = |n: Option<usize>| {
        let mut kernel = kernel();
        kernel.state = state.clone();
        let mut agent = Agent::with_settings(kernel, &cluster(), slowly());
        n.into_iter().for_each(|n| agent.kernel().fail_at(n, false));
        let is_clean = agent.sync(Due::Audit).is_clean();
        assert!(agent.kernel().exposed().is_empty(), "op {n:?}");
        assert_eq!(local(agent.kernel()).1, 1, "op {n:?}");
        if !is_clean {
            agent.converge(Due::Changes, 1);
        }
        assert_eq!(local(agent.kernel()), (vec![range()], 1), "op {n:?}");
        is_clean
    };
    let failures = (0..).take_while(|n| !changed(Some(*n))).count();
    assert!(failures >= 3, "the rules, the route and the entry");
}
