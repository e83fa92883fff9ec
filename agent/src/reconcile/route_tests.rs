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
use crate::core::plan::pass::Due;
use crate::inbox::Inbox;
use crate::kernel::fake::FakeKernel;
use crate::reconcile::schedule::Schedule;
use crate::store::Store;
use crate::testing::cluster::Cluster;
use crate::testing::{Agent, kernel, lines, reporting, settings};

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
