// SPDX-License-Identifier: Apache-2.0
//! Counters of a run and their limits.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Number of violations that are described.
const DESCRIBED: usize = 20;

/// Counters that all threads share.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests over open connections.
    pub asked: AtomicU64,
    /// New connections and new UDP flows that were answered.
    pub opened: AtomicU64,
    /// Connections that ended with their endpoint.
    pub ended: AtomicU64,
    /// Connections that ended because other programs flushed virtual servers.
    pub flushed: AtomicU64,
    /// Connections and UDP flows broken although their endpoint lived.
    pub broken: AtomicU64,
    /// New connections and flows without an answer.
    pub refused: AtomicU64,
    /// Datagrams sent to addresses of Services at ports that no Service has, and connections that source
    /// ranges forbid.
    pub probes: AtomicU64,
    /// Number of them that passed.
    pub unfiltered: AtomicU64,
    alive: Mutex<HashSet<String>>,
    notes: Mutex<Vec<String>>,
}

impl Tally {
    /// Adds one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that an endpoint starts or stops answering.
    pub fn set_alive(&self, name: &str, alive: bool) {
        let mut all = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        if alive {
            all.insert(name.to_owned());
        } else {
            all.remove(name);
        }
    }

    /// Whether an endpoint answers.
    pub fn is_alive(&self, name: &str) -> bool {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Describes a violation.
    pub fn note(&self, what: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < DESCRIBED {
            // Printed at once, because a long run may be stopped before its report.
            eprintln!("chaos: violated: {what}");
            notes.push(what);
        }
    }

    /// The violations that were described.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Resources of the agent's process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Footprint {
    /// Anonymous resident memory, KiB.
    pub memory: u64,
    /// Threads.
    pub threads: u64,
    /// Open files.
    pub files: u64,
}

/// The agent's log, counted.
#[derive(Clone, Debug, Default)]
pub struct LogCount {
    /// Lines in all.
    pub lines: u64,
    /// Lines in the second with most of them.
    pub busiest_second: u64,
    /// Total run time of the agents.
    pub time: Duration,
}

impl LogCount {
    /// Adds the log of one agent and its run time.
    pub fn add(&mut self, log: &str, time: Duration) {
        let mut seconds: BTreeMap<&str, u64> = BTreeMap::new();
        for line in log.lines() {
            // 2026-01-01T00:00:00
            *seconds.entry(line.get(..19).unwrap_or(line)).or_default() += 1;
            self.lines += 1;
        }
        self.busiest_second = self.busiest_second.max(seconds.into_values().max().unwrap_or(0));
        self.time += time;
    }

    /// Lines per minute.
    pub fn per_minute(&self) -> f64 {
        self.lines as f64 * 60.0 / self.time.as_secs_f64().max(1.0)
    }
}

/// The results of a run.
#[derive(Debug, Default)]
pub struct Findings {
    /// Agents that were killed.
    pub kills: u64,
    /// Changes of objects.
    pub changes: u64,
    /// Number of injected faults, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// Times from the last change or fault to the expected state.
    pub settled: Vec<Duration>,
    /// The same after flushes by other programs.
    pub repaired: Vec<Duration>,
    /// The process that lived longest, after its start and at its end.
    pub footprint: [Footprint; 2],
    /// Logs while agents are killed, and of the one that lived.
    pub logs: [LogCount; 2],
}

fn describe_times(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(max)) => {
            format!(
                "median {:.1} s, longest {:.1} s, {} times",
                median.as_secs_f64(),
                max.as_secs_f64(),
                sorted.len()
            )
        }
        _ => "never".to_owned(),
    }
}

/// Limits for the growth of resources between the start and the end.
const GROWTH: f64 = 1.1;
/// KiB by which memory may grow: the kept log lines (256 KiB) and other state with a bound.
const MEMORY_GROWTH: u64 = 1024;
/// Lines of the log that one second may have: ten of one cause are the limit, and a second of the wall clock
/// may see the end of one and the begin of the next.
const LINES: u64 = 20;

impl Findings {
    /// The report, and the exceeded limits.
    pub fn report(&self, tally: &Tally, started: Instant) -> (String, Vec<String>) {
        let (mut text, mut wrong) = (String::new(), Vec::new());
        let mut row = |name: &str, value: String, fine: bool| {
            let _ = writeln!(text, "  {name:<58} {value}{}", if fine { "" } else { "   <-- wrong" });
            if !fine {
                wrong.push(name.to_owned());
            }
        };
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let faults: Vec<String> = self.faults.iter().map(|(name, count)| format!("{count} {name}")).collect();
        row("kills", self.kills.to_string(), true);
        row("changes of objects", self.changes.to_string(), true);
        row("faults", faults.join(", "), !faults.is_empty());
        let (asked, opened) = (get(&tally.asked), get(&tally.opened));
        row("questions over open connections", asked.to_string(), asked > 0);
        row("new connections and flows that were answered", opened.to_string(), opened > 0);
        row("connections that ended with their endpoint", get(&tally.ended).to_string(), true);
        row("connections that a flush of virtual servers ended", get(&tally.flushed).to_string(), true);
        let zero = |counter: &AtomicU64| (get(counter).to_string(), get(counter) == 0);
        let (value, fine) = zero(&tally.broken);
        row("connections broken whose endpoint lived (0)", value, fine);
        let (value, fine) = zero(&tally.refused);
        row("new connections refused to a Service with a steady endpoint (0)", value, fine);
        let probes = get(&tally.probes);
        row("packets that a filter must stop", probes.to_string(), probes > 0);
        let (value, fine) = zero(&tally.unfiltered);
        row("of these, without their filter (0)", value, fine);
        row("time until the expected state", describe_times(&self.settled), !self.settled.is_empty());
        row(
            "time until a flush of others is repaired",
            describe_times(&self.repaired),
            !self.repaired.is_empty(),
        );
        let [before, after] = self.footprint;
        let measured = self.footprint.iter().all(|footprint| footprint.memory > 0);
        row(
            "memory at the end and after the start (1 MiB more)",
            format!("{} and {} KiB", after.memory, before.memory),
            measured && after.memory <= before.memory + MEMORY_GROWTH,
        );
        for (name, before, after) in
            [("threads", before.threads, after.threads), ("open files", before.files, after.files)]
        {
            let fine = measured && after as f64 <= before as f64 * GROWTH;
            let name = format!("{name} at the end and after the start (1.1 x)");
            row(&name, format!("{after} and {before}"), fine);
        }
        for (name, log) in ["while agents are killed", "of the one that lives"].iter().zip(&self.logs) {
            let fine = log.lines > 0 && log.busiest_second <= LINES;
            let value = format!("{:.0}, at most {} in a second", log.per_minute(), log.busiest_second);
            row(&format!("log lines per minute, {name}"), value, fine);
        }
        row("time in all", format!("{:.0} s", started.elapsed().as_secs_f64()), true);
        (text, wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_lists_what_is_wrong() {
        let tally = Tally::default();
        [&tally.asked, &tally.opened, &tally.probes].into_iter().for_each(Tally::count);
        let log = LogCount { lines: 5, busiest_second: 2, time: Duration::from_secs(30) };
        let footprint = Footprint { memory: 2_000, threads: 10, files: 20 };
        let mut findings = Findings {
            settled: vec![Duration::from_secs(1)],
            repaired: vec![Duration::from_secs(2)],
            footprint: [footprint; 2],
            logs: [log.clone(), log],
            ..Findings::default()
        };
        findings.faults.insert("torn watch", 1);
        assert!(findings.report(&tally, Instant::now()).1.is_empty());
        Tally::count(&tally.broken);
        findings.footprint[1].threads = 12;
        findings.footprint[1].memory += MEMORY_GROWTH + 1;
        let (text, wrong) = findings.report(&tally, Instant::now());
        assert_eq!(wrong.len(), 3, "{text}");
        assert!(text.contains("threads at the end and after the start (1.1 x)"), "{text}");
        // A missing measurement fails.
        let (_, wrong) = Findings::default().report(&Tally::default(), Instant::now());
        assert_eq!(wrong.len(), 11);
    }

    #[test]
    fn the_busiest_second_is_counted() {
        let mut count = LogCount::default();
        let log = "2026-01-01T00:00:00.1Z a\n2026-01-01T00:00:00.2Z b\n2026-01-01T00:00:01.2Z c\n";
        count.add(log, Duration::from_secs(60));
        assert_eq!((count.lines, count.busiest_second), (3, 2));
        assert!((count.per_minute() - 3.0).abs() < 0.01);
    }
}
