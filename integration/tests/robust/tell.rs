// SPDX-License-Identifier: Apache-2.0
//! Conditions are reported to the operator in the log, as an Event and as a metric. The node is never
//! cut off by a Service that claims its address.

use integration::apiserver::ApiServer;
use integration::lab::traffic::{Backend, NoAnswer, ask_tcp};
use integration::lab::{Lab, oracle};
use integration::objects;

use super::*;

const ASK: Duration = Duration::from_secs(15);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn with_external(name: &str, cluster_ip: &str, external: &[&str], created: &str) -> Value {
    let mut svc = service(name, &[cluster_ip], external, &PORT);
    svc["metadata"]["creationTimestamp"] = json!(created);
    svc
}

/// The metrics of the agent in `ns`.
fn metrics(ns: &Netns) -> String {
    ns.enter(|| oracle::http_get(10249, "metrics")).unwrap().unwrap()
}

#[test]
fn conflicts_and_refusals_are_events_log_lines_and_metrics() {
    let ns = Netns::new("node-a").unwrap();
    let server = ApiServer::start(ns.listen("127.0.0.1:0").unwrap()).unwrap();
    let more = json!({"kubeIPVS": {"externalIPs": {"allow": ["198.51.100.0/24"]}}});
    let files = Files::new(&more, vec![]);
    let old = with_external("old", "10.96.0.2", &["198.51.100.1", "192.0.2.1"], "2026-01-01T00:00:00Z");
    let young = with_external("young", "10.96.0.1", &["198.51.100.1"], "2026-01-02T00:00:00Z");
    let slices = [slice("old", &["10.244.1.5"], &PORT), slice("young", &["10.244.1.6"], &PORT)];
    server.replace_all(slices.to_vec());
    let spec = AgentSpec {
        config: files.path("config.yaml"),
        args: vec![format!("--master={}", server.url())],
        ..AgentSpec::default()
    };
    let agent = Agent::start(&ns, &spec).unwrap();
    wait_for("the end of the start", &agent, || agent.log().contains("ready: "));
    // The lines of the start use up the warnings of their second.
    std::thread::sleep(Duration::from_secs(1));
    [old, young].into_iter().for_each(|service| server.apply(service));
    wait_for("both Events", &agent, || server.events().len() >= 2);
    let event = |reason: &str| {
        let events = server.events();
        events.into_iter().find(|e| e["reason"] == reason).unwrap_or_else(|| panic!("no {reason}"))
    };
    let conflict = event("AddressConflict");
    assert_eq!(conflict["regarding"]["name"], "young", "the Event is about the losing Service");
    assert!(conflict["note"].as_str().unwrap().contains("belongs to Service test/old"), "{conflict}");
    assert_eq!(conflict["type"], "Warning");
    let refused = event("ExternalIPRefused");
    assert!(refused["note"].as_str().unwrap().contains("192.0.2.1"), "{refused}");
    assert!(
        agent.log().contains("AddressConflict") && agent.log().contains("ExternalIPRefused"),
        "{}",
        agent.log()
    );
    assert!(
        metrics(&ns).contains("kube_ipvs_address_conflict{namespace=\"test\",service=\"young\""),
        "{}",
        metrics(&ns)
    );
    let saved = || run(&ns, &["ipvsadm", "-Sn"]);
    assert!(saved().contains("-a -t 198.51.100.1:80 -r 10.244.1.5:80 "), "the oldest wins: {}", saved());
    assert!(!saved().contains("192.0.2.1"), "{}", saved());
    server.delete("Service", "test", "old");
    wait_for("the heir", &agent, || saved().contains("-a -t 198.51.100.1:80 -r 10.244.1.6:80 "));
    wait_for("the metric", &agent, || metrics(&ns).contains("kube_ipvs_contested_virtual_servers 0"));
}

#[test]
fn refused_unbound_and_removed_objects_are_events_and_metrics() {
    let ns = Netns::new("node-a").unwrap();
    ns.ip("link add eth0 type dummy\naddr add 192.168.50.2/24 dev eth0\nlink set eth0 up").unwrap();
    ns.exec(&["ipvsadm", "-A", "-t", "192.0.2.7:80", "-s", "rr"]).unwrap();
    let server = ApiServer::start(ns.listen("127.0.0.1:0").unwrap()).unwrap();
    let files = Files::new(&json!({"kubeIPVS": {"protectedCIDRs": ["203.0.113.0/24"]}}), vec![]);
    let port = [("http", "TCP", 8080)];
    server.replace_all(vec![
        service("wild", &["10.96.0.2"], &[], &PORT),
        slice("wild", &["192.168.50.255"], &port),
        service("vip", &["10.96.0.3"], &["203.0.113.7"], &PORT),
        slice("vip", &["10.244.1.5"], &port),
        objects::node("node-a", &["192.168.50.2"]),
    ]);
    let spec = AgentSpec {
        config: files.path("config.yaml"),
        args: vec![format!("--master={}", server.url())],
        ..AgentSpec::default()
    };
    let agent = Agent::start(&ns, &spec).unwrap();
    wait_for("every Event", &agent, || {
        let told = |reason: &str, name: &str, what: &str| {
            server.events().iter().any(|event| {
                let note = event["note"].as_str().unwrap_or_default();
                event["reason"] == reason && event["regarding"]["name"] == name && note.contains(what)
            })
        };
        told("NotProgrammed", "wild", "192.168.50.255")
            && told("AddressNotBound", "vip", "it is in kubeIPVS.protectedCIDRs of the configuration")
            && told("RemovedForeignServers", "node-a", "TCP 192.0.2.7:80")
    });
    wait_for("the VIP", &agent, || run(&ns, &["ipvsadm", "-Sn"]).contains("-A -t 203.0.113.7:80"));
    assert!(is_bound(&ns, "10.96.0.3/32") && !is_bound(&ns, "203.0.113.7/32"));
    let shown = metrics(&ns);
    let has = |name: &str, labels: &[&str]| {
        shown.lines().any(|line| {
            line.starts_with(name) && labels.iter().all(|label| line.contains(label)) && line.ends_with(" 1")
        })
    };
    assert!(has("kube_ipvs_unbound_vips{", &["reason=\"ProtectedCIDR\""]), "{shown}");
    assert!(has("kube_ipvs_unprogrammed_objects{", &["kind=\"real_server\""]), "{shown}");
}

#[test]
fn addresses_of_the_node_as_vips_work_and_stay_reachable() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let client = lab.client("outside").unwrap();
    client.route("203.0.113.7/32", &node.host).unwrap();
    let pod = node.pod(5).unwrap();
    let _backend = Backend::new(&pod.ns, "pod").tcp(80).unwrap();
    let _host = Backend::new(node.ns(), "host").tcp(2222).unwrap();
    let _router = Backend::new(lab.bridge(), "router").tcp(7000).unwrap();
    // The node's address, its gateway, and an address that something outside translates to it.
    let external = ["192.168.50.2", "192.168.50.1", "203.0.113.7"];
    let mut this = objects::node("node-a", &["192.168.50.2"]);
    this["status"]["addresses"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "ExternalIP", "address": "203.0.113.7"}));
    let svc = with_external("web", "10.96.0.10", &external, "2026-01-01T00:00:00Z");
    let files = Files::new(&no_audits(), vec![svc, slice("web", &["10.244.1.5@node-a"], &PORT), this]);
    let agent = files.start(node.ns());
    wait_for("the address", &agent, || is_bound(node.ns(), "203.0.113.7/32"));
    // The Service is served where kube-proxy's users expect it …
    for address in ["192.168.50.2:80", "203.0.113.7:80"] {
        assert_eq!(ask_tcp(&client.ns, at(address), ASK).unwrap().name, "pod", "{address}");
    }
    // … and every other port still reaches the programs of the node.
    for address in ["192.168.50.2:2222", "203.0.113.7:2222"] {
        assert_eq!(ask_tcp(&client.ns, at(address), ASK).unwrap().name, "host", "{address}");
    }
    // The gateway can still be reached.
    assert!(!is_bound(node.ns(), "192.168.50.1/32"));
    assert_eq!(ask_tcp(node.ns(), at("192.168.50.1:7000"), ASK).unwrap().name, "router");
    assert_eq!(ask_tcp(&pod.ns, at("192.168.50.1:7000"), ASK).unwrap().name, "router");
    // Ports of the node are closed at an ordinary VIP.
    assert!(matches!(ask_tcp(&pod.ns, at("10.96.0.10:2222"), ASK), Err(NoAnswer::Refused)));
    for what in ["192.168.50.2 of Service test/web", "192.168.50.1 of Service test/web", "NodeAddressAsVIP"] {
        assert!(agent.log().contains(what), "the log lacks {what}: {}", agent.log());
    }
}
