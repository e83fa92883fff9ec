// SPDX-License-Identifier: Apache-2.0
//! The rows of `make bench` about the commands that ask the agent: how long a person waits, and what the agent feels.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::mode::Mode;
use super::node::Size;
use super::process::{Cluster, objects, status};
use super::rows::{median, row, shown, within};
use super::table::Row;
use crate::lab::{Netns, agent_binary};

/// Times that a command is run.
const ROUNDS: usize = 5;
/// The commands with the most seconds of each.
const COMMANDS: [(&str, &[&str], f64); 5] = [
    ("status", &["status"], 0.3),
    ("explain SERVICE", &["explain", "test/svc-77"], 0.3),
    ("explain POD", &["explain", "100.0.0.77"], 0.3),
    ("list of a Service", &["list", "-n", "test", "svc-77"], 0.5),
    ("list of a VIP", &["list", "11.0.0.77"], 0.5),
];
/// The text of the agent's log line about a question, after its name.
const HELD: &str = " held up the sync loop for ";

/// Measures every command.
pub(super) fn question_rows(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    let mode = Mode::IPTABLES;
    within("node-a", |ns| {
        let config = mode.config(json!({"logging": {"verbosity": 4}, "ipvs": {"syncPeriod": "1h"}}));
        let cluster = Cluster::new(ns, objects(size), &config)?;
        let (mut agent, _) = cluster.start()?;
        std::thread::sleep(Duration::from_secs(2));
        // Without the code, whose pages belong to the file.
        let anonymous = || status(agent.pid(), ["RssAnon:"]).map(|[kib]| kib);
        let before = anonymous()?;
        for (what, args, must) in COMMANDS {
            let times = (0..ROUNDS).map(|_| run(ns, args)).collect::<Result<Vec<_>>>()?;
            rows.push(row(format!("{size}: {what}"), median(times), "s", must, None));
        }
        let grown = anonymous()?.saturating_sub(before);
        rows.push(row(
            format!("{size}: questions, memory of the agent"),
            grown as f64 * 1024.0 / 1e6,
            "MB",
            1.0,
            None,
        ));
        let log = agent.log();
        for question in ["status", "explain", "owners"] {
            let begin = format!("the question {question}{HELD}");
            let micros = |line: &str| line.split_once(&begin)?.1.split(' ').next()?.parse::<f64>().ok();
            let held: Vec<f64> = log.lines().filter_map(micros).collect();
            ensure!(held.len() >= ROUNDS, "the log has {} lines about {question}", held.len());
            println!("{question}: {held:?} µs of the sync loop");
            // The first time, an emulated guest has to translate the code.
            let usual =
                median(held.iter().map(|micros| Duration::from_secs_f64(micros / 1e6)).collect()) * 1e3;
            rows.push(row(format!("{size}: {question}, hold of the loop"), usual, "ms", 5.0, None));
            let longest = held.into_iter().fold(0.0, f64::max) / 1e3;
            rows.push(shown(format!("{size}: {question}, longest hold of the loop"), longest, "ms"));
        }
        agent.stop()?;
        Ok(())
    })
}

fn run(ns: &Netns, args: &[&str]) -> Result<Duration> {
    let binary = agent_binary()?;
    let command = [&[binary.to_str().context("path of the agent")?], args].concat();
    let start = Instant::now();
    ns.exec(&command)?;
    Ok(start.elapsed())
}
