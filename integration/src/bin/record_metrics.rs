// SPDX-License-Identifier: Apache-2.0
//! Records `/metrics` of a real agent while objects and traffic change and faults happen, as in [`EVENTS`]. The pictures
//! of the dashboards are drawn from it (`integration/checks/dashboards`). Needs root and a kernel with IPVS.
//!
//! Prints each scrape: a line `# scrape TIME` with the time in seconds since 1970, then the answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use clap::Parser;
use fastrand::Rng;
use integration::apiserver::{ApiServer, Faults};
use integration::lab::oracle::http_get;
use integration::lab::traffic::{Backend, Connection, ask_tcp};
use integration::lab::{Agent, AgentSpec, Lab, Netns, Node, at};
use integration::objects::{ServiceBuilder, config, node as node_object, placed, slice};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const METRICS: u16 = 10249;
const INTERVAL: Duration = Duration::from_secs(5);
const SCRAPES: u64 = 96;
/// Services without traffic, whose endpoints change all the time.
const QUIET: u8 = 40;
const HTTP: [(&str, &str, u16); 1] = [("http", "TCP", 80)];
const TARGET: [(&str, &str, u16); 1] = [("http", "TCP", 8080)];
const ASK: Duration = Duration::from_secs(2);
const WEB_VIP: &str = "198.51.100.10";

/// Clients: the VIP, and the pause between their connections in milliseconds.
const CLIENTS: [(&str, u64); 3] = [("10.96.0.10", 60), ("10.96.0.11", 150), ("10.96.0.12", 400)];

/// What happens before which scrape.
const EVENTS: [(u64, Event); 15] = [
    (5, Event::Add),
    (12, Event::Churn(200)),
    (18, Event::Churn(2000)),
    (20, Event::Drain),
    (27, Event::Flush),
    (32, Event::Misuse),
    (46, Event::Undrain),
    // An audit, which notices the misuse, comes within 45 s.
    (51, Event::EndOfMisuse),
    (56, Event::ApiFails),
    (61, Event::ApiWorks),
    (64, Event::Remove),
    (68, Event::Conflict),
    (72, Event::Refused),
    (77, Event::Churn(400)),
    (84, Event::Churn(2000)),
];

/// Another program takes the name of an ipset, and uses it. Until it does, the agent may have repaired the set.
const MISUSE: &str = "for _ in 1 2 3 4 5 6 7 8; do
    iptables -w -t nat -F KUBE-POSTROUTING
    ipset destroy KUBE-LOOP-BACK
    ipset create KUBE-LOOP-BACK hash:ip
    iptables -w -I INPUT -m set --match-set KUBE-LOOP-BACK src -j ACCEPT
    ipset list -t KUBE-LOOP-BACK | grep -q 'hash:ip$' && exit
    iptables -w -D INPUT -m set --match-set KUBE-LOOP-BACK src -j ACCEPT
done
exit 1";
/// The remedy that the agent's log names. Its own rules use the set, too, and it may write them meanwhile.
const END_OF_MISUSE: &str = "iptables -w -D INPUT -m set --match-set KUBE-LOOP-BACK src -j ACCEPT
for _ in 1 2 3 4 5 6 7 8; do
    iptables -w -t nat -F KUBE-POSTROUTING
    ipset destroy KUBE-LOOP-BACK && exit
done
exit 1";

/// An event of the recording.
#[derive(Clone, Copy)]
enum Event {
    /// A Service is added.
    Add,
    /// It is removed.
    Remove,
    /// From now on the endpoints of a Service change every so many milliseconds.
    Churn(u64),
    /// A pod with an open connection leaves its Service.
    Drain,
    /// The connection ends, and the pod returns.
    Undrain,
    /// Another program clears IPVS, flushes a chain and removes an address.
    Flush,
    /// Another program uses the name of an ipset for a set of another type.
    Misuse,
    /// It no longer does.
    EndOfMisuse,
    /// The API server answers every request with 500, and its watches end.
    ApiFails,
    /// It answers again.
    ApiWorks,
    /// A second Service claims an external IP.
    Conflict,
    /// An endpoint has an address that IPVS refuses.
    Refused,
}

impl Event {
    /// Whether it happens on a node whose programs and network work.
    fn is_calm(self) -> bool {
        matches!(
            self,
            Self::Add | Self::Remove | Self::Churn(_) | Self::Drain | Self::Undrain | Self::Conflict
        )
    }
}

/// Record the metrics of an agent.
#[derive(Debug, Parser)]
struct Args {
    /// Without faults.
    #[arg(long)]
    calm: bool,
}

/// A Service of a namespace.
fn service(namespace: &str, name: &str, vip: &str, external: &[&str]) -> Value {
    placed(ServiceBuilder::new(name, &[vip], &HTTP).external_ips(external).build(), namespace, json!({}))
}

/// Its EndpointSlice, changed just now.
fn endpoints(namespace: &str, name: &str, addresses: &[&str]) -> Value {
    let mut object = placed(slice(name, addresses, &TARGET), namespace, json!({}));
    let now = Timestamp::now().to_string();
    object["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": now});
    object
}

fn all_objects(node: &Node) -> Vec<Value> {
    let addresses = [node.host.v4.to_string(), node.host.v6.to_string()];
    let mut all = vec![
        node_object(&node.name, &[&addresses[0], &addresses[1]]),
        service("shop", "web", "10.96.0.10", &[WEB_VIP]),
        endpoints("shop", "web", &["10.244.1.11@node-a", "10.244.1.12@node-a", "10.244.1.13@node-a"]),
        service("shop", "cart", "10.96.0.11", &[]),
        endpoints("shop", "cart", &["10.244.1.12@node-a", "10.244.1.13@node-a"]),
        service("monitoring", "grafana", "10.96.0.12", &[]),
        endpoints("monitoring", "grafana", &["10.244.1.11@node-a"]),
        placed(
            ServiceBuilder::new("gateway", &["10.96.0.13"], &HTTP)
                .load_balancer(&["198.51.100.13"])
                .node_ports(&[30013])
                .external_policy("Local")
                .build(),
            "ingress",
            json!({}),
        ),
        endpoints("ingress", "gateway", &["10.244.2.13@node-b"]),
    ];
    for number in 1..=QUIET {
        let name = format!("quiet-{number}");
        all.push(service("quiet", &name, &format!("10.96.1.{number}"), &[]));
        all.push(endpoints("quiet", &name, &[&format!("10.244.2.{number}")]));
        let v6 = format!("fd00:96::1:{number}");
        all.push(service("quiet-v6", &name, &v6, &[]));
        all.push(endpoints("quiet-v6", &name, &[&format!("fd00:244:2::{number}")]));
    }
    all
}

/// The node, its API server, and what runs beside the agent.
struct Stage<'a> {
    node: &'a Node,
    client: &'a Netns,
    server: ApiServer,
    /// Milliseconds between two changes of endpoints.
    churn: AtomicU64,
    stop: AtomicBool,
}

impl Stage<'_> {
    fn runs(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn exec(&self, command: &str) -> Result<()> {
        self.node.ns().exec(&command.split(' ').collect::<Vec<_>>()).map(drop)
    }

    fn script(&self, script: &str) -> Result<()> {
        self.node.ns().exec(&["sh", "-c", script]).map(drop)
    }

    /// Opens connections to a VIP all the time. Some fail while another program interferes.
    fn connect(&self, vip: &str, pause: u64) {
        let start = Instant::now();
        while self.runs() {
            _ = ask_tcp(self.client, at(vip, 80), ASK);
            // More in some minutes than in others.
            let wave = 1.0 + 0.6 * (start.elapsed().as_secs_f64() / 40.0).sin();
            std::thread::sleep(Duration::from_millis(pause).mul_f64(wave));
        }
    }

    /// Changes endpoints of Services without traffic.
    fn change_endpoints(&self) {
        let mut random = Rng::with_seed(1);
        while self.runs() {
            let (name, last) = (format!("quiet-{}", random.u8(1..=QUIET)), random.u8(2..250));
            if random.u8(0..4) == 0 {
                self.server.apply(endpoints("quiet-v6", &name, &[&format!("fd00:244:2::{last:x}")]));
            } else {
                let addresses: Vec<_> =
                    (0..random.u8(1..5)).map(|n| format!("10.244.{}.{last}", 2 + n)).collect();
                let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
                self.server.apply(endpoints("quiet", &name, &addresses));
            }
            std::thread::sleep(Duration::from_millis(self.churn.load(Ordering::Relaxed)));
        }
    }

    fn happen(&self, event: Event, open: &mut Option<Connection>) -> Result<()> {
        let server = &self.server;
        match event {
            Event::Add => {
                server.apply(service("shop", "checkout", "10.96.0.14", &[]));
                server.apply(endpoints("shop", "checkout", &["10.244.1.11@node-a", "10.244.1.12@node-a"]));
            }
            Event::Remove => {
                server.delete("Service", "shop", "checkout");
                server.delete("EndpointSlice", "shop", "checkout-v4");
            }
            Event::Churn(pause) => self.churn.store(pause, Ordering::Relaxed),
            Event::Drain => {
                // Its open connection outlives those that the clients ended.
                *open = Connection::open(self.client, at("10.96.0.10", 80), ASK).ok();
                server.apply(endpoints("shop", "web", &["10.244.1.11@node-a"]));
            }
            Event::Undrain => {
                open.take().map(Connection::abort).transpose()?;
                server.apply(endpoints(
                    "shop",
                    "web",
                    &["10.244.1.11@node-a", "10.244.1.12@node-a", "10.244.1.13@node-a"],
                ));
            }
            Event::Flush => {
                self.exec("ipvsadm -C")?;
                self.exec("iptables -w -t nat -F KUBE-SERVICES")?;
                self.exec("ip addr del 10.96.0.12/32 dev kube-ipvs0")?;
            }
            Event::Misuse => self.script(MISUSE)?,
            Event::EndOfMisuse => self.script(END_OF_MISUSE)?,
            Event::ApiFails => {
                server.set_faults(Faults {
                    status: Some((String::new(), 500, usize::MAX)),
                    ..Faults::default()
                });
                server.cut_watches(false);
            }
            Event::ApiWorks => server.set_faults(Faults::default()),
            Event::Conflict => {
                server.apply(service("shop", "web-copy", "10.96.0.15", &[WEB_VIP]));
                server.apply(endpoints("shop", "web-copy", &["10.244.1.12@node-a"]));
            }
            Event::Refused => {
                server.apply(service("test", "wild", "10.96.0.50", &[]));
                server.apply(endpoints("test", "wild", &["192.168.50.255", "10.244.1.11@node-a"]));
            }
        }
        Ok(())
    }

    /// Prints the scrapes.
    fn record(&self, calm: bool) -> Result<()> {
        let (start, mut open) = (Instant::now(), None);
        for (number, due) in (0..SCRAPES).zip((0..).map(|n| INTERVAL * n)) {
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
            let answer = self.node.ns().enter(|| http_get(METRICS, "metrics"))?.unwrap_or_default();
            println!("# scrape {time:.3}\n{}", answer.split_once("\r\n\r\n").map_or("", |(_, body)| body));
            for (_, event) in
                EVENTS.iter().filter(|(when, event)| *when == number && (!calm || event.is_calm()))
            {
                if let Err(error) = self.happen(*event, &mut open) {
                    eprintln!("scrape {number}: {error:#}");
                }
            }
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let Args { calm } = Args::parse();
    let lab = Lab::new()?;
    let (node, outside) = (lab.node("node-a")?, lab.client("outside")?);
    outside.route("10.96.0.0/16", &node.host)?;
    let pods = [node.pod(11)?, node.pod(12)?, node.pod(13)?];
    let _backends =
        pods.iter().map(|pod| Backend::new(&pod.ns, "pod").tcp(8080)).collect::<Result<Vec<_>>>()?;
    let server = ApiServer::start(node.ns().listen("127.0.0.1:0")?)?;
    server.replace_all(all_objects(&node));
    let folder = tempfile::tempdir()?;
    let (kubeconfig, file) = (folder.path().join("kubeconfig"), folder.path().join("config.yaml"));
    std::fs::write(&kubeconfig, server.kubeconfig())?;
    let more = json!({"clientConnection": {"kubeconfig": kubeconfig}, "kubeIPVS": {"metrics": {"perService": true}}});
    std::fs::write(&file, config(&node.name, &more).to_string())?;
    let agent = Agent::start(node.ns(), &AgentSpec { config: file, ..AgentSpec::default() })?;
    let stage = Stage {
        node: &node,
        client: &outside.ns,
        server,
        churn: AtomicU64::new(2000),
        stop: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        for (vip, pause) in CLIENTS {
            let stage = &stage;
            scope.spawn(move || stage.connect(vip, pause));
        }
        scope.spawn(|| stage.change_endpoints());
        let result = stage.record(calm);
        stage.stop.store(true, Ordering::Relaxed);
        result
    })
    .context("recording")?;
    eprintln!("{}", agent.log());
    Ok(())
}
