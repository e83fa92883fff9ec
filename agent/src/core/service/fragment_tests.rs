// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::core::model::PerFamily;
use crate::core::model::settings::ExternalIps;
use crate::core::model::{Endpoint, Place, SlicePort};
use crate::core::service::protected::{Protected, Protection};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|t| ip(t)).collect()
}

fn port(protocol: Protocol, port: u16, node_port: u16) -> ServicePort {
    ServicePort { name: "p".into(), protocol, port, node_port }
}

/// A Service with a ClusterIP and one TCP port 80.
fn service() -> Service {
    Service {
        name: ObjectName::new("shop", "web"),
        created: 7,
        cluster_ips: PerFamily::new(Some(ip("10.96.0.5")), None),
        ports: vec![port(Protocol::Tcp, 80, 0)],
        ..Service::default()
    }
}

/// Endpoints of one slice; those in 10.244.1 or fd00:244:1 are local.
fn slice(protocol: Protocol, addrs: &[&str]) -> EndpointSlice {
    EndpointSlice {
        wrong_weights: None,
        name: ObjectName::new("shop", "web-1"),
        service: ObjectName::new("shop", "web"),
        family: Family::of(ip(addrs[0])),
        ports: [SlicePort { name: "p".into(), protocol, port: 8080 }].into(),
        endpoints: addrs
            .iter()
            .map(|a| Endpoint {
                addr: ip(a),
                ready: true,
                serving: true,
                terminating: false,
                weight: 1,
                place: Some(Place::on(if a.contains("244.1.") || a.contains("244:1:") {
                    "n1"
                } else {
                    "n2"
                })),
            })
            .collect(),
    }
}

const BOTH: [&str; 2] = ["10.244.1.5", "10.244.2.6"];

fn node() -> NodeFacts {
    NodeFacts {
        name: "n1".into(),
        ips: PerFamily::new(Some(ip("192.168.50.2")), Some(ip("fd00:50::2"))),
        addresses: ips(&["10.77.0.5", "192.168.50.2"]),
        translated: ips(&["203.0.113.7"]),
        protected: Arc::new(Protected {
            gateways: ips(&["192.168.50.1"]).into_iter().collect(),
            ..Protected::default()
        }),
        node_port_addresses: PerFamily::new(ips(&["10.77.0.5", "192.168.50.2"]), Vec::new()),
        ..NodeFacts::default()
    }
}

fn build(service: &Service, slices: &[EndpointSlice]) -> Fragment {
    build_fragment(service, slices, &[], &node(), &Settings::default())
}

/// All entries, including those of virtual servers, as `SET ENTRY` without the prefix `KUBE-`.
fn entries(fragment: &Fragment) -> Vec<String> {
    let of_servers = fragment.virtual_servers.iter().flat_map(|vs| &vs.entries);
    let mut all: Vec<(SetId, Entry)> = fragment.entries.iter().chain(of_servers).copied().collect();
    all.sort_unstable();
    all.dedup();
    all.iter().map(|(set, entry)| format!("{} {entry}", &set.name()[5..])).collect()
}

/// `PROTOCOL VIP:PORT -> real servers`.
fn servers(fragment: &Fragment) -> Vec<String> {
    let show = |vs: &Arc<VirtualServer>| {
        let rs: Vec<String> = vs.real_servers.keys().iter().map(|rs| rs.addr.to_string()).collect();
        format!("{} -> {}", vs.key, rs.join(" "))
    };
    fragment.virtual_servers.iter().map(show).collect()
}

#[test]
fn dual_stack_keeps_the_families_apart() {
    let slices = [slice(Protocol::Tcp, &["10.244.1.5"]), slice(Protocol::Tcp, &["fd00:244:1::5"])];
    let dual =
        Service { cluster_ips: PerFamily::new(Some(ip("10.96.0.5")), Some(ip("fd00:96::5"))), ..service() };
    let f = build(&dual, &slices);
    assert_eq!(servers(&f), ["TCP 10.96.0.5:80 -> 10.244.1.5", "TCP [fd00:96::5]:80 -> fd00:244:1::5"]);
    assert!(entries(&f).contains(&"6-LOOP-BACK fd00:244:1::5,tcp:8080,fd00:244:1::5".to_owned()));
}

#[test]
fn a_service_without_endpoints_has_a_bound_virtual_server() {
    let f = build(&service(), &[]);
    assert_eq!(servers(&f), ["TCP 10.96.0.5:80 -> "]);
    assert_eq!(*f.addresses, *ips(&["10.96.0.5"]));
    assert_eq!(entries(&f), ["CLUSTER-IP 10.96.0.5,tcp:80", "IPVS-IPS 10.96.0.5"]);
}

#[test]
fn vips_that_would_cut_the_node_off_have_virtual_servers_but_no_filter() {
    let external = ["192.168.50.2", "198.51.100.20", "203.0.113.7", "192.168.50.1", "127.0.0.1", "fd00::1"];
    let f = build(&Service { external_ips: ips(&external), ..service() }, &[]);
    assert_eq!(f.virtual_servers.len(), 6, "the IPv6 one needs an IPv6 ClusterIP");
    assert_eq!(*f.addresses, *ips(&["10.96.0.5", "198.51.100.20", "203.0.113.7"]));
    let guarded: Vec<String> = entries(&f).into_iter().filter(|e| e.starts_with("IPVS-IPS")).collect();
    assert_eq!(guarded, ["IPVS-IPS 10.96.0.5", "IPVS-IPS 198.51.100.20"]);
    assert_eq!(
        *f.notices,
        [
            Notice::SpecialVip(ip("127.0.0.1"), Binding::Special),
            Notice::SpecialVip(ip("192.168.50.1"), Binding::Protected(Protection::Gateway)),
            Notice::SpecialVip(ip("192.168.50.2"), Binding::OnLink),
            Notice::SpecialVip(ip("203.0.113.7"), Binding::Translated),
        ]
    );
}

#[test]
fn a_cluster_ip_is_bound_even_if_it_is_an_address_of_the_node() {
    let f = build(&Service { cluster_ips: PerFamily::new(Some(ip("192.168.50.2")), None), ..service() }, &[]);
    assert_eq!((f.addresses.len(), f.notices.len()), (1, 0));
}

#[test]
fn external_ips_can_be_refused() {
    let svc = Service { external_ips: ips(&["198.51.100.20", "203.0.113.9"]), ..service() };
    let with = |external_ips| {
        build_fragment(&svc, [], &[], &node(), &Settings { external_ips, ..Settings::default() })
    };
    let within = with(ExternalIps::Within(vec!["198.51.100.0/24".parse().unwrap()]));
    assert_eq!(within.virtual_servers.len(), 2);
    assert_eq!(*within.notices, [Notice::ExternalIpRefused(ip("203.0.113.9"))]);
    let none = with(ExternalIps::None);
    assert_eq!(
        (none.virtual_servers.len(), none.notices.len()),
        (1, 0),
        "no notice for the feature gate, as in kube-proxy"
    );
}

#[test]
fn node_ports_are_served_on_every_node_address() {
    let svc = Service { ports: vec![port(Protocol::Tcp, 80, 30080)], ..service() };
    let f = build(&svc, &[slice(Protocol::Tcp, &BOTH)]);
    assert_eq!(
        servers(&f),
        [
            "TCP 10.77.0.5:30080 -> 10.244.1.5 10.244.2.6",
            "TCP 10.96.0.5:80 -> 10.244.1.5 10.244.2.6",
            "TCP 192.168.50.2:30080 -> 10.244.1.5 10.244.2.6",
        ]
    );
    assert!(entries(&f).contains(&"NODE-PORT-TCP 30080".to_owned()));
    assert_eq!(*f.addresses, *ips(&["10.96.0.5"]), "a node address is never bound");
}

#[test]
fn local_policy_keeps_outside_traffic_on_the_node() {
    let svc = Service {
        external_local: true,
        external_ips: ips(&["198.51.100.20"]),
        load_balancer_ips: ips(&["203.0.113.20"]),
        health_check_node_port: 32000,
        ports: vec![port(Protocol::Sctp, 80, 30080)],
        ..service()
    };
    let f = build(&svc, &[slice(Protocol::Sctp, &BOTH)]);
    for (vip, expected) in [
        ("10.96.0.5:80", "10.244.1.5 10.244.2.6"),
        ("198.51.100.20:80", "10.244.1.5"),
        ("203.0.113.20:80", "10.244.1.5"),
        ("192.168.50.2:30080", "10.244.1.5"),
    ] {
        assert!(servers(&f).contains(&format!("SCTP {vip} -> {expected}")), "{vip}: {:?}", servers(&f));
    }
    assert_eq!(
        entries(&f),
        [
            "LOOP-BACK 10.244.1.5,sctp:8080,10.244.1.5",
            "CLUSTER-IP 10.96.0.5,sctp:80",
            "EXTERNAL-IP-LOCAL 198.51.100.20,sctp:80",
            "LOAD-BALANCER 203.0.113.20,sctp:80",
            "LOAD-BALANCER-LOCAL 203.0.113.20,sctp:80",
            "NODE-PORT-SCTP-HASH 10.77.0.5,sctp:30080",
            "NODE-PORT-SCTP-HASH 192.168.50.2,sctp:30080",
            "NODE-PORT-LOCAL-SCTP-HASH 10.77.0.5,sctp:30080",
            "NODE-PORT-LOCAL-SCTP-HASH 192.168.50.2,sctp:30080",
            "HEALTH-CHECK-NODE-PORT 32000",
            "IPVS-IPS 10.96.0.5",
            "IPVS-IPS 198.51.100.20",
            "IPVS-IPS 203.0.113.20",
        ]
    );
    let remote_only = build(&svc, &[slice(Protocol::Sctp, &BOTH[1..])]);
    assert!(servers(&remote_only).contains(&"SCTP 192.168.50.2:30080 -> 10.244.2.6".to_owned()));
}

#[test]
fn internal_local_refuses_unless_the_service_is_reachable_from_outside() {
    let internal = Service { internal_local: true, ..service() };
    let remote = [slice(Protocol::Tcp, &BOTH[1..])];
    assert_eq!(servers(&build(&internal, &remote)), ["TCP 10.96.0.5:80 -> "]);
    let outside = Service { ports: vec![port(Protocol::Tcp, 80, 30080)], ..internal.clone() };
    assert!(servers(&build(&outside, &remote)).contains(&"TCP 10.96.0.5:80 -> 10.244.2.6".to_owned()));
    // As in kube-proxy, an external IP that the feature gate ignores still counts as reachable from outside.
    let refused = Service { external_ips: ips(&["198.51.100.20"]), ..internal };
    let settings = Settings { external_ips: ExternalIps::None, ..Settings::default() };
    let f = build_fragment(&refused, &remote, &[], &node(), &settings);
    assert_eq!(servers(&f), ["TCP 10.96.0.5:80 -> 10.244.2.6"]);
}

fn restricted(ranges: &[&str]) -> Fragment {
    let ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
    build(&Service { load_balancer_ips: ips(&["203.0.113.20"]), source_ranges: ranges, ..service() }, &[])
}

#[test]
fn source_ranges_with_the_node_inside() {
    let f = restricted(&["192.168.50.0/24", "198.51.100.7/32", "fd00::/8"]);
    let guards: Vec<String> = entries(&f).into_iter().filter(|e| e.starts_with("LOAD-BALANCER-")).collect();
    assert_eq!(
        guards,
        [
            "LOAD-BALANCER-FW 203.0.113.20,tcp:80",
            "LOAD-BALANCER-SOURCE-IP 203.0.113.20,tcp:80,203.0.113.20",
            "LOAD-BALANCER-SOURCE-CIDR 203.0.113.20,tcp:80,192.168.50.0/24",
            "LOAD-BALANCER-SOURCE-CIDR 203.0.113.20,tcp:80,198.51.100.7",
        ]
    );
    assert!(f.virtual_servers.iter().all(|vs| !vs.closed_to_node));
}

#[test]
fn source_ranges_without_the_node_close_the_vip_to_it() {
    let f = restricted(&["198.18.0.0/15"]);
    assert!(!entries(&f).iter().any(|e| e.starts_with("LOAD-BALANCER-SOURCE-IP")));
    let closed: Vec<bool> = f.virtual_servers.iter().map(|vs| vs.closed_to_node).collect();
    assert_eq!(closed, [false, true], "the ClusterIP stays open");
}

#[test]
fn ranges_of_length_zero_or_of_the_other_family_do_not_restrict() {
    for ranges in [&["198.18.0.0/15", "0.0.0.0/0"][..], &["fd00::/8"]] {
        let f = restricted(ranges);
        assert!(!entries(&f).iter().any(|e| e.starts_with("LOAD-BALANCER-")), "{ranges:?}");
    }
}

#[test]
fn affinity_and_scheduler_apply_to_every_virtual_server() {
    let svc = Service {
        affinity: Some(600),
        external_ips: ips(&["198.51.100.20"]),
        ports: vec![port(Protocol::Tcp, 80, 30080)],
        ..service()
    };
    for (scheduler, flags) in [("rr", 0x1), ("mh", 0x11), ("sh", 0x1)] {
        let settings = Settings { scheduler: scheduler.into(), ..Settings::default() };
        let f = build_fragment(&svc, [], &[], &node(), &settings);
        assert_eq!(f.virtual_servers.len(), 4);
        for vs in &f.virtual_servers {
            assert_eq!((&*vs.spec.scheduler, vs.spec.flags, vs.spec.timeout), (scheduler, flags, 600));
        }
    }
}

#[test]
fn a_port_without_a_node_port_address_has_no_health_check() {
    let svc = Service {
        external_local: true,
        health_check_node_port: 32000,
        ports: vec![port(Protocol::Tcp, 80, 30080)],
        ..service()
    };
    let nowhere = NodeFacts { node_port_addresses: PerFamily::new(Vec::new(), Vec::new()), ..node() };
    let f = build_fragment(&svc, [], &[], &nowhere, &Settings::default());
    assert_eq!(entries(&f), ["CLUSTER-IP 10.96.0.5,tcp:80", "IPVS-IPS 10.96.0.5"]);
}

#[test]
fn one_address_as_two_kinds_of_vip_keeps_both_kinds_of_entry() {
    let both = ips(&["203.0.113.20"]);
    let f = build(&Service { external_ips: both.clone(), load_balancer_ips: both, ..service() }, &[]);
    assert_eq!(f.virtual_servers.len(), 2);
    let kinds: Vec<String> = entries(&f).into_iter().filter(|e| e.ends_with("203.0.113.20,tcp:80")).collect();
    assert_eq!(kinds, ["EXTERNAL-IP 203.0.113.20,tcp:80", "LOAD-BALANCER 203.0.113.20,tcp:80"]);
}

#[test]
fn udp_ports_have_their_serving_endpoints() {
    let svc = Service { ports: vec![port(Protocol::Udp, 53, 30053)], ..service() };
    let mut endpoints = slice(Protocol::Udp, &["10.244.1.5", "10.244.2.6", "10.244.2.7"]);
    endpoints.endpoints[1].ready = false;
    endpoints.endpoints[2].serving = false;
    let f = build(&svc, &[endpoints]);
    assert_eq!(f.udp.len(), 1);
    assert_eq!(f.udp[0].frontends, [(ip("10.96.0.5"), 53)]);
    assert_eq!(f.udp[0].node_port, 30053);
    let answer: Vec<String> = f.udp[0].endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(answer, ["10.244.1.5:8080", "10.244.2.6:8080"], "serving endpoints");
    assert!(build(&svc, &[]).udp.is_empty(), "no endpoints: flows are kept");
}

#[test]
fn duplicate_ports_are_one_virtual_server() {
    let doubled = Service {
        ports: vec![
            port(Protocol::Tcp, 80, 0),
            ServicePort { name: "q".into(), ..port(Protocol::Tcp, 80, 0) },
            port(Protocol::Udp, 80, 0),
        ],
        ..service()
    };
    let fragment =
        build_fragment(&doubled, [&slice(Protocol::Tcp, &BOTH)], &[], &node(), &Settings::default());
    let keys: Vec<String> = fragment.virtual_servers.iter().map(|vs| vs.key.to_string()).collect();
    assert_eq!(keys, ["TCP 10.96.0.5:80", "UDP 10.96.0.5:80"]);
}

#[test]
fn giant_objects_are_not_truncated() {
    let ports = (1..=100).map(|n| ServicePort { name: "p".into(), ..port(Protocol::Tcp, n, 0) }).collect();
    let mut giant = slice(Protocol::Tcp, &BOTH);
    giant.endpoints = (0..10_000u16)
        .map(|n| Endpoint { addr: [10, 200, (n >> 8) as u8, n as u8].into(), ..giant.endpoints[0].clone() })
        .collect();
    let fragment =
        build_fragment(&Service { ports, ..service() }, [&giant], &[], &node(), &Settings::default());
    assert_eq!(fragment.virtual_servers.len(), 100);
    assert!(fragment.virtual_servers.iter().all(|vs| vs.real_servers.len() == 10_000));
}

#[test]
fn a_service_without_ports_has_no_health_check() {
    let with_port = Service { health_check_node_port: 32000, external_local: true, ..service() };
    let check = |service: &Service| build(service, &[slice(Protocol::Tcp, &BOTH)]).health;
    assert!(check(&with_port).is_some());
    assert_eq!(check(&Service { ports: Vec::new(), ..with_port }), None);
}
