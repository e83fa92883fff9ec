// SPDX-License-Identifier: Apache-2.0
//! Tests of the harness under a kernel with IPVS: nodes have the expected state, and traffic goes through
//! virtual servers made with ipvsadm. Without IPVS these tests fail; they never pass without testing anything.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use integration::lab::traffic::{Backend, Connection, NoAnswer, ask_sctp, ask_tcp, ask_udp};
use integration::lab::{Lab, Netns, conformance_node, oracle};
use integration::parity::Subsystem;
use integration::parity::normal::normal;

const LIMIT: Duration = Duration::from_secs(15);

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}

#[test]
fn the_conformance_node_is_that_of_the_recordings() {
    let node = conformance_node().unwrap();
    let addresses = node.ns.exec(&["ip", "-o", "addr"]).unwrap().stdout;
    for expected in ["192.168.50.2/24", "fd00:50::2/64", "10.77.0.5/16", "127.0.0.1/8", "::1/128"] {
        assert!(addresses.contains(&format!(" {expected} ")), "{expected} is missing:\n{addresses}");
    }
    assert!(!addresses.contains("fe80"), "link-local addresses:\n{addresses}");
    let routes = node.ns.exec(&["ip", "route"]).unwrap().stdout;
    assert!(routes.contains("default via 192.168.50.1 dev eth0"), "{routes}");
    let routes = node.ns.exec(&["ip", "-6", "route"]).unwrap().stdout;
    assert!(routes.contains("default via fd00:50::1 dev eth0"), "{routes}");
    let link = node.ns.exec(&["ip", "-d", "link", "show", "eth1"]).unwrap().stdout;
    assert!(link.contains("dummy") && link.contains(",UP"), "{link}");
    assert_eq!(node.ns.sysctl("net.ipv6.conf.all.addr_gen_mode").unwrap(), "1");
    // The state of a new node of the recordings is empty.
    assert_eq!(normal(Subsystem::Link, &oracle::raw(&node.ns, Subsystem::Link, "").unwrap()), "absent\n");
    for subsystem in [Subsystem::Ipvs, Subsystem::Addrs, Subsystem::Ipset, Subsystem::Iptables] {
        let raw = oracle::raw(&node.ns, subsystem, "").unwrap();
        assert_eq!(normal(subsystem, &raw), "\n", "{}", subsystem.name());
    }
    let raw = oracle::raw(&node.ns, Subsystem::Timeouts, "").unwrap();
    assert_eq!(normal(Subsystem::Timeouts, &raw), "900 120 300\n");
}

#[test]
fn a_dump_shows_created_objects() {
    let ns = Netns::new("dump").unwrap();
    ns.exec_with(
        &["ipvsadm", "-R"],
        Some("-A -t 10.96.0.1:443 -s rr\n-a -t 10.96.0.1:443 -r 10.0.0.1:6443 -m\n"),
    )
    .unwrap();
    ns.ip("link add kube-ipvs0 type dummy\naddr add 10.96.0.1/32 dev kube-ipvs0").unwrap();
    ns.exec(&["ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let names = "net.ipv4.vs.conntrack = 1\nno.such.name = 1\n";
    let wanted: Vec<(Subsystem, &str)> =
        Subsystem::ALL.into_iter().map(|subsystem| (subsystem, names)).collect();
    oracle::dump(&ns, folder.path(), &wanted[..8]).unwrap();
    let form = |subsystem: Subsystem| {
        let raw = std::fs::read_to_string(folder.path().join(format!("{}.raw", subsystem.name()))).unwrap();
        normal(subsystem, &raw)
    };
    let ipvs = "-A -t 10.96.0.1:443 -s rr\n-a -t 10.96.0.1:443 -r 10.0.0.1:6443 -m -w 1\n";
    assert_eq!(form(Subsystem::Ipvs), ipvs);
    assert_eq!(form(Subsystem::Addrs), "inet 10.96.0.1/32 global\n");
    assert_eq!(form(Subsystem::Link), "flags BROADCAST,NOARP state DOWN kind dummy\n");
    assert_eq!(form(Subsystem::Ipset), "create KUBE-CLUSTER-IP hash:ip,port inet\n");
    assert_eq!(form(Subsystem::Sysctl), "net.ipv4.vs.conntrack = 0\n");
}

/// Virtual servers by hand, for every protocol and family, with a backend on this node and on the other.
#[test]
fn traffic_goes_through_virtual_servers() {
    let lab = Lab::new().unwrap();
    let (a, b) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far) = (a.pod(5).unwrap(), b.pod(6).unwrap());
    let client = lab.client("client").unwrap();
    client.route("10.96.0.0/16", &a.host).unwrap();
    client.route("fd00:96::/112", &a.host).unwrap();
    let backend = |pod, name| Backend::new(pod, name).tcp(8080).unwrap().udp(53).unwrap().sctp(9000).unwrap();
    let _near = backend(&near.ns, "near");
    let _far = backend(&far.ns, "far");

    // First without a virtual server, to tell a broken lab from a broken virtual server.
    let direct = ask_tcp(&client.ns, (far.v6, 8080).into(), LIMIT).unwrap();
    assert_eq!((direct.name.as_str(), direct.seen_source), ("far", IpAddr::from(client.v6)));

    a.ns()
        .ip("link add kube-ipvs0 type dummy\n\
               addr add 10.96.0.10/32 dev kube-ipvs0\n\
               addr add fd00:96::10/128 dev kube-ipvs0 nodad")
        .unwrap();
    a.ns()
        .exec_with(
            &["ipvsadm", "-R"],
            Some(
                "-A -t 10.96.0.10:80 -s rr\n\
              -a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m\n\
              -a -t 10.96.0.10:80 -r 10.244.2.6:8080 -m\n\
              -A -u 10.96.0.10:53 -s rr\n\
              -a -u 10.96.0.10:53 -r 10.244.1.5:53 -m\n\
              -A --sctp-service 10.96.0.10:90 -s rr\n\
              -a --sctp-service 10.96.0.10:90 -r 10.244.1.5:9000 -m\n\
              -A -t [fd00:96::10]:80 -s rr\n\
              -a -t [fd00:96::10]:80 -r [fd00:244:1::5]:8080 -m\n",
            ),
        )
        .unwrap();
    // Answers of the far pod would go straight to the client, past the node that rewrote the packets.
    a.ns().set_sysctls(&[("net.ipv4.vs.conntrack", "1")]).unwrap();
    a.ns()
        .exec(&["iptables", "-t", "nat", "-A", "POSTROUTING", "-d", "10.244.2.0/24", "-j", "MASQUERADE"])
        .unwrap();

    let vip = address("10.96.0.10:80");
    let mut answers = [(); 2].map(|()| ask_tcp(&client.ns, vip, LIMIT).unwrap());
    answers.sort_by(|one, other| one.name.cmp(&other.name));
    assert_eq!((answers[0].name.as_str(), answers[0].seen_source), ("far", IpAddr::from(a.host.v4)));
    assert_eq!((answers[1].name.as_str(), answers[1].seen_source), ("near", IpAddr::from(client.v4)));

    let answer = ask_udp(&client.ns, address("10.96.0.10:53"), LIMIT).unwrap();
    assert_eq!((answer.name.as_str(), answer.seen_source), ("near", IpAddr::from(client.v4)));
    let answer = ask_sctp(&client.ns, address("10.96.0.10:90"), LIMIT).unwrap();
    assert_eq!((answer.name.as_str(), answer.seen_source), ("near", IpAddr::from(client.v4)));
    let answer = ask_tcp(&client.ns, address("[fd00:96::10]:80"), LIMIT).unwrap();
    assert_eq!((answer.name.as_str(), answer.seen_source), ("near", IpAddr::from(client.v6)));

    // An address on the device, but no virtual server: the node itself refuses.
    let none = ask_tcp(&client.ns, address("10.96.0.10:81"), LIMIT);
    assert!(matches!(none, Err(NoAnswer::Refused)), "{none:?}");
    let none = ask_udp(&client.ns, address("10.96.0.10:54"), LIMIT);
    assert!(matches!(none, Err(NoAnswer::Refused)), "{none:?}");
}

#[test]
fn a_backend_dies_with_its_connections() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let pod = node.pod(5).unwrap();
    let backend = Backend::new(&pod.ns, "web").tcp(8080).unwrap();
    let place = SocketAddr::from((pod.v4, 8080));
    let mut connection = Connection::open(node.ns(), place, LIMIT).unwrap();
    assert_eq!(connection.ask().unwrap().seen_source, IpAddr::from([10, 244, 1, 1]));
    assert_eq!(connection.ask().unwrap().name, "web");
    drop(backend);
    assert!(matches!(connection.ask(), Err(NoAnswer::Refused | NoAnswer::Closed)));
    assert!(matches!(Connection::open(node.ns(), place, LIMIT), Err(NoAnswer::Refused)));
}

#[test]
fn programs_are_killed_when_their_guard_is_dropped() {
    let ns = Netns::new("guard").unwrap();
    let mut sleep = std::process::Command::new("sleep");
    sleep.arg("1000");
    let mut process = ns.spawn(sleep).unwrap();
    assert!(process.ended().unwrap().is_none());
    let pid = process.pid();
    drop(process);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let error = ns.exec(&["sh", "-c", "echo bad luck >&2; exit 7"]).unwrap_err().to_string();
    assert!(error.contains("exit 7") && error.contains("bad luck"), "{error}");
}
