// SPDX-License-Identifier: Apache-2.0
//! Services whose type, policies and ports change, and nodes whose addresses change, under traffic.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use integration::lab::traffic::{Connection, ask_tcp};
use integration::lab::{Host, Lab, Setup, at, bound};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, TARGETS, assert_refused, backend, names, set};

const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const LB: [&str; 2] = ["203.0.113.10", "2001:db8:b::10"];
const EXTERNAL: [&str; 2] = ["198.51.100.10", "2001:db8:e::10"];
const NODE: [&str; 2] = ["192.168.50.2", "fd00:50::2"];

fn service() -> ServiceBuilder {
    ServiceBuilder::new("web", &VIP, &PORTS[..1])
}

fn with_slices(service: ServiceBuilder) -> Vec<Value> {
    let slices = ["10.244.1.5@node-a", "fd00:244:1::5@node-a"].map(|a| slice("web", &[a], &TARGETS[..1]));
    std::iter::once(service.build()).chain(slices).collect()
}

/// Waits until the pod answers and sees the address of the client, or another one.
fn wait_source(setup: &Setup<'_>, client: &Host, target: SocketAddr, kept: bool) {
    let own = if target.is_ipv4() { IpAddr::from(client.v4) } else { IpAddr::from(client.v6) };
    let as_wanted = || {
        let answer = ask_tcp(&client.ns, target, Duration::from_secs(3));
        answer.is_ok_and(|answer| (answer.seen_source == own) == kept)
    };
    let what =
        format!("an answer from {target} to {}", if kept { "the client's address" } else { "the node's" });
    setup.wait(&what, as_wanted).unwrap();
}

/// From ClusterIP to NodePort to load balancer, from policy to policy, and all the way back: a connection
/// over an unchanged frontend survives.
#[test]
fn a_service_changes_its_type_and_policies() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (pod, asker) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let client = lab.client("outside").unwrap();
    client.route("203.0.113.0/24", &node.host).unwrap();
    client.route("2001:db8::/32", &node.host).unwrap();
    let _backend = backend(&pod, "web");
    let setup = Setup::start(&node, &json!({}), with_slices(service())).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let mut open = VIP.map(|vip| Connection::open(&asker.ns, at(vip, 80), ANSWER).unwrap());
    let balanced = || service().load_balancer(&LB);
    let (own, lb) = (|port| NODE.map(|address| at(address, port)), LB.map(|address| at(address, 80)));
    // The new spec, the frontend, and whether the backend sees the client's address.
    let steps = [
        (service().node_ports(&[30080]), own(30080), false),
        (service().node_ports(&[30080]).external_policy("Local"), own(30080), true),
        (balanced().node_ports(&[30080]).external_policy("Local"), lb, true),
        (balanced().node_ports(&[30080]).external_policy("Cluster"), lb, false),
        (balanced().node_ports(&[30090]), own(30090), false),
        (balanced().external_policy("Local"), lb, true),
    ];
    for (service, targets, kept) in steps {
        setup.write(with_slices(service)).unwrap();
        for target in targets {
            wait_source(&setup, &client, target, kept);
        }
        for connection in &mut open {
            assert_eq!(connection.ask().unwrap().name, "web");
        }
    }
    setup.write(with_slices(service())).unwrap();
    let bare = || bound(node.ns()) == VIP.map(|vip| vip.parse().unwrap()).into();
    setup.wait("the end of the load balancer's addresses", bare).unwrap();
    for (family, connection) in open.iter_mut().enumerate() {
        assert_eq!(connection.ask().unwrap().name, "web");
        for port in [30080, 30090] {
            setup.wait_ipvs(&format!("-A -t {}", at(NODE[family], port)), false).unwrap();
            assert_refused(&client.ns, at(NODE[family], port));
        }
    }
}

/// NodePorts are on the current addresses of the node. A VIP that becomes an address of the node keeps
/// working, and so do sockets at it. When it is no longer an address of the node, it is bound again.
#[test]
fn node_addresses_are_added_and_removed() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let client = lab.client("outside").unwrap();
    for network in ["198.51.100.0/24", "2001:db8::/32"] {
        client.route(network, &node.host).unwrap();
    }
    let pod = node.pod(5).unwrap();
    let _backend = backend(&pod, "web");
    let _host = integration::lab::traffic::Backend::new(node.ns(), "host").tcp(2222).unwrap();
    let spec = service().node_ports(&[30080]).external_ips(&EXTERNAL);
    let setup = Setup::start(&node, &json!({"ipvs": {"syncPeriod": "5s"}}), with_slices(spec)).unwrap();
    setup.wait_bound(&[VIP, EXTERNAL].concat()).unwrap();
    const MORE: [&str; 2] = ["192.168.50.33", "fd00:50::33"];
    let change = |verb: &str| {
        let lines = [(MORE[0], 24), (MORE[1], 64), (EXTERNAL[0], 32), (EXTERNAL[1], 128)]
            .map(|(address, length)| format!("addr {verb} {address}/{length} dev eth0"));
        node.ns().ip(&lines.join("\n")).unwrap();
    };
    for vip in EXTERNAL {
        assert_refused(&client.ns, at(vip, 2222));
    }
    change("add");
    let is_bound = |vip: &str| bound(node.ns()).contains(&vip.parse().unwrap());
    for family in [0, 1] {
        wait_source(&setup, &client, at(MORE[family], 30080), false);
        setup.wait("the VIP's own way", || !is_bound(EXTERNAL[family])).unwrap();
        assert_eq!(names(|| ask_tcp(&client.ns, at(EXTERNAL[family], 80), ANSWER), 2), set(&["web"]));
        let host = || ask_tcp(&client.ns, at(EXTERNAL[family], 2222), ANSWER).is_ok_and(|a| a.name == "host");
        setup.wait("the host's port", host).unwrap();
    }
    change("del");
    for family in [0, 1] {
        setup.wait_bound(&[EXTERNAL[family]]).unwrap();
        wait_source(&setup, &client, at(EXTERNAL[family], 80), false);
        assert_refused(&client.ns, at(EXTERNAL[family], 2222));
        setup.wait_ipvs(&format!("-A -t {}", at(MORE[family], 30080)), false).unwrap();
    }
}

/// A Service that is deleted has no drain, as with kube-proxy: its connections get no more answers.
#[test]
fn a_deleted_service_refuses_connections() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (pod, asker) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let client = lab.client("outside").unwrap();
    let _backend = backend(&pod, "web");
    let spec = service().node_ports(&[30080]);
    let setup = Setup::start(&node, &json!({}), with_slices(spec)).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let limit = Duration::from_secs(8);
    let mut open: Vec<Connection> = [0, 1]
        .into_iter()
        .flat_map(|family| [(&asker.ns, at(VIP[family], 80)), (&client.ns, at(NODE[family], 30080))])
        .map(|(ns, target)| Connection::open(ns, target, limit).unwrap())
        .collect();
    for connection in &mut open {
        assert_eq!(connection.ask().unwrap().name, "web");
    }
    setup.write(vec![]).unwrap();
    setup.wait("the end of the Service", || bound(node.ns()).is_empty()).unwrap();
    for family in [0, 1] {
        setup.wait_ipvs(&format!("-A -t {}", at(NODE[family], 30080)), false).unwrap();
        assert_refused(&client.ns, at(NODE[family], 30080));
    }
    std::thread::scope(|scope| {
        for connection in &mut open {
            scope.spawn(|| {
                let asked = connection.ask();
                println!("{:?}: {asked:?}", connection.local());
                assert!(asked.is_err(), "{asked:?}");
            });
        }
    });
}
