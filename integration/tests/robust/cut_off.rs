// SPDX-License-Identifier: Apache-2.0
//! A VIP that is the address of another Node: every node still reaches that Node, and the Service works, over
//! a routed network and over an overlay whose underlay knows no pods.

use std::net::IpAddr;

use integration::apiserver::ApiServer;
use integration::lab::traffic::{Backend, ask_tcp};
use integration::lab::{Lab, Node};
use integration::objects;

use super::*;

const ASK: Duration = Duration::from_secs(10);

/// Takes the routes to pods away from the network between the nodes and puts a VXLAN tunnel in their place.
fn make_overlay(lab: &Lab, nodes: [&Node; 2]) {
    for number in 1..=2 {
        let routes = format!("route del 10.244.{number}.0/24\nroute del fd00:244:{number}::/64");
        lab.bridge().ip(&routes).unwrap();
    }
    for (here, there) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
        let (n, m) = (here.number, there.number);
        here.ns()
            .ip(&format!(
                "route del 10.244.{m}.0/24\n\
                 route del fd00:244:{m}::/64\n\
                 link add overlay type vxlan id 7 local {} remote {} dstport 4789 dev eth0\n\
                 addr add 10.244.{n}.0/32 dev overlay\n\
                 addr add fd00:244:{n}::/128 dev overlay nodad\n\
                 link set overlay mtu 1400 up\n\
                 route add 10.244.{m}.0/32 dev overlay\n\
                 route add fd00:244:{m}::/128 dev overlay\n\
                 route add 10.244.{m}.0/24 via 10.244.{m}.0 dev overlay onlink\n\
                 route add fd00:244:{m}::/64 via fd00:244:{m}:: dev overlay onlink",
                here.host.v4, there.host.v4
            ))
            .unwrap();
    }
}

fn addresses(node: &Node) -> [IpAddr; 2] {
    [node.host.v4.into(), node.host.v6.into()]
}

fn start(node: &Node, objects: &[Value]) -> (Files, Agent) {
    let more = json!({"clusterCIDR": "10.244.0.0/16,fd00:244::/32"});
    let files = Files::new(&more, objects.to_vec());
    std::fs::write(files.path("config.yaml"), config(&node.name, &more).to_string()).unwrap();
    let agent = files.start(node.ns());
    (files, agent)
}

fn another_nodes_address(overlay: bool) {
    let lab = Lab::new().unwrap();
    let (a, b) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    if overlay {
        make_overlay(&lab, [&a, &b]);
    }
    let (asker, near, far) = (a.pod(5).unwrap(), a.pod(6).unwrap(), b.pod(7).unwrap());
    let _pods =
        [Backend::new(&near.ns, "pod").tcp(8080).unwrap(), Backend::new(&far.ns, "pod").tcp(8080).unwrap()];
    let _sshd = Backend::new(b.ns(), "node-b").tcp(2222).unwrap();
    let node = |node: &Node| {
        let addresses = addresses(node).map(|address| address.to_string());
        objects::node(&node.name, &addresses.each_ref().map(String::as_str))
    };
    let external = addresses(&b).map(|address| address.to_string());
    let web = service("web", &["10.96.0.10", "fd00:96::10"], &external.each_ref().map(String::as_str), &PORT);
    // One endpoint on each node: both must get connections, whichever node balances.
    let port = [("http", "TCP", 8080)];
    let of = |pods: [&IpAddr; 2], family: &str| {
        let texts = pods.map(ToString::to_string);
        let mut slice = slice("web", &texts.each_ref().map(String::as_str), &port);
        slice["metadata"]["name"] = json!(format!("web-{family}"));
        slice
    };
    let v4 = of([&near.v4.into(), &far.v4.into()], "v4");
    let v6 = of([&near.v6.into(), &far.v6.into()], "v6");
    let objects = [web, v4, v6, node(&a), node(&b)];
    let (_files_a, agent_a) = start(&a, &objects);
    let (_files_b, agent_b) = start(&b, &objects);
    for (node, agent) in [(&a, &agent_a), (&b, &agent_b)] {
        wait_for("both families", agent, || {
            is_bound(node.ns(), "10.96.0.10/32") && is_bound(node.ns(), "fd00:96::10/128")
        });
    }
    // Where nodes route to each other's pods, the other node is a gateway, too.
    let told = "is not bound to kube-ipvs0: it is a";
    wait_for("the notice", &agent_a, || agent_a.log().contains(told));
    for address in addresses(&b) {
        let width = if address.is_ipv4() { 32 } else { 128 };
        assert!(!is_bound(a.ns(), &format!("{address}/{width}")), "{address}");
        // The Service answers the node, its pods, and a client outside; all of it several times, for there
        // are two endpoints.
        let client = lab.client("outside").unwrap();
        for from in [a.ns(), &asker.ns, b.ns(), &client.ns] {
            for _ in 0..4 {
                let answer = ask_tcp(from, SocketAddr::new(address, 80), ASK);
                assert_eq!(answer.unwrap().name, "pod", "{address} from {}", from.name());
            }
        }
        // The other node can still be reached.
        for from in [a.ns(), &asker.ns] {
            let answer = ask_tcp(from, SocketAddr::new(address, 2222), ASK);
            assert_eq!(answer.unwrap().name, "node-b", "{address} from {}", from.name());
        }
    }
}

#[test]
fn the_address_of_another_node_as_vip_works_over_a_routed_network() {
    another_nodes_address(false);
}

#[test]
fn the_address_of_another_node_as_vip_works_over_an_overlay() {
    another_nodes_address(true);
}

#[test]
fn a_gateway_stays_reachable_while_its_route_is_removed() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let files = Files::new(&json!({"ipvs": {"syncPeriod": "1s"}}), one_service());
    let agent = files.start(node.ns());
    wait_for("the start", &agent, || is_bound(node.ns(), "10.96.0.10/32"));
    node.ns().ip("route del default").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let web = service("web", &["10.96.0.10"], &["192.168.50.1"], &PORT);
    files.write(vec![web, slice("web", &["10.244.1.5@node-a"], &PORT)]);
    wait_for("the notice", &agent, || agent.log().contains("it is a gateway of this node"));
    assert!(!is_bound(node.ns(), "192.168.50.1/32"));
    node.ns().ip("route add default via 192.168.50.1").unwrap();
}

/// The API server's address is bound as an external IP by an earlier program: no list is possible until it is unbound.
#[test]
fn an_api_server_whose_address_is_bound_at_the_start_is_still_reached() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let control = lab.client("control-plane").unwrap();
    let at = format!("{}:6443", control.v4);
    let server = ApiServer::start(control.ns.listen(&at).unwrap()).unwrap();
    server.replace_all(one_service());
    let (ns, address) = (node.ns(), control.v4.to_string());
    ns.ip(&format!("link add kube-ipvs0 type dummy\naddr add {address}/32 dev kube-ipvs0")).unwrap();
    let entry = format!("{address},tcp:6443");
    for command in [
        &["ipset", "create", "KUBE-EXTERNAL-IP", "hash:ip,port"][..],
        &["ipset", "add", "KUBE-EXTERNAL-IP", &entry],
        &["ipvsadm", "-A", "-t", &at, "-s", "rr"],
    ] {
        run(ns, command);
    }
    let files = Files::new(&json!({}), vec![]);
    let spec = AgentSpec {
        config: files.path("config.yaml"),
        args: vec![format!("--master=http://{at}")],
        ..AgentSpec::default()
    };
    let agent = Agent::start(ns, &spec).unwrap();
    wait_for("the Service", &agent, || is_bound(ns, "10.96.0.10/32"));
    assert!(!is_bound(ns, &format!("{address}/32")));
    assert!(agent.log().contains(&format!("unbound {address} from kube-ipvs0")), "{}", agent.log());
}

#[test]
fn a_program_on_a_node_address_that_a_service_shadows_is_reported() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let _host = Backend::new(node.ns(), "host").tcp(80).unwrap();
    let web = service("web", &["10.96.0.10"], &["192.168.50.2"], &PORT);
    let files = Files::new(&json!({}), vec![web, slice("web", &["10.244.1.5@node-a"], &PORT)]);
    let agent = files.start(node.ns());
    let told = "TCP 192.168.50.2:80 is an address of this node at which one of its programs listens";
    wait_for("the notice", &agent, || agent.log().contains(told));
}
