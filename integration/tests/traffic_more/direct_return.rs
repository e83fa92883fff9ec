// SPDX-License-Identifier: Apache-2.0
//! Endpoints that answer clients directly, from the VIP.

use std::net::IpAddr;

use integration::lab::traffic::{Backend, Connection, ask_tcp};
use integration::lab::{Host, Lab, Netns, Node, Setup, at, ipvsadm};
use integration::objects::{Port, ServiceBuilder, slice};
use serde_json::{Value, json};

use super::ANSWER;

const CLUSTER_IP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const VIP: [&str; 2] = ["198.51.100.10", "2001:db8:100::10"];
const PORTS: [Port<'static>; 1] = [("tcp", "TCP", 80)];
const NEAR: [&str; 2] = ["10.244.1.5@node-a", "fd00:244:1::5@node-a"];
const FAR: [&str; 2] = ["10.244.2.6@node-b", "fd00:244:2::6@node-b"];

fn objects(how: &str, policy: &str, endpoints: &[[&str; 2]]) -> Vec<Value> {
    let annotations = json!({"kube-ipvs.io/direct-return": how});
    let service = ServiceBuilder::new("web", &CLUSTER_IP, &PORTS).load_balancer(&VIP).external_policy(policy);
    let slices = [0, 1].map(|family| {
        let addresses: Vec<&str> = endpoints.iter().map(|endpoint| endpoint[family]).collect();
        slice("web", &addresses, &PORTS)
    });
    std::iter::once(service.annotations(&annotations).build()).chain(slices).collect()
}

/// What docs/annotations.md asks for on nodes.
fn accept_local(nodes: &[&Node]) {
    for node in nodes {
        node.ns().set_sysctls(&[("net.ipv4.conf.all.accept_local", "1")]).unwrap();
    }
}

fn backend<'a>(ns: &'a Netns, name: &str) -> Backend<'a> {
    Backend::new(ns, name).tcp(80).unwrap()
}

/// What docs/annotations.md asks for in a pod: the VIP on a device that takes the packets.
fn take_tunnel(ns: &Netns, own: [&str; 2]) {
    ns.set_sysctls(&[("net.ipv4.conf.all.rp_filter", "0"), ("net.ipv4.conf.default.rp_filter", "0")])
        .unwrap();
    ns.ip(&format!(
        "link add vip4 type ipip local {}\n\
         addr add {}/32 dev vip4\n\
         link set vip4 up\n\
         link add vip6 type ip6tnl mode ip6ip6 local {}\n\
         addr add {}/128 dev vip6 nodad\n\
         link set vip6 up",
        own[0], VIP[0], own[1], VIP[1]
    ))
    .unwrap();
    ns.set_sysctls(&[("net.ipv4.conf.vip4.rp_filter", "0")]).unwrap();
}

/// Asks the pod from outside over both VIPs: it sees the client.
fn assert_sees_client(client: &Host, node: &Node, name: &str) {
    for (vip, seen) in VIP.iter().zip([IpAddr::V4(client.v4), client.v6.into()]) {
        client.route(vip, &node.host).unwrap();
        let answer = ask_tcp(&client.ns, at(vip, 80), ANSWER).unwrap();
        assert_eq!((answer.name.as_str(), answer.seen_source), (name, seen), "{}", ipvsadm(node.ns()));
    }
}

fn method(setup: &Setup<'_>, server: &str, letter: char) {
    setup.wait_ipvs(&format!("{server} -{letter} -w 1"), true).unwrap();
}

#[test]
fn a_pod_of_another_node_answers_through_a_tunnel_and_sees_the_client() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (far, asker) = (other.pod(6).unwrap(), node.pod(9).unwrap());
    let client = lab.client("client").unwrap();
    accept_local(&[&node, &other]);
    take_tunnel(&far.ns, ["10.244.2.6", "fd00:244:2::6"]);
    let _backend = backend(&far.ns, "far");
    // The other node has the VIP, too.
    let on_other = Setup::start(&other, &json!({}), objects("tunnel", "Cluster", &[FAR])).unwrap();
    on_other.wait_bound(&VIP).unwrap();
    let setup = Setup::start(&node, &json!({}), objects("tunnel", "Cluster", &[FAR])).unwrap();
    setup.wait_bound(&VIP).unwrap();
    method(&setup, "-a -t 198.51.100.10:80 -r 10.244.2.6:80", 'i');
    method(&setup, "-a -t [2001:db8:100::10]:80 -r [fd00:244:2::6]:80", 'i');
    method(&setup, "-a -t 10.96.0.10:80 -r 10.244.2.6:80", 'm');
    assert_sees_client(&client, &node, "far");
    for vip in CLUSTER_IP {
        assert_eq!(ask_tcp(&asker.ns, at(vip, 80), ANSWER).unwrap().name, "far", "ClusterIPs as ever");
    }
}

#[test]
fn connections_live_through_the_begin_and_the_end_of_direct_return_and_through_a_drain() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let far = other.pod(6).unwrap();
    let client = lab.client("client").unwrap();
    accept_local(&[&node, &other]);
    take_tunnel(&far.ns, ["10.244.2.6", "fd00:244:2::6"]);
    let _backend = backend(&far.ns, "far");
    let on_other = Setup::start(&other, &json!({}), objects("tunnel", "Cluster", &[FAR])).unwrap();
    on_other.wait_bound(&VIP).unwrap();
    // A wrong value: masqueraded.
    let setup = Setup::start(&node, &json!({}), objects("none", "Cluster", &[FAR])).unwrap();
    setup.wait_bound(&VIP).unwrap();
    VIP.iter().for_each(|vip| client.route(vip, &node.host).unwrap());
    let open = || VIP.map(|vip| Connection::open(&client.ns, at(vip, 80), ANSWER).unwrap());
    let servers =
        ["-a -t 198.51.100.10:80 -r 10.244.2.6:80", "-a -t [2001:db8:100::10]:80 -r [fd00:244:2::6]:80"];
    let mut connections = Vec::from(open());
    for (objects, shown) in [
        (objects("tunnel", "Cluster", &[FAR]), "-i -w 1"),
        (objects("none", "Cluster", &[FAR]), "-m -w 1"),
        (objects("tunnel", "Cluster", &[FAR]), "-i -w 1"),
        // The endpoint goes.
        (objects("tunnel", "Cluster", &[]), "-m -w 0"),
    ] {
        setup.write(objects).unwrap();
        for server in servers {
            setup.wait_ipvs(&format!("{server} {shown}"), true).unwrap();
        }
        for connection in &mut connections {
            assert_eq!(connection.ask().unwrap().name, "far", "{shown}\n{}", ipvsadm(node.ns()));
        }
        if !shown.ends_with('0') {
            connections.extend(open());
        }
    }
}

#[test]
fn a_pod_of_this_node_answers_directly_by_its_route() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let near = node.pod(5).unwrap();
    let client = lab.client("client").unwrap();
    accept_local(&[&node]);
    near.ns
        .ip(&format!("addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\nlink set lo up", VIP[0], VIP[1]))
        .unwrap();
    let _backend = backend(&near.ns, "near");
    let setup = Setup::start(&node, &json!({}), objects("route", "Local", &[NEAR, FAR])).unwrap();
    setup.wait_bound(&VIP).unwrap();
    method(&setup, "-a -t 198.51.100.10:80 -r 10.244.1.5:80", 'g');
    method(&setup, "-a -t [2001:db8:100::10]:80 -r [fd00:244:1::5]:80", 'g');
    assert_sees_client(&client, &node, "near");
}

#[test]
fn where_answers_would_be_dropped_the_node_answers_and_tells_why() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let near = node.pod(5).unwrap();
    let client = lab.client("client").unwrap();
    let _backend = backend(&near.ns, "near");
    let often = json!({"ipvs": {"syncPeriod": "2s"}});
    let setup = Setup::start(&node, &often, objects("route", "Local", &[NEAR])).unwrap();
    setup.wait_bound(&VIP).unwrap();
    method(&setup, "-a -t 198.51.100.10:80 -r 10.244.1.5:80", 'm');
    client.route(VIP[0], &node.host).unwrap();
    assert_eq!(ask_tcp(&client.ns, at(VIP[0], 80), ANSWER).unwrap().name, "near");
    assert!(setup.agent.log().contains("net.ipv4.conf.all.accept_local is 0"), "{}", setup.agent.log());
    // The sysctl is set, and the next audit finds it.
    accept_local(&[&node]);
    method(&setup, "-a -t 198.51.100.10:80 -r 10.244.1.5:80", 'g');
}
