// SPDX-License-Identifier: Apache-2.0
//! A VIP that is an address of a host that this node must reach is not bound, and is unbound as soon as the agent
//! knows the host.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::core::plan::pass::Due;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Reconciler;
use crate::core::mirror::{ObservedServer, OpenPort};
use crate::core::model::sets::{Entry, SetId};
use crate::core::model::{ObjectName, Protocol, VsKey, VsSpec};
use crate::inbox::Inbox;
use crate::kernel::fake::FakeKernel;
use crate::reconcile::schedule::Schedule;
use crate::source::decode::decode;
use crate::store::{Kind, Store};
use crate::testing::cluster::Cluster;
use crate::testing::{Agent, kernel, lines, reporting, settings};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A Service with this external IP, and one with this load-balancer IP.
fn cluster(external: &str, ingress: &[&str]) -> Cluster {
    let spec =
        json!({"clusterIP": "10.96.0.1", "externalIPs": [external], "ports": [{"name": "p", "port": 80}]});
    let lb = json!({"clusterIP": "10.96.0.2", "type": "LoadBalancer", "ports": [{"name": "p", "port": 443}]});
    Cluster::default()
        .service("web", spec, &[])
        .slice("web", &["10.244.1.5@n1"], &["p/TCP/8080"])
        .service("lb", lb, ingress)
        .slice("lb", &["10.244.1.6"], &["p/TCP/8443"])
}

fn bound(agent: &mut Agent) -> Vec<String> {
    let mut bound: Vec<String> =
        agent.kernel().state.addresses.iter().map(|net| net.addr().to_string()).collect();
    bound.sort();
    bound
}

fn peers(agent: &Agent, nodes: &[&str], api_servers: &[&str]) {
    agent.store.update(|update| {
        update.set_nodes(nodes.iter().map(|text| ip(text)).collect());
        update.set_api_servers(api_servers.iter().map(|text| SocketAddr::new(ip(text), 6443)).collect());
    });
}

const CLUSTER_IPS: [&str; 2] = ["10.96.0.1", "10.96.0.2"];

#[test]
fn no_virtual_server_takes_the_agents_way_to_the_api_server() {
    let spec = json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.168.50.100"],
                      "ports": [{"name": "p", "port": 6443}, {"name": "q", "port": 80}]});
    let cluster = Cluster::default().service("web", spec, &[]).slice(
        "web",
        &["10.244.1.5@n1"],
        &["p/TCP/1", "q/TCP/2"],
    );
    let mut agent = Agent::start(kernel(), &cluster);
    peers(&agent, &["192.168.50.2"], &["192.168.50.100"]);
    agent.converge(Due::Changes, 3);
    let keys: Vec<String> = agent.kernel().state.virtual_servers.keys().map(ToString::to_string).collect();
    assert!(!keys.contains(&"TCP 192.168.50.100:6443".to_owned()), "{keys:?}");
    for kept in ["TCP 10.96.0.1:6443", "TCP 192.168.50.100:80"] {
        assert!(keys.contains(&kept.to_owned()), "{keys:?}");
    }
}

#[test]
fn an_address_of_another_node_or_of_the_api_server_is_served_and_not_bound() {
    let mut agent = Agent::start(kernel(), &cluster("192.168.50.3", &["203.0.113.9", "192.168.50.100"]));
    peers(&agent, &["192.168.50.2", "192.168.50.3"], &["192.168.50.100"]);
    agent.converge(Due::Changes, 3);
    assert_eq!(bound(&mut agent), [&CLUSTER_IPS[..], &["203.0.113.9"]].concat());
    let state = &agent.kernel().state;
    let vips: Vec<String> = state.virtual_servers.keys().map(|key| key.addr.to_string()).collect();
    assert!(vips.contains(&"192.168.50.3".to_owned()) && vips.contains(&"192.168.50.100".to_owned()));
    let counts = agent.reconciler.desired().unbound().values().sum::<u32>();
    assert_eq!(counts, 2);
}

#[test]
fn nothing_but_cluster_ips_is_bound_before_the_peers_are_known() {
    for first in [cluster("192.168.50.3", &["203.0.113.9"]), Cluster::default()] {
        let mut agent = Agent::start(kernel(), &first);
        agent.store.update(|update| update.await_nodes());
        assert!(agent.reconciler.is_ready(), "ClusterIPs do not wait");
        agent.converge(Due::Changes, 2);
        cluster("192.168.50.3", &["203.0.113.9"]).put(&agent.store);
        agent.converge(Due::Changes, 2);
        assert_eq!(bound(&mut agent), CLUSTER_IPS);
        peers(&agent, &["192.168.50.3"], &[]);
        agent.converge(Due::Changes, 2);
        assert_eq!(bound(&mut agent), [&CLUSTER_IPS[..], &["203.0.113.9"]].concat());
    }
}

#[test]
fn a_restart_keeps_bound_what_it_finds_until_the_peers_are_known() {
    let cluster = cluster("192.168.50.3", &["203.0.113.9"]);
    let mut agent = Agent::start(kernel(), &cluster);
    agent.converge(Due::Changes, 2);
    let mut agent = Agent::start(agent.kill(), &cluster);
    agent.store.update(|update| update.await_nodes());
    assert!(agent.sync(Due::Changes).plan.ops.is_empty());
    peers(&agent, &["192.168.50.3"], &[]);
    agent.converge(Due::Changes, 2);
    assert_eq!(bound(&mut agent), [&CLUSTER_IPS[..], &["203.0.113.9"]].concat());
    // Addresses that were bound before there was a VIP do not matter for a later VIP.
    let mut agent = Agent::start(agent.kill(), &Cluster::default());
    agent.store.update(|update| update.await_nodes());
    agent.converge(Due::Changes, 2);
    cluster.put(&agent.store);
    agent.converge(Due::Changes, 2);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
}

/// A kernel with state of another program: these VIPs are bound, have a virtual server at port 6443, and are in the set.
fn left(set: &str, vips: &[&str]) -> FakeKernel {
    let mut kernel = kernel();
    let set = SetId::from_name(set).unwrap();
    for vip in vips {
        let vs = VsKey { protocol: Protocol::Tcp, addr: ip(vip), port: 6443 };
        kernel.state.addresses.insert(ip(vip).into());
        let spec = VsSpec { scheduler: "rr".into(), flags: 0, timeout: 0 };
        let server = ObservedServer { spec, real_servers: std::iter::empty().collect() };
        kernel.state.virtual_servers.insert(vs, server);
        kernel.state.sets.entry(set).or_default().members.insert(Entry::IpPort(
            vs.addr,
            vs.protocol,
            vs.port,
        ));
    }
    kernel.state.device = true;
    kernel
}

#[test]
fn addresses_that_block_the_way_to_the_api_server_are_released_before_any_list_arrives() {
    let turn = |kernel| {
        let store = Arc::new(Store::new(Arc::new(Inbox::default())));
        let reconciler = Reconciler::new(kernel, store.clone(), settings(), "n1", false, reporting());
        let mut agent = Agent { store, reconciler, now: Duration::ZERO };
        peers(&agent, &[], &["192.168.50.100"]);
        let mut schedule = Schedule::new(Duration::ZERO, Duration::from_secs(30));
        agent.reconciler.run_once(&|| Duration::ZERO, &mut schedule);
        let servers = agent.kernel().state.virtual_servers.keys().map(|vs| vs.addr.to_string());
        let servers: BTreeSet<String> = servers.collect();
        (bound(&mut agent), servers.into_iter().collect::<Vec<_>>())
    };
    let vips = ["192.168.50.1", "192.168.50.100", "203.0.113.9"];
    let all = vips.map(str::to_owned).to_vec();
    let log = lines(move || {
        let (bound, servers) = turn(left("KUBE-EXTERNAL-IP", &vips));
        assert_eq!(bound, ["203.0.113.9"], "the gateway and the API server are released");
        assert_eq!(servers, ["192.168.50.1", "203.0.113.9"]);
    });
    assert!(log.iter().any(|line| line.contains("unbound 192.168.50.100 from kube-ipvs0")), "{log:?}");
    // In a cluster the API server may be reached at its ClusterIP.
    assert_eq!(turn(left("KUBE-CLUSTER-IP", &vips)), (all.clone(), all.clone()));
    // Without sets the address may be a ClusterIP.
    let mut flushed = left("KUBE-EXTERNAL-IP", &vips);
    flushed.state.sets.clear();
    assert_eq!(turn(flushed), (all.clone(), all));
    // Without a virtual server the address is no ClusterIP.
    let mut alone = left("KUBE-CLUSTER-IP", &vips);
    alone.state.virtual_servers.clear();
    alone.state.sets.clear();
    assert_eq!(turn(alone), (vec!["203.0.113.9".to_owned()], Vec::new()));
}

#[test]
fn no_virtual_server_takes_what_others_send_to_the_api_server() {
    let vip = "192.168.50.100";
    let spec =
        json!({"clusterIP": "10.96.0.9", "externalIPs": [vip], "ports": [{"name": "p", "port": 6443}]});
    let cluster = Cluster::default()
        .service("web", spec, &[])
        .slice("web", &["10.244.1.5@n1"], &["p/TCP/1"])
        .slice_in("default", "kubernetes", &[vip], &["https/TCP/6443"]);
    let mut agent = Agent::start(kernel(), &cluster);
    agent.converge(Due::Changes, 3);
    let keys: Vec<String> = agent.kernel().state.virtual_servers.keys().map(ToString::to_string).collect();
    assert_eq!(keys, ["TCP 10.96.0.9:6443"], "the agent itself talks to a load balancer");
}

#[test]
fn an_address_of_another_host_is_unbound_at_start_and_as_soon_as_it_is_known() {
    let vip = "192.168.50.3";
    let mut agent = Agent::start(kernel(), &cluster(vip, &[]));
    agent.converge(Due::Changes, 2);
    assert!(bound(&mut agent).contains(&vip.to_owned()), "no other host is known to have it");
    // A Node joins.
    peers(&agent, &[vip], &[]);
    agent.converge(Due::Changes, 1);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
    // An earlier agent did not know the Node.
    let mut left = agent.kill();
    left.state.addresses.insert(ip(vip).into());
    let mut agent = Agent::start(left, &cluster(vip, &[]));
    peers(&agent, &[vip], &[]);
    agent.converge(Due::Changes, 1);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
}

#[test]
fn an_address_is_not_bound_while_an_endpoint_has_it() {
    let vip = "192.168.50.3";
    let mut agent = Agent::start(kernel(), &cluster(vip, &[]));
    agent.converge(Due::Changes, 2);
    assert!(bound(&mut agent).contains(&vip.to_owned()));
    let slice = cluster(vip, &[]).slice("host", &[vip, "10.244.9.9"], &["p/TCP/9100"]);
    slice.put(&agent.store);
    assert_eq!(agent.sync(Due::Changes).services.count, 2, "the Service of the slice and that of the VIP");
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
    // Slices of several Services can have it.
    slice.clone().slice("other", &[vip], &["p/TCP/1"]).put(&agent.store);
    slice.put(&agent.store);
    agent.converge(Due::Changes, 1);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
    cluster(vip, &[]).put(&agent.store);
    agent.converge(Due::Changes, 1);
    assert!(bound(&mut agent).contains(&vip.to_owned()), "the last one is gone");
    // Slices without a Service, and of headless Services, count.
    for label in
        [json!({}), json!({"kubernetes.io/service-name": "db", "service.kubernetes.io/headless": ""})]
    {
        let slice = json!({"metadata": {"name": "x", "namespace": "d", "labels": label}, "addressType": "IPv4",
            "endpoints": [{"addresses": [vip]}], "ports": []});
        agent.store.update(|update| update.put(decode(Kind::EndpointSlice, &slice).unwrap()));
        assert_eq!(agent.sync(Due::Changes).services.count, 1, "the Service of the VIP");
        assert_eq!(bound(&mut agent), CLUSTER_IPS);
        agent.store.update(|update| update.remove(Kind::EndpointSlice, &ObjectName::new("d", "x")));
        agent.converge(Due::Changes, 1);
        assert!(bound(&mut agent).contains(&vip.to_owned()));
    }
    // Slices that are older than the Service count.
    let mut agent = Agent::start(kernel(), &Cluster::default().slice("host", &[vip], &["p/TCP/9100"]));
    agent.converge(Due::Changes, 2);
    slice.put(&agent.store);
    agent.converge(Due::Changes, 1);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
}

#[test]
fn former_gateways_and_dns_and_dhcp_servers_stay_reachable() {
    for own in ["gateway", "lease", "server"] {
        let vip = "192.168.50.77";
        let mut start = kernel();
        match own {
            "gateway" => start.state.node.next_hops.push(ip(vip)),
            "lease" => start.state.node.lease_routers.push(ip(vip)),
            _ => start.state.node.name_servers.push(ip(vip)),
        }
        let mut agent = Agent::start(start, &Cluster::default());
        agent.converge(Due::Changes, 2);
        // The route and the file are removed for a moment.
        let state = &mut agent.kernel().state;
        state.node.next_hops.clear();
        state.node.lease_routers.clear();
        state.node.name_servers.clear();
        agent.converge(Due::Audit, 2);
        cluster(vip, &[]).put(&agent.store);
        agent.converge(Due::Audit, 2);
        assert_eq!(bound(&mut agent), CLUSTER_IPS, "{own}");
    }
}

#[test]
fn a_gateway_is_protected_as_soon_as_its_route_is_added() {
    for vip_first in [false, true] {
        let vip = "192.168.50.77";
        let start = if vip_first { cluster(vip, &[]) } else { Cluster::default() };
        let mut agent = Agent::start(kernel(), &start);
        agent.converge(Due::Changes, 2);
        let inbox = Inbox::default();
        inbox.gateways(vec![ip(vip)]);
        agent.reconciler.take_mail(&inbox.wait(Some(Duration::ZERO)));
        if !vip_first {
            cluster(vip, &[]).put(&agent.store);
        }
        agent.converge(Due::Changes, 1);
        assert_eq!(bound(&mut agent), CLUSTER_IPS, "no reading of the routes was needed");
    }
}

#[test]
fn a_cluster_ip_is_bound_although_another_host_has_it() {
    let mut agent =
        Agent::start(kernel(), &cluster("203.0.113.1", &[]).slice("x", &["10.96.0.1"], &["p/TCP/1"]));
    peers(&agent, &["10.96.0.1"], &["10.96.0.1"]);
    agent.converge(Due::Changes, 2);
    assert!(bound(&mut agent).contains(&"10.96.0.1".to_owned()));
}

#[test]
fn a_shadowed_program_is_reported_once() {
    let own = "192.168.50.2";
    let mut start = kernel();
    let listener = |addr: &str, port| OpenPort { protocol: Protocol::Tcp, port, addr: ip(addr) };
    start.state.node.listeners = vec![listener("0.0.0.0", 22), listener("127.0.0.1", 80)];
    let mut agent = Agent::start(start, &cluster(own, &[]));
    let quiet = lines(|| agent.converge(Due::Changes, 2));
    assert!(!quiet.iter().any(|line| line.contains("ListenerShadowed")), "{quiet:?}");
    let lines = lines(move || {
        agent.kernel().state.node.listeners.push(listener("0.0.0.0", 80));
        agent.converge(Due::Audit, 2);
        agent.converge(Due::Audit, 2);
    });
    let events: Vec<&String> = lines.iter().filter(|line| line.contains("ListenerShadowed")).collect();
    assert_eq!(events.len(), 1, "{lines:?}");
    assert!(events[0].contains("TCP 192.168.50.2:80") && events[0].contains("Service d/web"), "{events:?}");
}
