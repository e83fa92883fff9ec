// SPDX-License-Identifier: Apache-2.0
//! `make bench`, `make bench-quick` and `make benchmarks`: see [`integration::bench`].

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use integration::bench::allocations::Counting;
use integration::bench::events::{self, EndpointCost};
use integration::bench::node::{self, Node, Size};
use integration::bench::plot::{Sample, from_csv, to_csv, to_svg};
use integration::bench::process::{Cluster, cost, objects};
use integration::bench::table::{self, Row};
use integration::bench::{counts, first};
use integration::lab::{Netns, agent_binary};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Parser)]
#[command(about = "What the agent costs, beside a raw replay of the same commands in the same boot")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Times, memory and delays, in multiples of the limit; fails below what must be.
    Table {
        #[arg(long, default_value_t = 10_000)]
        services: u32,
        #[arg(long, default_value_t = 5)]
        endpoints: u32,
        /// Seconds to watch the agent idle, with the default sync period.
        #[arg(long, default_value_t = 100)]
        idle: u64,
    },
    /// What can be counted; fails above what may be.
    Quick,
    /// What one endpoint costs on small and large nodes, by a clock that counts instructions.
    Endpoint {
        #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000, 50_000])]
        sizes: Vec<u32>,
    },
    /// Costs at many sizes, as CSV; by a clock that counts instructions.
    Series {
        #[arg(long, value_delimiter = ',')]
        sizes: Vec<u32>,
        /// The file; what is there already at other sizes stays.
        #[arg(long)]
        csv: PathBuf,
    },
    /// Draws a CSV.
    Plot { csv: PathBuf, svg: PathBuf },
}

/// Ticks of `/proc/PID/stat` per second.
const TICKS: f64 = 100.0;

fn main() -> Result<()> {
    match Args::parse().what {
        What::Table { services, endpoints, idle } => measure_table(Size { services, endpoints }, idle),
        What::Quick => judge(&counts::measure()?),
        What::Endpoint { sizes } => measure_endpoint(&sizes),
        What::Series { sizes, csv } => measure_series(&sizes, &csv),
        What::Plot { csv, svg } => {
            let text = std::fs::read_to_string(&csv).with_context(|| csv.display().to_string())?;
            std::fs::write(&svg, to_svg(&from_csv(&text)?)?).with_context(|| svg.display().to_string())
        }
    }
}

/// Prints the rows; an error when one is not good enough.
fn judge(rows: &[Row]) -> Result<()> {
    print!("{}", table::render(rows));
    ensure!(rows.iter().all(Row::holds), "not everything is as good as it must be");
    Ok(())
}

fn row(what: &str, value: f64, unit: &'static str, must: f64, aim: Option<f64>) -> Row {
    Row { what: what.to_owned(), value, unit, must: Some(must), aim }
}

fn measure_table(size: Size, idle: u64) -> Result<()> {
    let mut rows = Vec::new();
    let limit = loop_rows(size, &mut rows)?;
    println!("limit: {limit:.2} s for {size}: IPVS, sets and addresses, raw; all else in multiples of it");
    process_rows(size, limit, &mut rows)?;
    idle_rows(size, idle, &mut rows)?;
    for (services, endpoints, must) in
        [(size.services, 2 * size.endpoints, 40.0), (size.services / 10, 100, 40.0)]
    {
        let size = Size { services, endpoints };
        rows.push(memory_row(size, must)?);
    }
    let answers = first::measure(size)?;
    rows.push(row(
        "process start to first answer, default/kubernetes",
        answers.api.as_secs_f64(),
        "s",
        1.0,
        None,
    ));
    rows.push(row("process start to first answer, cluster DNS", answers.dns.as_secs_f64(), "s", 1.0, None));
    rows.push(Row {
        what: "process start to first answer, last of all Services".into(),
        value: answers.last.as_secs_f64(),
        unit: "s",
        must: None,
        aim: None,
    });
    let binary = std::fs::metadata(agent_binary()?)?.len() as f64 / 1e6;
    rows.push(row("binary", binary, "MB", 12.0, None));
    judge(&rows)
}

/// The loop in this process; returns the limit in seconds.
fn loop_rows(size: Size, rows: &mut Vec<Row>) -> Result<f64> {
    let ns = Netns::new("bench-agent")?;
    let (pass, cold, audit) = ns.enter(|| {
        let mut node = Node::new(true)?;
        node.fill(size);
        let (pass, cold) = node.cold()?;
        anyhow::Ok((pass, cold, events::audit_cpu(&mut node)?))
    })??;
    let raw = Netns::new("bench-replay")?;
    let limit = raw.enter(|| node::replay(&pass))??.as_secs_f64();
    drop(raw);
    rows.push(row(
        "cold: first write to everything programmed",
        cold.as_secs_f64() / limit,
        "x limit",
        1.5,
        Some(1.2),
    ));
    rows.push(row("audit: CPU", audit.as_secs_f64() / limit, "x limit", 0.3, None));
    ns.enter(|| {
        let delay = |audits| {
            let mut node = Node::new(true)?;
            node.fill(size);
            node.cold()?;
            events::longest_delay(&mut node, size, audits, 60)
        };
        let (quiet, audits) = (delay(false)?, delay(true)?);
        let more = audits.saturating_sub(quiet).as_secs_f64() * 1e3;
        rows.push(row("audit: longest delay of a change, more than without", more, "ms", 50.0, None));
        let mut node = Node::new(true)?;
        node.fill(size);
        node.cold()?;
        let created = events::service_created(&mut node, size)?;
        let sends: u64 = created.sends.iter().sum();
        rows.push(row("one Service created: sends", sends as f64, "", 4.0, None));
        rows.push(row("one Service created: processes", created.processes as f64, "", 0.0, None));
        rows.push(row("one Service created: dumps", created.dumps as f64, "", 0.0, None));
        let restarted = events::rolling_restart(&mut node, size.services + 1, Duration::ZERO)?;
        let of = |n: u64| n as f64 / restarted.events as f64;
        rows.push(row("rolling restart: IPVS commands per change", of(restarted.commands), "", 1.0, None));
        rows.push(row("rolling restart: batches per change", of(restarted.batches), "", 1.0, None));
        Ok(limit)
    })?
}

fn process_rows(size: Size, limit: f64, rows: &mut Vec<Row>) -> Result<()> {
    let ns = Netns::new("node-a")?;
    let cluster = Cluster::new(&ns, objects(size), &Cluster::no_audits())?;
    let (mut agent, cold) = cluster.start()?;
    agent.stop()?;
    let (mut agent, warm) = cluster.start()?;
    let operations = cluster.operations()? as f64;
    agent.stop()?;
    let (cold, warm) = (cold.as_secs_f64() / limit, warm.as_secs_f64() / limit);
    rows.push(row("cold: process start to everything programmed", cold, "x limit", 2.5, Some(1.8)));
    rows.push(row("warm: process start to in sync", warm, "x limit", 1.0, Some(0.5)));
    rows.push(row("warm: ops carried out", operations, "", 0.0, None));
    Ok(())
}

/// Starts the agent as it is installed, waits for the dust to settle, and watches it.
fn idle_rows(size: Size, seconds: u64, rows: &mut Vec<Row>) -> Result<()> {
    let ns = Netns::new("node-a")?;
    let cluster = Cluster::new(&ns, objects(size), &json!({}))?;
    let (mut agent, _) = cluster.start()?;
    std::thread::sleep(Duration::from_secs(5));
    let before = cost(agent.pid())?;
    std::thread::sleep(Duration::from_secs(seconds));
    let after = cost(agent.pid())?;
    agent.stop()?;
    let share = (after.ticks - before.ticks) as f64 / TICKS / seconds as f64;
    rows.push(row("idle, default sync period: share of a core", share * 100.0, "%", 1.0, None));
    rows.push(memory(size, before.resident.max(after.resident), 30.0));
    let peak = after.peak as f64 * 1024.0 / 1e6;
    rows.push(Row {
        what: format!("resident at most, {size}"),
        value: peak,
        unit: "MB",
        must: None,
        aim: None,
    });
    Ok(())
}

fn memory_row(size: Size, must: f64) -> Result<Row> {
    let ns = Netns::new("node-a")?;
    let cluster = Cluster::new(&ns, objects(size), &Cluster::no_audits())?;
    let (mut agent, _) = cluster.start()?;
    std::thread::sleep(Duration::from_secs(3));
    let resident = cost(agent.pid())?.resident;
    agent.stop()?;
    Ok(memory(size, resident, must))
}

fn memory(size: Size, kib: u64, must: f64) -> Row {
    row(&format!("resident, {size}"), kib as f64 * 1024.0 / 1e6, "MB", must, Some(must / 2.0))
}

fn endpoint_cost(size: Size) -> Result<EndpointCost> {
    let ns = Netns::new("bench-endpoint")?;
    ns.enter(|| {
        let mut node = Node::new(false)?;
        node.fill(size);
        node.cold()?;
        events::endpoint(&mut node, size)
    })?
}

fn measure_endpoint(sizes: &[u32]) -> Result<()> {
    let mut costs = Vec::new();
    for services in sizes {
        let cost = endpoint_cost(Size { services: *services, endpoints: 5 })?;
        // Two nanoseconds an instruction.
        let [comes, goes, limit] = [cost.comes, cost.goes, cost.limit].map(|cost| cost.as_nanos() / 2);
        println!(
            "{services} Services: {comes} instructions for one that comes, {goes} for one that goes, {limit} for the bare command"
        );
        costs.push(cost);
    }
    let growth = |of: fn(&EndpointCost) -> Duration| {
        let all = || costs.iter().map(|cost| of(cost).as_secs_f64());
        all().fold(0.0, f64::max) / all().fold(f64::MAX, f64::min)
    };
    judge(&[
        row("one endpoint comes: growth of instructions", growth(|c| c.comes), "x", 1.2, Some(1.0)),
        row("one endpoint goes: growth of instructions", growth(|c| c.goes), "x", 1.2, Some(1.0)),
    ])
}

/// Up to so many addresses are really bound in a series: more take minutes each.
const BOUND: u32 = 10_000;

fn costs(size: Size) -> Result<[Option<Duration>; 6]> {
    let ns = Netns::new("bench-series")?;
    let (plan, cold, endpoint, audit) = ns.enter(|| {
        let mut node = Node::new(true)?;
        node.fill(size);
        let (plan, cold) = node.cold()?;
        let endpoint = events::endpoint(&mut node, size)?;
        anyhow::Ok((plan, cold, endpoint, events::audit_cpu(&mut node)?))
    })??;
    drop(ns);
    let ns = Netns::new("bench-limit")?;
    let limit = ns.enter(|| node::replay(&plan))??;
    Ok([cold, limit, endpoint.comes, endpoint.goes, endpoint.limit, audit].map(Some))
}

fn unbound_costs(size: Size) -> Result<[Option<Duration>; 6]> {
    let cost = endpoint_cost(size)?;
    Ok([None, None, Some(cost.comes), Some(cost.goes), Some(cost.limit), None])
}

fn measure_series(sizes: &[u32], csv: &PathBuf) -> Result<()> {
    let mut samples = match std::fs::read_to_string(csv) {
        Ok(text) => from_csv(&text)?,
        Err(_) => Vec::new(),
    };
    for services in sizes {
        let size = Size { services: *services, endpoints: 5 };
        let costs = if *services > BOUND { unbound_costs(size)? } else { costs(size)? };
        let costs = costs.map(|cost| Some(cost?.as_secs_f64() * 1e6));
        samples.retain(|sample| sample.services != *services);
        samples.push(Sample { services: *services, costs });
        samples.sort_by_key(|sample| sample.services);
        std::fs::write(csv, to_csv(&samples)).with_context(|| csv.display().to_string())?;
        println!("{}", to_csv(&samples));
    }
    Ok(())
}
