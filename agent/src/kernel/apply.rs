// SPDX-License-Identifier: Apache-2.0
//! Runs a plan: phase by phase, subsystem by subsystem, each subsystem in as few sends as the kernel allows. A failed op
//! blocks only the ops that depend on it. An op whose retry is not due yet blocks them, too.
//!
//! Many addresses are bound in batches: a batch is bound as soon as its virtual servers are acknowledged, while
//! another thread adds the servers of the next batch. IPVS and addresses have different locks in the kernel and
//! about the same cost.

use crate::core::plan::outcome::{OpError, Outcome, Progress, Report};
use std::net::IpAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Kernel;
use crate::core::model::Family;
use crate::core::model::map::Map;
use crate::core::plan::failures::Failures;
use crate::core::plan::op::{Op, Phase, Plan, Subsystem};
use crate::core::plan::outcome::Finished;
use crate::core::plan::retries::Retries;
use crate::lock::join;

/// Addresses of one batch: they fill one send.
const BATCH_SIZE: usize = 1600;

/// IPVS ops that run together: about twenty sends. Many more would cost memory.
const COMMANDS: usize = 12_000;

/// For each op, its outcome if it must not run.
type Skipped = Vec<Option<Outcome>>;

/// Runs ops of one subsystem and returns one result for each.
pub type Runner<'a> = dyn FnMut(&[&Op]) -> Vec<Result<Progress, OpError>> + Send + 'a;

/// Result of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// The outcome of every op.
    pub report: Report,
    /// Other results that arrived meanwhile.
    pub finished: Vec<Finished>,
}

/// Inputs of a run besides the plan.
pub struct RunContext<'a> {
    /// Failed subjects and the times of their retries.
    pub retries: &'a Retries,
    /// The current time, on the clock of `retries`.
    pub now: Duration,
    /// Families whose rules have not been read yet.
    pub unread: Vec<Family>,
    /// How long new addresses wait for the `iptables-restore` that writes their filter.
    pub rules_timeout: Duration,
    /// Called between groups of ops, as a sign of progress.
    pub progress: &'a (dyn Fn() + Sync),
}

/// Runs a plan.
pub fn apply(kernel: &mut dyn Kernel, plan: &Plan, context: RunContext<'_>) -> Applied {
    let RunContext { retries, now, unread, rules_timeout, progress } = context;
    let failures = Failures::new(retries, now, unread);
    let outcomes = Vec::with_capacity(plan.ops.len());
    let mut run = Run { kernel, plan, failures, outcomes, finished: Vec::new(), rules_timeout, progress };
    let (first, rest) = plan.ops.split_at(plan.priority);
    for part in [first, rest] {
        let mut groups =
            part.chunk_by(|a, b| (a.phase(), a.subsystem()) == (b.phase(), b.subsystem())).peekable();
        while let Some(group) = groups.next() {
            (run.progress)();
            match groups.next_if(|next| can_overlap(group, next)) {
                Some(open) => run.run_overlapping(group, open),
                None => run.run_group(group),
            }
        }
    }
    Applied { report: Report { outcomes: run.outcomes }, finished: run.finished }
}

/// Whether the second group runs at the same time as the first.
fn can_overlap(serve: &[Op], open: &[Op]) -> bool {
    let is = |group: &[Op], phase, subsystem| {
        group.first().is_some_and(|op| (op.phase(), op.subsystem()) == (phase, subsystem))
    };
    is(serve, Phase::Serve, Subsystem::Ipvs)
        && is(open, Phase::Open, Subsystem::Addresses)
        && open.len() > BATCH_SIZE
}

struct Run<'a> {
    kernel: &'a mut dyn Kernel,
    plan: &'a Plan,
    failures: Failures<'a>,
    outcomes: Vec<Outcome>,
    finished: Vec<Finished>,
    rules_timeout: Duration,
    progress: &'a (dyn Fn() + Sync),
}

impl Run<'_> {
    fn run_group(&mut self, group: &[Op]) {
        self.wait_for_rules(group);
        // Other subsystems may need all ops at once, as a transaction of nf_tables.
        let is_ipvs = group.first().is_some_and(|op| op.subsystem() == Subsystem::Ipvs);
        for part in group.chunks(if is_ipvs { COMMANDS } else { group.len() }) {
            let ops: Vec<&Op> = part.iter().collect();
            let (runnable, skipped) = select_runnable(&mut self.failures, &ops);
            let results = if runnable.is_empty() { Vec::new() } else { self.kernel.execute(&runnable) };
            let outcomes = collect_outcomes(&ops, skipped, results, &mut self.failures);
            self.outcomes.extend(outcomes);
            (self.progress)();
        }
    }

    /// Waits for the programs that write the filter of addresses which are bound next.
    fn wait_for_rules(&mut self, open: &[Op]) {
        if !open.iter().any(|op| matches!(op, Op::Bind(_) | Op::AddRoute(_))) {
            return;
        }
        let opens = |family: Family| open.iter().any(|op| op.subject().family() == Some(family));
        let deadline = Instant::now() + self.rules_timeout;
        while let Some(i) = self.outcomes.iter().position(|outcome| *outcome == Outcome::Started) {
            let concerned = |op: &Op| matches!(op, Op::WriteRules(rules) if opens(rules.family));
            let started = |(op, outcome): (&Op, &Outcome)| *outcome == Outcome::Started && concerned(op);
            if !self.plan.ops[i..].iter().zip(&self.outcomes[i..]).any(started) {
                break;
            }
            let ended = self.kernel.finished(deadline.saturating_duration_since(Instant::now()));
            if ended.is_empty() {
                break;
            }
            ended.into_iter().for_each(|finished| self.record_finished(finished));
        }
    }

    /// Records the result of an op that this run started; other results are kept for the caller.
    fn record_finished(&mut self, finished: Finished) {
        let Finished::Op(subject, result) = finished else { return self.finished.push(finished) };
        let started =
            |(op, outcome): (&Op, &Outcome)| *outcome == Outcome::Started && op.subject() == subject;
        match self.plan.ops.iter().zip(&self.outcomes).position(started) {
            Some(i) => {
                let blocks = matches!(&result, Err(error) if !error.degraded);
                self.outcomes[i] = result.map(|()| Progress::Done).into();
                self.failures.done(&self.plan.ops[i]);
                if blocks {
                    self.failures.note(&self.plan.ops[i]);
                }
            }
            None => self.finished.push(Finished::Op(subject, result)),
        }
    }

    /// Adds virtual and real servers, and binds their addresses on a second thread.
    fn run_overlapping(&mut self, serve: &[Op], open: &[Op]) {
        self.wait_for_rules(open);
        let batches = split(serve, open);
        let mut served: Vec<Option<Outcome>> = vec![None; serve.len()];
        let mut opened: Vec<Option<Outcome>> = vec![None; open.len()];
        let (failures, progress) = (&mut self.failures, self.progress);
        let mut add_servers = |batch: &Batch, run: &mut Runner<'_>| {
            let ops: Vec<&Op> = batch.serve.iter().map(|i| &serve[*i]).collect();
            let (runnable, skipped) = select_runnable(failures, &ops);
            let results = run(&runnable);
            let outcomes = collect_outcomes(&ops, skipped, results, failures);
            batch.serve.iter().zip(outcomes).for_each(|(i, outcome)| served[*i] = Some(outcome));
            let addresses: Vec<&Op> = batch.open.clone().map(|i| &open[i]).collect();
            select_runnable(failures, &addresses)
        };
        let mut results: Vec<(Skipped, Vec<Result<Progress, OpError>>)> = Vec::new();
        self.kernel.beside(&mut |ipvs, addresses| {
            let (send, receive) = mpsc::channel::<(Vec<&Op>, Skipped)>();
            std::thread::scope(|scope| {
                let opener = scope.spawn(|| {
                    let bind = |(runnable, skipped): (Vec<&Op>, _)| {
                        let results = addresses(&runnable);
                        progress();
                        (skipped, results)
                    };
                    receive.into_iter().map(bind).collect::<Vec<_>>()
                });
                for batch in &batches {
                    // The receiver lives until the sender is dropped.
                    let _ = send.send(add_servers(batch, ipvs));
                    progress();
                }
                drop(send);
                results = join(opener);
            });
        });
        for (batch, (skipped, results)) in batches.iter().zip(results) {
            let ops: Vec<&Op> = batch.open.clone().map(|i| &open[i]).collect();
            let outcomes = collect_outcomes(&ops, skipped, results, &mut self.failures);
            batch.open.clone().zip(outcomes).for_each(|(i, outcome)| opened[i] = Some(outcome));
        }
        let lost = || Outcome::Failed(OpError::no_answer());
        self.outcomes.extend(served.into_iter().chain(opened).map(|outcome| outcome.unwrap_or_else(lost)));
    }
}

/// Addresses that are bound together, and the ops of their servers, as indexes into their groups.
struct Batch {
    serve: Vec<usize>,
    open: std::ops::Range<usize>,
}

/// Splits addresses into batches with the servers of each. Servers without a new address are in the first batch.
fn split(serve: &[Op], open: &[Op]) -> Vec<Batch> {
    let count = open.len().div_ceil(BATCH_SIZE);
    let range = |n: usize| n * BATCH_SIZE..((n + 1) * BATCH_SIZE).min(open.len());
    let mut batches: Vec<Batch> = (0..count).map(|n| Batch { serve: Vec::new(), open: range(n) }).collect();
    let address = |op: &Op| if let Op::Bind(addr) = op { Some(*addr) } else { None };
    let places: Map<IpAddr, usize> =
        open.iter().enumerate().filter_map(|(i, op)| Some((address(op)?, i / BATCH_SIZE))).collect();
    for (i, op) in serve.iter().enumerate() {
        let batch = op.subject().virtual_server().and_then(|vs| places.get(&vs.addr)).copied().unwrap_or(0);
        batches[batch].serve.push(i);
    }
    batches
}

/// The outcome of each op: `skipped` has one entry for every op, `results` one for every op that ran.
fn collect_outcomes(
    ops: &[&Op],
    skipped: Skipped,
    results: Vec<Result<Progress, OpError>>,
    failures: &mut Failures<'_>,
) -> Vec<Outcome> {
    let mut results = results.into_iter();
    let mut outcomes: Vec<Outcome> = skipped
        .into_iter()
        .map(|skipped| match skipped {
            Some(outcome) => outcome,
            None => results.next().unwrap_or_else(|| Err(OpError::no_answer())).into(),
        })
        .collect();
    let is_usable = |outcome: &Outcome| match outcome {
        // `Failures` has recorded waiting ops already.
        Outcome::Done | Outcome::Waiting => true,
        Outcome::Failed(error) => error.degraded,
        Outcome::Started | Outcome::Blocked(_) => false,
    };
    for (op, outcome) in ops.iter().zip(&outcomes) {
        if !is_usable(outcome) {
            failures.note(op);
        }
    }
    // An op in the same send as the op that it depends on (a real server and its virtual server, an entry and
    // its set) fails after that op: report it as blocked, with the cause.
    for (op, outcome) in ops.iter().zip(&mut outcomes) {
        if let (Outcome::Failed(_), Some(cause)) = (&*outcome, failures.blocks(op))
            && cause != op.subject()
        {
            *outcome = Outcome::Blocked(cause);
        }
    }
    outcomes
}

/// The ops that may run, and the outcomes of the others.
fn select_runnable<'a>(failures: &mut Failures<'_>, ops: &[&'a Op]) -> (Vec<&'a Op>, Skipped) {
    let skipped: Skipped = ops.iter().map(|op| failures.verdict(op)).collect();
    let runnable = ops.iter().zip(&skipped).filter(|(_, skipped)| skipped.is_none()).map(|(op, _)| *op);
    (runnable.collect(), skipped)
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
