// SPDX-License-Identifier: Apache-2.0
//! Session affinity: IPVS persistence for one client address.

use std::collections::BTreeSet;

use integration::lab::traffic::{Connection, ask_tcp, ask_udp};
use integration::lab::{Lab, Node, Setup, at, ipvsadm};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, TARGETS, backend, names, set};

const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const NEAR: [&str; 2] = ["10.244.1.5@node-a", "fd00:244:1::5@node-a"];
const FAR: [&str; 2] = ["10.244.2.6@node-b", "fd00:244:2::6@node-b"];

/// The Service with both backends.
fn objects(service: ServiceBuilder) -> Vec<Value> {
    let slices = [0, 1].map(|family| slice("web", &[NEAR[family], FAR[family]], &TARGETS));
    std::iter::once(service.build()).chain(slices).collect()
}

fn service() -> ServiceBuilder {
    ServiceBuilder::new("web", &VIP, &PORTS)
}

#[test]
fn a_client_stays_with_its_backend_until_the_timeout() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let client = lab.client("outside").unwrap();
    let _backends = [backend(&near, "near"), backend(&far, "far")];
    let spec = service().affinity(12).node_ports(&[30080, 30053, 30009]);
    let setup = Setup::start(&node, &json!({}), objects(spec)).unwrap();
    setup.wait_bound(&VIP).unwrap();
    // What is left of a datagram's flow keeps the client's record alive; five minutes by default.
    node.ns().exec(&["ipvsadm", "--set", "0", "0", "1"]).unwrap();
    let node_ips = ["192.168.50.2", "fd00:50::2"];
    let mut first = Vec::new();
    for family in [0, 1] {
        let vip = VIP[family];
        assert_eq!(names(|| ask_tcp(&asker.ns, at(vip, 80), ANSWER), 6).len(), 1, "{vip}");
        assert_eq!(names(|| ask_tcp(&client.ns, at(node_ips[family], 30080), ANSWER), 6).len(), 1);
        let stuck = names(|| ask_udp(&asker.ns, at(vip, 53), ANSWER), 6);
        assert_eq!(stuck.len(), 1, "{vip}");
        first.push(stuck);
    }
    let remembered = || {
        let table = node.ns().exec(&["ipvsadm", "-Lnc"]).unwrap().stdout;
        table.lines().any(|line| line.starts_with("UDP"))
    };
    assert!(remembered());
    setup.wait("the end of affinity", || !remembered()).unwrap();
    for (family, stuck) in first.into_iter().enumerate() {
        // Round robin selects the other backend, and the client stays with it.
        let next = names(|| ask_udp(&asker.ns, at(VIP[family], 53), ANSWER), 4);
        assert_eq!(next.union(&stuck).count(), 2, "{next:?} after {stuck:?}");
        assert_eq!(next.len(), 1);
    }
}

/// Connections that the virtual server of the TCP port has seen since it was made, as of two seconds ago
/// at most: the kernel adds its counters up that often. None when a dump missed it, see [`Setup::wait_ipvs`].
fn seen_connections(node: &Node, vip: &str) -> Option<u64> {
    let shown = node.ns().exec(&["ipvsadm", "-Ln", "--stats", "--exact"]).unwrap().stdout;
    let place = at(vip, 80).to_string();
    let line = shown.lines().find(|line| line.starts_with("TCP") && line.contains(&place))?;
    line.split_whitespace().nth(2)?.parse().ok()
}

fn real_servers(node: &Node) -> BTreeSet<String> {
    ipvsadm(node.ns()).lines().filter(|l| l.starts_with("-a")).map(|l| l.trim().to_owned()).collect()
}

#[test]
fn affinity_changes_in_place() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let _backends = [backend(&near, "near"), backend(&far, "far")];
    let setup = Setup::start(&node, &json!({}), objects(service().affinity(5))).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let mut open = VIP.map(|vip| Connection::open(&asker.ns, at(vip, 80), ANSWER).unwrap());
    setup.wait("twelve real servers", || real_servers(&node).len() == 12).unwrap();
    let servers = real_servers(&node);
    let counted = |vip| seen_connections(&node, vip) > Some(0);
    setup.wait("the kernel's counters", || VIP.into_iter().all(counted)).unwrap();
    for (service, flags) in [
        (service().affinity(77), "-s rr -p 77"),
        (service(), "-s rr"),
        (service().affinity(600), "-s rr -p 600"),
    ] {
        let before = VIP.map(|vip| seen_connections(&node, vip));
        setup.write(objects(service)).unwrap();
        let edited = |line: &str| line.starts_with("-A") && line.trim().ends_with(flags);
        setup.wait(flags, || ipvsadm(node.ns()).lines().filter(|line| edited(line)).count() == 6).unwrap();
        setup.wait("the same real servers", || real_servers(&node) == servers).unwrap();
        for (index, connection) in open.iter_mut().enumerate() {
            connection.ask().unwrap();
            // A new virtual server would count from zero.
            let counted =
                || seen_connections(&node, VIP[index]).is_some_and(|now| Some(now) >= before[index]);
            setup.wait("counters that go on", counted).unwrap();
        }
    }
}

/// A client whose backend is drained gets another one for new connections, and keeps the old connection.
#[test]
fn affinity_ignores_a_drained_backend() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (one, two, asker) = (node.pod(5).unwrap(), node.pod(6).unwrap(), node.pod(9).unwrap());
    let _backends = [backend(&one, "5"), backend(&two, "6")];
    let place = |pod: &str, family: usize| {
        [format!("10.244.1.{pod}@node-a"), format!("fd00:244:1::{pod}@node-a")][family].clone()
    };
    let objects = |pods: [&[&str]; 2]| -> Vec<Value> {
        let slices = [0, 1].map(|family| {
            let places: Vec<String> = pods[family].iter().map(|pod| place(pod, family)).collect();
            slice("web", &places.iter().map(String::as_str).collect::<Vec<_>>(), &TARGETS)
        });
        std::iter::once(service().affinity(600).build()).chain(slices).collect()
    };
    let setup = Setup::start(&node, &json!({}), objects([&["5", "6"], &["5", "6"]])).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let mut open = VIP.map(|vip| Connection::open(&asker.ns, at(vip, 80), ANSWER).unwrap());
    let stuck = open.each_mut().map(|connection| connection.ask().unwrap().name);
    let rest = stuck.each_ref().map(|name| if name == "5" { "6" } else { "5" });
    setup.write(objects([&[rest[0]], &[rest[1]]])).unwrap();
    for (family, drained) in stuck.iter().enumerate() {
        let (vip, drained) =
            (at(VIP[family], 80), at(place(drained, family).split('@').next().unwrap(), 8080));
        setup.wait_ipvs(&format!("-a -t {vip} -r {drained} -m -w 0"), true).unwrap();
        assert_eq!(names(|| ask_tcp(&asker.ns, vip, ANSWER), 4), set(&[rest[family]]));
        assert_eq!(open[family].ask().unwrap().name, stuck[family]);
    }
}
