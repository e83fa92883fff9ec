// SPDX-License-Identifier: Apache-2.0
//! `make bench`: cold programming of many Services by the agent's loop, beside a raw replay of the same
//! commands, encoded beforehand, in the same boot. Only the ratio means something: times on shared and
//! emulated machines are noise.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dummy_iface::DummyDevice;
use integration::bench::process::{Cluster, cost};
use integration::bench::table::{self, Row};
use integration::lab::{Netns, agent_binary};
use integration::replay::{RawIpvs, encode_commands};
use kube_ipvs::config::node;
use kube_ipvs::core::model::*;
use kube_ipvs::core::op::{Lane, Op, Phase};
use kube_ipvs::core::ownership::DEVICE;
use kube_ipvs::core::settings::Settings;
use kube_ipvs::inbox::Inbox;
use kube_ipvs::kernel::ipset::IpsetClient;
use kube_ipvs::kernel::linux::LinuxKernel;
use kube_ipvs::reconcile::{Outlets, Pass, Reconciler};
use kube_ipvs::schedule::Due;
use kube_ipvs::store::{Object, Store};

#[derive(Parser)]
#[command(about = "What the agent costs, beside a raw replay of the same commands in the same boot")]
struct Args {
    /// Number of Services.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each.
    #[arg(long, default_value_t = 5)]
    endpoints: u8,
    /// Seconds to watch the agent idle, with the default sync period.
    #[arg(long, default_value_t = 70)]
    idle: u64,
}

/// Ticks of `/proc/PID/stat` per second.
const TICKS: f64 = 100.0;

fn main() -> Result<()> {
    let args = Args::parse();
    let ns = Netns::new("bench-agent")?;
    let (pass, agent) = ns.enter(|| measure_agent(&args))??;
    drop(ns);
    let ns = Netns::new("bench-replay")?;
    let limit = ns.enter(|| measure_replay(&pass))??.as_secs_f64();
    drop(ns);
    println!("  limit   {limit:.2} s  IPVS, sets and addresses, raw; all else in multiples of it");
    let at = format!("{} x {}", args.services, args.endpoints);
    let row = |what: &str, value: f64, unit, must: Option<f64>, aim: Option<f64>| Row {
        what: format!("{what}, {at}"),
        value,
        unit,
        must,
        aim,
    };
    let mut rows = vec![row(
        "cold: first write to everything programmed",
        agent.as_secs_f64() / limit,
        "x limit",
        Some(1.5),
        Some(1.2),
    )];
    let cluster = Cluster::new(args.services, args.endpoints, &Cluster::no_audits())?;
    let (mut agent, cold) = cluster.start()?;
    let after_cold = cost(agent.pid())?;
    agent.stop()?;
    rows.push(row(
        "cold: process start to everything programmed",
        cold.as_secs_f64() / limit,
        "x limit",
        Some(2.5),
        Some(1.8),
    ));
    let (mut agent, warm) = cluster.start()?;
    rows.push(row(
        "warm: process start to in sync",
        warm.as_secs_f64() / limit,
        "x limit",
        Some(1.0),
        Some(0.5),
    ));
    rows.push(row("warm: ops carried out", cluster.operations()? as f64, "", Some(0.0), Some(0.0)));
    agent.stop()?;
    drop(agent);
    drop(cluster);
    let cluster = Cluster::new(args.services, args.endpoints, &serde_json::json!({}))?;
    let (mut agent, _) = cluster.start()?;
    let before = cost(agent.pid())?;
    std::thread::sleep(Duration::from_secs(args.idle));
    let after = cost(agent.pid())?;
    agent.stop()?;
    let share = (after.ticks - before.ticks) as f64 / TICKS / args.idle as f64;
    rows.push(row("idle: share of a core", share * 100.0, "%", Some(1.0), None));
    let memory = |kib: u64| kib as f64 / 1000.0 * 1.024;
    rows.push(row("resident after a cold start", memory(after_cold.resident), "MB", Some(30.0), Some(15.0)));
    rows.push(row("resident when idle", memory(after.resident), "MB", Some(30.0), Some(15.0)));
    rows.push(row("resident at most", memory(after.peak.max(after_cold.peak)), "MB", None, None));
    let binary = std::fs::metadata(agent_binary()?)?.len() as f64 / 1e6;
    rows.push(Row { what: "binary".into(), value: binary, unit: "MB", must: Some(12.0), aim: None });
    print!("{}", table::render(&rows));
    ensure!(rows.iter().all(Row::holds), "not everything is as good as it must be");
    Ok(())
}

fn service_name(n: u32) -> ObjectName {
    ObjectName::new("bench", &format!("svc-{n}"))
}

fn fill(store: &Store, args: &Args) {
    let bytes = |n: u32, first: u8| IpAddr::from([first, (n >> 16) as u8, (n >> 8) as u8, n as u8]);
    store.update(|update| {
        for n in 0..args.services {
            update.put(Object::Service(Service {
                name: service_name(n),
                cluster_ips: [Some(bytes(n + 1, 10)), None],
                ports: vec![ServicePort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 80,
                    node_port: 0,
                }],
                ..Service::default()
            }));
            let endpoint = |e: u8| Endpoint {
                addr: bytes(n, 100 + e),
                ready: true,
                serving: true,
                terminating: false,
                place: (e == 0).then(|| Place::on("node-a")),
            };
            update.put(Object::EndpointSlice(EndpointSlice {
                name: service_name(n),
                service: service_name(n),
                family: Family::V4,
                ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
                endpoints: (0..args.endpoints).map(endpoint).collect(),
            }));
        }
    });
}

/// The agent's first pass, from a full store to a programmed kernel.
fn measure_agent(args: &Args) -> Result<(Pass, Duration)> {
    let store = Arc::new(Store::new(Arc::new(Inbox::default())));
    let settings = Settings {
        families: node::families(),
        sysctls: node::sysctls(node::kernel_version()?, false),
        ..Settings::default()
    };
    let kernel = LinuxKernel::open(&settings)?;
    fill(&store, args);
    let mut reconciler = Reconciler::new(kernel, store, settings, "node-a", false, Outlets::log_only()?);
    let start = Instant::now();
    let pass = reconciler.sync(Due::Audit, Duration::ZERO);
    let took = start.elapsed();
    ensure!(pass.is_clean(), "not everything was programmed: {:?}", pass.unreadable);
    let traffic = reconciler.kernel().traffic();
    println!(
        "  sends   IPVS {}, sets {}, addresses {}",
        traffic.sends[0], traffic.sends[1], traffic.sends[2]
    );
    println!(
        "  bytes   IPVS {}, sets {}, addresses {}",
        traffic.bytes[0], traffic.bytes[1], traffic.bytes[2]
    );
    println!("  others  {} dumps, {} processes", traffic.dumps, traffic.processes);
    Ok((pass, took))
}

/// The same commands, sent by nothing but sends.
fn measure_replay(pass: &Pass) -> Result<Duration> {
    let of = |phase, lane| -> Vec<&Op> {
        pass.plan.ops.iter().filter(|op| op.phase() == phase && op.lane() == lane).collect()
    };
    let mut raw = RawIpvs::open()?;
    let sends = encode_commands(raw.family(), &of(Phase::Serve, Lane::Ipvs));
    let mut sets = IpsetClient::open().context("ipset")?;
    let requests = sets.prepare(&of(Phase::Guard, Lane::Sets)).context("ipset")?;
    let mut device = DummyDevice::open(DEVICE)?;
    let addresses: Vec<IpAddr> = of(Phase::Open, Lane::Addresses)
        .iter()
        .filter_map(|op| if let Op::Bind(addr) = op { Some(*addr) } else { None })
        .collect();
    let start = Instant::now();
    device.ensure()?;
    ensure!(sets.send(&requests).context("ipset")?.iter().all(Option::is_none), "a set refused an entry");
    raw.send(&sends)?;
    ensure!(device.add(&addresses)?.is_empty(), "an address was refused");
    let took = start.elapsed();
    check(&addresses)?;
    Ok(took)
}

/// That the replay did the work, and not less.
fn check(addresses: &[IpAddr]) -> Result<()> {
    let mut client = ipvs_netlink::Client::open()?;
    let services = client.services()?;
    ensure!(services.len() == addresses.len(), "{} services after the replay", services.len());
    let id = ipvs_netlink::ServiceId::tcp(SocketAddr::new(addresses[0], 80));
    ensure!(!client.destinations(&id)?.is_empty(), "a service without destinations after the replay");
    Ok(())
}
