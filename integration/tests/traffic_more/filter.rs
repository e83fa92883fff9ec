// SPDX-License-Identifier: Apache-2.0
//! Masqueraded, dropped and refused traffic: hairpins, source ranges, host ports.

use std::net::IpAddr;
use std::time::Duration;

use integration::lab::traffic::{Connection, NoAnswer, ask_tcp, ask_udp};
use integration::lab::{Lab, Netns, Setup, at, bound, oracle};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, TARGETS, assert_refused, assert_silent, backend};

const LB: [&str; 2] = ["203.0.113.10", "2001:db8:b::10"];
const LB_2: [&str; 2] = ["203.0.113.11", "2001:db8:b::11"];
const EXTERNAL: [&str; 2] = ["198.51.100.10", "2001:db8:e::10"];
const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const CLUSTER_2: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
const NODE: [&str; 2] = ["192.168.50.2", "fd00:50::2"];
/// Addresses of pod 5 of node-a.
const POD: [&str; 2] = ["10.244.1.5@node-a", "fd00:244:1::5@node-a"];

/// The slices that send a Service to pod 5.
fn slices(name: &str) -> [Value; 2] {
    POD.map(|address| slice(name, &[address], &TARGETS[..1]))
}

fn with_slices(name: &str, service: ServiceBuilder) -> Vec<Value> {
    std::iter::once(service.build()).chain(slices(name)).collect()
}

/// A pod that answers itself through its Service must not see its own address as the client's: the
/// answer would not pass the node. No policy may keep that source.
#[test]
fn a_pod_reaches_itself_through_its_service() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (pod, other) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let _backend = backend(&pod, "self");
    let cluster = ServiceBuilder::new("all", &CLUSTER, &PORTS[..1])
        .load_balancer(&LB)
        .external_ips(&EXTERNAL)
        .node_ports(&[30080]);
    let local = ServiceBuilder::new("own", &CLUSTER_2, &PORTS[..1])
        .load_balancer(&LB_2)
        .node_ports(&[30081])
        .external_policy("Local")
        .internal_policy("Local");
    let objects = [with_slices("all", cluster), with_slices("own", local)].concat();
    let setup = Setup::start(&node, &json!({}), objects).unwrap();
    setup.wait_bound(&[CLUSTER, CLUSTER_2, LB, LB_2, EXTERNAL].concat()).unwrap();
    for family in [0, 1] {
        let own = [IpAddr::from(pod.v4), IpAddr::from(pod.v6)][family];
        let gateway = ["10.244.1.1", "fd00:244:1::1"][family].parse::<IpAddr>().unwrap();
        let vips = [CLUSTER, CLUSTER_2, LB, LB_2, EXTERNAL].map(|vip| at(vip[family], 80));
        let node_ports = [30080, 30081].map(|port| at(NODE[family], port));
        for target in vips.into_iter().chain(node_ports) {
            let answer =
                ask_tcp(&pod.ns, target, ANSWER).unwrap_or_else(|e| panic!("{own} to {target}: {e}"));
            assert_eq!((answer.name.as_str(), answer.seen_source), ("self", gateway), "{own} to {target}");
        }
        // Only the hairpin is masqueraded where the policy is Local.
        let asker = [IpAddr::from(other.v4), IpAddr::from(other.v6)][family];
        for target in [at(CLUSTER_2[family], 80), at(LB_2[family], 80), at(NODE[family], 30081)] {
            assert_eq!(ask_tcp(&other.ns, target, ANSWER).unwrap().seen_source, asker, "{target}");
        }
    }
}

/// Source ranges apply to clients outside, pods and the node, and only at the load balancer's addresses.
#[test]
fn source_ranges_admit_only_their_clients() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (allowed, denied) = (lab.client("allowed").unwrap(), lab.client("denied").unwrap());
    let (pod, asker) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    for (client, network) in [(&allowed, "203.0.113.0/24"), (&denied, "203.0.113.0/24")] {
        client.route(network, &node.host).unwrap();
        client.route("2001:db8::/32", &node.host).unwrap();
    }
    let _backend = backend(&pod, "web");
    let far = ServiceBuilder::new("far", &CLUSTER, &PORTS[..1])
        .load_balancer(&LB)
        .node_ports(&[30080])
        .source_ranges(&["192.168.50.100/32", "fd00:50::100/128"]);
    // The node's own addresses end in 2, the clients' in 100 and 101.
    let near = ServiceBuilder::new("near", &CLUSTER_2, &PORTS[..1])
        .load_balancer(&LB_2)
        .source_ranges(&["192.168.50.0/29", "fd00:50::/125"]);
    const LB_3: [&str; 2] = ["203.0.113.12", "2001:db8:b::12"];
    let mixed = ServiceBuilder::new("mixed", &["10.96.0.12", "fd00:96::12"], &PORTS[..1])
        .load_balancer(&LB_3)
        .source_ranges(&["192.168.50.100/32"]);
    let objects = [with_slices("far", far), with_slices("near", near), with_slices("mixed", mixed)].concat();
    let setup = Setup::start(&node, &json!({}), objects).unwrap();
    setup.wait_bound(&[CLUSTER, CLUSTER_2, LB, LB_2, LB_3].concat()).unwrap();
    // Ranges of one family only leave the other open, as with kube-proxy.
    assert_silent(&[(&denied.ns, at(LB_3[0], 80))]);
    assert_eq!(ask_tcp(&allowed.ns, at(LB_3[0], 80), ANSWER).unwrap().name, "web");
    assert_eq!(ask_tcp(&denied.ns, at(LB_3[1], 80), ANSWER).unwrap().name, "web");
    for family in [0, 1] {
        let (far, near) = (at(LB[family], 80), at(LB_2[family], 80));
        assert_eq!(ask_tcp(&allowed.ns, far, ANSWER).unwrap().name, "web");
        assert_eq!(ask_tcp(node.ns(), near, ANSWER).unwrap().name, "web", "the node is inside");
        assert_silent(&[
            (&denied.ns, far),
            (&asker.ns, far),
            (node.ns(), far),
            (&allowed.ns, near),
            (&asker.ns, near),
        ]);
        // Other frontends of the Service have no ranges.
        for target in [at(CLUSTER[family], 80), at(NODE[family], 30080)] {
            assert_eq!(ask_tcp(&asker.ns, target, ANSWER).unwrap().name, "web", "{target}");
            assert_eq!(ask_tcp(node.ns(), target, ANSWER).unwrap().name, "web", "{target}");
        }
        assert_eq!(ask_tcp(&denied.ns, at(NODE[family], 30080), ANSWER).unwrap().name, "web");
    }
}

/// A range that stays keeps its connections through changes of the others; one that goes cuts them.
#[test]
fn connections_break_when_their_source_range_is_removed() {
    change_source_ranges(false);
}

/// With `keepEstablished` an established connection survives its range; a new connection is refused.
#[test]
fn established_connections_can_survive_their_source_range() {
    change_source_ranges(true);
}

fn change_source_ranges(keep: bool) {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (first, second) = (lab.client("first").unwrap(), lab.client("second").unwrap());
    for client in [&first, &second] {
        client.route("203.0.113.0/24", &node.host).unwrap();
        client.route("2001:db8::/32", &node.host).unwrap();
    }
    let pod = node.pod(5).unwrap();
    let _backend = backend(&pod, "web");
    const FIRST: [&str; 2] = ["192.168.50.100/32", "fd00:50::100/128"];
    const SECOND: [&str; 2] = ["192.168.50.101/32", "fd00:50::101/128"];
    let of = |ranges: &[&str]| {
        let service = ServiceBuilder::new("web", &CLUSTER, &PORTS[..1]).load_balancer(&LB);
        with_slices("web", service.source_ranges(ranges))
    };
    let own = json!({"kubeIPVS": {"keepEstablished": keep}});
    let setup = Setup::start(&node, &own, of(&FIRST)).unwrap();
    setup.wait_bound(&LB).unwrap();
    // ipset shows a full-length range without its length.
    let in_force = |client: &str, there: bool| {
        let entry = format!(",tcp:80,{}", client.split('/').next().unwrap());
        let sets = oracle::sets(node.ns()).unwrap();
        sets.lines().any(|l| l.contains("LOAD-BALANCER-SOURCE-CID") && l.ends_with(&entry)) == there
    };
    // Also how long the end of the test waits for answers that do not come.
    let limit = Duration::from_secs(8);
    let open = |client: &integration::lab::Host| {
        [0, 1].map(|family| {
            let mut connection = Connection::open(&client.ns, at(LB[family], 80), limit).unwrap();
            assert_eq!(connection.ask().unwrap().name, "web");
            connection
        })
    };
    let mut of_first = open(&first);
    setup.write(of(&[FIRST, SECOND].concat())).unwrap();
    setup.wait("the new range", || SECOND.iter().all(|range| in_force(range, true))).unwrap();
    let mut of_second = open(&second);
    for connection in of_first.iter_mut().chain(&mut of_second) {
        assert_eq!(connection.ask().unwrap().name, "web");
    }
    setup.write(of(&SECOND)).unwrap();
    setup.wait("the end of the first range", || FIRST.iter().all(|range| in_force(range, false))).unwrap();
    for connection in &mut of_second {
        assert_eq!(connection.ask().unwrap().name, "web");
    }
    // kube-proxy's firewall chain looks at every packet, not only at new connections.
    std::thread::scope(|scope| {
        for connection in &mut of_first {
            scope.spawn(move || match connection.ask() {
                Ok(answer) => assert!(keep, "{answer:?}"),
                Err(error) => assert!(!keep && matches!(error, NoAnswer::Timeout), "{error}"),
            });
        }
    });
    assert_silent(&LB.map(|vip| (&first.ns, at(vip, 80))));
}

/// What [`host_ports_are_not_reached_through_services`] sees from one place, over one family.
fn only_services_answer(from: &Netns, family: usize) {
    for vip in [CLUSTER, LB, EXTERNAL] {
        assert_eq!(ask_tcp(from, at(vip[family], 80), ANSWER).unwrap().name, "web", "{}", vip[family]);
        assert_refused(from, at(vip[family], 2222));
        assert_refused(from, at(vip[family], 30080));
        let asked = ask_udp(from, at(vip[family], 2222), ANSWER);
        assert!(matches!(asked, Err(NoAnswer::Refused)), "{}: {asked:?}", vip[family]);
    }
    for own in [OWN, OWN_2] {
        assert_eq!(ask_tcp(from, at(own[family], 80), ANSWER).unwrap().name, "web", "{}", own[family]);
    }
    for own in [OWN, OWN_2, NODE] {
        assert_eq!(ask_tcp(from, at(own[family], 2222), ANSWER).unwrap().name, "host", "{}", own[family]);
        assert_eq!(ask_tcp(from, at(own[family], 30080), ANSWER).unwrap().name, "web", "{}", own[family]);
    }
}

/// More addresses of the node, which an external IP and a load balancer may well be.
const OWN: [&str; 2] = ["192.168.50.22", "fd00:50::22"];
const OWN_2: [&str; 2] = ["192.168.50.23", "fd00:50::23"];

/// Sockets of the node answer at the addresses of the node, and at no VIP.
#[test]
fn host_ports_are_not_reached_through_services() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let client = lab.client("outside").unwrap();
    for network in ["10.96.0.0/16", "203.0.113.0/24", "198.51.100.0/24", "fd00:96::/64", "2001:db8::/32"] {
        client.route(network, &node.host).unwrap();
    }
    let (pod, asker) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    node.ns()
        .ip("addr add 192.168.50.22/24 dev eth0\naddr add fd00:50::22/64 dev eth0 nodad\n\
             addr add 192.168.50.23/24 dev eth0\naddr add fd00:50::23/64 dev eth0 nodad")
        .unwrap();
    let _backend = backend(&pod, "web");
    let _host =
        integration::lab::traffic::Backend::new(node.ns(), "host").tcp(2222).unwrap().udp(2222).unwrap();
    let service = ServiceBuilder::new("web", &CLUSTER, &PORTS[..1])
        .load_balancer(&[LB, OWN_2].concat())
        .external_ips(&[EXTERNAL, OWN].concat())
        .node_ports(&[30080]);
    let setup = Setup::start(&node, &json!({}), with_slices("web", service)).unwrap();
    setup.wait_bound(&[CLUSTER, LB, EXTERNAL].concat()).unwrap();
    for own in [OWN, OWN_2].concat() {
        assert!(!bound(node.ns()).contains(&own.parse().unwrap()), "{own} is the node's already");
    }
    // At the same time: the kernel takes a second for some refusals, see docs/traffic.md.
    std::thread::scope(|scope| {
        for from in [&asker.ns, node.ns(), &client.ns] {
            for family in [0, 1] {
                scope.spawn(move || only_services_answer(from, family));
            }
        }
    });
    // NodePorts are not on the loopback.
    for loopback in ["127.0.0.1", "::1"] {
        assert_refused(node.ns(), at(loopback, 30080));
    }
}

/// kube-proxy knows NodePorts by their number alone: a load balancer's port of that number, of whatever
/// Service, is masqueraded in spite of the policy Local. External IPs are not.
#[test]
fn a_port_with_the_number_of_a_node_port_is_masqueraded() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let client = lab.client("outside").unwrap();
    for network in ["203.0.113.0/24", "198.51.100.0/24", "2001:db8::/32"] {
        client.route(network, &node.host).unwrap();
    }
    let pod = node.pod(5).unwrap();
    let _backend = backend(&pod, "web");
    let ports = [("plain", "TCP", 80), ("twin", "TCP", 30080)];
    let targets = [("plain", "TCP", 8080), ("twin", "TCP", 8080)];
    let local = ServiceBuilder::new("own", &CLUSTER, &ports)
        .load_balancer(&LB)
        .external_ips(&EXTERNAL)
        .external_policy("Local");
    let stranger = ServiceBuilder::new("stranger", &CLUSTER_2, &PORTS[..1]).node_ports(&[30080]);
    let mut objects = vec![local.build(), stranger.build()];
    objects.extend(POD.map(|address| slice("own", &[address], &targets)));
    let setup = Setup::start(&node, &json!({}), objects).unwrap();
    setup.wait_bound(&[CLUSTER, CLUSTER_2, LB, EXTERNAL].concat()).unwrap();
    for family in [0, 1] {
        let own = [IpAddr::from(client.v4), IpAddr::from(client.v6)][family];
        let kept = |target| ask_tcp(&client.ns, target, ANSWER).unwrap().seen_source == own;
        assert!(
            kept(at(LB[family], 80)) && kept(at(EXTERNAL[family], 80)) && kept(at(EXTERNAL[family], 30080))
        );
        assert!(!kept(at(LB[family], 30080)));
    }
}
