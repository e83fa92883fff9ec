// SPDX-License-Identifier: Apache-2.0
//! Migration of a node from another mode of kube-proxy to the agent and back, with established connections and
//! continuous new ones: no connection breaks or fails, and no foreign object changes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod arrive;
mod fixture;
mod leave;
mod switch;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use integration::lab::traffic::{Backend, Connection};
use integration::lab::{Host, Lab, Netns, Node, Pod, Setup, agent_binary, at, oracle};
use integration::objects::{ServiceBuilder, in_nftables, slice};
use serde_json::{Value, json};

/// Limit for an answer. Generous: no test measures it.
const ANSWER: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(60);
const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const EXTERNAL: [&str; 2] = ["198.51.100.10", "2001:db8:e::10"];
const NODE: [&str; 2] = ["192.168.50.2", "fd00:50::2"];
const NODE_PORT: u16 = 30080;

/// A node with two pods, one more node with a pod, and a client outside; nothing is programmed.
struct Cluster {
    lab: Lab,
    node: Node,
    near: Pod,
    asker: Pod,
    far: (Node, Pod),
    client: Host,
}

impl Cluster {
    fn new() -> Self {
        let lab = Lab::new().unwrap();
        let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
        let (near, asker, far) = (node.pod(5).unwrap(), node.pod(9).unwrap(), other.pod(6).unwrap());
        let client = lab.client("outside").unwrap();
        client.route("198.51.100.0/24", &node.host).unwrap();
        client.route("2001:db8:e::/64", &node.host).unwrap();
        // A packet to a Service that leaves the node unbalanced is a gap.
        for (program, network) in [("iptables", "10.96.0.0/16"), ("ip6tables", "fd00:96::/64")] {
            let count = [program, "-t", "raw", "-A", "PREROUTING", "-d", network];
            lab.bridge().exec(&count).unwrap();
        }
        fixture::others(node.ns());
        Self { lab, node, near, asker, far: (other, far), client }
    }

    fn backends(&self) -> [Backend<'_>; 2] {
        let pods = [(&self.near, "near"), (&self.far.1, "far")];
        pods.map(|(pod, name)| Backend::new(&pod.ns, name).tcp(8080).unwrap())
    }

    /// Starts the agent.
    fn start(&self) -> Setup<'_> {
        Setup::start(&self.node, &more(), objects()).unwrap()
    }

    /// All clients, and the Services that they connect to.
    fn askers(&self) -> Vec<(&Netns, std::net::SocketAddr)> {
        let mut askers = Vec::new();
        for family in [0, 1] {
            askers.push((&self.asker.ns, at(VIP[family], 80)));
            askers.push((self.node.ns(), at(VIP[family], 80)));
            askers.push((&self.client.ns, at(EXTERNAL[family], 80)));
            askers.push((&self.client.ns, at(NODE[family], NODE_PORT)));
        }
        askers
    }

    /// Packets for Services that left the node without being balanced.
    fn leaked(&self) -> Vec<String> {
        let count = |program: &str| {
            let saved = self.lab.bridge().exec(&[program, "-c", "-t", "raw"]).unwrap().stdout;
            let rule = saved.lines().find(|line| line.contains("-A PREROUTING -d ")).unwrap().to_owned();
            rule.split_once(' ').unwrap().0.to_owned()
        };
        ["iptables-save", "ip6tables-save"].map(count).into()
    }
}

/// Additional configuration: a foreign virtual server must not be changed.
fn more() -> Value {
    json!({"ipvs": {"syncPeriod": "1h", "excludeCIDRs": ["192.0.2.0/24"]}})
}

fn objects() -> Vec<Value> {
    let ports = [("http", "TCP", 80)];
    let web = ServiceBuilder::new("web", &VIP, &ports).external_ips(&EXTERNAL).node_ports(&[NODE_PORT]);
    let none = ServiceBuilder::new("none", &["10.96.0.11", "fd00:96::11"], &ports);
    let targets = [("http", "TCP", 8080)];
    vec![
        web.build(),
        none.build(),
        slice("web", &["10.244.1.5@node-a", "10.244.2.6@node-b"], &targets),
        slice("web", &["fd00:244:1::5@node-a", "fd00:244:2::6@node-b"], &targets),
    ]
}

/// What programs say about a namespace, by chain, set and so on; the order of rules counts.
fn state(ns: &Netns) -> BTreeMap<String, Vec<String>> {
    let mut state: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let run = |command: &[&str]| ns.try_exec(command, None).unwrap().stdout;
    for program in ["iptables-save", "ip6tables-save"] {
        let mut table = "";
        let text = run(&[program]);
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some((chain, _)) = line.strip_prefix(':').and_then(|l| l.split_once(" - ")) {
                state.entry(format!("{program} {table} {chain}")).or_default();
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|l| l.split_once(' ')) {
                state
                    .entry(format!("{program} {table} {chain}"))
                    .or_default()
                    .push(rule.trim_end().to_owned());
            }
        }
    }
    if in_nftables() {
        state.insert("nft rules".to_owned(), oracle::rules(ns).unwrap());
        let sets = oracle::sets(ns).unwrap().lines().map(str::to_owned).collect();
        state.insert("nft sets".to_owned(), sets);
    }
    for line in run(&["ipset", "save"]).lines() {
        // Every hash table starts with another seed.
        let line = line.split(" bucketsize").next().unwrap();
        state.entry("ipset".to_owned()).or_default().push(line.to_owned());
    }
    let servers = run(&["ipvsadm", "-Sn"]).lines().map(str::to_owned).collect();
    state.insert("ipvs".to_owned(), servers);
    let addresses = integration::lab::bound(ns).iter().map(ToString::to_string).collect();
    state.insert("addresses".to_owned(), addresses);
    let links = run(&["ip", "-o", "link", "show", "type", "dummy"]);
    state.insert(
        "links".to_owned(),
        links.lines().filter_map(|l| l.split(": ").nth(1)).map(str::to_owned).collect(),
    );
    for list in ["ipset", "ipvs", "nft sets"] {
        state.entry(list.to_owned()).or_default().sort();
    }
    state
}

/// What a node knows of connections whose first packet was not answered.
fn half_open(node: &Netns) -> Vec<String> {
    let listings: [&[&str]; 3] = [
        &["conntrack", "-L", "-p", "tcp", "-f", "ipv4"],
        &["conntrack", "-L", "-p", "tcp", "-f", "ipv6"],
        &["ipvsadm", "-Lcn"],
    ];
    let outputs = listings.map(|command| node.try_exec(command, None).unwrap().stdout);
    outputs
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| line.contains("SYN_"))
        .map(str::to_owned)
        .collect()
}

/// New connections: every client opens one after the other, all clients at the same time.
struct Stream<'a> {
    node: &'a Netns,
    askers: Vec<(&'a Netns, std::net::SocketAddr)>,
    made: Vec<AtomicUsize>,
    failed: std::sync::Mutex<Vec<String>>,
    begun: Instant,
    stop: AtomicBool,
}

impl<'a> Stream<'a> {
    /// Opens connections while `work` runs. None may fail.
    fn during(node: &'a Netns, askers: Vec<(&'a Netns, std::net::SocketAddr)>, work: impl FnOnce(&Self)) {
        let made = askers.iter().map(|_| AtomicUsize::new(0)).collect();
        let stream = Self {
            node,
            askers,
            made,
            failed: Vec::new().into(),
            begun: Instant::now(),
            stop: AtomicBool::new(false),
        };
        std::thread::scope(|scope| {
            for index in 0..stream.askers.len() {
                let stream = &stream;
                scope.spawn(move || stream.ask(index));
            }
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                stream.more();
                work(&stream);
                stream.more();
            }));
            stream.stop.store(true, Ordering::Relaxed);
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        });
        let failed = stream.failed.into_inner().unwrap();
        assert!(failed.is_empty(), "{} new connections failed: {failed:#?}", failed.len());
    }

    fn ask(&self, index: usize) {
        let (ns, address) = self.askers[index];
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let mut local = None;
            let answer = Connection::open(ns, address, ANSWER).and_then(|mut connection| {
                local = Some(connection.local()?);
                connection.ask()?;
                Ok(connection.abort()?)
            });
            if let Err(error) = answer {
                let (from, age, begun) = (ns.name(), self.begun.elapsed(), begun.elapsed());
                let half_open = half_open(self.node);
                self.failed.lock().unwrap().push(format!(
                    "from {from} {local:?} to {address}: {error}; begun {begun:?} ago, {age:?} after the stream; \
                     on the node: {half_open:?}"
                ));
            }
            self.made[index].fetch_add(1, Ordering::Relaxed);
            // Leaves processor time to the other threads.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until every client has opened some more connections.
    fn more(&self) {
        let before: Vec<usize> = self.made.iter().map(|made| made.load(Ordering::Relaxed)).collect();
        let start = Instant::now();
        while self.made.iter().zip(&before).any(|(made, before)| made.load(Ordering::Relaxed) < before + 3) {
            assert!(start.elapsed() < LIMIT, "no answer: {:?}", self.failed.lock().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Established connections with the names of their backends.
struct Standing(Vec<(Connection, String)>);

impl Standing {
    /// Two for each client, so that both backends may have some.
    fn open(askers: &[(&Netns, std::net::SocketAddr)]) -> Self {
        let connect = |(ns, address): &(&Netns, std::net::SocketAddr)| {
            let mut connection = Connection::open(ns, *address, ANSWER).unwrap();
            let name = connection.ask().unwrap().name;
            (connection, name)
        };
        Self(askers.iter().chain(askers).map(connect).collect())
    }

    /// Checks that every connection still works, with the same backend.
    fn check(&mut self, when: &str) {
        for (connection, name) in &mut self.0 {
            let local = connection.local();
            let answer = connection.ask().unwrap_or_else(|e| panic!("{when}: {local:?} to {name}: {e}"));
            assert_eq!(answer.name, *name, "{when}: {local:?}");
        }
    }
}

/// Runs the program in a namespace: exit code, and what it printed.
fn kube_ipvs(ns: &Netns, args: &[&str]) -> (i32, String) {
    let binary = agent_binary().unwrap();
    let output = ns.enter(|| Command::new(&binary).args(args).output().unwrap()).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout) + &text(&output.stderr))
}

fn saved(ns: &Netns) -> String {
    ["iptables-save", "ip6tables-save"].map(|p| ns.exec(&[p]).unwrap().stdout).concat()
}
