// SPDX-License-Identifier: Apache-2.0
//! Golden plans, and the properties that every plan has.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::desired::{Changes, Desired};
use super::fragment::build_fragment;
use super::model::*;
use super::observed::Observed;
use super::op::{Op, Phase};
use super::plan::{Scope, build_plan};
use crate::kernel::fake::FakeKernel;
use crate::kernel::{Kernel, apply};

fn settings() -> Settings {
    Settings {
        local: LocalTraffic::Cidrs([Some("10.244.0.0/16".parse().unwrap()), None]),
        families: vec![Family::V4],
        sysctls: vec![Sysctl { path: "net/ipv4/vs/conntrack", value: 1 }],
        ..Settings::default()
    }
}

fn node() -> NodeFacts {
    NodeFacts { name: "n1".into(), addresses: Vec::new() }
}

fn dns(external: &[&str]) -> Service {
    Service {
        name: ObjectName::new("kube-system", "kube-dns"),
        created: 1,
        cluster_ips: [Some("10.96.0.10".parse().unwrap()), None],
        external_ips: external.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: vec![ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53 }],
    }
}

fn slice(addrs: &[&str]) -> EndpointSlice {
    let endpoint = |addr: &&str| Endpoint {
        addr: addr.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: addr.starts_with("10.244.1.").then(|| "n1".into()),
    };
    EndpointSlice {
        name: ObjectName::new("kube-system", "kube-dns-1"),
        service: ObjectName::new("kube-system", "kube-dns"),
        family: Family::V4,
        ports: vec![SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53 }],
        endpoints: addrs.iter().map(endpoint).collect(),
    }
}

fn update(desired: &mut Desired, service: Option<&Service>, slices: &[EndpointSlice]) -> Changes {
    let mut changes = Changes::default();
    let fragment = service.map(|s| build_fragment(s, slices, &node(), &settings()));
    desired.update(&ObjectName::new("kube-system", "kube-dns"), fragment, &mut changes);
    changes
}

/// Applies a plan that must succeed.
fn settle(kernel: &mut FakeKernel, desired: &Desired) -> Observed {
    let plan = build_plan(desired, &kernel.state, &settings(), Scope::All);
    assert!(apply(kernel, &plan).is_clean());
    kernel.state.clone()
}

#[test]
fn golden_cold_start() {
    let mut desired = Desired::default();
    update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.1.5", "10.244.2.6"])]);
    let plan = build_plan(&desired, &Observed::default(), &settings(), Scope::All).to_string();
    let text: String = plan.lines().filter(|l| !l.contains("+ set ")).map(|l| format!("{l}\n")).collect();
    assert_eq!(
        text,
        "Prepare\n  sysctl net/ipv4/vs/conntrack = 1\n  + device\nGuard\n  \
         + entry KUBE-LOOP-BACK 10.244.1.5,udp:53,10.244.1.5\n  \
         + entry KUBE-CLUSTER-IP 10.96.0.10,udp:53\n  \
         + entry KUBE-IPVS-IPS 10.96.0.10\n  \
         = rules IPv4 (20 rules, 9 jumps)\nServe\n  \
         + virtual server UDP 10.96.0.10:53 rr\n  \
         + real server UDP 10.96.0.10:53 -> 10.244.1.5:53\n  \
         + real server UDP 10.96.0.10:53 -> 10.244.2.6:53\nOpen\n  \
         + address 10.96.0.10\n"
    );
}

#[test]
fn golden_one_endpoint_comes_and_another_goes() {
    let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&["net/ipv4/vs/conntrack"]));
    update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.1.5", "10.244.1.6"])]);
    let observed = settle(&mut kernel, &desired);
    let changes = update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.1.5", "10.244.2.7"])]);
    let plan = build_plan(&desired, &observed, &settings(), Scope::Changes(&changes));
    assert_eq!(
        plan.to_string(),
        "Serve\n  + real server UDP 10.96.0.10:53 -> 10.244.2.7:53\nRemove\n  \
         - real server UDP 10.96.0.10:53 -> 10.244.1.6:53\nTidy\n  \
         - entry KUBE-LOOP-BACK 10.244.1.6,udp:53,10.244.1.6\n"
    );
}

#[test]
fn golden_the_service_goes_traffic_first_rules_last() {
    let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&["net/ipv4/vs/conntrack"]));
    update(&mut desired, Some(&dns(&["198.51.100.7"])), &[slice(&["10.244.1.5"])]);
    let observed = settle(&mut kernel, &desired);
    let changes = update(&mut desired, None, &[]);
    let plan = build_plan(&desired, &observed, &settings(), Scope::Changes(&changes));
    assert_eq!(
        plan.to_string(),
        "Close\n  - address 10.96.0.10/32\n  - address 198.51.100.7/32\nRemove\n  \
         - virtual server UDP 10.96.0.10:53\n  - virtual server UDP 198.51.100.7:53\nTidy\n  \
         - entry KUBE-LOOP-BACK 10.244.1.5,udp:53,10.244.1.5\n  \
         - entry KUBE-CLUSTER-IP 10.96.0.10,udp:53\n  \
         - entry KUBE-EXTERNAL-IP 198.51.100.7,udp:53\n  \
         - entry KUBE-IPVS-IPS 10.96.0.10\n  - entry KUBE-IPVS-IPS 198.51.100.7\n  \
         = rules IPv4 (17 rules, 0 jumps)\n"
    );
}

#[test]
fn golden_drift_is_repaired_in_place() {
    let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&["net/ipv4/vs/conntrack"]));
    update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.2.5"])]);
    settle(&mut kernel, &desired);
    let key = VsKey { protocol: Protocol::Udp, addr: "10.96.0.10".parse().unwrap(), port: 53 };
    let server = kernel.state.virtual_servers.get_mut(&key).unwrap();
    server.spec.scheduler = "wrr".into();
    server.real_servers.values_mut().for_each(|rs| rs.weight = 7);
    kernel.state.addresses.insert("10.96.0.99/24".parse().unwrap());
    kernel.state.rules[0].jumps[3] = false;
    let plan = build_plan(&desired, &kernel.state, &settings(), Scope::All);
    assert_eq!(
        plan.to_string(),
        "Guard\n  = rules IPv4 (19 rules, 1 jumps)\nServe\n  = virtual server UDP 10.96.0.10:53 rr\n  \
         = real server UDP 10.96.0.10:53 -> 10.244.2.5:53\nClose\n  - address 10.96.0.99/24\n"
    );
}

/// A small random cluster: VIPs, endpoints and external IPs collide on purpose.
fn any_cluster() -> impl Strategy<Value = BTreeMap<u8, (Service, EndpointSlice)>> {
    let one =
        (0..6u8, 0..3u8, 1..4u16, prop::collection::vec(0..4u8, 0..4), prop::option::of(0..3u8), 0..4i64);
    prop::collection::vec(one, 0..8).prop_map(|all| {
        let build =
            |(name, vip, port, endpoints, external, created): (u8, u8, u16, Vec<u8>, Option<u8>, i64)| {
                let object = ObjectName::new("d", &format!("s{name}"));
                let service = Service {
                    name: object.clone(),
                    created,
                    cluster_ips: [Some(IpAddr::from([10, 96, 0, vip])), None],
                    external_ips: external.map(|e| IpAddr::from([198, 51, 100, e])).into_iter().collect(),
                    ports: vec![ServicePort { name: "p".into(), protocol: Protocol::Tcp, port }],
                };
                let mut slice = slice(&[]);
                slice.service = object;
                slice.ports = vec![SlicePort { name: "p".into(), protocol: Protocol::Tcp, port: 8080 }];
                slice.endpoints = endpoints
                    .iter()
                    .map(|e| Endpoint {
                        addr: IpAddr::from([10, 244, e % 2 + 1, *e]),
                        ready: *e != 3,
                        serving: true,
                        terminating: false,
                        node: (e % 2 == 0).then(|| "n1".into()),
                    })
                    .collect();
                (name, (service, slice))
            };
        all.into_iter().map(build).collect()
    })
}

/// Moves `desired` to the cluster, and returns what changed.
fn move_to(desired: &mut Desired, cluster: &BTreeMap<u8, (Service, EndpointSlice)>) -> Changes {
    let mut changes = Changes::default();
    for name in 0..6u8 {
        let fragment = cluster.get(&name).map(|(s, slice)| build_fragment(s, [slice], &node(), &settings()));
        desired.update(&ObjectName::new("d", &format!("s{name}")), fragment, &mut changes);
    }
    changes
}

proptest! {
    #[test]
    fn a_plan_reaches_its_goal_and_then_there_is_nothing_to_do(a in any_cluster(), b in any_cluster()) {
        let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&["net/ipv4/vs/conntrack"]));
        for cluster in [&a, &b] {
            move_to(&mut desired, cluster);
            settle(&mut kernel, &desired);
            let again = build_plan(&desired, &kernel.state, &settings(), Scope::All);
            prop_assert!(again.is_empty(), "left over:\n{again}");
        }
    }

    #[test]
    fn incremental_equals_full_from_scratch(a in any_cluster(), b in any_cluster()) {
        let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&["net/ipv4/vs/conntrack"]));
        let mut observed = kernel.observe().unwrap();
        for cluster in [&a, &b] {
            let changes = move_to(&mut desired, cluster);
            let plan = build_plan(&desired, &observed, &settings(), Scope::Changes(&changes));
            prop_assert!(apply(&mut kernel, &plan).is_clean());
            plan.ops.iter().for_each(|op| observed.record(op));
            prop_assert_eq!(&observed, &kernel.state, "the mirror follows the kernel");
        }
        let mut scratch = Desired::default();
        move_to(&mut scratch, &b);
        let mut fresh = FakeKernel::new(&["net/ipv4/vs/conntrack"]);
        prop_assert_eq!(settle(&mut fresh, &scratch), kernel.state);
    }

    #[test]
    fn foreign_objects_are_never_touched(a in any_cluster()) {
        let mut kernel = FakeKernel::new(&["net/ipv4/vs/conntrack"]);
        let excluded = VsKey { protocol: Protocol::Tcp, addr: "9.9.9.9".parse().unwrap(), port: 80 };
        let spec = VsSpec { scheduler: "wrr".into(), flags: 0, timeout: 0 };
        kernel.state.record(&Op::AddVirtualServer(excluded, spec));
        let settings = Settings { exclude_cidrs: vec!["9.9.9.0/24".parse().unwrap()], ..settings() };
        let mut desired = Desired::default();
        move_to(&mut desired, &a);
        let plan = build_plan(&desired, &kernel.state, &settings, Scope::All);
        prop_assert!(apply(&mut kernel, &plan).is_clean());
        prop_assert!(kernel.state.virtual_servers.contains_key(&excluded));
    }

    #[test]
    fn phases_are_in_order_and_no_address_is_ever_exposed(a in any_cluster(), b in any_cluster()) {
        let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&["net/ipv4/vs/conntrack"]));
        for cluster in [&a, &b] {
            move_to(&mut desired, cluster);
            let plan = build_plan(&desired, &kernel.state, &settings(), Scope::All);
            let phases: Vec<Phase> = plan.ops.iter().map(Op::phase).collect();
            prop_assert!(phases.is_sorted());
            for op in &plan.ops {
                prop_assert!(kernel.execute(&[op])[0].is_ok(), "{op}");
                prop_assert_eq!(kernel.exposed_address(), None, "after {}", op);
            }
        }
    }
}
