// SPDX-License-Identifier: Apache-2.0
//! The rows of `make bench` about the agent as a process: starts, idling, memory, first answers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::first;
use super::mode::Mode;
use super::node::Size;
use super::process::{Cluster, cost, cpu_time, objects};
use super::rows::{ROUNDS, median, row, shown, within};
use super::table::Row;

/// Time after which a start has freed its memory and finished all work.
const SETTLED: Duration = Duration::from_secs(5);
/// Limit for waiting for an audit.
const AUDIT: Duration = Duration::from_secs(180);
/// The share of a core that an idle agent may use, in percent.
const IDLE: [(Mode, f64); 2] = [(Mode::IPTABLES, 1.0), (Mode::NFTABLES_ROUTE, 0.5)];
/// The most seconds to a first answer, and what is aimed at.
const ANSWERS: [(Mode, f64, Option<f64>); 3] =
    [(Mode::IPTABLES, 1.0, None), (Mode::NFTABLES, 0.5, Some(0.3)), (Mode::NFTABLES_ROUTE, 0.5, Some(0.3))];

/// The medians in seconds of a start on an empty kernel and of a restart, and the most ops of a restart.
struct Starts {
    cold: f64,
    warm: f64,
    operations: u64,
}

/// The agent as a process, on an empty kernel and on a programmed one. `limit`: see [`super::limit`], in seconds.
pub(super) fn start_rows(size: Size, limit: f64, rows: &mut Vec<Row>) -> Result<()> {
    let from_server = measure(size, Mode::IPTABLES, false)?;
    let mut add = |mode: Mode, what: &str, value: f64, unit: &str, must, aim| {
        rows.push(row(format!("{mode}: {what}"), value, unit, must, aim));
    };
    let what = "cold, process start to everything programmed";
    add(Mode::IPTABLES, what, from_server.cold / limit, "x limit", 2.5, Some(1.8));
    let what = "warm, process start to in sync";
    add(Mode::IPTABLES, what, from_server.warm / limit, "x limit", 1.0, Some(0.5));
    add(Mode::IPTABLES, "warm process, ops carried out", from_server.operations as f64, "", 0.0, None);
    let from_files = measure(size, Mode::IPTABLES, true)?;
    for (mode, files, first, must, aim) in [
        (Mode::IPTABLES_ROUTE, false, from_server, 0.75, 0.5),
        (Mode::NFTABLES_ROUTE, true, from_files, 0.5, 0.35),
    ] {
        let starts = measure(size, mode, files)?;
        let source = if files { "files" } else { "API server" };
        let what = format!("cold, process start, {source}, against {}", Mode::IPTABLES);
        add(mode, &what, starts.cold / first.cold, "x", must, Some(aim));
        add(mode, "warm process, ops carried out", starts.operations as f64, "", 0.0, None);
    }
    Ok(())
}

fn measure(size: Size, mode: Mode, from_files: bool) -> Result<Starts> {
    let (mut colds, mut warms, mut operations) = (Vec::new(), Vec::new(), 0);
    let config = mode.config(Cluster::no_audits());
    for _ in 0..ROUNDS {
        within("node-a", |ns| {
            let cluster = match from_files {
                true => Cluster::of_files(ns, &objects(size), &config)?,
                false => Cluster::new(ns, objects(size), &config)?,
            };
            let (mut agent, cold) = cluster.start()?;
            agent.stop()?;
            let (mut agent, warm) = cluster.start()?;
            operations = operations.max(cluster.operations()?);
            colds.push(cold);
            warms.push(warm);
            agent.stop()
        })?;
    }
    let source = if from_files { "files" } else { "API server" };
    println!("{mode}: process start with {source}, empty kernel {colds:.2?}, programmed kernel {warms:.2?}");
    Ok(Starts { cold: median(colds), warm: median(warms), operations })
}

/// Starts the agent as installed and measures it from the end of its first audit to the end of a later
/// one: an idle agent only runs audits, so that a part of one would be no measurement.
pub(super) fn idle_rows(size: Size, seconds: u64, rows: &mut Vec<Row>) -> Result<()> {
    for (mode, must) in IDLE {
        let (share, per_audit) = within("node-a", |ns| {
            let cluster = Cluster::new(ns, objects(size), &mode.config(json!({})))?.with_bookmarks_as_usual();
            let (mut agent, _) = cluster.start()?;
            std::thread::sleep(SETTLED);
            wait_for_work(agent.pid())?;
            // Ticks would count work that a timer starts as a whole tick, or not at all.
            let (start, before, mut audits) = (Instant::now(), cpu_time(agent.pid())?, 0);
            while start.elapsed() < Duration::from_secs(seconds) {
                wait_for_work(agent.pid())?;
                audits += 1;
            }
            let (took, used) = (start.elapsed().as_secs_f64(), cpu_time(agent.pid())? - before);
            agent.stop()?;
            Ok((used.as_secs_f64() / took, took / f64::from(audits)))
        })?;
        rows.push(row(
            format!("{mode}: idle, default sync period, share of a core"),
            share * 100.0,
            "%",
            must,
            None,
        ));
        rows.push(shown(format!("{mode}: idle, seconds per audit"), per_audit, "s"));
    }
    Ok(())
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
pub(super) fn answer_rows(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    for (mode, must, aim) in ANSWERS {
        let rounds = (0..ROUNDS).map(|_| first::measure(size, mode)).collect::<Result<Vec<_>>>()?;
        println!("{mode}: first answers {rounds:.2?}");
        let seconds =
            |after: fn(&first::FirstAnswers) -> Duration| median(rounds.iter().map(after).collect());
        let what = |who: &str| format!("{mode}: process start to first answer, {who}");
        rows.push(row(what("default/kubernetes"), seconds(|answers| answers.api), "s", must, aim));
        rows.push(row(what("cluster DNS"), seconds(|answers| answers.dns), "s", must, aim));
        rows.push(shown(what("last of all Services"), seconds(|answers| answers.last), "s"));
    }
    Ok(())
}

/// Resident memory at several sizes.
pub(super) fn memory_rows(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    let Size { services, endpoints } = size;
    let (more, fewer) = (
        Size { services, endpoints: 2 * endpoints },
        Size { services: services / 10, endpoints: 20 * endpoints },
    );
    for (mode, size, must) in [
        (Mode::IPTABLES, size, 26.0),
        (Mode::NFTABLES_ROUTE, size, 26.0),
        (Mode::IPTABLES, more, 40.0),
        (Mode::IPTABLES, fewer, 40.0),
    ] {
        let resident = resident(mode, size)?;
        rows.push(row(format!("{mode}: resident, {size}"), resident, "MB", must, Some(20.0)));
    }
    Ok(())
}

/// Resident memory in MB after a cold start or after an audit, whichever is larger.
fn resident(mode: Mode, size: Size) -> Result<f64> {
    within("node-a", |ns| {
        let config = mode.config(json!({"ipvs": {"syncPeriod": "5s"}}));
        let cluster = Cluster::new(ns, objects(size), &config)?;
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
            "{mode}: resident, {size}: {:.1} MB after the start, {:.1} after an audit, {:.1} at most",
            megabytes(started),
            megabytes(audited.resident),
            megabytes(audited.peak)
        );
        Ok(megabytes(started.max(audited.resident)))
    })
}
