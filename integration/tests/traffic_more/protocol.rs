// SPDX-License-Identifier: Apache-2.0
//! NodePorts of every protocol and both families, and traffic between nodes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use integration::lab::traffic::{Answer, Connection, NoAnswer, ask_sctp, ask_tcp, ask_udp};
use integration::lab::{Host, Lab, Netns, Node, Setup, at, bound};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, TARGETS, assert_refused, assert_silent, backend, names, set};

type Ask = fn(&Netns, SocketAddr, Duration) -> Result<Answer, NoAnswer>;

const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const VIP_2: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
const NEAR: [&str; 2] = ["10.244.1.5@node-a", "fd00:244:1::5@node-a"];
const FAR: [&str; 2] = ["10.244.2.6@node-b", "fd00:244:2::6@node-b"];

fn own(host: &Host, family: usize) -> IpAddr {
    [IpAddr::from(host.v4), IpAddr::from(host.v6)][family]
}

fn with_slices(name: &str, service: ServiceBuilder, endpoints: [&[&str]; 2]) -> Vec<Value> {
    let slices = endpoints.map(|addresses| slice(name, addresses, &TARGETS));
    std::iter::once(service.build()).chain(slices).collect()
}

/// TCP, UDP and SCTP through the NodePort, from outside: balanced and masqueraded, or local and not.
#[test]
fn node_ports_carry_every_protocol() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let client = lab.client("outside").unwrap();
    let _backends = [backend(&near, "near"), backend(&far, "far")];
    let both = [[NEAR[0], FAR[0]], [NEAR[1], FAR[1]]];
    let both = both.each_ref().map(<[_; 2]>::as_slice);
    let all = ServiceBuilder::new("all", &VIP, &PORTS).node_ports(&[30080, 30053, 30009]);
    let local = ServiceBuilder::new("own", &VIP_2, &PORTS)
        .node_ports(&[31080, 31053, 31009])
        .external_policy("Local");
    let objects = [with_slices("all", all, both), with_slices("own", local, both)].concat();
    let setup = Setup::start(&node, &json!({}), objects).unwrap();
    setup.wait_bound(&[VIP, VIP_2].concat()).unwrap();
    let asks: [(Ask, [u16; 2]); 3] =
        [(ask_tcp, [30080, 31080]), (ask_udp, [30053, 31053]), (ask_sctp, [30009, 31009])];
    for (ask, [all, local]) in asks {
        for (family, from) in [0, 1].into_iter().flat_map(|family| [(family, &client), (family, &asker)]) {
            let place = |port| (own(&node.host, family), port).into();
            assert_eq!(names(|| ask(&from.ns, place(all), ANSWER), 4), set(&["near", "far"]), "{all}");
            for _ in 0..2 {
                let answer = ask(&from.ns, place(all), ANSWER).unwrap();
                assert_ne!(answer.seen_source, own(from, family), "{all}: {} sees the client", answer.name);
                let answer = ask(&from.ns, place(local), ANSWER).unwrap();
                assert_eq!(
                    (answer.name.as_str(), answer.seen_source),
                    ("near", own(from, family)),
                    "{local}"
                );
            }
        }
    }
    drop(setup);
}

/// IPVS finds the connection of an answer by client and real server alone, and takes the newest.
#[test]
fn one_source_port_to_two_services_with_one_endpoint_is_an_ipvs_limit() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (near, asker) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let _backend = backend(&near, "near");
    let one = || [&NEAR[..1], &NEAR[1..]];
    let (first, second) =
        (ServiceBuilder::new("first", &VIP, &PORTS), ServiceBuilder::new("second", &VIP_2, &PORTS));
    let objects = [with_slices("first", first, one()), with_slices("second", second, one())].concat();
    let setup = Setup::start(&node, &json!({}), objects).unwrap();
    setup.wait_bound(&[VIP, VIP_2].concat()).unwrap();
    for family in [0, 1] {
        let open = |port, vip: [&str; 2], limit| {
            Connection::open_from(&asker.ns, port, at(vip[family], 80), limit).unwrap()
        };
        let mut older = open(40000, VIP, ANSWER / 2);
        assert_eq!(older.ask().unwrap().name, "near");
        let mut newer = open(40000, VIP_2, ANSWER);
        assert_eq!(newer.ask().unwrap().name, "near");
        assert!(matches!(older.ask(), Err(NoAnswer::Timeout)), "its answer has the address of the newer one");
        let mut other = open(40001, VIP, ANSWER);
        assert_eq!(other.ask().unwrap().name, "near");
        assert_eq!(newer.ask().unwrap().name, "near");
    }
}

/// Each family has its own addresses and endpoints. A single-stack Service does not exist in the other family.
#[test]
fn families_are_independent() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (pod, other, asker) = (node.pod(5).unwrap(), node.pod(6).unwrap(), node.pod(9).unwrap());
    let client = lab.client("outside").unwrap();
    let _backends = [backend(&pod, "five"), backend(&other, "six")];
    let dual = ServiceBuilder::new("dual", &VIP, &PORTS).node_ports(&[30080]);
    let only_4 = ServiceBuilder::new("four", &VIP_2[..1], &PORTS).node_ports(&[30081]).build();
    let only_6 = ServiceBuilder::new("six", &VIP_2[1..], &PORTS).node_ports(&[30082]).build();
    let objects = [
        with_slices("dual", dual, [&["10.244.1.5@node-a"], &["fd00:244:1::6@node-a"]]),
        vec![only_4, only_6, slice("four", &NEAR[..1], &TARGETS), slice("six", &NEAR[1..], &TARGETS)],
    ];
    let setup = Setup::start(&node, &json!({}), objects.concat()).unwrap();
    setup.wait_bound(&[VIP, VIP_2].concat()).unwrap();
    for (family, name) in ["five", "six"].into_iter().enumerate() {
        let place = |port| SocketAddr::from((own(&node.host, family), port));
        assert_eq!(names(|| ask_tcp(&asker.ns, at(VIP[family], 80), ANSWER), 3), set(&[name]));
        assert_eq!(names(|| ask_tcp(&client.ns, place(30080), ANSWER), 3), set(&[name]));
        assert_eq!(ask_tcp(&asker.ns, at(VIP_2[family], 80), ANSWER).unwrap().name, "five");
        let (there, absent) = if family == 0 { (30081, 30082) } else { (30082, 30081) };
        assert_eq!(ask_tcp(&client.ns, place(there), ANSWER).unwrap().name, "five");
        assert_refused(&client.ns, place(absent));
    }
    drop(setup);
}

/// The objects of [`services_work_between_nodes`]: the only backend is on node-b.
fn backend_on_b() -> Vec<Value> {
    let far = FAR.each_ref().map(std::slice::from_ref);
    let all = ServiceBuilder::new("all", &VIP, &PORTS)
        .node_ports(&[30080, 30053, 30009])
        .load_balancer(&["203.0.113.10", "2001:db8:b::10"]);
    let local = ServiceBuilder::new("own", &VIP_2, &PORTS)
        .node_ports(&[31080, 31053, 31009])
        .external_policy("Local");
    // The load balancer itself answers at this address: no node may.
    let proxied = ServiceBuilder::new("proxied", &["10.96.0.12"], &PORTS)
        .ingress("203.0.113.12", Some("Proxy"))
        .build();
    [with_slices("all", all, far), with_slices("own", local, far), vec![proxied]].concat()
}

/// Two nodes, each with an agent, and the only backend on the second.
#[test]
fn services_work_between_nodes() {
    let lab = Lab::new().unwrap();
    let (a, b) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (far, on_a) = (b.pod(6).unwrap(), a.pod(9).unwrap());
    let client = lab.client("outside").unwrap();
    let _backend = backend(&far, "far");
    let agents = [&a, &b].map(|node: &Node| Setup::start(node, &json!({}), backend_on_b()).unwrap());
    for agent in &agents {
        agent
            .wait_bound(&[
                "10.96.0.10",
                "fd00:96::10",
                "203.0.113.10",
                "2001:db8:b::10",
                "fd00:96::11",
                "10.96.0.12",
            ])
            .unwrap();
    }
    for node in [&a, &b] {
        assert!(
            !bound(node.ns()).contains(&"203.0.113.12".parse().unwrap()),
            "ipMode Proxy is not for nodes"
        );
    }
    for family in [0, 1] {
        let (on_node_a, on_node_b) = (own(&a.host, family), own(&b.host, family));
        let gateway_b = ["10.244.2.1", "fd00:244:2::1"][family].parse::<IpAddr>().unwrap();
        let asks: [(Ask, u16); 3] = [(ask_tcp, 30080), (ask_udp, 30053), (ask_sctp, 30009)];
        for (ask, port) in asks {
            // In through the one node, on to the other and back; in through the other.
            let answer = ask(&client.ns, (on_node_a, port).into(), ANSWER).unwrap();
            assert_eq!((answer.name.as_str(), answer.seen_source), ("far", on_node_a), "{port}");
            let answer = ask(&client.ns, (on_node_b, port).into(), ANSWER).unwrap();
            assert_eq!((answer.name.as_str(), answer.seen_source), ("far", gateway_b), "{port}");
            // From one node, or a pod of it, to the NodePort of the other.
            assert_eq!(ask(a.ns(), (on_node_b, port).into(), ANSWER).unwrap().name, "far");
            assert_eq!(ask(&on_a.ns, (on_node_b, port).into(), ANSWER).unwrap().name, "far");
            // With the policy Local: the node with the backend keeps the source.
            let answer = ask(&client.ns, (on_node_b, port + 1000).into(), ANSWER).unwrap();
            assert_eq!((answer.name.as_str(), answer.seen_source), ("far", own(&client, family)), "{port}");
        }
        // The ClusterIP, from the node without a backend and from its pod; the load balancer's address.
        assert_eq!(ask_tcp(a.ns(), at(VIP[family], 80), ANSWER).unwrap().seen_source, on_node_a);
        assert_eq!(ask_tcp(&on_a.ns, at(VIP[family], 80), ANSWER).unwrap().seen_source, own(&on_a, family));
        let lb = at(["203.0.113.10", "2001:db8:b::10"][family], 80);
        for (network, node) in [&a, &b].map(|node| (lb.ip().to_string(), node)) {
            client.route(&network, &node.host).unwrap();
            assert_eq!(ask_tcp(&client.ns, lb, ANSWER).unwrap().name, "far", "over {}", node.name);
        }
        // The node without a backend sends the policy Local on, unmasqueraded, and the answer passes it by.
        assert_silent(&[(&client.ns, (on_node_a, 31080).into())]);
    }
    // A long connection through the first node: what the client asks later still arrives.
    let mut connection = Connection::open(&client.ns, (a.host.v4, 30080).into(), ANSWER).unwrap();
    for _ in 0..5 {
        assert_eq!(connection.ask().unwrap().name, "far");
    }
}
