// SPDX-License-Identifier: Apache-2.0
//! Added and removed backends: TCP connections drain, UDP flows move at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use integration::lab::traffic::{Answer, Connection, NoAnswer, UdpFlow, ask_tcp};
use integration::lab::{Lab, Netns, Setup, at};
use integration::objects::State::{NotReady, Ready, Terminating};
use integration::objects::{ServiceBuilder, State, slice, slice_of};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, TARGETS, backend, names, set};

const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const NODE: [&str; 2] = ["192.168.50.2", "fd00:50::2"];
const OLD: [&str; 2] = ["10.244.1.5@node-a", "fd00:244:1::5@node-a"];
const NEW: [&str; 2] = ["10.244.2.6@node-b", "fd00:244:2::6@node-b"];

/// A connection to the backend of that name; others that come up are reset, so that nothing is left.
fn connect_to(name: &str, ns: &Netns, vip: &str) -> Connection {
    for _ in 0..4 {
        let mut connection = Connection::open(ns, at(vip, 80), ANSWER).unwrap();
        if connection.ask().unwrap().name == name {
            return connection;
        }
        connection.abort().unwrap();
    }
    panic!("{name} does not answer on {vip}");
}

/// One question over a connection that is then reset: IPVS remembers it for 10 s, not for two minutes.
fn ask_briefly(ns: &Netns, vip: &str) -> Result<Answer, NoAnswer> {
    let mut connection = Connection::open(ns, at(vip, 80), ANSWER)?;
    let answer = connection.ask()?;
    connection.abort()?;
    Ok(answer)
}

#[test]
fn a_drained_backend_keeps_its_connections_and_gets_no_more() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (old, new, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let _backends = [backend(&old, "old"), backend(&new, "new")];
    let objects = |state: Option<State>| -> Vec<Value> {
        let slices = [0, 1].map(|family| {
            let mut endpoints = vec![(NEW[family], Ready)];
            endpoints.extend(state.map(|state| (OLD[family], state)));
            slice_of("web", &endpoints, &TARGETS[..1])
        });
        std::iter::once(ServiceBuilder::new("web", &VIP, &PORTS[..1]).build()).chain(slices).collect()
    };
    let setup = Setup::start(&node, &json!({}), objects(Some(Ready))).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let mut open = VIP.map(|vip| connect_to("old", &asker.ns, vip));
    let servers = [
        "-a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m -w ",
        "-a -t [fd00:96::10]:80 -r [fd00:244:1::5]:8080 -m -w ",
    ];
    // It ends, comes back, becomes unready, comes back, and is removed.
    for state in [Some(Terminating), Some(Ready), Some(NotReady), Some(Ready), None] {
        setup.write(objects(state)).unwrap();
        let (weight, expected) =
            if state == Some(Ready) { ("1", set(&["old", "new"])) } else { ("0", set(&["new"])) };
        for family in [0, 1] {
            setup.wait_ipvs(&format!("{}{weight}", servers[family]), true).unwrap();
            assert_eq!(names(|| ask_briefly(&asker.ns, VIP[family]), 4), expected, "{state:?}");
            assert_eq!(open[family].ask().unwrap().name, "old", "{state:?}");
        }
    }
    for connection in open {
        connection.abort().unwrap();
    }
    // The kernel needs 10 s to forget the connections; how often the agent looks is its own affair.
    let limit = Duration::from_secs(90);
    let left = || servers.iter().any(|line| integration::lab::ipvsadm(node.ns()).contains(line));
    setup.wait_within(limit, "the end of the drained real servers", || !left() && !left()).unwrap();
    for vip in VIP {
        assert_eq!(names(|| ask_tcp(&asker.ns, at(vip, 80), ANSWER), 2), set(&["new"]));
    }
}

/// An endless connection does not keep its drained backend forever.
#[test]
fn a_drain_ends_at_its_deadline() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (old, new, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let _backends = [backend(&old, "old"), backend(&new, "new")];
    let objects = |endpoints: [&[&str]; 2]| -> Vec<Value> {
        let slices = endpoints.map(|endpoints| slice("web", endpoints, &TARGETS[..1]));
        std::iter::once(ServiceBuilder::new("web", &VIP, &PORTS[..1]).build()).chain(slices).collect()
    };
    let both = [[OLD[0], NEW[0]], [OLD[1], NEW[1]]];
    let soon = json!({"kubeIPVS": {"drainDeadline": "3s"}});
    let setup = Setup::start(&node, &soon, objects(both.each_ref().map(<[_; 2]>::as_slice))).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let mut open = VIP.map(|vip| connect_to("old", &asker.ns, vip));
    setup.write(objects(NEW.each_ref().map(std::slice::from_ref))).unwrap();
    for server in ["-a -t 10.96.0.10:80 -r 10.244.1.5:8080", "-a -t [fd00:96::10]:80 -r [fd00:244:1::5]:8080"]
    {
        setup.wait_ipvs(server, false).unwrap();
    }
    std::thread::scope(|scope| {
        for connection in &mut open {
            scope.spawn(|| assert!(connection.ask().is_err(), "its backend is gone from the table"));
        }
    });
    for vip in VIP {
        assert_eq!(names(|| ask_tcp(&asker.ns, at(vip, 80), ANSWER), 2), set(&["new"]));
    }
}

/// An idle backend is removed at once.
#[test]
fn a_backend_without_connections_is_removed_at_once() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let objects = |addresses: &[&str]| {
        vec![
            ServiceBuilder::new("web", &VIP[..1], &PORTS[..1]).build(),
            slice("web", addresses, &TARGETS[..1]),
        ]
    };
    let setup = Setup::start(&node, &json!({}), objects(&[OLD[0], NEW[0]])).unwrap();
    setup.wait_ipvs("-a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m -w 1", true).unwrap();
    setup.wait_bound(&VIP[..1]).unwrap();
    setup.write(objects(&[NEW[0]])).unwrap();
    setup.wait_ipvs("-a -t 10.96.0.10:80 -r 10.244.1.5:8080", false).unwrap();
}

/// A socket that keeps sending.
struct Flow {
    target: SocketAddr,
    from: String,
    flow: UdpFlow,
}

impl Flow {
    /// Limit for the answer to a datagram.
    fn open((ns, target): (&Netns, SocketAddr), limit: Duration) -> Self {
        Self { target, from: ns.name().to_owned(), flow: UdpFlow::open(ns, target, limit).unwrap() }
    }

    /// Sends until an answer comes. Returns the backend and the number of lost datagrams.
    fn ask(&self) -> (String, usize) {
        let start = Instant::now();
        for lost in 0.. {
            match self.flow.ask() {
                Ok(answer) => return (answer.name, lost),
                Err(error) => {
                    let (from, to) = (&self.from, self.target);
                    assert!(start.elapsed() < ANSWER * 2, "{from} to {to}: {lost} datagrams lost, {error}");
                }
            }
            // A refusal comes at once: a pause avoids hundreds of datagrams.
            std::thread::sleep(Duration::from_millis(50));
        }
        unreachable!("the loop ends with an answer or a panic")
    }
}

#[test]
fn udp_flows_move_to_the_new_backend() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (old, new, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let client = lab.client("outside").unwrap();
    let _backends = [backend(&old, "old"), backend(&new, "new")];
    let objects = |endpoints: [&str; 2]| -> Vec<Value> {
        let slices = endpoints.map(|endpoint| slice("web", &[endpoint], &TARGETS[1..2]));
        let service = ServiceBuilder::new("web", &VIP, &PORTS[1..2]).node_ports(&[30053]);
        std::iter::once(service.build()).chain(slices).collect()
    };
    let setup = Setup::start(&node, &json!({}), objects(OLD)).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let limit = Duration::from_secs(3);
    let flows: Vec<Flow> = [0, 1]
        .into_iter()
        .flat_map(|family| {
            [
                (&asker.ns, at(VIP[family], 53)),
                (&client.ns, at(NODE[family], 30053)),
                (node.ns(), at(VIP[family], 53)),
            ]
        })
        .map(|pair| Flow::open(pair, limit))
        .collect();
    for flow in &flows {
        assert_eq!(flow.ask().0, "old");
    }
    setup.write(objects(NEW)).unwrap();
    for family in [0, 1] {
        let target = at(VIP[family], 53);
        let place = |endpoint: &str| at(endpoint.split('@').next().unwrap(), 5353);
        setup.wait_ipvs(&format!("-a -u {target} -r {}", place(NEW[family])), true).unwrap();
        setup.wait_ipvs(&format!("-a -u {target} -r {}", place(OLD[family])), false).unwrap();
    }
    // The old pod still listens and would answer.
    let moved: Vec<(String, usize)> = flows.iter().map(Flow::ask).collect();
    println!("answers and datagrams lost on the way: {moved:?}");
    assert!(moved.iter().all(|(name, lost)| name == "new" && *lost <= 1), "{moved:?}");
}

/// A client that sends before the first backend exists must reach it: old conntrack entries must not black-hole
/// its flow.
#[test]
fn an_existing_udp_client_reaches_the_first_backend() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (far, asker) = (other.pod(6).unwrap(), node.pod(9).unwrap());
    let client = lab.client("outside").unwrap();
    client.route("198.51.100.0/24", &node.host).unwrap();
    client.route("2001:db8::/32", &node.host).unwrap();
    let _backend = backend(&far, "far");
    const EXTERNAL: [&str; 2] = ["198.51.100.10", "2001:db8:e::10"];
    let service = |name: &str, vip: &[&str]| ServiceBuilder::new(name, vip, &PORTS[1..2]);
    let waiting = service("waiting", &VIP).node_ports(&[30053]).build();
    let later = service("later", &["10.96.0.11", "fd00:96::11"]).external_ips(&EXTERNAL).build();
    let setup = Setup::start(&node, &json!({}), vec![waiting.clone()]).unwrap();
    setup.wait_bound(&VIP).unwrap();
    let limit = Duration::from_secs(1);
    // One Service has no backend, the other does not exist: a datagram to the address of the second
    // is forwarded, and the node keeps a conntrack entry for it.
    let flows: Vec<Flow> = [0, 1]
        .into_iter()
        .flat_map(|family| {
            [
                (&asker.ns, at(VIP[family], 53)),
                (&client.ns, at(NODE[family], 30053)),
                (node.ns(), at(VIP[family], 53)),
                (&client.ns, at(EXTERNAL[family], 53)),
                (&asker.ns, at(EXTERNAL[family], 53)),
            ]
        })
        .map(|pair| Flow::open(pair, limit))
        .collect();
    std::thread::scope(|scope| {
        for flow in &flows {
            scope.spawn(move || assert!(flow.flow.ask().is_err(), "{}", flow.target));
        }
    });
    let slices = |name: &str| NEW.map(|endpoint| slice(name, &[endpoint], &TARGETS[1..2]));
    setup.write([vec![waiting, later], slices("waiting").into(), slices("later").into()].concat()).unwrap();
    // They keep sending, so that no flow times out in the kernel.
    std::thread::scope(|scope| {
        for flow in &flows {
            scope.spawn(move || assert_eq!(flow.ask().0, "far", "{}", flow.target));
        }
    });
    drop(setup);
}
