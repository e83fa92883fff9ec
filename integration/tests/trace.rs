// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs trace` on a real kernel: a connection is told with its rules and its real server, and no table stays.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::lab::traffic::{Backend, ask_tcp, ask_udp};
use integration::lab::{Lab, Netns, Setup, agent_binary, at};
use integration::objects::{ServiceBuilder, slice};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const ANSWER: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_secs(60);

fn objects() -> Vec<Value> {
    vec![
        ServiceBuilder::new("web", &["10.96.0.10"], &[("http", "TCP", 80)]).build(),
        slice("web", &["10.244.1.5@node-a"], &[("http", "TCP", 8080)]),
        ServiceBuilder::new("none", &["10.96.0.11"], &[("http", "TCP", 80)]).build(),
    ]
}

fn command(args: &[&str], output: &std::path::Path) -> Command {
    let mut command = Command::new(agent_binary().unwrap());
    command.arg("trace").args(args).stdout(std::fs::File::create(output).unwrap()).stderr(Stdio::inherit());
    command
}

fn has_table(ns: &Netns) -> bool {
    ns.exec(&["nft", "list", "tables"]).unwrap().stdout.contains("kube-ipvs-trace")
}

fn wait_table(ns: &Netns, there: bool) {
    let began = Instant::now();
    while has_table(ns) != there {
        assert!(began.elapsed() < LIMIT, "the table is there: {}", !there);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_connection_is_told_with_its_real_server_and_nothing_stays() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (backend, client) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let _backend = Backend::new(&backend.ns, "web").tcp(8080).unwrap();
    let setup = Setup::start(&node, &json!({}), objects()).unwrap();
    setup.wait("the first sync", || setup.agent.log().contains("ready: ")).unwrap();
    let ns = node.ns();
    let output = setup.folder().join("trace.txt");

    // A Service as text.
    let args = ["test/web:http", "--seconds=50", "--packets=1", "--from=10.244.1.9"];
    let mut trace = ns.spawn(command(&args, &output)).unwrap();
    wait_table(ns, true);
    assert_eq!(ask_tcp(&client.ns, at("10.96.0.10", 80), ANSWER).unwrap().name, "web");
    assert_eq!(trace.wait(LIMIT).unwrap().code(), Some(0));
    assert!(!has_table(ns));
    let text = std::fs::read_to_string(&output).unwrap();
    for expected in [
        "PACKET 1  TCP 10.244.1.9:",
        "-> 10.96.0.10:80  Service test/web:http",
        "IPVS: sent to 10.244.1.5:8080",
        "conntrack: 10.244.1.5:8080 sees the client's own address 10.244.1.9:",
        "SYN_SENT, SYN_RECV, ESTABLISHED",
    ] {
        assert!(text.contains(expected), "{expected} is missing:\n{text}");
    }

    // A virtual server without real servers as JSON. SIGTERM ends the trace, and what was seen is printed.
    let mut trace = ns.spawn(command(&["10.96.0.11:80", "--seconds=50", "-o=json"], &output)).unwrap();
    wait_table(ns, true);
    assert!(ask_tcp(&client.ns, at("10.96.0.11", 80), Duration::from_secs(2)).is_err());
    trace.signal(Signal::SIGTERM).unwrap();
    assert_eq!(trace.wait(LIMIT).unwrap().code(), Some(0));
    assert!(!has_table(ns));
    let document: Value = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();
    let packet = &document["packets"][0];
    assert_eq!((&document["schemaVersion"], &packet["service"]), (&json!(1), &json!("test/none:http")));
    assert_eq!(packet["realServer"], Value::Null);
    assert!(!packet["steps"].as_array().unwrap().is_empty(), "{document:#}");

    // Nobody comes.
    let mut trace = ns.spawn(command(&["10.96.0.10:80", "--seconds=1"], &output)).unwrap();
    assert_eq!(trace.wait(LIMIT).unwrap().code(), Some(1));
    let text = std::fs::read_to_string(&output).unwrap();
    assert!(text.contains("no packet to TCP 10.96.0.10:80 came in 1 s"), "{text}");

    // A second trace is refused, and the table of a killed one goes with it.
    let mut trace = ns.spawn(command(&["10.96.0.10:80", "--seconds=50"], &output)).unwrap();
    wait_table(ns, true);
    if ns.exec(&["nft", "list", "ruleset"]).unwrap().stdout.contains("flags owner") {
        let other = setup.folder().join("other.txt");
        let mut second = ns.spawn(command(&["10.96.0.10:80", "--seconds=1"], &other)).unwrap();
        assert_eq!(second.wait(LIMIT).unwrap().code(), Some(1));
        trace.kill();
        wait_table(ns, false);
    } else {
        // Before Linux 5.12 the next trace removes what a killed one left.
        trace.kill();
        let mut next = ns.spawn(command(&["10.96.0.10:80", "--seconds=1"], &output)).unwrap();
        assert_eq!(next.wait(LIMIT).unwrap().code(), Some(1));
        assert!(!has_table(ns));
    }
}

#[test]
fn udp_ipv6_and_node_ports_are_told_with_the_source_that_the_real_server_sees() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (backend, client) = (node.pod(5).unwrap(), lab.client("outside").unwrap());
    let _backend = Backend::new(&backend.ns, "web").tcp(8080).unwrap().udp(5353).unwrap();
    let [pod4, pod6] = [backend.v4.to_string(), backend.v6.to_string()];
    let ports = [("http", "TCP", 8080), ("dns", "UDP", 5353)];
    let web = ServiceBuilder::new(
        "web",
        &["10.96.0.10", "fd00:96::10"],
        &[("http", "TCP", 80), ("dns", "UDP", 53)],
    );
    let objects = vec![
        web.node_ports(&[30080, 30053]).build(),
        slice("web", &[&format!("{pod4}@node-a")], &ports),
        slice("web", &[&format!("{pod6}@node-a")], &ports),
    ];
    let setup = Setup::start(&node, &json!({}), objects).unwrap();
    setup.wait("the first sync", || setup.agent.log().contains("ready: ")).unwrap();
    let ns = node.ns();
    client.route("10.96.0.0/16", &node.host).unwrap();
    client.route("fd00:96::/64", &node.host).unwrap();
    for (target, port, protocol) in [
        ("10.96.0.10", 53, "UDP"),
        ("fd00:96::10", 80, "TCP"),
        (&*node.host.v4.to_string(), 30080, "TCP"),
        (&*node.host.v6.to_string(), 30053, "UDP"),
    ] {
        let output = setup.folder().join("trace.json");
        let destination = at(target, port);
        let vip = destination.to_string();
        let mut trace =
            ns.spawn(command(&[&vip, "--seconds=50", "--packets=1", "-o=json"], &output)).unwrap();
        wait_table(ns, true);
        let answer = match protocol {
            "UDP" => ask_udp(&client.ns, destination, ANSWER),
            _ => ask_tcp(&client.ns, destination, ANSWER),
        };
        let answer = answer.unwrap();
        assert_eq!(trace.wait(LIMIT).unwrap().code(), Some(0), "{vip}");
        let text = std::fs::read_to_string(&output).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        let packet = &document["packets"][0];
        assert_eq!((&packet["protocol"], &packet["destination"]), (&json!(protocol), &json!(vip)), "{text}");
        let service = if protocol == "UDP" { "test/web:dns" } else { "test/web:http" };
        assert_eq!(packet["service"], service, "{text}");
        // The real server told which source it saw. All clients outside of the cluster are masqueraded.
        let source: SocketAddr = packet["conntrack"]["sourceSeen"].as_str().unwrap().parse().unwrap();
        assert_eq!(source.ip(), answer.seen_source, "{text}");
        assert!(![IpAddr::from(client.v4), client.v6.into()].contains(&source.ip()), "{text}");
        assert_eq!(packet["conntrack"]["realServer"], packet["realServer"], "{text}");
    }
}
