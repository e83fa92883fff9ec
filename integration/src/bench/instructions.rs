// SPDX-License-Identifier: Apache-2.0
//! Whole starts by a clock that counts instructions: to be run in a guest of `run --icount`.

use std::time::{Duration, Instant};

use anyhow::Result;
use kube_ipvs::core::plan::op::Plan;

use super::limit;
use super::mode::Mode;
use super::node::{Node, Size};
use super::process::{Cluster, cpu_time, objects};
use super::rows::{row, shown, within};
use super::series::{ENDPOINTS, NANOSECONDS};
use super::table::Row;

/// Number of Services of the warm-up: the first sync after a boot loads modules.
const WARM_UP: u32 = 60;

/// A first sync by route, against addresses, with the same rules.
///
/// # Errors
/// When the kernel refuses something.
pub fn cold_rows(services: u32) -> Result<Vec<Row>> {
    let [by_route, addresses] = [Mode::NFTABLES_ROUTE, Mode::NFTABLES].map(|mode| first_sync(services, mode));
    let what =
        format!("{}: cold, {services} x {ENDPOINTS}, instructions, against addresses", Mode::NFTABLES_ROUTE);
    Ok(vec![row(what, by_route?.as_secs_f64() / addresses?.as_secs_f64(), "x", 0.15, Some(0.1))])
}

fn first_sync(services: u32, mode: Mode) -> Result<Duration> {
    sync(WARM_UP, mode)?;
    let (plan, cold, warm) = sync(services, mode)?;
    let [cold_instructions, warm] = [cold, warm].map(instructions);
    println!(
        "{mode}: {cold_instructions} instructions for the first sync of {services} Services, {warm} for another of a new loop"
    );
    // The limit by addresses takes as long as the sync.
    if mode.by_route {
        let limit = within("bench-limit", |ns| ns.enter(|| limit::replay(&plan, mode.rules))?)?;
        let [sets, servers] = [limit.sets, limit.servers].map(instructions);
        println!("{mode}: {sets} instructions for the bare sets, {servers} for the bare servers");
    }
    Ok(cold)
}

/// The first sync on an empty kernel: its plan and its time; and the time of the first sync of a new loop after it.
fn sync(services: u32, mode: Mode) -> Result<(Plan, Duration, Duration)> {
    let first = || {
        let mut node = Node::new(mode, true)?;
        node.fill(Size { services, endpoints: ENDPOINTS });
        node.cold().map(|first| (first.plan, first.whole))
    };
    within("bench-cold", |ns| {
        ns.enter(|| {
            let (plan, cold) = first()?;
            Ok((plan, cold, first()?.1))
        })?
    })
}

fn instructions(time: Duration) -> u128 {
    time.as_nanos() / NANOSECONDS
}

/// Instructions of a restart with 10,000 Services of 5 endpoints, when files were read to trees before their objects were
/// decoded: those of the default mode, the fewest then.
const RESTART_BEFORE: f64 = 2.28e9;
const BEFORE_SERVICES: u32 = 10_000;

/// A restart of the agent's process on a programmed node, by the clock of instructions. The CPU time of the process and of
/// its programs counts, not that of this process beside it.
///
/// # Errors
/// If the agent does not start.
pub fn warm_rows(services: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (mode, must) in [(Mode::NFTABLES_ROUTE, Some(0.6)), (Mode::IPTABLES, None)] {
        let (warm, operations) = restart(services, mode)?;
        let objects = f64::from(2 * services);
        let counted = instructions(warm) as f64;
        let what = format!("{mode}: warm process, {services} x {ENDPOINTS}, instructions");
        rows.push(shown(format!("{what} per object"), counted / objects, ""));
        if services == BEFORE_SERVICES {
            let ratio = shown(format!("{what}, against those before"), counted / RESTART_BEFORE, "x");
            rows.push(Row { must, aim: must.map(|_| 0.4), ..ratio });
        }
        let operations =
            row(format!("{mode}: warm process, counted, ops carried out"), operations as f64, "", 0.0, None);
        rows.push(operations);
    }
    Ok(rows)
}

/// The CPU time of a restart until everything is in sync, and its ops.
fn restart(services: u32, mode: Mode) -> Result<(Duration, u64)> {
    let config = mode.config(Cluster::no_audits());
    let size = Size { services, endpoints: ENDPOINTS };
    let start = Instant::now();
    let (warm, operations) = within("node-a", |ns| {
        let cluster = Cluster::of_files(ns, &objects(size), &config)?;
        let (mut agent, _) = cluster.start()?;
        agent.stop()?;
        let (mut agent, _) = cluster.start()?;
        let warm = cpu_time(agent.pid())?;
        let operations = cluster.operations()?;
        agent.stop()?;
        Ok((warm, operations))
    })?;
    println!(
        "{mode}: {} instructions for a restart with {services} Services ({:.1} s in all)",
        instructions(warm),
        start.elapsed().as_secs_f64()
    );
    Ok((warm, operations))
}
