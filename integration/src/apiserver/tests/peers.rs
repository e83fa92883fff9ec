// SPDX-License-Identifier: Apache-2.0
//! How the agent learns the addresses of other Nodes and of the API server.

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
    assert!(lists(&server).is_empty() && store.peers().is_none(), "nobody has a VIP");
    server.apply(with_vip("198.51.100.9"));
    until("the peers", || store.peers().is_some()).await;
    let peers = store.peers().unwrap();
    assert_eq!(texts(&peers.nodes), ["192.168.50.2", "192.168.50.3"]);
    assert!(peers.api_servers.iter().all(|server| server.ip().is_loopback()) && peers.api_servers.len() == 1);
    let asked = lists(&server);
    assert_eq!(asked.len(), 1);
    assert!(asked[0].query.contains("includeObject=None"), "{asked:?}");
    // A new VIP may be the address of a Node that came meanwhile.
    server.apply(node("n3", &["192.168.50.4"]));
    server.apply(with_vip("192.168.50.4"));
    until("the new Node", || store.peers().is_some_and(|peers| peers.nodes.len() == 3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn for_ipv6_vips_the_objects_are_read_in_pages() {
    let server = start();
    nodes(&server);
    (0..600).for_each(|n| server.apply(node(&format!("m{n}"), &[&format!("10.1.{}.{}", n / 250, n % 250)])));
    server.apply(with_vip("2001:db8::9"));
    let store = follow(&server, eager()).await;
    until("the peers", || store.peers().is_some()).await;
    let peers = store.peers().unwrap();
    assert_eq!(peers.nodes.len(), 603);
    assert!(texts(&peers.nodes).contains(&"fd00:50::3".to_owned()));
    let asked = lists(&server);
    assert!(asked.len() == 2 && asked[1].query.contains("continue="), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_the_list_of_nodes_holds_up_nobody_for_long() {
    let server = start();
    server.apply(with_vip("198.51.100.9"));
    let store = follow(&server, eager()).await;
    server.set_faults(Faults { status: Some(("nodes".to_owned(), 403, usize::MAX)), ..Faults::default() });
    until("the peers", || store.peers().is_some()).await;
    server.set_faults(Faults::default());
    nodes(&server);
    until("the Nodes after all", || store.peers().is_some_and(|peers| peers.nodes.len() == 2)).await;
}
