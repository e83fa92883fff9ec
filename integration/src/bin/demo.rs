// SPDX-License-Identifier: Apache-2.0
//! `make demo`: a node of network namespaces, six backend pods, and the agent between them and their
//! clients. Prints every step.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::lab::traffic::{Answer, Backend, Connection, NoAnswer, ask_tcp, ask_udp};
use integration::lab::{Agent, AgentSpec, Host, Lab, Netns, Node, agent_binary};
use integration::objects;

const CONFIG: &str = include_str!("../../../manifests/examples/config.yaml");
const CLUSTER_DNS: &str = include_str!("../../../manifests/examples/cluster-dns.yaml");
const DASHBOARD: &str = include_str!("../../../manifests/examples/dashboard.yaml");

/// Pods by the last part of their address: name, TCP ports, UDP ports.
const PODS: [(u8, &str, &[u16], &[u16]); 6] = [
    (100, "apiserver", &[6443], &[]),
    (6, "coredns-1", &[53, 9153], &[53]),
    (7, "coredns-2", &[53, 9153], &[53]),
    (220, "dashboard-1", &[8443], &[]),
    (221, "dashboard-2", &[8443], &[]),
    (222, "dashboard-3", &[8443], &[]),
];

/// The dashboard's external IP and port.
const DASHBOARD_VIP: &str = "10.0.0.168:443";

const LIMIT: Duration = Duration::from_secs(60);
const ASK: Duration = Duration::from_secs(5);

/// Limit for the whole demo.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let start = Instant::now();
    say("A node of network namespaces: node-a with six backend pods, a pod that asks, a client outside.");
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let pods: Vec<Host> = PODS.iter().map(|pod| node.pod(pod.0)).collect::<Result<_>>()?;
    let asker = node.pod(9)?;
    let outside = lab.client("outside")?;
    outside.route("10.0.0.168/32", &node.host)?;
    let mut backends = Vec::new();
    for (pod, (_, name, tcp, udp)) in pods.iter().zip(PODS) {
        let mut backend = Backend::new(&pod.ns, name);
        for port in tcp {
            backend = backend.tcp(*port)?;
        }
        for port in udp {
            backend = backend.udp(*port)?;
        }
        show(&format!("{name:<12} {}", pod.v4));
        backends.push(backend);
    }
    let folder = tempfile::tempdir()?;
    let (mut agent, took) = start_agent(&node, folder.path())?;
    say(&format!("kube-ipvs runs on the node; everything was programmed {took:.1?} after its start."));
    agent.log().lines().filter(|line| line.contains("ready: ")).for_each(show);
    tell(node.ns(), &["list"])?;
    say(
        "The agent explains itself: its state, what a packet to the dashboard meets, and whether the kernel is right.",
    );
    tell(node.ns(), &["status"])?;
    tell(node.ns(), &["explain", DASHBOARD_VIP])?;
    tell(node.ns(), &["verify"])?;
    talk(&asker, &outside)?;
    scale(&node, &outside, folder.path(), &agent)?;
    say("The agent stops (SIGTERM). The kernel keeps everything; Services are served as before:");
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.log());
    ask("outside", &format!("tcp {DASHBOARD_VIP}"), 4, |to| ask_tcp(&outside.ns, to, ASK))?;
    let troubles = agent.log().lines().filter(|l| l.contains("ERROR") || l.contains(" WARN ")).count();
    ensure!(troubles == 0, "the agent complained:\n{}", agent.log());
    ensure!(start.elapsed() < PATIENCE, "the demo took {:.0?}, more than {PATIENCE:?}", start.elapsed());
    say("Done. Namespaces, pods and virtual servers disappear with this program.");
    Ok(())
}

fn say(text: &str) {
    println!("\n== {text}");
}

fn show(text: &str) {
    println!("   {text}");
}

fn start_agent(node: &Node, folder: &Path) -> Result<(Agent, Duration)> {
    say(
        "The objects: the Node, default/kubernetes, cluster DNS, and the dashboard with the external IP 10.0.0.168.",
    );
    let folder_of_objects = folder.join("objects");
    std::fs::create_dir(&folder_of_objects)?;
    // `make demo MODE=nftables`
    let mode = objects::rules_mode().map(|mode| format!("kubeIPVS:\n  rules: {mode}\n"));
    std::fs::write(folder.join("config.yaml"), CONFIG.to_owned() + &mode.unwrap_or_default())?;
    std::fs::write(folder_of_objects.join("cluster-dns.yaml"), CLUSTER_DNS)?;
    std::fs::write(folder_of_objects.join("dashboard.yaml"), DASHBOARD)?;
    let node_object = objects::node(&node.name, &[&node.host.v4.to_string(), &node.host.v6.to_string()]);
    std::fs::write(folder_of_objects.join("node.json"), node_object.to_string())?;
    show("kube-ipvs run --config=config.yaml --objects=objects --hostname-override=node-a");
    show("(in an emulated guest this takes some seconds: programs start slowly there)");
    let start = Instant::now();
    let spec = AgentSpec {
        config: folder.join("config.yaml"),
        objects: Some(folder_of_objects),
        hostname_override: Some("node-a".to_owned()),
        ..AgentSpec::default()
    };
    let agent = Agent::start(node.ns(), &spec)?;
    wait(&agent, || Ok(agent.log().contains("ready: ")))?;
    Ok((agent, start.elapsed()))
}

fn wait(agent: &Agent, done: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > LIMIT {
            bail!("it did not happen within {LIMIT:?}; the agent's log:\n{}", agent.log());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Runs a command of the agent's program, which must find everything well.
fn tell(ns: &Netns, args: &[&str]) -> Result<()> {
    show(&format!("$ kube-ipvs {}", args.join(" ")));
    let binary = agent_binary()?;
    let command = [&[binary.to_str().context("path of the agent")?], args].concat();
    print!("{}", ns.exec(&command)?.stdout);
    Ok(())
}

/// Sends several requests and prints the number of answers of each backend.
fn ask(
    who: &str,
    what: &str,
    times: usize,
    ask: impl Fn(SocketAddr) -> Result<Answer, NoAnswer>,
) -> Result<BTreeMap<String, usize>> {
    let to = what.split(' ').next_back().unwrap_or_default().parse()?;
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let answer = ask(to).with_context(|| format!("{who} asks {what}"))?;
        *answers.entry(answer.name).or_insert(0) += 1;
    }
    let text: Vec<String> = answers.iter().map(|(name, n)| format!("{name} x{n}")).collect();
    show(&format!("{who:<8} asks {what:<22} {times} times: {}", text.join(", ")));
    Ok(answers)
}

fn talk(asker: &Host, outside: &Host) -> Result<()> {
    say("Who answers? Requests from a pod, and from outside through the external IP:");
    ask("pod", "tcp 10.96.0.1:443", 2, |to| ask_tcp(&asker.ns, to, ASK))?;
    let udp = ask("pod", "udp 10.96.0.10:53", 6, |to| ask_udp(&asker.ns, to, ASK))?;
    let tcp = ask("pod", "tcp 10.96.0.10:53", 6, |to| ask_tcp(&asker.ns, to, ASK))?;
    ask("pod", "tcp 10.96.0.10:9153", 6, |to| ask_tcp(&asker.ns, to, ASK))?;
    let dashboard = ask("outside", &format!("tcp {DASHBOARD_VIP}"), 9, |to| ask_tcp(&outside.ns, to, ASK))?;
    ensure!((udp.len(), tcp.len(), dashboard.len()) == (2, 2, 3), "not balanced over all backends");
    Ok(())
}

/// One backend leaves the EndpointSlice while a client is connected to it.
fn scale(node: &Node, outside: &Host, folder: &Path, agent: &Agent) -> Result<()> {
    say(
        "A client stays connected to dashboard-3 (10.244.1.222), which is scaled away: its EndpointSlice is replaced.",
    );
    let address = DASHBOARD_VIP.parse()?;
    let mut open = loop {
        let mut connection = Connection::open(&outside.ns, address, ASK)?;
        if connection.ask()?.name == "dashboard-3" {
            break connection;
        }
        connection.abort()?;
    };
    let without: Vec<&str> = DASHBOARD.lines().filter(|line| !line.contains("10.244.1.222")).collect();
    let new = folder.join("objects/.dashboard.yaml");
    std::fs::write(&new, without.join("\n"))?;
    std::fs::rename(&new, folder.join("objects/dashboard.yaml"))?;
    let start = Instant::now();
    let drains = |line: &&str| line.contains("10.244.1.222:8443") && line.contains(" Masq    0 ");
    let table = || Ok::<_, anyhow::Error>(node.ns().exec(&["ipvsadm", "-Ln"])?.stdout);
    wait(agent, || Ok(table()?.lines().filter(|line| drains(line)).count() == 1))?;
    show(&format!("it drains (weight 0) after {:.1?}, one `ipvsadm` to see it included:", start.elapsed()));
    tell(node.ns(), &["list", "--draining"])?;
    let answers = ask("outside", &format!("tcp {DASHBOARD_VIP}"), 6, |to| ask_tcp(&outside.ns, to, ASK))?;
    ensure!(!answers.contains_key("dashboard-3") && answers.len() == 2, "traffic did not move: {answers:?}");
    let answer = open.ask().context("the open connection broke")?;
    ensure!(answer.name == "dashboard-3", "the open connection moved to {}", answer.name);
    show(
        "The open connection still talks to dashboard-3. It leaves IPVS when its last connection is forgotten.",
    );
    Ok(())
}
