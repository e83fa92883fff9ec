// SPDX-License-Identifier: Apache-2.0
//! Weights, limits, slow start and checks of endpoints, by annotation.

use std::collections::BTreeMap;

use integration::lab::traffic::{Backend, Connection, NoAnswer};
use integration::lab::{Lab, Netns, Node, Pod, Setup, at, ipvsadm};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, TARGETS};

const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const NEAR: [&str; 2] = ["10.244.1.5@node-a", "fd00:244:1::5@node-a"];
const FAR: [&str; 2] = ["10.244.2.6@node-b", "fd00:244:2::6@node-b"];
const THIRD: [&str; 2] = ["10.244.2.7@node-b", "fd00:244:2::7@node-b"];
/// The real servers as ipvsadm prints them, up to the weight.
const SERVERS: [[&str; 2]; 2] = [
    [
        "-a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m -w ",
        "-a -t [fd00:96::10]:80 -r [fd00:244:1::5]:8080 -m -w ",
    ],
    [
        "-a -t 10.96.0.10:80 -r 10.244.2.6:8080 -m -w ",
        "-a -t [fd00:96::10]:80 -r [fd00:244:2::6]:8080 -m -w ",
    ],
];

/// The Service with annotations, and its endpoints, whose slices have annotations, too.
fn objects(service: &Value, slices: &Value, endpoints: &[[&str; 2]]) -> Vec<Value> {
    let service = ServiceBuilder::new("web", &VIP, &PORTS[..1]).annotations(service).build();
    let slices = [0, 1].map(|family| {
        let addresses: Vec<&str> = endpoints.iter().map(|endpoint| endpoint[family]).collect();
        let mut slice = slice("web", &addresses, &TARGETS[..1]);
        slice["metadata"]["annotations"] = slices.clone();
        slice
    });
    std::iter::once(service).chain(slices).collect()
}

/// Two pods on two nodes, and one that asks.
fn pods(node: &Node, other: &Node) -> (Pod, Pod, Pod) {
    (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap())
}

fn tcp<'a>(pod: &'a Pod, name: &str) -> Backend<'a> {
    Backend::new(&pod.ns, name).tcp(8080).unwrap()
}

fn wait_weights(setup: &Setup<'_>, weights: [u32; 2]) {
    for (servers, weight) in SERVERS.iter().zip(weights) {
        for server in servers {
            setup.wait_ipvs(&format!("{server}{weight}"), true).unwrap();
        }
    }
}

/// How often each backend answers new connections, which are reset.
fn shares(ns: &Netns, vip: &str, times: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..times {
        let mut connection = Connection::open(ns, at(vip, 80), ANSWER).unwrap();
        *shares.entry(connection.ask().unwrap().name).or_default() += 1;
        connection.abort().unwrap();
    }
    shares
}

fn share(near: usize, far: usize) -> BTreeMap<String, usize> {
    [("near", near), ("far", far)]
        .into_iter()
        .filter(|(_, n)| *n > 0)
        .map(|(name, n)| (name.to_owned(), n))
        .collect()
}

/// An open connection to the far backend over each family.
fn connect_far(ns: &Netns) -> Vec<Connection> {
    let to_far = |vip: &&str| {
        (0..4).find_map(|_| {
            let mut connection = Connection::open(ns, at(vip, 80), ANSWER).unwrap();
            (connection.ask().unwrap().name == "far").then_some(connection)
        })
    };
    VIP.iter().map(|vip| to_far(vip).unwrap()).collect()
}

#[test]
fn weights_share_connections_and_weight_0_keeps_the_open_ones() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = pods(&node, &other);
    let _backends = [tcp(&near, "near"), tcp(&far, "far")];
    let weighted = |value: &str| objects(&json!({}), &json!({"kube-ipvs.io/weight": value}), &[NEAR, FAR]);
    let setup = Setup::start(&node, &json!({}), weighted("1")).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let mut open = connect_far(&asker.ns);
    setup.write(weighted("10.244.1.5=3,fd00:244:1::5=3")).unwrap();
    wait_weights(&setup, [3, 1]);
    setup.wait_ipvs("-A -t 10.96.0.10:80 -s wrr", true).unwrap();
    for vip in VIP {
        assert_eq!(shares(&asker.ns, vip, 8), share(6, 2), "{}", ipvsadm(node.ns()));
    }
    setup.write(weighted("10.244.2.6=0,fd00:244:2::6=0")).unwrap();
    wait_weights(&setup, [1, 0]);
    for (vip, connection) in VIP.iter().zip(&mut open) {
        assert_eq!(shares(&asker.ns, vip, 4), share(4, 0));
        assert_eq!(connection.ask().unwrap().name, "far", "maintenance keeps connections");
    }
}

#[test]
fn a_full_endpoint_gets_no_new_connections_until_some_end() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = pods(&node, &other);
    let _backends = [tcp(&near, "near"), tcp(&far, "far")];
    let limited =
        |limit: &str| json!({"kube-ipvs.io/max-connections": limit, "kube-ipvs.io/scheduler": "fo"});
    let setup = Setup::start(&node, &json!({}), objects(&limited("2,1"), &json!({}), &[NEAR, FAR])).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let thresholds = || node.ns().exec(&["ipvsadm", "-Ln", "--thresholds"]).unwrap().stdout;
    setup.wait("the limits", || thresholds().matches("2          1").count() == 4).unwrap();
    // Failover takes one endpoint as long as it has room.
    let mut open: Vec<Connection> =
        (0..4).map(|_| Connection::open(&asker.ns, at(VIP[0], 80), ANSWER).unwrap()).collect();
    let names: Vec<String> = open.iter_mut().map(|connection| connection.ask().unwrap().name).collect();
    assert_eq!((&names[0], &names[2]), (&names[1], &names[3]), "{names:?}");
    assert_ne!(names[0], names[2], "{names:?}\n{}", thresholds());
    let full = Connection::open(&asker.ns, at(VIP[0], 80), super::SILENCE);
    assert!(matches!(full, Err(NoAnswer::Refused | NoAnswer::Timeout)), "both are full");
    // The limit goes, and connections stay.
    setup.write(objects(&limited("100"), &json!({}), &[NEAR, FAR])).unwrap();
    setup.wait("the new limits", || thresholds().matches("100        0").count() == 4).unwrap();
    for (connection, name) in open.iter_mut().zip(&names) {
        assert_eq!(connection.ask().unwrap().name, *name);
    }
    assert!(Connection::open(&asker.ns, at(VIP[0], 80), ANSWER).unwrap().ask().is_ok());
    // Another agent finds them and writes nothing.
    let setup = setup.restart().unwrap();
    setup.wait("the restart", || setup.agent.log().contains("ready")).unwrap();
    assert_eq!(thresholds().matches("100        0").count(), 4, "{}", thresholds());
}

#[test]
fn a_new_endpoint_starts_with_a_tenth_of_its_weight() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = pods(&node, &other);
    let _backends = [tcp(&near, "near"), tcp(&far, "far")];
    let slow = json!({"kube-ipvs.io/slow-start": "20s"});
    let setup = Setup::start(&node, &json!({}), objects(&slow, &json!({}), &[NEAR])).unwrap();
    setup.wait_bound(&VIP).unwrap();
    setup.write(objects(&slow, &json!({}), &[NEAR, FAR])).unwrap();
    setup.wait_ipvs("-a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m -w 100", true).unwrap();
    let weight = || {
        let shown = ipvsadm(node.ns());
        let line = shown.lines().find(|line| line.starts_with(SERVERS[1][0])).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok())
    };
    let mut seen = Vec::new();
    setup
        .wait("the whole weight", || {
            seen.extend(weight().filter(|weight| seen.last() != Some(weight)));
            seen.last() == Some(&100)
        })
        .unwrap();
    assert!(seen[0] <= 40 && seen.is_sorted() && seen.len() > 3, "{seen:?}");
    for vip in VIP {
        assert_eq!(shares(&asker.ns, vip, 4), share(2, 2));
    }
}

#[test]
fn an_endpoint_that_stops_to_answer_is_taken_out_before_the_api_tells() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = pods(&node, &other);
    let third = other.pod(7).unwrap();
    let mut backends = vec![tcp(&near, "near"), tcp(&third, "third"), tcp(&far, "far")];
    let checked = json!({"kube-ipvs.io/probe": "interval=1s,timeout=1s,threshold=2"});
    let all = || objects(&checked, &json!({}), &[NEAR, FAR, THIRD]);
    let setup = Setup::start(&node, &json!({}), all()).unwrap();
    setup.wait_bound(&VIP).unwrap();
    wait_weights(&setup, [1, 1]);
    // Only an endpoint that answered once can fail: each is asked once a second.
    std::thread::sleep(std::time::Duration::from_secs(8));
    drop(backends.pop());
    wait_weights(&setup, [1, 0]);
    for vip in VIP {
        assert!(!shares(&asker.ns, vip, 6).contains_key("far"));
    }
    let told = |setup: &Setup<'_>, what| assert!(setup.agent.log().contains(what), "{}", setup.agent.log());
    told(&setup, "no answer to TCP checks of this node");
    // The next agent knows of no answers, and leaves it out.
    let setup = setup.restart().unwrap();
    setup.wait("the restart", || setup.agent.log().contains("ready")).unwrap();
    told(&setup, "have weight 0 in the kernel get new connections when they answer a TCP check");
    std::thread::sleep(std::time::Duration::from_secs(4));
    wait_weights(&setup, [1, 0]);
    for vip in VIP {
        assert!(!shares(&asker.ns, vip, 6).contains_key("far"));
    }
    backends.push(tcp(&far, "far"));
    wait_weights(&setup, [1, 1]);
    // All but one fail: none is taken out.
    drop(backends.pop());
    wait_weights(&setup, [1, 0]);
    drop(backends.pop());
    wait_weights(&setup, [1, 1]);
    drop(backends.pop());
    std::thread::sleep(std::time::Duration::from_secs(6));
    wait_weights(&setup, [1, 1]);
}
