// SPDX-License-Identifier: Apache-2.0
//! A VIP that somebody else has whom the node needs is never bound, and unbound as soon as that is known.
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
        assert!(agent.reconciler.is_ready(), "ClusterIPs wait for nothing");
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
    // What was bound when there was no VIP says nothing about one that comes later.
    let mut agent = Agent::start(agent.kill(), &Cluster::default());
    agent.store.update(|update| update.await_nodes());
    agent.converge(Due::Changes, 2);
    cluster.put(&agent.store);
    agent.converge(Due::Changes, 2);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
}

/// A node as another program left it: these are bound, with a virtual server at port 6443 each, and the set has them.
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
fn what_keeps_the_agent_from_the_api_server_goes_before_any_list_comes() {
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
    let told = lines(move || {
        let (bound, servers) = turn(left("KUBE-EXTERNAL-IP", &vips));
        assert_eq!(bound, ["203.0.113.9"], "the gateway and the API server are released");
        assert_eq!(servers, ["192.168.50.1", "203.0.113.9"]);
    });
    assert!(told.iter().any(|line| line.contains("unbound 192.168.50.100 from kube-ipvs0")), "{told:?}");
    // In a cluster the API server may be reached at its ClusterIP.
    assert_eq!(turn(left("KUBE-CLUSTER-IP", &vips)), (all.clone(), all.clone()));
    // The sets were flushed: it may be one.
    let mut flushed = left("KUBE-EXTERNAL-IP", &vips);
    flushed.state.sets.clear();
    assert_eq!(turn(flushed), (all.clone(), all));
    // Nothing serves it: it is none.
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
fn what_is_bound_wrongly_is_unbound_at_start_and_as_soon_as_it_is_known() {
    let vip = "192.168.50.3";
    let mut agent = Agent::start(kernel(), &cluster(vip, &[]));
    agent.converge(Due::Changes, 2);
    assert!(bound(&mut agent).contains(&vip.to_owned()), "nobody else is known to have it");
    // A Node joins.
    peers(&agent, &[vip], &[]);
    agent.converge(Due::Changes, 1);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
    // An agent that knew less left it.
    let mut left = agent.kill();
    left.state.addresses.insert(ip(vip).into());
    let mut agent = Agent::start(left, &cluster(vip, &[]));
    peers(&agent, &[vip], &[]);
    agent.converge(Due::Changes, 1);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
}

#[test]
fn an_address_of_any_endpoint_is_not_bound_for_as_long_as_one_has_it() {
    let vip = "192.168.50.3";
    let mut agent = Agent::start(kernel(), &cluster(vip, &[]));
    agent.converge(Due::Changes, 2);
    assert!(bound(&mut agent).contains(&vip.to_owned()));
    let slice = cluster(vip, &[]).slice("host", &[vip, "10.244.9.9"], &["p/TCP/9100"]);
    slice.put(&agent.store);
    assert_eq!(agent.sync(Due::Changes).services.count, 2, "the Service of the slice and that of the VIP");
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
    // Slices of several Services may have it.
    slice.clone().slice("other", &[vip], &["p/TCP/1"]).put(&agent.store);
    slice.put(&agent.store);
    agent.converge(Due::Changes, 1);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
    cluster(vip, &[]).put(&agent.store);
    agent.converge(Due::Changes, 1);
    assert!(bound(&mut agent).contains(&vip.to_owned()), "the last one is gone");
    // Nor does it matter whether a Service is served with it.
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
    // Slices that were there before the Service count, too.
    let mut agent = Agent::start(kernel(), &Cluster::default().slice("host", &[vip], &["p/TCP/9100"]));
    agent.converge(Due::Changes, 2);
    slice.put(&agent.store);
    agent.converge(Due::Changes, 1);
    assert_eq!(bound(&mut agent), CLUSTER_IPS);
}

#[test]
fn a_gateway_whose_route_is_away_and_the_servers_of_dns_and_dhcp_stay_reachable() {
    for own in ["gateway", "lease", "server"] {
        let vip = "192.168.50.77";
        let mut start = kernel();
        match own {
            "gateway" => start.state.next_hops.push(ip(vip)),
            "lease" => start.state.lease_routers.push(ip(vip)),
            _ => start.state.name_servers.push(ip(vip)),
        }
        let mut agent = Agent::start(start, &Cluster::default());
        agent.converge(Due::Changes, 2);
        // The route is away for a moment, and the file with it.
        let state = &mut agent.kernel().state;
        state.next_hops.clear();
        state.lease_routers.clear();
        state.name_servers.clear();
        agent.converge(Due::Audit, 2);
        cluster(vip, &[]).put(&agent.store);
        agent.converge(Due::Audit, 2);
        assert_eq!(bound(&mut agent), CLUSTER_IPS, "{own}");
    }
}

#[test]
fn a_gateway_is_known_from_the_moment_its_route_comes() {
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
fn a_cluster_ip_is_bound_whoever_has_it() {
    let mut agent =
        Agent::start(kernel(), &cluster("203.0.113.1", &[]).slice("x", &["10.96.0.1"], &["p/TCP/1"]));
    peers(&agent, &["10.96.0.1"], &["10.96.0.1"]);
    agent.converge(Due::Changes, 2);
    assert!(bound(&mut agent).contains(&"10.96.0.1".to_owned()));
}

#[test]
fn a_program_that_gets_nothing_any_more_is_told_once() {
    let own = "192.168.50.2";
    let mut start = kernel();
    let listener = |addr: &str, port| OpenPort { protocol: Protocol::Tcp, port, addr: ip(addr) };
    start.state.listeners = vec![listener("0.0.0.0", 22), listener("127.0.0.1", 80)];
    let mut agent = Agent::start(start, &cluster(own, &[]));
    let quiet = lines(|| agent.converge(Due::Changes, 2));
    assert!(!quiet.iter().any(|line| line.contains("ListenerShadowed")), "{quiet:?}");
    let lines = lines(move || {
        agent.kernel().state.listeners.push(listener("0.0.0.0", 80));
        agent.converge(Due::Audit, 2);
        agent.converge(Due::Audit, 2);
    });
    let told: Vec<&String> = lines.iter().filter(|line| line.contains("ListenerShadowed")).collect();
    assert_eq!(told.len(), 1, "{lines:?}");
    assert!(told[0].contains("TCP 192.168.50.2:80") && told[0].contains("Service d/web"), "{told:?}");
}
