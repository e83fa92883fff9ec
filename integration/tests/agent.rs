// SPDX-License-Identifier: Apache-2.0
//! The agent as a process with objects from files: traffic, restarts, foreign objects, drift, bad input.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use integration::lab::traffic::{Answer, Backend, Connection, NoAnswer, ask_sctp, ask_tcp, ask_udp};
use integration::lab::{Agent, AgentSpec, Lab, Netns, agent_binary, oracle, write_objects};
use integration::objects::{config, list, service, slice};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);
const ASK: Duration = Duration::from_secs(15);

/// A folder with a configuration and objects, from which agents are started.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(more: &Value, objects: Vec<Value>) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(files.dir.path().join("config.yaml"), config("node-a", more).to_string()).unwrap();
        files.write(objects);
        files
    }

    fn objects(&self) -> PathBuf {
        self.dir.path().join("objects.json")
    }

    fn write(&self, objects: Vec<Value>) {
        write_objects(&self.objects(), &list(objects)).unwrap();
    }

    fn start(&self, ns: &Netns) -> Agent {
        let config = self.dir.path().join("config.yaml");
        let args = vec!["-v=6".to_owned()];
        let spec = AgentSpec { config, objects: Some(self.objects()), args, ..AgentSpec::default() };
        Agent::start(ns, &spec).unwrap()
    }
}

fn wait_for(what: &str, agent: &Agent, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "no {what} in time; the log of the agent:\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ipvsadm(ns: &Netns) -> String {
    ns.exec(&["ipvsadm", "-Sn"]).unwrap().stdout
}

fn bound(ns: &Netns) -> BTreeSet<String> {
    let shown = ns.try_exec(&["ip", "-o", "addr", "show", "dev", "kube-ipvs0"], None).unwrap().stdout;
    shown.lines().filter_map(|l| l.split_whitespace().nth(3)).map(str::to_owned).collect()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The names of the backends that answer several requests.
fn names(ask: impl Fn() -> Result<Answer, NoAnswer>, times: usize) -> BTreeSet<String> {
    (0..times).map(|_| ask().unwrap_or_else(|e| panic!("{e}")).name).collect()
}

const PORTS: [(&str, &str, u16); 3] = [("tcp", "TCP", 80), ("udp", "UDP", 53), ("sctp", "SCTP", 9)];
const TARGETS: [(&str, &str, u16); 3] = [("tcp", "TCP", 8080), ("udp", "UDP", 5353), ("sctp", "SCTP", 9000)];

#[test]
fn traffic_is_balanced_and_masqueraded_and_follows_endpoints() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let client = lab.client("outside").unwrap();
    client.route("10.0.0.168/32", &node.host).unwrap();
    let (near, far, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let serve = |ns, name| Backend::new(ns, name).tcp(8080).unwrap().udp(5353).unwrap().sctp(9000).unwrap();
    let _backends = [serve(&near.ns, "near"), serve(&far.ns, "far")];
    let both = ["10.244.1.5@node-a", "10.244.2.6@node-b"];
    let svc = service("web", &["10.96.0.10", "fd00:96::10"], &["10.0.0.168"], &PORTS);
    let v6 = slice("web", &["fd00:244:1::5@node-a", "fd00:244:2::6@node-b"], &TARGETS);
    let files = Files::new(&json!({}), vec![svc.clone(), slice("web", &both, &TARGETS), v6.clone()]);
    let agent = files.start(node.ns());
    for address in ["10.96.0.10/32", "10.0.0.168/32", "fd00:96::10/128"] {
        wait_for(address, &agent, || bound(node.ns()).contains(address));
    }
    let (tcp, udp) = (addr("10.96.0.10:80"), addr("10.96.0.10:53"));

    // From a pod: balanced, and the backend sees the address of the pod.
    let all = BTreeSet::from(["near".to_owned(), "far".to_owned()]);
    assert_eq!(names(|| ask_tcp(&asker.ns, tcp, ASK), 6), all);
    assert_eq!(names(|| ask_udp(&asker.ns, udp, ASK), 6), all);
    assert_eq!(names(|| ask_sctp(&asker.ns, addr("10.96.0.10:9"), ASK), 6), all);
    assert_eq!(names(|| ask_tcp(&asker.ns, addr("[fd00:96::10]:80"), ASK), 6), all);
    assert_eq!(ask_tcp(&asker.ns, tcp, ASK).unwrap().seen_source, IpAddr::from(asker.v4));
    assert_eq!(
        ask_tcp(&asker.ns, addr("[fd00:96::10]:80"), ASK).unwrap().seen_source,
        IpAddr::from(asker.v6)
    );
    // From the node: masqueraded, because the source would be the ClusterIP.
    assert_eq!(names(|| ask_tcp(node.ns(), tcp, ASK), 6), all);
    // From outside, through the external IP: masqueraded, so that answers of a far backend pass this node.
    assert_eq!(names(|| ask_tcp(&client.ns, addr("10.0.0.168:80"), ASK), 6), all);
    for _ in 0..4 {
        let seen = ask_tcp(&client.ns, addr("10.0.0.168:80"), ASK).unwrap();
        assert_ne!(seen.seen_source, IpAddr::from(client.v4), "{}", seen.name);
    }
    // A pod that reaches itself through its Service must not see its own address as the client.
    let own = (0..6).map(|_| ask_tcp(&near.ns, tcp, ASK).unwrap()).find(|a| a.name == "near").unwrap();
    assert_ne!(own.seen_source, IpAddr::from(near.v4), "hairpin is masqueraded");
    // A port that no Service has is refused, though the node listens there.
    let host = Backend::new(node.ns(), "host").tcp(2222).unwrap();
    assert!(matches!(ask_tcp(&asker.ns, addr("10.96.0.10:2222"), ASK), Err(NoAnswer::Refused)));
    assert_eq!(ask_tcp(&asker.ns, addr("192.168.50.2:2222"), ASK).unwrap().name, "host");
    drop(host);

    // One backend goes: traffic moves. All go: refused at once. Connections that have just ended keep
    // TCP real servers for a while, but with weight 0.
    let taking = |rs: &str| ipvsadm(node.ns()).lines().any(|l| l.contains(rs) && !l.contains("-w 0"));
    files.write(vec![svc.clone(), slice("web", &both[1..], &TARGETS), v6]);
    wait_for("the removal", &agent, || !taking("-r 10.244.1.5:8080"));
    assert_eq!(names(|| ask_tcp(&asker.ns, tcp, ASK), 4), BTreeSet::from(["far".to_owned()]));
    assert_eq!(names(|| ask_udp(&asker.ns, udp, ASK), 4), BTreeSet::from(["far".to_owned()]));
    files.write(vec![svc]);
    wait_for("the removal", &agent, || !taking("-a "));
    assert!(matches!(ask_tcp(&asker.ns, tcp, ASK), Err(NoAnswer::Refused)));
    files.write(vec![]);
    wait_for("the end of the Service", &agent, || {
        bound(node.ns()).is_empty() && ipvsadm(node.ns()).is_empty()
    });
}

fn one_service() -> Vec<Value> {
    vec![
        service("web", &["10.96.0.10"], &[], &PORTS[..1]),
        slice("web", &["10.244.1.5@node-a"], &TARGETS[..1]),
    ]
}

#[test]
fn stopping_and_starting_keeps_connections_and_writes_nothing() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (pod, asker) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let _backend = Backend::new(&pod.ns, "near").tcp(8080).unwrap();
    let files = Files::new(&json!({}), one_service());
    let mut agent = files.start(node.ns());
    wait_for("the address", &agent, || bound(node.ns()).contains("10.96.0.10/32"));
    let state = |ns: &Netns| (ipvsadm(ns), bound(ns), oracle::sets(ns).unwrap(), oracle::rules(ns).unwrap());
    let mut connection = Connection::open(&asker.ns, addr("10.96.0.10:80"), ASK).unwrap();
    let before = state(node.ns());
    assert!(agent.stop().unwrap().success(), "{}", agent.log());
    assert_eq!(before, state(node.ns()));
    assert_eq!(connection.ask().unwrap().name, "near");
    let again = files.start(node.ns());
    wait_for("the first sync", &again, || again.log().contains("in sync, nothing to do"));
    assert!(!again.log().contains("plan:"), "a start on a correct node writes nothing:\n{}", again.log());
    assert_eq!(state(node.ns()), before);
    assert!(ask_tcp(&asker.ns, addr("10.96.0.10:80"), ASK).is_ok());
}

#[test]
fn stale_objects_are_removed_and_foreign_objects_stay() {
    let ns = Netns::new("node-a").unwrap();
    ns.exec_with(
        &["ipvsadm", "-R"],
        Some(
            "-A -t 9.9.9.9:80 -s wrr\n-a -t 9.9.9.9:80 -r 9.9.1.1:80 -m\n-A -f 7 -s rr\n\
             -A -t 9.9.8.8:80 -s rr\n-A -t 10.96.0.10:80 -s wrr\n-a -t 10.96.0.10:80 -r 10.9.9.9:1 -g -w 9\n\
             -a -t 10.96.0.10:80 -r 10.244.1.5:8080 -g -w 9\n",
        ),
    )
    .unwrap();
    ns.ip("link add kube-ipvs0 type dummy\naddr add 10.96.0.99/32 dev kube-ipvs0\n\
         addr add 10.98.0.1/24 dev kube-ipvs0\nlink add eth7 type dummy\naddr add 10.97.0.1/24 dev eth7")
        .unwrap();
    ns.exec_with(&["ipset", "restore"], Some("create OTHER hash:ip\nadd OTHER 1.2.3.4\ncreate KUBE-CLUSTER-IP hash:ip,port\nadd KUBE-CLUSTER-IP 10.96.0.99,tcp:80\n")).unwrap();
    let foreign = "*nat\n:OTHER - [0:0]\n-A PREROUTING -j OTHER\n-A OTHER -s 1.2.3.4/32 -j RETURN\nCOMMIT\n\
                   *filter\n-A INPUT -s 1.2.3.4/32 -j DROP\nCOMMIT\n";
    ns.exec_with(&["iptables-restore", "--noflush"], Some(foreign)).unwrap();
    let files = Files::new(&json!({"ipvs": {"excludeCIDRs": ["9.9.9.0/24"]}}), one_service());
    let agent = files.start(&ns);
    wait_for("the address", &agent, || bound(&ns) == BTreeSet::from(["10.96.0.10/32".to_owned()]));
    wait_for("the end of the first sync", &agent, || !ipvsadm(&ns).contains("9.9.8.8"));
    let saved: BTreeSet<String> = ipvsadm(&ns).lines().map(|l| l.trim().to_owned()).collect();
    let expected = [
        "-A -f 7 -s rr",
        "-A -t 10.96.0.10:80 -s rr",
        "-a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m -w 1",
        "-A -t 9.9.9.9:80 -s wrr",
        "-a -t 9.9.9.9:80 -r 9.9.1.1:80 -m -w 1",
    ];
    assert_eq!(saved, expected.map(str::to_owned).into());
    let sets = oracle::sets(&ns).unwrap();
    assert!(sets.contains("add KUBE-CLUSTER-IP 10.96.0.10,tcp:80") && !sets.contains("10.96.0.99"), "{sets}");
    let ipsets = ns.exec(&["ipset", "save"]).unwrap().stdout;
    assert!(ipsets.contains("add OTHER 1.2.3.4") && !ipsets.contains("10.96.0.99"), "{ipsets}");
    let rules = ns.exec(&["iptables-save"]).unwrap().stdout;
    for rule in
        ["-A PREROUTING -j OTHER", "-A OTHER -s 1.2.3.4/32 -j RETURN", "-A INPUT -s 1.2.3.4/32 -j DROP"]
    {
        assert!(rules.contains(rule), "{rule} is gone:\n{rules}");
    }
    assert!(ns.exec(&["ip", "addr", "show", "dev", "eth7"]).unwrap().stdout.contains("10.97.0.1/24"));
}

#[test]
fn drift_is_repaired() {
    let ns = Netns::new("node-a").unwrap();
    // Addresses are restored at once, long before the next audit.
    let slow = Files::new(&json!({"ipvs": {"syncPeriod": "1h"}}), one_service());
    let mut agent = slow.start(&ns);
    let is_bound = || bound(&ns).contains("10.96.0.10/32");
    wait_for("the address", &agent, is_bound);
    ns.ip("addr del 10.96.0.10/32 dev kube-ipvs0").unwrap();
    wait_for("the address again", &agent, is_bound);
    ns.ip("link del kube-ipvs0").unwrap();
    wait_for("the device again", &agent, is_bound);
    agent.stop().unwrap();
    // The rest within a sync period.
    let quick = Files::new(&json!({"ipvs": {"syncPeriod": "1s"}}), one_service());
    let agent = quick.start(&ns);
    wait_for("the first sync", &agent, || agent.log().contains("nothing to do"));
    ns.exec(&["ipvsadm", "-C"]).unwrap();
    wait_for("the virtual server again", &agent, || ipvsadm(&ns).contains("-r 10.244.1.5:8080 -m -w 1"));
    ns.exec(&["iptables", "-t", "nat", "-F", "KUBE-SERVICES"]).unwrap();
    ns.exec(&["iptables", "-F", "INPUT"]).unwrap();
    ns.exec(&["ipset", "flush", "KUBE-CLUSTER-IP"]).unwrap();
    ns.exec(&["ipset", "destroy", "KUBE-NODE-PORT-TCP"]).unwrap();
    let rules = || ns.exec(&["iptables-save"]).unwrap().stdout;
    wait_for("the rules again", &agent, || {
        let rules = rules();
        rules.contains("-A INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER")
            && rules.contains("--match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT")
    });
    wait_for("the entry again", &agent, || {
        let sets = ns.exec(&["ipset", "save"]).unwrap().stdout;
        sets.contains("add KUBE-CLUSTER-IP 10.96.0.10,tcp:80") && sets.contains("create KUBE-NODE-PORT-TCP")
    });
    assert!(agent.log().contains("that another program changed"), "{}", agent.log());
}

#[test]
fn bad_input_is_reported_and_programmed_objects_stay() {
    let ns = Netns::new("node-a").unwrap();
    let files = Files::new(&json!({"enableProfiling": true}), one_service());
    std::fs::rename(files.objects(), files.dir.path().join("later")).unwrap();
    let agent = files.start(&ns);
    let says = |text: &str| agent.log().contains(text);
    wait_for("the error in the log", &agent, || says("cannot read the objects in"));
    assert!(says("enableProfiling"), "fields without effect are logged: {}", agent.log());
    assert!(ns.try_exec(&["ip", "link", "show", "dev", "kube-ipvs0"], None).unwrap().stdout.is_empty());
    std::fs::rename(files.dir.path().join("later"), files.objects()).unwrap();
    wait_for("the address", &agent, || bound(&ns).contains("10.96.0.10/32"));
    // A file that does not parse, then a malformed object beside a good new one.
    std::fs::write(files.objects(), "{\"kind\": \"List\", \"items\": [").unwrap();
    wait_for("the error in the log", &agent, || says("its last good content stays in force"));
    let mut broken = one_service();
    broken[0]["spec"]["ports"][0]["port"] = json!("eighty");
    broken.push(service("new", &["10.96.0.11"], &[], &PORTS[..1]));
    files.write(broken);
    wait_for("the new Service", &agent, || bound(&ns).contains("10.96.0.11/32"));
    assert!(says("object=test/web") && says("its last good version stays in force"), "{}", agent.log());
    assert!(ipvsadm(&ns).contains("-a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m -w 1"));
}

#[test]
fn wrong_arguments_are_one_clear_line() {
    let ns = Netns::new("node-a").unwrap();
    let binary = agent_binary().unwrap();
    let files = Files::new(&json!({"mode": "iptables"}), vec![]);
    let config = files.dir.path().join("config.yaml");
    let run = |args: &[&str]| {
        let command: Vec<&str> =
            std::iter::once(binary.to_str().unwrap()).chain(args.iter().copied()).collect();
        ns.try_exec(&command, None).unwrap()
    };
    let of = |path: &str| format!("--config={path}");
    let cases = [
        (of("/nonexistent"), "cannot read the configuration file /nonexistent"),
        (of(config.to_str().unwrap()), "mode: \"iptables\" is not ipvs"),
    ];
    for (arg, expected) in cases {
        let output = run(&["run", &arg, "--objects=/tmp"]);
        assert!(output.stderr.contains(expected), "{arg}: {}", output.stderr);
        assert!(output.success("run").is_err());
    }
    // Without the privilege: one line, again and again, and a list that says the same.
    let good = Files::new(&json!({}), one_service());
    let good_config = of(good.dir.path().join("config.yaml").to_str().unwrap());
    let objects = format!("--objects={}", good.objects().display());
    let drop = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"];
    let command: Vec<&str> = ["timeout", "15"]
        .into_iter()
        .chain(drop)
        .chain([binary.to_str().unwrap(), "run", &good_config, &objects])
        .collect();
    let output = ns.try_exec(&command, None).unwrap();
    assert!(output.stderr.contains("CAP_NET_ADMIN is needed"), "{}", output.stderr);
    assert!(output.stderr.contains("retried"), "{}", output.stderr);
    assert!(ns.try_exec(&["ip", "link", "show", "dev", "kube-ipvs0"], None).unwrap().stdout.is_empty());
}

#[test]
fn list_shows_the_services_of_virtual_servers() {
    let ns = Netns::new("node-a").unwrap();
    let binary = agent_binary().unwrap();
    let binary = binary.to_str().unwrap();
    let mut objects = one_service();
    objects[0]["metadata"]["annotations"] = json!({"kube-ipvs.io/hairpin": "false", "kube-ipvs.io/probe": "true", "kube-ipvs.io/slow-start": "30s"});
    let files = Files::new(&json!({}), objects);
    let alone = ns.exec(&[binary, "list", "-o", "wide"]).unwrap();
    assert!(alone.stderr.contains("no kube-ipvs agent runs"), "{}", alone.stderr);
    let by_service = ns.try_exec(&[binary, "list", "test/web"], None).unwrap();
    assert!(
        by_service.stderr.contains("cannot select by Service: no kube-ipvs agent runs"),
        "{}",
        by_service.stderr
    );
    let agent = files.start(&ns);
    wait_for("the address", &agent, || bound(&ns).contains("10.96.0.10/32"));
    let wide = ns.exec(&[binary, "list", "-o", "wide"]).unwrap().stdout;
    let settings = "hairpin=false probe=interval=10s,timeout=1s,threshold=3 slow-start=30s";
    assert!(wide.contains(&format!("TCP  10.96.0.10:80 wrr  # test/web:tcp {settings}\n")), "{wide}");
    let json = ns.exec(&[binary, "list", "-o", "json"]).unwrap().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    let server = &json["virtualServers"][0];
    assert_eq!(server["service"], "test/web:tcp");
    assert_eq!(server["settings"]["slow-start"], "30s");
    assert_eq!(server["realServers"][0]["address"], "10.244.1.5");
    for (args, is_listed) in [
        (&["test/web"][..], true),
        (&["web:tcp"], true),
        (&["-n", "test"], true),
        (&["-n", "other"], false),
        (&["-n", "test", "10.96.0.11"], false),
    ] {
        let list = ns.exec(&[&[binary, "list"], args].concat()).unwrap().stdout;
        assert_eq!(list.contains("TCP  10.96.0.10:80 wrr\n"), is_listed, "{args:?}: {list}");
    }
    let second = files.start(&ns);
    wait_for("the refusal", &second, || second.log().contains("another kube-ipvs runs"));
}
