// SPDX-License-Identifier: Apache-2.0
//! How the agent learns the addresses of other Nodes and of the API server.

use kube_ipvs::source::Timing;

use super::follow::{eager, follow};
use super::*;

fn node(name: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses}})
}

fn with_vip(vip: &str) -> Value {
    let spec = json!({"clusterIP": "10.0.0.9", "externalIPs": [vip], "ports": [{"port": 80}]});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "vip", "namespace": "d"}, "spec": spec})
}

/// Lists of all Nodes so far.
fn lists(server: &ApiServer) -> Vec<RequestRecord> {
    let is_one = |r: &RequestRecord| r.path == "/api/v1/nodes" && !r.query.contains("metadata.name");
    server.requests().into_iter().filter(is_one).collect()
}

fn texts(addresses: &[std::net::IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn nodes(server: &ApiServer) {
    server.apply(node("n1", &["192.168.50.2"]));
    server.apply(node("n2", &["192.168.50.3", "fd00:50::3"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_listed_only_for_vips_and_as_a_table() {
    let server = start();
    nodes(&server);
    let store = follow(&server, eager()).await;
    until("in sync", || store.is_synced()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(lists(&server).is_empty() && store.awaits_nodes(), "no Service has a VIP");
    server.apply(with_vip("198.51.100.9"));
    until("the Nodes", || !store.awaits_nodes()).await;
    let peers = store.peers();
    assert_eq!(texts(&peers.nodes), ["192.168.50.2", "192.168.50.3"]);
    assert!(peers.api_servers.iter().all(|server| server.ip().is_loopback()) && peers.api_servers.len() == 1);
    let asked = lists(&server);
    assert_eq!(asked.len(), 1);
    assert!(asked[0].query.contains("includeObject=None"), "{asked:?}");
    // A new VIP may be the address of a Node that was added meanwhile.
    server.apply(node("n3", &["192.168.50.4"]));
    server.apply(with_vip("192.168.50.4"));
    until("the new Node", || store.peers().nodes.len() == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn for_ipv6_vips_the_objects_are_read_in_pages() {
    let server = start();
    nodes(&server);
    (0..600).for_each(|n| server.apply(node(&format!("m{n}"), &[&format!("10.1.{}.{}", n / 250, n % 250)])));
    server.apply(with_vip("2001:db8::9"));
    let store = follow(&server, eager()).await;
    until("the Nodes", || !store.awaits_nodes()).await;
    let peers = store.peers();
    assert_eq!(peers.nodes.len(), 603);
    assert!(texts(&peers.nodes).contains(&"fd00:50::3".to_owned()));
    let asked = lists(&server);
    assert!(asked.len() == 2 && asked[1].query.contains("continue="), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_table_does_not_show_every_address_objects_are_read() {
    for own in [&["192.168.50.2", "192.168.51.2"][..], &["fd00:50::2", "192.168.50.2"]] {
        let server = start();
        server.apply(node("n1", own));
        server.apply(node("n2", &["fd00:50::3", "192.168.50.3", "192.168.51.3"]));
        server.apply(with_vip("198.51.100.9"));
        let store = follow(&server, eager()).await;
        until("the Nodes", || !store.awaits_nodes()).await;
        let addresses = texts(&store.peers().nodes);
        for address in ["192.168.50.3", "192.168.51.3"] {
            assert!(addresses.contains(&address.to_owned()), "{addresses:?}");
        }
        assert_eq!(lists(&server).len(), 2, "a table first");
        server.apply(with_vip("198.51.100.10"));
        until("another list", || lists(&server).len() > 2).await;
        assert!(lists(&server)[2].query.contains("limit="), "it is not asked for again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_the_list_of_nodes_holds_up_nobody_for_long() {
    let server = start();
    // A new VIP causes no further request to a server that refuses.
    let limits = Timing { max_pause: Duration::from_secs(30), reset: Duration::from_secs(120), ..eager() };
    let store = follow(&server, limits).await;
    until("in sync", || store.is_synced()).await;
    server.set_faults(Faults { status: Some(("nodes".to_owned(), 403, usize::MAX)), ..Faults::default() });
    server.apply(with_vip("198.51.100.10"));
    assert!(store.awaits_nodes());
    until("the end of the wait for Nodes", || !store.awaits_nodes()).await;
    for host in 0..20 {
        server.apply(with_vip(&format!("198.51.100.{host}")));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let asked = lists(&server).len();
    assert!((2..12).contains(&asked), "{asked} lists although the pauses double");
    server.set_faults(Faults::default());
    nodes(&server);
    until("the Nodes after all", || store.peers().nodes.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_a_pause_gets_it() {
    let server = start();
    let store = follow(&server, eager()).await;
    until("in sync", || store.is_synced()).await;
    let refuses = Faults {
        status: Some(("nodes".to_owned(), 429, usize::MAX)),
        retry_after: Some(30),
        ..Faults::default()
    };
    server.set_faults(refuses);
    server.apply(with_vip("198.51.100.9"));
    until("the end of the wait for Nodes", || !store.awaits_nodes()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(lists(&server).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn vips_wait_five_seconds_for_a_list_that_takes_longer() {
    let server = start();
    let long = Duration::from_secs(40);
    let store = follow(&server, Timing { stall: long, answer: long, ..eager() }).await;
    until("in sync", || store.is_synced()).await;
    server.set_faults(Faults { held: Some("nodes".to_owned()), ..Faults::default() });
    let began = std::time::Instant::now();
    server.apply(with_vip("198.51.100.9"));
    tokio::time::sleep(Duration::from_secs(4)).await;
    until("the end of the wait for Nodes", || !store.awaits_nodes()).await;
    assert!(began.elapsed() >= Duration::from_millis(4_500), "{:?}", began.elapsed());
    assert_eq!((lists(&server).len(), store.peers().nodes.len()), (1, 0));
}
