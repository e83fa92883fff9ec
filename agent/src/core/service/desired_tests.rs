// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::core::model::{Protocol, RsKey, VsSpec};
use crate::core::service::fragment::UdpPort;

fn fragment(name: &str, created: i64, vip: &str, rs: &[&str]) -> Fragment {
    let addr: IpAddr = vip.parse().unwrap();
    let key = VsKey { protocol: Protocol::Tcp, addr, port: 80 };
    Fragment {
        virtual_servers: vec![Arc::new(VirtualServer {
            key,
            spec: VsSpec { scheduler: "rr".into(), flags: 0, timeout: 0 },
            real_servers: rs.iter().map(|a| RsKey { addr: a.parse().unwrap(), port: 1 }).collect(),
            entries: vec![(SetId { kind: SetKind::ClusterIp, family: Family::V4 }, Entry::Ip(addr))].into(),
            closed_to_node: false,
            created,
            service: ObjectName::new("d", name),
            port_name: "".into(),
            options: None,
        })]
        .into(),
        addresses: vec![addr].into(),
        entries: vec![(SetId { kind: SetKind::IpvsIps, family: Family::V4 }, Entry::Ip(addr))].into(),
        ..Fragment::default()
    }
}

fn update(desired: &mut Desired, name: &str, fragment: Option<Fragment>) -> Changes {
    let mut changes = Changes::default();
    desired.update(&ObjectName::new("d", name), fragment, &mut changes);
    changes
}

#[test]
fn an_equal_fragment_changes_nothing() {
    let mut desired = Desired::default();
    assert_eq!(update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[]))).len(), 4);
    assert!(update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[]))).is_empty());
}

#[test]
fn an_endpoint_changes_only_its_virtual_server() {
    let mut desired = Desired::default();
    update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[])));
    let changes = update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &["10.1.0.1"])));
    assert_eq!((changes.virtual_servers.len(), changes.len()), (1, 1));
}

#[test]
fn shared_keys_are_removed_with_their_last_owner() {
    let mut desired = Desired::default();
    update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[])));
    let changes = update(&mut desired, "b", Some(fragment("b", 2, "10.0.0.1", &[])));
    assert!(changes.is_empty(), "the older claim wins: {changes:?}");
    assert_eq!(changes.contested.len(), 1, "the losing claim is reported");
    let changes = update(&mut desired, "a", None);
    assert_eq!(changes.len(), 1, "only the owner of the virtual server changed: {changes:?}");
    assert!(desired.wants_address("10.0.0.1".parse().unwrap()));
    assert!(desired.has_members(SetKind::IpvsIps, Family::V4));
    assert_eq!(update(&mut desired, "b", None).len(), 4);
    assert!(!desired.has_members(SetKind::IpvsIps, Family::V4));
    assert_eq!(desired.addresses().count() + desired.entries().count(), 0);
}

#[test]
fn the_oldest_service_wins_in_any_order() {
    for order in [["a", "b"], ["b", "a"]] {
        let mut desired = Desired::default();
        for name in order {
            let created = if name == "b" { 1 } else { 2 };
            update(&mut desired, name, Some(fragment(name, created, "10.0.0.1", &[])));
        }
        let winner = desired.virtual_servers().next().unwrap();
        assert_eq!(&*winner.service.name, "b");
    }
}

#[test]
fn an_unchanged_service_keeps_earlier_changes() {
    let mut desired = Desired::default();
    update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[])));
    update(&mut desired, "b", Some(fragment("b", 2, "10.0.0.1", &[])));
    let mut changes = Changes::default();
    desired.update(&ObjectName::new("d", "a"), None, &mut changes);
    let again = fragment("b", 2, "10.0.0.1", &[]);
    desired.update(&ObjectName::new("d", "b"), Some(again), &mut changes);
    assert_eq!(changes.virtual_servers.len(), 1);
}

#[test]
fn a_losing_claim_is_known_until_it_is_withdrawn_or_wins() {
    let key = |vip: &str| VsKey { protocol: Protocol::Tcp, addr: vip.parse().unwrap(), port: 80 };
    let vip = key("10.0.0.1");
    let mut desired = Desired::default();
    update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[])));
    update(&mut desired, "b", Some(fragment("b", 2, "10.0.0.1", &[])));
    let losers: Vec<String> = desired.losers(&vip).map(|vs| vs.service.to_string()).collect();
    assert_eq!(losers, ["d/b"]);
    let changes = update(&mut desired, "b", Some(fragment("b", 2, "10.0.0.1", &["10.1.0.1"])));
    assert!(changes.contested.is_empty(), "reported once, not with each change of the Service");
    let changes = update(&mut desired, "a", None);
    assert!(changes.contested.contains(&vip) && desired.contested().is_empty());
    assert_eq!(desired.losers(&vip).count(), 0);
}

#[test]
fn only_the_winning_claim_contributes_set_entries() {
    let set = SetId { kind: SetKind::LoadBalancerFw, family: Family::V4 };
    let entry = |n: u8| (set, Entry::Ip([9, 9, 9, n].into()));
    let with = |name: &str, created: i64, n: u8| {
        let mut f = fragment(name, created, "10.0.0.1", &[]);
        let mut vs = VirtualServer::clone(&f.virtual_servers[0]);
        vs.entries = vec![entry(n)].into();
        vs.closed_to_node = n == 2;
        f.virtual_servers = vec![Arc::new(vs)].into();
        f
    };
    let mut desired = Desired::default();
    update(&mut desired, "b", Some(with("b", 2, 2)));
    assert_eq!(desired.closed_to_node(Family::V4).len(), 1);
    let changes = update(&mut desired, "a", Some(with("a", 1, 1)));
    assert!(desired.wants_entry(&entry(1)) && !desired.wants_entry(&entry(2)));
    assert!(changes.entries.contains(&entry(1)) && changes.entries.contains(&entry(2)));
    assert!(desired.closed_to_node(Family::V4).is_empty());
    update(&mut desired, "a", None);
    assert!(desired.wants_entry(&entry(2)) && !desired.wants_entry(&entry(1)));
    assert_eq!(desired.members(set), 1);
}

#[test]
fn flows_are_compared_when_udp_frontends_or_endpoints_of_the_winner_change() {
    let with = |name: &str, created: i64, endpoints: &[u8], port: u16| {
        let mut f = fragment(name, created, "10.0.0.1", &[]);
        let key = VsKey { protocol: Protocol::Udp, addr: "10.0.0.1".parse().unwrap(), port };
        f.virtual_servers =
            vec![Arc::new(VirtualServer { key, ..VirtualServer::clone(&f.virtual_servers[0]) })].into();
        let endpoints = endpoints.iter().map(|n| RsKey { addr: [10, 1, 0, *n].into(), port: 53 }).collect();
        f.udp =
            vec![UdpPort { family: Family::V4, frontends: vec![(key.addr, port)], node_port: 0, endpoints }]
                .into();
        f
    };
    let mut desired = Desired::default();
    let compares_flows = |changes: Changes| !changes.flows.is_empty();
    assert!(compares_flows(update(&mut desired, "a", Some(with("a", 1, &[1], 53)))), "the first endpoint");
    assert!(!compares_flows(update(&mut desired, "a", Some(with("a", 1, &[1], 53)))));
    assert!(compares_flows(update(&mut desired, "a", Some(with("a", 1, &[1], 54)))), "another frontend");
    assert!(compares_flows(update(&mut desired, "a", Some(with("a", 1, &[2], 54)))));
    let of = |desired: &Desired, name: &str| desired.stale_flows(&[ObjectName::new("d", name)].into());
    let filters = of(&desired, "a");
    assert_eq!(filters.len(), 1, "IPv4 only");
    assert!(filters[0].frontends.contains_key(&("10.0.0.1".parse().unwrap(), 54)));
    update(&mut desired, "b", Some(with("b", 2, &[9], 54)));
    assert!(of(&desired, "b").is_empty(), "the older Service owns the frontend");
    update(&mut desired, "a", None);
    assert_eq!(of(&desired, "b").len(), 1);
    let changes = update(&mut desired, "b", Some(fragment("b", 2, "10.0.0.1", &[])));
    assert!(!compares_flows(changes), "no endpoints");
}
