// SPDX-License-Identifier: Apache-2.0
//! The agent fed by an API server that misbehaves.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use integration::apiserver::{ApiServer, Faults};
use integration::lab::{Agent, AgentSpec, Netns};
use integration::objects::{config, placed, service, slice};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(40);
const PORT: [(&str, &str, u16); 1] = [("http", "TCP", 80)];

/// A node with an API server that is reached inside its namespace.
struct Cluster {
    ns: Netns,
    server: ApiServer,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        Self::with(json!({}))
    }

    /// `more`: further fields of the configuration.
    fn with(mut more: Value) -> Self {
        let ns = Netns::new("node-a").unwrap();
        let server = ApiServer::start(ns.listen("127.0.0.1:0").unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        more["clientConnection"] = json!({"kubeconfig": kubeconfig});
        std::fs::write(dir.path().join("config.yaml"), config("node-a", &more).to_string()).unwrap();
        Self { ns, server, dir }
    }

    fn start(&self) -> Agent {
        let config = self.dir.path().join("config.yaml");
        let args = vec!["-v=6".to_owned()];
        Agent::start(&self.ns, &AgentSpec { config, args, ..AgentSpec::default() }).unwrap()
    }

    /// Real servers, as `VIP -> ADDRESS`.
    fn real_servers(&self) -> Vec<String> {
        let saved = self.ns.exec(&["ipvsadm", "-Sn"]).unwrap().stdout;
        let words = |l: &str| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut all: Vec<String> = saved
            .lines()
            .map(words)
            .filter(|w| w[0] == "-a")
            .map(|w| format!("{} -> {}", w[2], w[4]))
            .collect();
        all.sort();
        all
    }

    fn wait_for(&self, agent: &Agent, expected: &[&str]) {
        let start = Instant::now();
        while self.real_servers() != expected {
            let now = self.real_servers();
            assert!(start.elapsed() < LIMIT, "{expected:?}, not {now:?}; log:\n{}", agent.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn objects(endpoint: &str) -> Vec<Value> {
    vec![
        service("web", &["10.96.0.10"], &[], &PORT),
        slice("web", &[endpoint], &PORT),
        service("dns", &["10.96.0.20"], &[], &PORT),
        slice("dns", &["10.244.2.9"], &PORT),
    ]
}

const DNS: &str = "10.96.0.20:80 -> 10.244.2.9:80";

#[test]
fn nothing_is_written_before_all_first_lists_and_errors_are_retried() {
    let cluster = Cluster::new();
    cluster.server.replace_all(objects("10.244.1.5"));
    let status = |code, times| Some(("endpointslices".to_owned(), code, times));
    cluster.server.set_faults(Faults { status: status(403, usize::MAX), ..Faults::default() });
    let agent = cluster.start();
    let start = Instant::now();
    while !agent.log().contains("cannot follow the API") {
        assert!(start.elapsed() < LIMIT, "{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(agent.log().contains("needs get, list and watch on services"), "{}", agent.log());
    let link = cluster.ns.try_exec(&["ip", "link", "show", "dev", "kube-ipvs0"], None).unwrap();
    assert!(link.stdout.is_empty(), "the Services were listed, the slices were not: nothing may be written");
    cluster.server.set_faults(Faults { status: status(500, 2), ..Faults::default() });
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.5:80", DNS]);
    assert!(agent.log().contains("the API answers again"), "{}", agent.log());
}

#[test]
fn the_api_server_and_dns_are_programmed_before_large_lists_on_a_new_node() {
    let cluster = Cluster::new();
    let (api, dns) = (json!({}), json!({"k8s-app": "kube-dns"}));
    let mut all = objects("10.244.1.5");
    all.extend([
        placed(service("kubernetes", &["10.96.0.1"], &[], &PORT), "default", api.clone()),
        placed(slice("kubernetes", &["192.168.50.1"], &PORT), "default", api.clone()),
        placed(service("kube-dns", &["10.96.0.2"], &[], &PORT), "kube-system", dns.clone()),
        placed(slice("kube-dns", &["10.244.2.2"], &PORT), "kube-system", dns),
    ]);
    cluster.server.replace_all(all);
    let held = Faults { held: Some("services".to_owned()), ..Faults::default() };
    cluster.server.set_faults(held.clone());
    let first = ["10.96.0.1:80 -> 192.168.50.1:80", "10.96.0.2:80 -> 10.244.2.2:80"];
    let web = "10.96.0.10:80 -> 10.244.1.5:80";
    let agent = cluster.start();
    cluster.wait_for(&agent, &first);
    cluster.server.set_faults(Faults::default());
    // In the order of the texts.
    let all = [web, first[0], DNS, first[1]];
    cluster.wait_for(&agent, &all);
    drop(agent);
    // On a programmed node, early rules for some Services would replace the rules for all Services.
    cluster.server.set_faults(held);
    cluster.server.apply(placed(slice("kubernetes", &["192.168.50.9"], &PORT), "default", api));
    let before = cluster.server.requests().len();
    let agent = cluster.start();
    let start = Instant::now();
    let asked =
        || cluster.server.requests()[before..].iter().filter(|r| r.path == "/api/v1/services").count();
    while asked() == 0 {
        assert!(start.elapsed() < LIMIT, "{}", agent.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(cluster.real_servers(), all, "{}", agent.log());
    cluster.server.set_faults(Faults::default());
    cluster.wait_for(&agent, &[web, "10.96.0.1:80 -> 192.168.50.9:80", DNS, first[1]]);
}

#[test]
fn changes_are_programmed_after_closed_watches_and_lost_history() {
    let cluster = Cluster::new();
    cluster.server.replace_all(objects("10.244.1.5"));
    let agent = cluster.start();
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.5:80", DNS]);
    cluster.server.apply(slice("web", &["10.244.1.6"], &PORT));
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.6:80", DNS]);
    // A watch that ends in its first second counts as a failure, and each failure doubles the pause before the next try.
    let old_enough = || std::thread::sleep(Duration::from_secs(2));
    for torn in [false, true] {
        old_enough();
        cluster.server.cut_watches(torn);
        let endpoint = if torn { "10.244.1.8" } else { "10.244.1.7" };
        cluster.server.apply(slice("web", &[endpoint], &PORT));
        cluster.wait_for(&agent, &[&format!("10.96.0.10:80 -> {endpoint}:80"), DNS]);
    }
    for gone_as_status in [false, true] {
        cluster.server.set_faults(Faults { gone_as_status, ..Faults::default() });
        old_enough();
        // A Service is deleted while the watch is closed, and the history of it is lost.
        cluster.server.delete("Service", "test", "dns");
        cluster.server.compact();
        cluster.server.cut_watches(false);
        cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.8:80"]);
        cluster.server.apply(objects("")[2].clone());
        cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.8:80", DNS]);
    }
    // Selectors of the server: a Service of another proxy is ignored.
    let mut foreign = objects("")[2].clone();
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    cluster.server.apply(foreign);
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.8:80"]);
}

#[test]
fn a_malformed_object_keeps_its_last_good_version() {
    let cluster = Cluster::new();
    cluster.server.replace_all(objects("10.244.1.5"));
    let agent = cluster.start();
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.5:80", DNS]);
    // The lines of the start use up the warnings of their second.
    std::thread::sleep(Duration::from_secs(1));
    let mut broken = slice("web", &["10.244.1.5"], &PORT);
    broken["endpoints"][0]["addresses"] = json!(["not an address"]);
    cluster.server.apply(broken);
    let mut broken = objects("")[2].clone();
    broken["spec"]["ports"] = json!("many");
    cluster.server.apply(broken);
    // A valid change after them shows that they were processed. A new list keeps the good versions too.
    cluster.server.apply(service("new", &["10.96.0.30"], &[], &PORT));
    cluster.server.apply(slice("new", &["10.244.1.9"], &PORT));
    let all = ["10.96.0.10:80 -> 10.244.1.5:80", DNS, "10.96.0.30:80 -> 10.244.1.9:80"];
    cluster.wait_for(&agent, &all);
    cluster.server.compact();
    cluster.server.cut_watches(false);
    cluster.server.apply(slice("new", &["10.244.1.10"], &PORT));
    cluster.wait_for(&agent, &[all[0], all[1], "10.96.0.30:80 -> 10.244.1.10:80"]);
    let log = agent.log();
    for text in ["object=test/web-v4", "endpoints[0].addresses[0]", "object=test/dns", "spec.ports"] {
        assert!(log.contains(text), "the log lacks {text}:\n{log}");
    }
}

#[test]
fn an_unreachable_or_silent_server_changes_nothing() {
    let mut cluster = Cluster::new();
    cluster.server.replace_all(objects("10.244.1.5"));
    cluster.server.set_faults(Faults { delay: Some(Duration::from_millis(700)), ..Faults::default() });
    let agent = cluster.start();
    let both = ["10.96.0.10:80 -> 10.244.1.5:80", DNS];
    cluster.wait_for(&agent, &both);
    // Silent: connections stay open and nothing comes.
    cluster.server.set_faults(Faults { half_open: true, ..Faults::default() });
    cluster.server.apply(slice("web", &["10.244.1.6"], &PORT));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(cluster.real_servers(), both);
    cluster.server.set_faults(Faults::default());
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.6:80", DNS]);
    // Away: the port is closed, then another server opens it.
    let address = cluster.server.url().trim_start_matches("http://").to_owned();
    let spare = cluster.ns.listen("127.0.0.1:0").unwrap();
    drop(std::mem::replace(&mut cluster.server, ApiServer::start(spare).unwrap()));
    let start = Instant::now();
    while !agent.log().contains("cannot follow the API") {
        assert!(start.elapsed() < LIMIT, "{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(cluster.real_servers(), ["10.96.0.10:80 -> 10.244.1.6:80", DNS]);
    cluster.server = ApiServer::start(cluster.ns.listen(&address).unwrap()).unwrap();
    // As after a restore from a backup: every version that the agent knows is too old.
    (0..100).for_each(|_| cluster.server.compact());
    cluster.server.replace_all(objects("10.244.1.7"));
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.7:80", DNS]);
}

#[test]
fn a_dead_connection_is_detected_and_replaced() {
    let cluster = Cluster::new();
    cluster.server.replace_all(objects("10.244.1.5"));
    let agent = cluster.start();
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.5:80", DNS]);
    let port = cluster.server.url().rsplit(':').next().unwrap().to_owned();
    // Packets are dropped in both directions, without a reset.
    let rule = |verb: &str, side: &str| {
        let command = ["iptables", "-w", verb, "INPUT", "-p", "tcp", side, &port, "-j", "DROP"];
        cluster.ns.exec(&command).unwrap();
    };
    for side in ["--dport", "--sport"] {
        rule("-I", side);
    }
    cluster.server.apply(slice("web", &["10.244.1.6"], &PORT));
    // Without probes this would take the five minutes of a watch.
    let start = Instant::now();
    while !agent.log().contains("cannot follow the API") {
        assert!(start.elapsed() < LIMIT * 2, "{}", agent.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(cluster.real_servers(), ["10.96.0.10:80 -> 10.244.1.5:80", DNS], "programmed objects stay");
    for side in ["--dport", "--sport"] {
        rule("-D", side);
    }
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.6:80", DNS]);
}

#[test]
fn routes_follow_the_ranges_of_cluster_ips() {
    let cluster = Cluster::with(json!({"kubeIPVS": {"clusterIPs": "route"}}));
    let range = |name: &str, cidr: &str| {
        let metadata = json!({"name": name});
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": metadata, "spec": {"cidrs": [cidr]}})
    };
    let mut all = objects("10.244.1.5");
    all.push(range("kubernetes", "10.96.0.0/16"));
    cluster.server.replace_all(all);
    let agent = cluster.start();
    let shown = |command: &[&str]| cluster.ns.exec(command).unwrap().stdout;
    let wait_for = |routes: &[&str], bound: usize| {
        let start = Instant::now();
        let is_there = || {
            let found = shown(&["ip", "route", "show", "table", "local", "proto", "96"]);
            let found: Vec<&str> = found.lines().filter_map(|line| line.split(' ').nth(1)).collect();
            found == routes
                && shown(&["ip", "-4", "-o", "addr", "show", "dev", "kube-ipvs0"]).lines().count() == bound
        };
        while !is_there() {
            assert!(start.elapsed() < LIMIT, "{routes:?} and {bound} addresses; log:\n{}", agent.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    cluster.wait_for(&agent, &["10.96.0.10:80 -> 10.244.1.5:80", DNS]);
    wait_for(&["10.96.0.0/16"], 0);
    cluster.server.apply(range("more", "10.200.0.0/16"));
    wait_for(&["10.96.0.0/16", "10.200.0.0/16"], 0);
    cluster.server.delete("ServiceCIDR", "", "kubernetes");
    wait_for(&["10.200.0.0/16"], 2);
}
