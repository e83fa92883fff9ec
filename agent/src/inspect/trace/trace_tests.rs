// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::inspect::layout::Layout;
use crate::testing::golden;

const CLIENT: &str = "10.244.1.9:41000";
const VIP: &str = "10.96.0.10:80";

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn headers(source: &str, destination: &str) -> (Vec<u8>, Vec<u8>) {
    let (source, destination) = (socket(source), socket(destination));
    let mut network = vec![0; 20];
    (network[0], network[9]) = (0x45, 6);
    for (at, addr) in [(12, source.ip()), (16, destination.ip())] {
        let std::net::IpAddr::V4(addr) = addr else { panic!("{addr}") };
        network[at..at + 4].copy_from_slice(&addr.octets());
    }
    (network, [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat())
}

fn event(id: u32, place: &str, kind: TraceKind) -> TraceEvent {
    let (table, chain) = place.split_once(' ').unwrap();
    let mut event = TraceEvent::new(NftFamily::Ipv4);
    (event.id, event.kind) = (id, kind);
    (event.table, event.chain) = (table.to_owned(), chain.to_owned());
    event
}

/// The event of a rule of our table.
fn begin(id: u32, source: &str) -> TraceEvent {
    with_headers(rule(id, "kube-ipvs-trace prerouting", 3, TraceVerdict::Continue), source, VIP)
}

fn with_headers(mut event: TraceEvent, source: &str, destination: &str) -> TraceEvent {
    (event.network_header, event.transport_header) = headers(source, destination);
    event.iif = Some(7);
    event
}

fn rule(id: u32, place: &str, handle: u64, verdict: TraceVerdict) -> TraceEvent {
    let mut event = event(id, place, TraceKind::Rule);
    (event.rule, event.verdict) = (Some(handle), Some(verdict));
    event
}

fn jump(id: u32, place: &str, handle: u64, to: &str) -> TraceEvent {
    rule(id, place, handle, TraceVerdict::Rule(Verdict::Jump(to.to_owned())))
}

fn policy(id: u32, place: &str) -> TraceEvent {
    let mut event = event(id, place, TraceKind::Policy);
    event.policy = Some(Policy::Accept);
    event
}

fn marked(mut event: TraceEvent) -> TraceEvent {
    event.mark = Some(0x4000);
    event
}

fn hooks() -> Vec<HookedChain> {
    [("nat PREROUTING", "prerouting"), ("filter INPUT", "input"), ("nat POSTROUTING", "postrouting")]
        .map(|(place, hook)| {
            let (table, chain) = place.split_once(' ').unwrap();
            HookedChain { family: NftFamily::Ipv4, table: table.to_owned(), chain: chain.to_owned(), hook }
        })
        .into()
}

fn facts() -> TraceFacts {
    let rule = |table: &str, handle, text: &str, rejects| RuleSummary {
        family: NftFamily::Ipv4,
        table: table.to_owned(),
        handle,
        text: text.to_owned(),
        rejects,
    };
    let key = VsKey { protocol: Protocol::Tcp, addr: socket(VIP).ip(), port: 80 };
    TraceFacts {
        owners: ServiceOwners::parse("TCP 10.96.0.10:80 shop/web:http\n"),
        connections: vec![IpvsConnection {
            protocol: "TCP".to_owned(),
            client: socket(CLIENT),
            vip: socket(VIP),
            real_server: socket("10.244.1.5:8080"),
            state: "ESTABLISHED".to_owned(),
            expires: 899,
        }],
        tracked: ["SYN_SENT", "SYN_RECV", "ESTABLISHED"].map(tracked).into(),
        servers: Some([(key, 1)].into()),
        rules: vec![
            rule("nat", 12, "\"kubernetes service portals\"", false),
            rule("nat", 21, "-m set, \"Kubernetes service cluster ip + port for masquerade purpose\"", false),
            rule("filter", 9, "-j REJECT", true),
        ],
        interfaces: [(7, "veth1".to_owned())].into(),
    }
}

fn tracked(state: &'static str) -> ConntrackEvent {
    ConntrackEvent {
        protocol: Protocol::Tcp,
        client: socket(CLIENT),
        destination: socket(VIP),
        answered_by: socket("10.244.1.5:8080"),
        answers_to: socket("10.244.1.1:41000"),
        state,
    }
}

/// A packet that reaches a real server.
fn served(id: u32) -> Vec<TraceEvent> {
    vec![
        begin(id, CLIENT),
        policy(id, "kube-ipvs-trace prerouting"),
        with_headers(jump(id, "nat PREROUTING", 12, "KUBE-SERVICES"), CLIENT, VIP),
        jump(id, "nat KUBE-SERVICES", 21, "KUBE-MARK-MASQ"),
        marked(rule(id, "nat KUBE-MARK-MASQ", 4, TraceVerdict::Continue)),
        marked(event(id, "nat KUBE-MARK-MASQ", TraceKind::Return)),
        marked(event(id, "nat PREROUTING", TraceKind::Return)),
        marked(policy(id, "nat PREROUTING")),
        marked(with_headers(policy(id, "filter INPUT"), CLIENT, VIP)),
        marked(with_headers(jump(id, "nat POSTROUTING", 13, "KUBE-POSTROUTING"), CLIENT, "10.244.1.5:8080")),
        rule(id, "nat KUBE-POSTROUTING", 33, TraceVerdict::Rule(Verdict::Accept)),
    ]
}

fn refused(id: u32, source: &str) -> Vec<TraceEvent> {
    vec![
        begin(id, source),
        with_headers(jump(id, "filter INPUT", 8, "KUBE-IPVS-FILTER"), source, VIP),
        rule(id, "filter KUBE-IPVS-FILTER", 9, TraceVerdict::Rule(Verdict::Drop)),
    ]
}

fn collect(events: &[TraceEvent], limit: usize) -> Vec<TracedPacket> {
    let mut collector = PacketCollector::new(hooks(), limit);
    events.iter().for_each(|event| collector.add(event));
    collector.finish(&facts())
}

fn report(packets: Vec<TracedPacket>) -> TraceReport {
    let notes = vec!["IPv4 rules of iptables-legacy are not seen by a trace (tables nat)".to_owned()];
    let notes = if packets.is_empty() { Vec::new() } else { notes };
    TraceReport::new("TCP 10.96.0.10:80".to_owned(), 10, packets, notes)
}

#[test]
fn the_text() {
    let events = [served(1), refused(2, "10.244.1.9:41001"), vec![begin(3, "10.244.1.9:41002")]].concat();
    for (name, events) in [("packets", &events[..]), ("nothing", &[])] {
        for width in [80, 200] {
            let text = report(collect(events, 20)).text(Layout { width, color: false });
            golden::compare(&format!("agent/snapshots/trace-{name}-{width}.txt"), &text);
        }
    }
}

#[test]
fn the_document() {
    let document = serde_json::to_value(report(collect(&served(1), 20))).unwrap();
    assert_eq!(document["schemaVersion"], 1);
    let packet = &document["packets"][0];
    assert_eq!(packet["protocol"], "TCP");
    assert_eq!(packet["service"], "shop/web:http");
    assert_eq!(packet["realServer"], "10.244.1.5:8080");
    assert_eq!(packet["steps"][1]["to"], "KUBE-MARK-MASQ");
    assert_eq!(packet["steps"][1]["family"], "ip");
    assert_eq!(packet["steps"][2]["mark"], 0x4000);
    assert_eq!(packet["conntrack"]["sourceSeen"], "10.244.1.1:41000");
    assert_eq!(packet["conntrack"]["states"], serde_json::json!(["SYN_SENT", "SYN_RECV", "ESTABLISHED"]));
}

#[test]
fn the_schema_is_that_of_the_documentation() {
    let text = format!("{:#}\n", schemars::schema_for!(TraceReport).to_value());
    golden::compare("docs/schemas/trace.json", &text);
}

#[test]
fn packets_that_are_mixed_or_reuse_a_number_are_told_apart() {
    let (one, two) = (served(1), refused(2, "10.244.1.9:41001"));
    let mixed = [&one[..3], &two[..2], &one[3..], &two[2..], &refused(1, "10.244.1.9:41003")[..]].concat();
    let packets = collect(&mixed, 20);
    let steps: Vec<usize> = packets.iter().map(|packet| packet.steps.len()).collect();
    assert_eq!(steps, [8, 2, 2]);
    assert_eq!(packets[2].client, socket("10.244.1.9:41003"));
    // Steps of packets that are not marked by us, and those above the limit, are ignored.
    assert!(collect(&one[1..], 20).is_empty());
    assert_eq!(collect(&mixed, 1).len(), 1);
}

#[test]
fn memory_is_bounded() {
    let mut events = vec![begin(1, CLIENT)];
    events.extend((0..1000).map(|_| rule(1, "nat X", 1, TraceVerdict::Continue)));
    let packets = collect(&events, 1);
    assert_eq!((packets[0].steps.len(), packets[0].more_steps), (STEPS, 1000 - STEPS));
}

#[test]
fn a_packet_of_the_node_that_comes_back_by_loopback_is_one() {
    let mut sent = begin(1, CLIENT);
    sent.iif = None;
    assert_eq!(collect(&[sent, begin(1, CLIENT)], 20).len(), 1);
}

#[test]
fn conntrack_tells_the_real_server_that_ipvs_has_forgotten() {
    let mut facts = TraceFacts { connections: Vec::new(), ..facts() };
    let mut collector = PacketCollector::new(hooks(), 1);
    collector.add(&begin(1, CLIENT));
    let other = ConntrackEvent { client: socket("10.244.1.9:41001"), ..tracked("CLOSE") };
    let direct = ConntrackEvent { answers_to: socket(CLIENT), ..tracked("TIME_WAIT") };
    facts.tracked.extend([other, direct]);
    let packet = collector.finish(&facts).remove(0);
    assert_eq!(packet.result, "sent to 10.244.1.5:8080; IPVS has no such connection, or not any more");
    // The port was used again: only the last connection counts.
    let sentence = packet.conntrack.unwrap().sentence(socket(CLIENT));
    assert_eq!(
        sentence,
        "conntrack: 10.244.1.5:8080 sees the client's own address 10.244.1.9:41000; TIME_WAIT"
    );
}

#[test]
fn a_connection_after_the_end_of_one_at_the_same_port_begins_anew() {
    let mut collector = PacketCollector::new(hooks(), 1);
    collector.add(&begin(1, CLIENT));
    let states = ["SYN_SENT", "TIME_WAIT", "ended", "SYN_SENT", "SYN_RECV", "SYN_RECV"];
    let again = TraceFacts { tracked: states.map(tracked).into(), ..facts() };
    let packet = collector.finish(&again).remove(0);
    assert_eq!(packet.conntrack.unwrap().states, ["SYN_SENT", "SYN_RECV"]);
}

#[test]
fn silence_of_connection_tracking_has_a_note_only_if_it_should_have_reported() {
    let passed = collect(&served(1), 1);
    let note = silence_note(false, &passed).unwrap();
    for part in ["`modprobe nf_conntrack_netlink`", "net.netfilter.nf_conntrack_events"] {
        assert!(note.contains(part), "{note}");
    }
    assert_eq!(silence_note(true, &passed), None);
    assert_eq!(silence_note(false, &[]), None);
    // A packet that does not reach a real server is no tracked connection.
    let dropped = [served(1), vec![rule(1, "filter OUTPUT", 9, TraceVerdict::Rule(Verdict::Drop))]].concat();
    for stopped in [refused(1, "10.244.1.9:41001"), vec![begin(1, "10.244.1.9:41002")], dropped] {
        assert_eq!(silence_note(false, &collect(&stopped, 1)), None);
    }
}

#[test]
fn results_name_what_ipvs_lacks() {
    let (connection, moved) = (None, Some(socket("10.0.0.1:1")));
    for (moved, ready, expected) in [
        (None, None, "not known"),
        (None, Some(None), "no virtual server"),
        (None, Some(Some(0)), "refused"),
        (None, Some(Some(1)), "later hook"),
        (moved, None, "sent to 10.0.0.1:1"),
    ] {
        let text = result(&[], connection, moved, ready);
        assert!(text.contains(expected), "{text}");
    }
}
