// SPDX-License-Identifier: Apache-2.0
//! The rows of `make bench`, except the counted instructions.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::audit;
use super::events;
use super::first;
use super::node::{self, Node, Size};
use super::process::{Cluster, cost, objects};
use super::table::Row;
use crate::lab::{Netns, agent_binary};

/// Ticks of `/proc/PID/stat` per second.
const TICKS: f64 = 100.0;
/// Number of measurements of a start and of the limit; the median counts.
const ROUNDS: usize = 3;
/// Number of changes whose delay is measured.
const CHANGES: u32 = 60;
/// Time after which a start has freed its memory and finished all work.
const SETTLED: Duration = Duration::from_secs(5);
/// Limit for waiting for an audit.
const AUDIT: Duration = Duration::from_secs(60);

/// A row with a limit.
pub fn row(what: impl Into<String>, value: f64, unit: &'static str, must: f64, aim: Option<f64>) -> Row {
    Row { what: what.into(), value, unit, must: Some(must), aim }
}

fn shown(what: impl Into<String>, value: f64, unit: &'static str) -> Row {
    Row { what: what.into(), value, unit, must: None, aim: None }
}

/// A namespace for one measurement: nothing of it is left when the next one begins.
///
/// # Errors
/// What `work` fails with, or that the kernel refuses.
pub fn within<T>(label: &str, work: impl FnOnce(&Netns) -> Result<T>) -> Result<T> {
    let ns = Netns::new(label)?;
    let result = work(&ns)?;
    ns.enter(node::clear)??;
    Ok(result)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

/// All rows; `idle`: seconds to watch the agent idle.
///
/// # Errors
/// If something cannot be measured.
pub fn measure(size: Size, idle: u64) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let limit = start_rows(size, &mut rows)?;
    println!("limit: {limit:.2} s for {size}: IPVS, sets and addresses, raw; all else in multiples of it");
    within("bench-events", |ns| ns.enter(|| event_rows(size, &mut rows))?)?;
    process_rows(size, limit, &mut rows)?;
    idle_rows(size, idle, &mut rows)?;
    let larger = [(size.services, 2 * size.endpoints, 40.0), (size.services / 10, 20 * size.endpoints, 40.0)];
    rows.push(memory_row(size, 30.0)?);
    for (services, endpoints, must) in larger {
        rows.push(memory_row(Size { services, endpoints }, must)?);
    }
    answer_rows(size, &mut rows)?;
    rows.push(row("binary", std::fs::metadata(agent_binary()?)?.len() as f64 / 1e6, "MB", 12.0, None));
    Ok(rows)
}

/// Starts with addresses and with routes. Returns the limit with addresses in seconds.
fn start_rows(size: Size, rows: &mut Vec<Row>) -> Result<f64> {
    let [cold, audit, limit] = measure_starts(size, &[])?;
    rows.push(row("cold: first write to everything programmed", cold / limit, "x limit", 1.5, Some(1.2)));
    rows.push(row("audit: CPU", audit / limit, "x limit", 0.3, None));
    let [by_route, _, limit_by_route] = measure_starts(size, &["10.0.0.0/8".parse()?])?;
    let what = "cold by route: first write to everything programmed";
    // Two runs of iptables-restore are a fifth of such a start.
    rows.push(row(what, by_route / limit_by_route, "x limit", 2.0, Some(1.1)));
    rows.push(row("cold by route, against addresses", by_route / cold, "x", 0.5, Some(0.35)));
    Ok(limit)
}

/// Measures the loop in this process and the limit alternately. Returns the medians in seconds: of the start, of the CPU
/// time of an audit, of the limit.
fn measure_starts(size: Size, routed: &[IpNet]) -> Result<[f64; 3]> {
    let (mut colds, mut audits, mut limits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (plan, cold, audit) = within("bench-agent", |ns| {
            ns.enter(|| {
                let mut node = Node::with_routes(true, routed.to_vec())?;
                node.fill(size);
                let (plan, cold) = node.cold()?;
                anyhow::Ok((plan, cold, audit::audit_cpu(&mut node)?))
            })?
        })?;
        limits.push(within("bench-limit", |ns| ns.enter(|| node::replay(&plan))?)?);
        colds.push(cold);
        audits.push(audit);
    }
    println!("routes {routed:?}: first pass {colds:.2?}, audit {audits:.3?}, limit {limits:.2?}");
    Ok([colds, audits, limits].map(median))
}

/// Changes on a node with everything programmed.
fn event_rows(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    // The loop ends with each measurement that lets it run.
    let programmed = || {
        let mut node = Node::new(true)?;
        node.fill(size);
        node.cold()?;
        // Endpoints that an earlier measurement added drain since the first sync; the next one removes them.
        node.follow()?;
        anyhow::Ok(node)
    };
    let quiet = audit::delays(&mut programmed()?, size, false, CHANGES)?;
    let audits = audit::delays(&mut programmed()?, size, true, CHANGES)?;
    println!(
        "delay of {} changes: {:.1?} and at most {:.1?} without audits, {:.1?} and {:.1?} with ({} met one)",
        audits.changes, quiet.median, quiet.longest, audits.median, audits.longest, audits.during_audits
    );
    let more = audits.longest.saturating_sub(quiet.longest).as_secs_f64() * 1e3;
    rows.push(row("audit: longest delay of a change, more than without", more, "ms", 50.0, None));
    let mut node = programmed()?;
    let created = events::service_created(&mut node, size)?;
    for (what, sends) in ["IPVS", "sets", "addresses"].into_iter().zip(created.sends) {
        rows.push(shown(format!("one Service created: sends, {what}"), sends as f64, ""));
    }
    let sends: u64 = created.sends.iter().sum();
    rows.push(row("one Service created: sends", sends as f64, "", 4.0, None));
    rows.push(row("one Service created: processes", created.processes as f64, "", 0.0, None));
    rows.push(row("one Service created: dumps", created.dumps as f64, "", 0.0, None));
    let restarted = events::rolling_restart(&mut node, size.services + 1, Duration::ZERO)?;
    let of = |n: u64| n as f64 / restarted.events as f64;
    // An added endpoint is one command. A removed one is two: weight 0, then its removal.
    rows.push(row("rolling restart: IPVS commands per change", of(restarted.commands), "", 1.5, None));
    // Fewer syncs than events: at most one less than one for each event.
    let most = of(restarted.events - 1);
    rows.push(row("rolling restart: passes per event", of(restarted.passes), "", most, None));
    Ok(())
}

/// The agent as a process, on an empty kernel and on a programmed one.
fn process_rows(size: Size, limit: f64, rows: &mut Vec<Row>) -> Result<()> {
    let (cold, warm, operations) = measure_processes(size, &Cluster::no_audits())?;
    rows.push(row("cold: process start to everything programmed", cold / limit, "x limit", 2.5, Some(1.8)));
    rows.push(row("warm: process start to in sync", warm / limit, "x limit", 1.0, Some(0.5)));
    rows.push(row("warm: ops carried out", operations as f64, "", 0.0, None));
    let mut config = Cluster::no_audits();
    config["kubeIPVS"] = json!({"clusterIPs": "route", "serviceCIDRs": ["11.0.0.0/8"]});
    let (by_route, _, operations) = measure_processes(size, &config)?;
    rows.push(row("cold by route: process start, against addresses", by_route / cold, "x", 0.75, Some(0.5)));
    rows.push(row("warm by route: ops carried out", operations as f64, "", 0.0, None));
    Ok(())
}

/// The medians in seconds of a start on an empty kernel and of a restart, and the most ops of a restart.
fn measure_processes(size: Size, config: &Value) -> Result<(f64, f64, u64)> {
    let (mut colds, mut warms, mut operations) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        within("node-a", |ns| {
            let cluster = Cluster::new(ns, objects(size), config)?;
            let (mut agent, cold) = cluster.start()?;
            agent.stop()?;
            let (mut agent, warm) = cluster.start()?;
            operations = operations.max(cluster.operations()?);
            colds.push(cold);
            warms.push(warm);
            agent.stop()
        })?;
    }
    println!("process start with {config}, empty kernel {colds:.2?}, programmed kernel {warms:.2?}");
    Ok((median(colds), median(warms), operations))
}

/// Starts the agent as installed and measures it from the end of its first audit to the end of a later
/// one: an idle agent only runs audits, so that a part of one would be no measurement.
fn idle_rows(size: Size, seconds: u64, rows: &mut Vec<Row>) -> Result<()> {
    within("node-a", |ns| {
        let cluster = Cluster::new(ns, objects(size), &json!({}))?.with_bookmarks_as_usual();
        let (mut agent, _) = cluster.start()?;
        std::thread::sleep(SETTLED);
        wait_for_work(agent.pid())?;
        let (start, before, mut audits) = (Instant::now(), cost(agent.pid())?, 0);
        while start.elapsed() < Duration::from_secs(seconds) {
            wait_for_work(agent.pid())?;
            audits += 1;
        }
        let (took, after) = (start.elapsed().as_secs_f64(), cost(agent.pid())?);
        agent.stop()?;
        let share = (after.ticks - before.ticks) as f64 / TICKS / took;
        rows.push(row("idle, default sync period: share of a core", share * 100.0, "%", 1.0, None));
        rows.push(shown("idle: seconds per audit", took / f64::from(audits), "s"));
        Ok(())
    })
}

/// Waits until the process has worked for a while and is idle again: an audit. A request to the agent for
/// its number of audits would cost time.
fn wait_for_work(pid: u32) -> Result<()> {
    const WORK: u64 = 20;
    let start = Instant::now();
    let quiet = || -> Result<u64> {
        loop {
            let before = cost(pid)?.ticks;
            std::thread::sleep(Duration::from_secs(1));
            let now = cost(pid)?.ticks;
            if now <= before + 1 {
                return Ok(now);
            }
        }
    };
    let before = quiet()?;
    while quiet()? < before + WORK {
        ensure!(start.elapsed() < AUDIT * 5, "no audit in {:?}", AUDIT * 5);
    }
    Ok(())
}

/// Time until a client gets answers from a new node.
fn answer_rows(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    let rounds = (0..ROUNDS).map(|_| first::measure(size)).collect::<Result<Vec<_>>>()?;
    println!("first answers {rounds:.2?}");
    let mut answer = |who: &str, after: fn(&first::FirstAnswers) -> Duration, must| {
        let what = format!("process start to first answer, {who}");
        rows.push(Row { must, ..shown(what, median(rounds.iter().map(after).collect()), "s") });
    };
    answer("default/kubernetes", |answers| answers.api, Some(1.0));
    answer("cluster DNS", |answers| answers.dns, Some(1.0));
    answer("last of all Services", |answers| answers.last, None);
    Ok(())
}

/// Resident memory after a cold start or after an audit, whichever is larger.
fn memory_row(size: Size, must: f64) -> Result<Row> {
    within("node-a", |ns| {
        let cluster = Cluster::new(ns, objects(size), &json!({"ipvs": {"syncPeriod": "5s"}}))?;
        let (mut agent, _) = cluster.start()?;
        // The agent is ready before it has freed the memory of the start.
        std::thread::sleep(Duration::from_secs(1));
        let started = cost(agent.pid())?.resident;
        cluster.wait_audit(cluster.audits()?, AUDIT)?;
        // The memory of the audit is freed after it.
        std::thread::sleep(Duration::from_secs(1));
        let audited = cost(agent.pid())?;
        agent.stop()?;
        let megabytes = |kib: u64| kib as f64 * 1024.0 / 1e6;
        println!(
            "resident, {size}: {:.1} MB after the start, {:.1} after an audit, {:.1} at most",
            megabytes(started),
            megabytes(audited.resident),
            megabytes(audited.peak)
        );
        let most = megabytes(started.max(audited.resident));
        Ok(row(format!("resident, {size}"), most, "MB", must, Some(must / 2.0)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_used() {
        let seconds = |all: &[u64]| median(all.iter().map(|s| Duration::from_secs(*s)).collect());
        assert!((seconds(&[9, 1, 2]) - 2.0).abs() < 1e-9 && (seconds(&[7]) - 7.0).abs() < 1e-9);
        assert!(seconds(&[]).is_nan(), "nothing measured is no number");
        assert!(!row("x", f64::NAN, "", 1.0, None).holds());
    }
}
