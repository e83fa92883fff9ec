// SPDX-License-Identifier: Apache-2.0
//! The rows of `make bench` that the loop in this process gives by a clock: starts and changes.

use std::time::Duration;

use anyhow::Result;

use super::audit;
use super::events;
use super::limit;
use super::mode::Mode;
use super::node::{FirstSync, Node, Size};
use super::table::Row;
use super::{process_rows, question_rows};
use crate::lab::{Netns, agent_binary};

/// Number of measurements of a start and of the limit; the median counts.
pub(super) const ROUNDS: usize = 3;
/// Number of changes whose delay is measured.
const CHANGES: u32 = 60;

/// First syncs in multiples of the limit: the most for the whole, with reading and computing, and from the first write
/// on; and what is aimed at. Two runs of iptables-restore are a fifth of a start by route.
const STARTS: [(Mode, f64, f64, f64); 3] = [
    (Mode::IPTABLES, 1.5, 1.5, 1.2),
    (Mode::IPTABLES_ROUTE, 2.0, 2.0, 1.1),
    (Mode::NFTABLES_ROUTE, 2.0, 1.3, 1.1),
];
/// The modes in which one endpoint and one Service are counted.
const CREATIONS: [Mode; 3] = [Mode::IPTABLES, Mode::NFTABLES, Mode::NFTABLES_ROUTE];

/// A row with a limit.
pub fn row(what: impl Into<String>, value: f64, unit: &str, must: f64, aim: Option<f64>) -> Row {
    Row { must: Some(must), aim, ..shown(what, value, unit) }
}

/// A row without a limit.
pub fn shown(what: impl Into<String>, value: f64, unit: &str) -> Row {
    Row { what: what.into(), value, unit: unit.to_owned(), must: None, aim: None }
}

/// A namespace for one measurement: nothing of it is left when the next one begins.
///
/// # Errors
/// What `work` fails with, or that the kernel refuses.
pub fn within<T>(label: &str, work: impl FnOnce(&Netns) -> Result<T>) -> Result<T> {
    let ns = Netns::new(label)?;
    let result = work(&ns)?;
    ns.enter(limit::clear)??;
    Ok(result)
}

pub(super) fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

/// Rows that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Starts, in this process and as a process of their own.
    Starts,
    /// Changes.
    Events,
    /// The idle agent.
    Idle,
    /// Resident memory, and the binary.
    Memory,
    /// First answers.
    Answers,
    /// Commands that ask the agent.
    Questions,
}

/// The rows of these groups; `idle`: seconds to watch the agent idle.
///
/// # Errors
/// If something cannot be measured.
pub fn measure(size: Size, idle: u64, groups: &[Group]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let rows_of = |group: Group, rows: &mut Vec<Row>| match group {
        Group::Starts => {
            let limit = start_rows(size, rows)?;
            println!(
                "limit: {limit:.2} s for {size}: IPVS, sets and addresses, raw; starts in multiples of it"
            );
            process_rows::start_rows(size, limit, rows)
        }
        Group::Events => {
            within("bench-events", |ns| ns.enter(|| event_rows(size, rows))?)?;
            CREATIONS.into_iter().try_for_each(|mode| {
                within("bench-creation", |ns| ns.enter(|| creation_rows(size, mode, rows))?)
            })
        }
        Group::Idle => process_rows::idle_rows(size, idle, rows),
        Group::Memory => {
            process_rows::memory_rows(size, rows)?;
            let binary = std::fs::metadata(agent_binary()?)?.len() as f64 / 1e6;
            rows.push(row("binary", binary, "MB", 13.0, None));
            Ok(())
        }
        Group::Answers => process_rows::answer_rows(size, rows),
        Group::Questions => question_rows::question_rows(size, rows),
    };
    groups.iter().try_for_each(|group| rows_of(*group, &mut rows))?;
    Ok(rows)
}

/// Medians of starts in this process, in seconds.
struct Starts {
    cold: f64,
    /// The part from the first write on.
    writing: f64,
    /// CPU time of an audit.
    audit: f64,
    limit: f64,
    /// The most ops of a restart on the programmed node, and the most processes.
    warm_ops: usize,
    warm_processes: u64,
}

/// Starts in each mode. Returns the limit of the first one in seconds.
fn start_rows(size: Size, rows: &mut Vec<Row>) -> Result<f64> {
    let mut first: Option<Starts> = None;
    for (mode, must, must_write, aim) in STARTS {
        let starts = measure_starts(size, mode)?;
        let what = format!("{mode}: cold, first sync");
        rows.push(row(what, starts.cold / starts.limit, "x limit", must, Some(aim)));
        let what = format!("{mode}: cold, first write to everything programmed");
        rows.push(row(what, starts.writing / starts.limit, "x limit", must_write, Some(aim)));
        rows.push(row(format!("{mode}: warm, ops"), starts.warm_ops as f64, "", 0.0, None));
        let processes = shown(format!("{mode}: warm, processes"), starts.warm_processes as f64, "");
        let must = (mode.rules == Mode::NFTABLES.rules).then_some(0.0);
        rows.push(Row { must, ..processes });
        match &first {
            None => {
                rows.push(row(
                    format!("{mode}: audit, CPU"),
                    starts.audit / starts.limit,
                    "x limit",
                    0.3,
                    None,
                ));
                first = Some(starts);
            }
            Some(first) => {
                let what = format!("{mode}: cold, against {}", STARTS[0].0);
                rows.push(row(what, starts.cold / first.cold, "x", 0.5, Some(0.35)));
                let what = format!("{mode}: audit, CPU, against {}", STARTS[0].0);
                rows.push(shown(what, starts.audit / first.audit, "x"));
            }
        }
    }
    Ok(first.map_or(f64::NAN, |first| first.limit))
}

/// Measures the loop in this process and the limit alternately.
fn measure_starts(size: Size, mode: Mode) -> Result<Starts> {
    let (mut colds, mut writing) = (Vec::new(), Vec::new());
    let (mut audits, mut limits) = (Vec::new(), Vec::new());
    let (mut warm_ops, mut warm_processes) = (0, 0);
    for _ in 0..ROUNDS {
        let (first, audit, warm) = within("bench-agent", |ns| {
            ns.enter(|| {
                let (mut node, first) = programmed(size, mode)?;
                let audit = audit::audit_cpu(&mut node)?;
                let (mut again, warm) = programmed(size, mode)?;
                anyhow::Ok((first, audit, (warm.plan.ops.len(), again.traffic().processes)))
            })?
        })?;
        let parts = within("bench-limit", |ns| ns.enter(|| limit::replay(&first.plan, mode.rules))?)?;
        limits.push(parts.total());
        colds.push(first.whole);
        writing.push(first.writing);
        audits.push(audit);
        (warm_ops, warm_processes) = (warm_ops.max(warm.0), warm_processes.max(warm.1));
    }
    println!(
        "{mode}: first sync {colds:.2?}, from its first write {writing:.2?}, audit {audits:.3?}, limit {limits:.2?}"
    );
    let [cold, writing, audit, limit] = [colds, writing, audits, limits].map(median);
    Ok(Starts { cold, writing, audit, limit, warm_ops, warm_processes })
}

/// A node with everything programmed, and its first sync.
fn programmed(size: Size, mode: Mode) -> Result<(Node, FirstSync)> {
    let mut node = Node::new(mode, true)?;
    node.fill(size);
    let first = node.cold()?;
    Ok((node, first))
}

/// Changes while the loop runs, with the default mode.
fn event_rows(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    // The loop ends with each measurement that lets it run.
    let programmed = || {
        let (mut node, _) = programmed(size, Mode::IPTABLES)?;
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
    let restarted = events::rolling_restart(&mut node, size.services + 1, Duration::ZERO)?;
    let of = |n: u64| n as f64 / restarted.events as f64;
    // An added endpoint is one command. A removed one is two: weight 0, then its removal.
    rows.push(row("rolling restart: IPVS commands per change", of(restarted.commands), "", 1.5, None));
    // Fewer syncs than events: at most one less than one for each event.
    let most = of(restarted.events - 1);
    rows.push(row("rolling restart: passes per event", of(restarted.passes), "", most, None));
    Ok(())
}

/// What one endpoint and one Service send to the kernel.
fn creation_rows(size: Size, mode: Mode, rows: &mut Vec<Row>) -> Result<()> {
    let (mut node, _) = programmed(size, mode)?;
    let came = events::endpoint_came(&mut node, size)?;
    let created = events::service_created(&mut node, size)?;
    for (what, cost, most) in [("endpoint", came, 1.0), ("Service", created, 3.0)] {
        let sends: u64 = cost.sends.iter().sum();
        rows.push(row(format!("{mode}: one {what} created, sends"), sends as f64, "", most, None));
        rows.push(row(
            format!("{mode}: one {what} created, processes"),
            cost.processes as f64,
            "",
            0.0,
            None,
        ));
        rows.push(row(format!("{mode}: one {what} created, dumps"), cost.dumps as f64, "", 0.0, None));
        println!("{mode}, one {what}: sends to IPVS, to sets and for addresses {:?}", cost.sends);
    }
    Ok(())
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
