// SPDX-License-Identifier: Apache-2.0
//! ClusterIPs that are local by a route: unused addresses of the range, and changes between the modes.

use integration::lab::traffic::{Backend, Connection, ask_tcp};
use integration::lab::{Lab, Netns, Node, Setup, agent_binary, at, bound};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, TARGETS, assert_refused, backend};

const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Addresses of the range without a Service.
const UNUSED: [&str; 2] = ["10.96.200.7", "fd00:96::200"];
const RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
/// A port of the node on which a program listens.
const DAEMON: u16 = 7777;

fn objects() -> Vec<Value> {
    let endpoints = [["10.244.1.5@node-a"], ["fd00:244:1::5@node-a"]];
    let slices = endpoints.map(|endpoints| slice("web", &endpoints, &TARGETS[..1]));
    std::iter::once(ServiceBuilder::new("web", &VIP, &PORTS[..1]).build()).chain(slices).collect()
}

/// Starts an agent with or without routes, and waits until its state is in place.
fn start<'a>(node: &'a Node, with_routes: bool) -> Setup<'a> {
    let mode = if with_routes { "route" } else { "address" };
    let setup =
        Setup::start(node, &json!({"kubeIPVS": {"clusterIPs": mode, "serviceCIDRs": RANGES}}), objects());
    let setup = setup.unwrap();
    let (routed, vips) = (routes(node.ns()), VIP.map(|vip| vip.parse().unwrap()));
    setup
        .wait(&format!("mode {mode} after {routed:?}"), || {
            let bound = bound(node.ns());
            vips.iter().all(|vip| bound.contains(vip) != with_routes)
                && (routes(node.ns()).len() == 2) == with_routes
                && setup.agent.log().contains("ready: ")
        })
        .unwrap();
    setup
}

/// Our routes, as `ip` prints them.
fn routes(ns: &Netns) -> Vec<String> {
    let show = |family| {
        let command = ["ip", family, "route", "show", "table", "local", "proto", "96"];
        ns.exec(&command).unwrap().stdout
    };
    let all = ["-4", "-6"].map(show).concat();
    all.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn unused_addresses_of_the_range_are_refused_at_once() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (pod, outside) = (node.pod(9).unwrap(), lab.client("outside").unwrap());
    for range in RANGES {
        outside.route(range, &node.host).unwrap();
    }
    let _daemon = Backend::new(node.ns(), "daemon").tcp(DAEMON).unwrap();
    let _setup = start(&node, true);
    assert_eq!(
        routes(node.ns()),
        ["local 10.96.0.0/16 dev lo scope host", "local fd00:96::/112 dev lo metric 1024 pref medium"]
    );
    for client in [&pod.ns, node.ns(), &outside.ns] {
        for family in [0, 1] {
            assert_refused(client, at(UNUSED[family], 80));
            for vip in [UNUSED[family], VIP[family]] {
                assert_refused(client, at(vip, DAEMON));
            }
        }
    }
}

#[test]
fn connections_survive_the_change_to_routes_and_back() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (pod, client) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let _backend = backend(&pod, "web");
    let mut setup = start(&node, false);
    let mut open = VIP.map(|vip| Connection::open(&client.ns, at(vip, 80), ANSWER).unwrap());
    for with_routes in [true, false] {
        setup.agent.stop().unwrap();
        setup = start(&node, with_routes);
        for (family, vip) in VIP.iter().enumerate() {
            assert_eq!(open[family].ask().unwrap().name, "web", "routes: {with_routes}");
            for from in [&client.ns, node.ns()] {
                assert_eq!(ask_tcp(from, at(vip, 80), ANSWER).unwrap().name, "web", "routes: {with_routes}");
            }
        }
    }
    assert_eq!(routes(node.ns()), [] as [&str; 0]);
}

#[test]
fn removed_routes_are_restored_and_cleanup_removes_them() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let mut setup = start(&node, true);
    let before = routes(node.ns());
    node.ns()
        .ip("route del local 10.96.0.0/16 table local\nroute del local fd00:96::/112 table local")
        .unwrap();
    setup.wait("the routes", || routes(node.ns()) == before).unwrap();
    node.ns().ip("link del kube-ipvs0").unwrap();
    setup.wait("the device", || node.ns().exec(&["ip", "link", "show", "kube-ipvs0"]).is_ok()).unwrap();
    setup.agent.stop().unwrap();
    node.ns().exec(&[agent_binary().unwrap().to_str().unwrap(), "cleanup"]).unwrap();
    assert_eq!(routes(node.ns()), [] as [&str; 0]);
}

#[test]
fn a_route_serves_before_the_addresses_are_bound() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (pod, client) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let _backend = backend(&pod, "web");
    let mode = json!({"kubeIPVS": {"clusterIPs": "route-then-address", "serviceCIDRs": RANGES}});
    let setup = Setup::start(&node, &mode, objects()).unwrap();
    setup.wait_bound(&VIP).unwrap();
    assert_eq!(routes(node.ns()).len(), 2);
    setup.wait("the plan", || setup.agent.log().contains("+ address 10.96.0.10")).unwrap();
    let log = setup.agent.log();
    let position = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text} is not in the log:\n{log}"));
    assert!(position("+ route 10.96.0.0/16") < position("+ address 10.96.0.10"), "{log}");
    for (family, vip) in VIP.iter().enumerate() {
        assert_eq!(ask_tcp(&client.ns, at(vip, 80), ANSWER).unwrap().name, "web");
        assert_refused(&client.ns, at(UNUSED[family], 80));
    }
}

/// A route for the network of the node itself would cut it off from its neighbours.
#[test]
fn a_range_with_neighbours_of_the_node_gets_no_route() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let network = format!("{}/24", node.host.v4);
    let ranges = json!({"kubeIPVS": {"clusterIPs": "route", "serviceCIDRs": [network, RANGES[0]]}});
    let setup = Setup::start(&node, &ranges, objects()).unwrap();
    setup.wait("the route", || routes(node.ns()).len() == 1).unwrap();
    setup.wait_bound(&VIP[1..]).unwrap();
    assert!(setup.agent.log().contains("no local route for the ClusterIPs of 192.168.50.0/24"));
}
