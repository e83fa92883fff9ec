// SPDX-License-Identifier: Apache-2.0
//! Random clusters. They have few names, addresses and ports, so that many collide, and random values in every field.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::cluster::Cluster;
use crate::core::model::options::{DirectReturn, SCHED_PORT, Scheduler, ServiceOptions};
use crate::core::model::real_servers::ConnectionLimits;
use crate::core::model::settings::RulesMode;
use crate::core::model::{
    Endpoint, EndpointSlice, Family, Hints, Node, ObjectName, PerFamily, Place, Protocol, Service,
    ServicePort, SlicePort,
};
use crate::store::{Kind, Object};

const SERVICES: usize = 5;
/// Ordinary VIPs, addresses of the node, its gateway, and addresses that cannot be VIPs.
const VIPS: [&str; 8] = [
    "198.51.100.1",
    "198.51.100.2",
    "192.168.50.2",
    "192.168.50.1",
    "203.0.113.1",
    "127.0.0.1",
    "2001:db8::1",
    "fd00:50::2",
];
const RANGES: [&str; 5] =
    ["192.168.0.0/16", "198.18.0.0/15", "198.51.100.7/32", "2001:db8::/32", "0.0.0.0/0"];
const NAMES: [&str; 3] = ["p", "q", ""];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn some<T: Clone + std::fmt::Debug + 'static>(all: Vec<T>, most: usize) -> impl Strategy<Value = Vec<T>> {
    subsequence(all, 0..=most)
}

fn vips() -> impl Strategy<Value = Vec<IpAddr>> {
    some(VIPS.iter().map(|ip| ip.parse().unwrap()).collect(), 3)
}

fn any_port() -> impl Strategy<Value = ServicePort> {
    (select(&NAMES[..]), select(&PROTOCOLS[..]), 80..83u16, prop_oneof![Just(0), 30080..30083u16]).prop_map(
        |(name, protocol, port, node_port)| ServicePort { name: name.into(), protocol, port, node_port },
    )
}

/// Drains end at the deadline of tests.
fn any_options() -> impl Strategy<Value = ServiceOptions> {
    let scheduler = prop::option::of((select(vec!["lc", "mh", "sh"]), select(vec![0, SCHED_PORT])))
        .prop_map(|chosen| chosen.map(|(name, flags)| Scheduler { name: name.into(), flags }));
    let deadline = prop::option::of(Just(super::DEADLINE));
    let limits = select(vec![None, Some(ConnectionLimits { upper: 100, lower: 0 })]);
    let direct = select(vec![None, Some(DirectReturn::Tunnel)]);
    (scheduler, deadline, prop::option::of(any::<bool>()), limits, direct).prop_map(
        |(scheduler, drain_deadline, hairpin, max_connections, direct_return)| ServiceOptions {
            scheduler,
            drain_deadline,
            hairpin,
            max_connections,
            direct_return,
            // What it does depends on earlier states.
            slow_start: None,
            probe: None,
            wrong: Vec::new(),
        },
    )
}

fn any_service() -> impl Strategy<Value = Service> {
    let addresses = (0..4u8, any::<bool>(), any::<bool>(), vips(), vips());
    let policies = (any::<bool>(), any::<bool>(), prop::option::of(select(vec![5u32, 10800])));
    let rest = (
        0..SERVICES,
        0..3i64,
        any::<bool>(),
        some(RANGES.iter().map(|net| net.parse().unwrap()).collect(), 2),
        select(vec![0u16, 32000, 32001]),
        prop::collection::vec(any_port(), 0..4),
        any_options(),
    );
    (addresses, policies, rest).prop_map(
        |(
            (vip, v4, v6, external_ips, load_balancer_ips),
            (external_local, internal_local, affinity),
            rest,
        )| {
            let (name, created, priority, source_ranges, health_check_node_port, ports, options) = rest;
            let v6: Option<IpAddr> = v6.then(|| format!("fd00:96::{vip}").parse().unwrap());
            Service {
                name: ObjectName::new("d", &format!("s{name}")),
                created,
                priority: priority && name == 0,
                cluster_ips: PerFamily::new(v4.then(|| IpAddr::from([10, 96, 0, vip])), v6),
                external_ips,
                load_balancer_ips,
                source_ranges,
                external_local,
                internal_local,
                affinity,
                health_check_node_port,
                own_options: options.kept(),
                labels: None,
                ports,
            }
        },
    )
}

fn any_endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let hints = (some(vec!["za", "zb"], 2), some(vec!["n1", "n2"], 2));
    let rest =
        (select(vec![0, 1, 1, 3]), select(vec![None, Some("n1"), Some("n2")]), prop::option::of(hints));
    (0..5u8, any::<[bool; 3]>(), rest).prop_map(
        move |(n, [ready, serving, terminating], (weight, node, hints))| Endpoint {
            addr: match family {
                Family::V4 => IpAddr::from([10, 244, 1, n]),
                Family::V6 => format!("fd00:244::{n}").parse().unwrap(),
            },
            ready,
            serving,
            terminating,
            weight,
            place: Some(Arc::new(Place {
                node: node.map(Into::into),
                hints: hints.map_or_else(Hints::default, |(zones, nodes)| {
                    let names = |list: Vec<&str>| list.into_iter().map(Into::into).collect();
                    Hints { zones: names(zones), nodes: names(nodes) }
                }),
            })),
        },
    )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (select(&NAMES[..]), select(&PROTOCOLS[..]), 8080..8082u16)
        .prop_map(|(name, protocol, port)| SlicePort { name: name.into(), protocol, port });
    select(&Family::ALL[..]).prop_flat_map(move |family| {
        let endpoints = prop::collection::vec(any_endpoint(family), 0..4);
        (0..SERVICES, 0..2u8, prop::collection::vec(port.clone(), 0..3), endpoints).prop_map(
            move |(service, n, ports, endpoints)| EndpointSlice {
                wrong_weights: None,
                name: ObjectName::new("d", &format!("s{service}-{family}-{n}")),
                service: ObjectName::new("d", &format!("s{service}")),
                family,
                ports: ports.into(),
                endpoints: endpoints.into(),
            },
        )
    })
}

/// A random cluster.
pub fn any_cluster() -> impl Strategy<Value = Cluster> {
    let objects = (prop::collection::vec(any_service(), 0..6), prop::collection::vec(any_slice(), 0..8));
    let node = (select(vec![None, Some("za"), Some("zb")]), vips());
    (objects, node).prop_map(|((services, slices), (zone, addresses))| {
        let node = Node { name: "n1".into(), zone: zone.map(Into::into), addresses, ..Node::default() };
        let services =
            services.into_iter().map(|s| ((Kind::Service, s.name.to_string()), Object::Service(s)));
        let slices =
            slices.into_iter().map(|s| ((Kind::EndpointSlice, s.name.to_string()), Object::EndpointSlice(s)));
        Cluster {
            objects: services.chain(slices).collect(),
            node,
            routed: Vec::new(),
            rules: RulesMode::default(),
        }
    })
}
