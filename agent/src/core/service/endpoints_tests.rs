// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::core::model::{ObjectName, Place, Protocol, SlicePort};

fn port() -> ServicePort {
    ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }
}

/// An endpoint from text: address, then any of `unready`, `unserving`, `terminating`, `@NODE`, `za` or
/// `zb` (zone hints), `n1` or `n2` (node hints).
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let addr = words.next().unwrap().parse().unwrap();
    let words: Vec<&str> = words.collect();
    let has = |word: &str| words.contains(&word);
    let hinted = |letter: char| -> Box<[Arc<str>]> {
        words.iter().filter(|w| w.len() == 2 && w.starts_with(letter)).map(|w| (*w).into()).collect()
    };
    let hints = Hints { zones: hinted('z'), nodes: hinted('n') };
    let node = words.iter().find_map(|w| w.strip_prefix('@')).map(Into::into);
    Endpoint {
        addr,
        ready: !has("unready"),
        serving: !has("unserving"),
        terminating: has("terminating"),
        weight: 1,
        place: Some(Arc::new(Place { node, hints })),
    }
}

fn slice(port: (&str, Protocol, u16), endpoints: &[&str]) -> EndpointSlice {
    EndpointSlice {
        wrong_weights: None,
        name: ObjectName::new("ns", "s"),
        service: ObjectName::new("ns", "svc"),
        family: Family::V4,
        ports: [SlicePort { name: port.0.into(), protocol: port.1, port: port.2 }].into(),
        endpoints: endpoints.iter().map(|e| endpoint(e)).collect(),
    }
}

const HTTP: (&str, Protocol, u16) = ("http", Protocol::Tcp, 8080);

fn node() -> NodeFacts {
    NodeFacts { name: "n1".into(), zone: Some("za".into()), ..NodeFacts::default() }
}

/// The last octets of the selected addresses: under policy Cluster, under policy Local.
fn chosen(endpoints: &[&str], node: &NodeFacts) -> (Vec<u8>, Vec<u8>) {
    let slice = slice(HTTP, endpoints);
    let all = build_endpoints(&port(), Family::V4, [&slice], &node.name);
    let selection = select(&all, true, true, node);
    let last = |list: &[RsKey]| {
        list.iter()
            .map(|rs| match rs.addr {
                std::net::IpAddr::V4(ip) => ip.octets()[3],
                std::net::IpAddr::V6(_) => 0,
            })
            .collect()
    };
    (last(selection.cluster.keys()), last(selection.local.keys()))
}

#[test]
fn ready_serving_and_terminating_endpoints() {
    /// Name, endpoints, and the endpoints selected under policy Cluster and Local.
    type Case = (&'static str, &'static [&'static str], &'static [u8], &'static [u8]);
    let cases: &[Case] = &[
        ("no endpoints", &[], &[], &[]),
        ("ready ones only", &["10.0.0.1 @n1", "10.0.0.2 unready @n1", "10.0.0.3"], &[1, 3], &[1]),
        (
            "terminating endpoints are ignored while one is ready",
            &["10.0.0.1 @n1", "10.0.0.2 unready terminating @n1", "10.0.0.3 unready terminating"],
            &[1],
            &[1],
        ),
        (
            "none ready: endpoints that terminate and serve",
            &[
                "10.0.0.1 unready terminating @n1",
                "10.0.0.2 unready terminating",
                "10.0.0.3 unready",
                "10.0.0.4 unready unserving terminating @n1",
            ],
            &[1, 2],
            &[1],
        ),
        (
            "ready elsewhere, terminating here: each list falls back by itself",
            &["10.0.0.1 unready terminating @n1", "10.0.0.2 @n2", "10.0.0.3 unready terminating @n2"],
            &[2],
            &[1],
        ),
        ("terminating and not serving", &["10.0.0.1 unready unserving terminating @n1"], &[], &[]),
        ("unready and not terminating", &["10.0.0.1 unready @n1"], &[], &[]),
        ("without a node name no endpoint is local", &["10.0.0.1"], &[1], &[]),
    ];
    for (what, endpoints, cluster, local) in cases {
        assert_eq!(chosen(endpoints, &node()), (cluster.to_vec(), local.to_vec()), "{what}");
    }
}

#[test]
fn hints_apply_only_if_every_endpoint_has_them() {
    let cases: &[(&str, &[&str], &[u8])] = &[
        ("own zone", &["10.0.0.1 za", "10.0.0.2 zb", "10.0.0.3 za"], &[1, 3]),
        ("several zones each", &["10.0.0.1 za zb", "10.0.0.2 zb"], &[1]),
        ("one without hints", &["10.0.0.1 za", "10.0.0.2"], &[1, 2]),
        ("no hint for this zone", &["10.0.0.1 zb", "10.0.0.2 zc"], &[1, 2]),
        (
            "hints of unready endpoints are ignored",
            &["10.0.0.1 za unready", "10.0.0.2 zb", "10.0.0.3 zc"],
            &[2, 3],
        ),
        ("an unready endpoint needs no hint", &["10.0.0.1 za", "10.0.0.2 unready"], &[1]),
        ("own node", &["10.0.0.1 n1 za", "10.0.0.2 n2 za"], &[1]),
        ("no node hint for this node: zones", &["10.0.0.1 n2 zb", "10.0.0.2 n3 za"], &[2]),
        ("node hints on some endpoints: zones", &["10.0.0.1 n1 za", "10.0.0.2 za", "10.0.0.3 zb"], &[1, 2]),
        ("neither kind complete", &["10.0.0.1 n1 za", "10.0.0.2"], &[1, 2]),
        (
            "the terminating fallback ignores hints",
            &["10.0.0.1 unready terminating zb", "10.0.0.2 unready terminating za"],
            &[1, 2],
        ),
    ];
    for (what, endpoints, cluster) in cases {
        assert_eq!(chosen(endpoints, &node()).0, *cluster, "{what}");
    }
    let nowhere = NodeFacts { zone: None, ..node() };
    assert_eq!(chosen(&["10.0.0.1 za", "10.0.0.2 zb"], &nowhere).0, [1, 2], "a node without a zone");
    assert_eq!(
        chosen(&["10.0.0.1 zb @n1", "10.0.0.2 za @n2"], &node()),
        (vec![2], vec![1]),
        "local ignores hints"
    );
}

#[test]
fn an_unused_list_stays_empty() {
    let slice = slice(HTTP, &["10.0.0.1", "10.0.0.2 @n1"]);
    let all = build_endpoints(&port(), Family::V4, [&slice], "n1");
    let internal = select(&all, false, true, &node());
    assert_eq!((internal.cluster.len(), internal.local.len()), (0, 1));
    let usual = select(&all, true, false, &node());
    assert_eq!((usual.cluster.len(), usual.local.len()), (2, 0));
    assert_eq!(usual.of(true).len(), 2, "Local without a local endpoint falls back");
    assert_eq!(internal.of(true).len(), 1);
}

#[test]
fn name_protocol_and_family_must_match() {
    for p in [("http", Protocol::Udp, 80), ("https", Protocol::Tcp, 80)] {
        let s = slice(p, &["10.0.0.1"]);
        assert!(build_endpoints(&port(), Family::V4, [&s], "n1").is_empty());
    }
    let s = slice(HTTP, &["10.0.0.1"]);
    assert!(build_endpoints(&port(), Family::V6, [&s], "n1").is_empty());
}

#[test]
fn an_endpoint_that_does_not_terminate_wins_over_its_terminating_duplicate() {
    let going = slice(HTTP, &["10.0.0.1 unready terminating"]);
    let ready = slice(HTTP, &["10.0.0.1"]);
    for order in [[&going, &ready], [&ready, &going]] {
        let all = build_endpoints(&port(), Family::V4, order, "n1");
        assert_eq!(all.len(), 1);
        assert!(all[0].ready && !all[0].terminating);
    }
}

#[test]
fn two_ports_of_one_name_are_two_real_servers() {
    let a = slice(("http", Protocol::Tcp, 80), &["10.0.0.1"]);
    let b = slice(("http", Protocol::Tcp, 8080), &["10.0.0.1"]);
    assert_eq!(build_endpoints(&port(), Family::V4, [&a, &b], "n1").len(), 2);
}

#[test]
fn a_node_without_a_name_has_no_local_endpoints() {
    let mut s = slice(HTTP, &["10.0.0.1"]);
    s.endpoints[0].place = Some(Place::on(""));
    assert!(!build_endpoints(&port(), Family::V4, [&s], "")[0].local);
}
