// SPDX-License-Identifier: Apache-2.0
//! Stale UDP flows on a real kernel: which are deleted, checked with `conntrack` and by the clients.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use integration::lab::traffic::{Backend, Connection, UdpFlow};
use integration::lab::{Host, Lab, Netns, Node, Pod};
use kube_ipvs::core::model::flows::FlowFilter;
use kube_ipvs::core::model::{Family, PerFamily, RsKey};
use kube_ipvs::kernel::netfilter::conntrack::ConntrackClient;

const LIMIT: Duration = Duration::from_secs(15);
/// How long the test waits for an answer that does not come.
const SILENCE: Duration = Duration::from_secs(2);
const VIPS: PerFamily<&str> = PerFamily::new("10.96.0.10", "fd00:96::10");
const NODE_PORT: u16 = 30053;

/// The table of one family, as `conntrack` shows it: protocol, both directions and zone, without what
/// changes by itself.
fn table(ns: &Netns, family: Family) -> BTreeSet<String> {
    let family = family.to_string().to_lowercase();
    let shown = ns.exec(&["conntrack", "-L", "-f", &family]).unwrap().stdout;
    let keep = |word: &&str| ["src=", "dst=", "sport=", "dport=", "zone"].iter().any(|w| word.starts_with(w));
    let line = |line: &str| {
        let (protocol, rest) = line.split_once(' ').unwrap();
        let words: Vec<&str> = rest.split(' ').filter(keep).collect();
        format!("{protocol} {}", words.join(" "))
    };
    shown.lines().map(line).collect()
}

fn udp(table: &BTreeSet<String>) -> u64 {
    table.iter().filter(|line| line.starts_with("udp ")).count() as u64
}

/// Opens a client in the namespace and deletes the flows of the filter.
fn forget(ns: &Netns, filter: &FlowFilter) -> (u64, ConntrackClient) {
    ns.enter(|| {
        let mut client = ConntrackClient::open().unwrap();
        (client.forget(filter).unwrap(), client)
    })
    .unwrap()
}

fn address(host: &Host, family: Family) -> IpAddr {
    match family {
        Family::V4 => host.v4.into(),
        Family::V6 => host.v6.into(),
    }
}

/// Sends VIP:53 (UDP and TCP) and the node port to a pod, as a proxy would, from now on.
fn send_to(node: &Node, family: Family, pod: &Pod) {
    let iptables = PerFamily::new("iptables", "ip6tables")[family];
    let nat = |args: &str| {
        let command: Vec<&str> = [iptables, "-w", "-t", "nat"].into_iter().chain(args.split(' ')).collect();
        node.ns().exec(&command).unwrap();
    };
    let (vip, to) = (VIPS[family], SocketAddr::new(address(pod, family), 5353));
    nat("-F PREROUTING");
    for what in [
        format!("-d {vip} -p udp --dport 53"),
        format!("-d {vip} -p tcp --dport 53"),
        format!("-p udp --dport {NODE_PORT}"),
    ] {
        nat(&format!("-A PREROUTING {what} -j DNAT --to-destination {to}"));
    }
}

/// The traffic of one family while the endpoint is replaced.
struct Traffic {
    family: Family,
    /// To the VIP and to the node port, answered by the old pod.
    old: [UdpFlow; 2],
    /// To the VIP, answered by the new pod.
    new: UdpFlow,
    /// To a port of the VIP that nothing translates.
    untranslated: UdpFlow,
    /// To the old pod itself.
    direct: UdpFlow,
    /// To the VIP, answered by the old pod.
    connection: Connection,
}

impl Traffic {
    fn start(node: &Node, client: &Host, old: &Pod, new: &Pod, family: Family) -> Self {
        let vip: IpAddr = VIPS[family].parse().unwrap();
        let open = |ip, port| UdpFlow::open(&client.ns, SocketAddr::new(ip, port), LIMIT).unwrap();
        send_to(node, family, old);
        let flows = [open(vip, 53), open(address(&node.host, family), NODE_PORT)];
        let mut connection = Connection::open(&client.ns, SocketAddr::new(vip, 53), LIMIT).unwrap();
        assert_eq!(connection.ask().unwrap().name, "old");
        // The kernel forgets a flow without an answer after half a minute.
        let untranslated = UdpFlow::open(&client.ns, SocketAddr::new(vip, 54), SILENCE).unwrap();
        let direct = open(address(old, family), 5353);
        assert!(untranslated.ask().is_err(), "no answer without a translation");
        assert_eq!(direct.ask().unwrap().name, "old");
        for flow in &flows {
            assert_eq!(flow.ask().unwrap().name, "old");
        }
        send_to(node, family, new);
        let traffic = Self { family, old: flows, new: open(vip, 53), untranslated, direct, connection };
        assert_eq!(traffic.new.ask().unwrap().name, "new");
        for flow in &traffic.old {
            assert_eq!(flow.ask().unwrap().name, "old", "the kernel remembers the pod");
        }
        traffic
    }

    /// The client's side of each stale flow: these must be deleted.
    fn stale(&self, node: &Node, client: &Host) -> BTreeSet<String> {
        let from = address(client, self.family);
        let vip = VIPS[self.family].parse().unwrap();
        let node = address(&node.host, self.family);
        let line = |flow: &UdpFlow, to: IpAddr, port: u16| {
            format!("udp src={from} dst={to} sport={} dport={port}", flow.local().unwrap().port())
        };
        [line(&self.old[0], vip, 53), line(&self.old[1], node, NODE_PORT), line(&self.untranslated, vip, 54)]
            .into()
    }
}

fn filter(family: Family, pod: &Pod) -> FlowFilter {
    let vip: IpAddr = VIPS[family].parse().unwrap();
    let endpoints = vec![RsKey { addr: address(pod, family), port: 5353 }];
    FlowFilter {
        family,
        frontends: [((vip, 53), endpoints.clone()), ((vip, 54), endpoints.clone())].into(),
        node_ports: [(NODE_PORT, endpoints)].into(),
    }
}

#[test]
fn only_stale_flows_are_deleted() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (old, new) = (node.pod(5).unwrap(), node.pod(6).unwrap());
    let client = lab.client("client").unwrap();
    client.route("10.96.0.0/16", &node.host).unwrap();
    client.route("fd00:96::/64", &node.host).unwrap();
    let _old = Backend::new(&old.ns, "old").udp(5353).unwrap().tcp(5353).unwrap();
    let _new = Backend::new(&new.ns, "new").udp(5353).unwrap().tcp(5353).unwrap();
    let mut all = Family::ALL.map(|family| Traffic::start(&node, &client, &old, &new, family));
    for traffic in &mut all {
        let family = traffic.family;
        let both = |ns| PerFamily::of(|family| table(ns, family));
        let before = both(node.ns());
        let (count, asked) = forget(node.ns(), &filter(family, &new));
        let after = both(node.ns());
        let gone: BTreeSet<String> = before[family].difference(&after[family]).cloned().collect();
        let client_side = gone.iter().map(|line| line.split(' ').take(5).collect::<Vec<_>>().join(" "));
        assert_eq!(client_side.collect::<BTreeSet<_>>(), traffic.stale(&node, &client), "{before:#?}");
        assert_eq!(count, 3);
        assert!(after[family].is_subset(&before[family]));
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        assert_eq!(before[other], after[other], "the other family");
        assert!(udp(&before[family]) < before[family].len() as u64, "there is TCP, too");
        assert_eq!(asked.entries(), udp(&before[family]), "the kernel sends UDP only");
        assert_eq!((asked.counters().dumps, asked.counters().sends), (1, 2));
        for flow in traffic.old.iter().chain([&traffic.new]) {
            assert_eq!(flow.ask().unwrap().name, "new", "the same client finds the new pod");
        }
        assert_eq!(traffic.direct.ask().unwrap().name, "old");
        assert_eq!(traffic.connection.ask().unwrap().name, "old", "TCP ends by itself");
        assert_eq!(forget(node.ns(), &filter(family, &new)).0, 0);
    }
}

/// Sends datagrams to closed ports of this host: only their flows matter.
fn send_here(ports: std::ops::Range<u16>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for port in ports {
        // The refusal of an earlier datagram is reported here. Its flow exists all the same.
        while socket.send_to(b"?", (Ipv4Addr::LOCALHOST, port)).is_err() {}
    }
}

fn nobody_answers(ports: std::ops::Range<u16>) -> FlowFilter {
    let frontends = ports.map(|port| ((Ipv4Addr::LOCALHOST.into(), port), vec![])).collect();
    FlowFilter { family: Family::V4, frontends, node_ports: [].into() }
}

#[test]
fn many_flows_are_deleted_in_few_sends() {
    let ns = Netns::new("flows").unwrap();
    // The kernel tracks flows only if a rule needs it.
    ns.exec(&["iptables", "-w", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW"]).unwrap();
    ns.enter(|| send_here(20000..23000)).unwrap();
    assert_eq!(udp(&table(&ns, Family::V4)), 3000);
    let (count, asked) = forget(&ns, &nobody_answers(20000..22900));
    assert_eq!(count, 2900);
    assert_eq!(udp(&table(&ns, Family::V4)), 100);
    let counters = asked.counters();
    assert_eq!(counters.dumps, 1);
    assert!(counters.sends <= counters.bytes_sent.div_ceil(64 * 1024) + 1, "{counters:?}");
}

#[test]
fn a_flow_is_deleted_in_its_zone() {
    let ns = Netns::new("zones").unwrap();
    for (port, zone) in [("20001", "--zone"), ("20002", "--zone-orig")] {
        let rule = ["-A", "OUTPUT", "-p", "udp", "--dport", port, "-j", "CT", zone, "7"];
        let command: Vec<&str> = ["iptables", "-w", "-t", "raw"].into_iter().chain(rule).collect();
        ns.exec(&command).unwrap();
    }
    ns.enter(|| send_here(20000..20004)).unwrap();
    let zones = table(&ns, Family::V4).iter().filter(|line| line.contains("zone")).count();
    assert_eq!(zones, 2, "{:#?}", table(&ns, Family::V4));
    assert_eq!(forget(&ns, &nobody_answers(20000..20003)).0, 3);
    let left = table(&ns, Family::V4);
    assert!(udp(&left) == 1 && left.first().unwrap().contains("dport=20003"), "{left:#?}");
}
