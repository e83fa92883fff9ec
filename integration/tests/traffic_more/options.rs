// SPDX-License-Identifier: Apache-2.0
//! Settings of a single Service, by annotation: connections live on when they change.

use integration::lab::traffic::{Connection, ask_tcp};
use integration::lab::{Lab, Setup, at, ipvsadm};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, TARGETS, assert_silent, backend};

const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const NEAR: [&str; 2] = ["10.244.1.5@node-a", "fd00:244:1::5@node-a"];
const FAR: [&str; 2] = ["10.244.2.6@node-b", "fd00:244:2::6@node-b"];

/// The Service with these annotations, and its backends: the near one, and the far one if `far`.
fn objects(annotations: &Value, far: bool) -> Vec<Value> {
    let service = ServiceBuilder::new("web", &VIP, &PORTS).annotations(annotations).build();
    let addresses = |family: usize| if far { vec![NEAR[family], FAR[family]] } else { vec![NEAR[family]] };
    let slices = [0, 1].map(|family| slice("web", &addresses(family), &TARGETS));
    std::iter::once(service).chain(slices).collect()
}

#[test]
fn a_change_of_scheduler_keeps_connections_and_a_drain_ends_by_the_deadline_of_the_service() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let _backends = [backend(&near, "near"), backend(&far, "far")];
    let setup = Setup::start(&node, &json!({}), objects(&json!({}), true)).unwrap();
    setup.wait_bound(&VIP).unwrap();
    // Round robin: one of two is at the far backend.
    let open = |vip: &str| Connection::open(&asker.ns, at(vip, 80), ANSWER).unwrap();
    let mut connections: Vec<Connection> = VIP.iter().flat_map(|vip| [open(vip), open(vip)]).collect();
    let names: Vec<String> = connections.iter_mut().map(|c| c.ask().unwrap().name).collect();
    for (annotations, shown) in [
        (json!({"kube-ipvs.io/scheduler": "mh", "kube-ipvs.io/scheduler-flags": "mh-fallback"}), "mh"),
        (json!({"kube-router.io/service.scheduler": "lc"}), "lc"),
        (json!({"kube-ipvs.io/drain-deadline": "2s"}), "rr"),
    ] {
        setup.write(objects(&annotations, true)).unwrap();
        for server in ["-t 10.96.0.10:80", "-t [fd00:96::10]:80", "-u 10.96.0.10:53"] {
            setup.wait_ipvs(&format!("-A {server} -s {shown}"), true).unwrap();
        }
        for (connection, name) in connections.iter_mut().zip(&names) {
            assert_eq!(connection.ask().unwrap().name, *name, "{shown}");
        }
    }
    setup.write(objects(&json!({"kube-ipvs.io/drain-deadline": "2s"}), false)).unwrap();
    setup.wait_ipvs("-a -t 10.96.0.10:80 -r 10.244.2.6:8080", false).unwrap();
    for (connection, name) in connections.iter_mut().zip(&names) {
        assert_eq!(connection.ask().is_ok(), name == "near", "{name}\n{}", ipvsadm(node.ns()));
    }
}

/// The Service with this label, too.
fn labelled(annotations: &Value, tier: &str) -> Vec<Value> {
    let mut objects = objects(annotations, true);
    objects[0]["metadata"]["labels"] = json!({"tier": tier});
    objects
}

#[test]
fn connections_live_through_the_changes_of_all_settings() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let _backends = [backend(&near, "near"), backend(&far, "far")];
    let defaults = json!({"kubeIPVS": {"serviceDefaults": [
        {"selector": {"matchLabels": {"tier": "sessions"}}, "settings": {"scheduler": "mh"}},
    ]}});
    let setup = Setup::start(&node, &defaults, labelled(&json!({}), "web")).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let open = |vip: &str| Connection::open(&asker.ns, at(vip, 80), ANSWER).unwrap();
    let mut connections: Vec<Connection> = VIP.iter().flat_map(|vip| [open(vip), open(vip)]).collect();
    let names: Vec<String> = connections.iter_mut().map(|c| c.ask().unwrap().name).collect();
    let syncs = || setup.agent.log().matches("due=Changes").count();
    for (annotations, tier, shown) in [
        (json!({"kube-ipvs.io/hairpin": "false"}), "web", "rr"),
        (json!({"kube-ipvs.io/slow-start": "30s"}), "web", "wrr"),
        (json!({"kube-ipvs.io/probe": "interval=1s"}), "web", "rr"),
        (json!({"kube-ipvs.io/max-connections": "100"}), "web", "rr"),
        (json!({"kube-ipvs.io/scheduler": "sh", "kube-ipvs.io/scheduler-flags": "sh-port"}), "web", "sh"),
        (json!({"kube-ipvs.io/scheduler": "sh", "kube-ipvs.io/scheduler-flags": "sh-fallback"}), "web", "sh"),
        (json!({}), "sessions", "mh"),
        (json!({}), "web", "rr"),
    ] {
        let before = syncs();
        setup.write(labelled(&annotations, tier)).unwrap();
        setup.wait("the sync", || syncs() > before).unwrap();
        for server in ["-t 10.96.0.10:80", "-t [fd00:96::10]:80", "-u 10.96.0.10:53"] {
            setup.wait_ipvs(&format!("-A {server} -s {shown}"), true).unwrap();
        }
        for (connection, name) in connections.iter_mut().zip(&names) {
            let answer = connection.ask().unwrap_or_else(|error| panic!("{annotations} {tier}: {error}"));
            assert_eq!(answer.name, *name, "{annotations} {tier}");
        }
    }
}

#[test]
fn without_hairpin_a_pod_does_not_reach_itself() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (near, asker) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let _backend = backend(&near, "near");
    let setup = Setup::start(&node, &json!({}), objects(&json!({}), false)).unwrap();
    setup.wait_bound(&VIP).unwrap();
    for vip in VIP {
        assert_eq!(ask_tcp(&near.ns, at(vip, 80), ANSWER).unwrap().name, "near");
    }
    let syncs = || setup.agent.log().matches("sync: ").count();
    let before = syncs();
    setup.write(objects(&json!({"kube-ipvs.io/hairpin": "false"}), false)).unwrap();
    setup.wait("the sync", || syncs() > before).unwrap();
    assert_silent(&VIP.map(|vip| (&near.ns, at(vip, 80))));
    for vip in VIP {
        assert_eq!(ask_tcp(&asker.ns, at(vip, 80), ANSWER).unwrap().name, "near", "other pods do");
    }
}
