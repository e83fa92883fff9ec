// SPDX-License-Identifier: Apache-2.0
//! Runs a plan: phase by phase, subsystem by subsystem, each subsystem in as few sends as the kernel allows. A failed op
//! blocks its dependents only, and one whose next try is later is held back like one that failed.
//!
//! Where many addresses are to be opened, each part of them is opened as soon as the virtual servers
//! behind it are acknowledged, while those of the next part are being added: IPVS and addresses have
//! different locks in the kernel and cost about as much as each other.

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

/// So many addresses are opened together: as many as fill a send.
const PART: usize = 1600;

/// What each of some ops ended with before it ran, if it must not run.
type Verdicts = Vec<Option<Outcome>>;

/// Something that runs ops of one subsystem.
pub type Runner<'a> = dyn FnMut(&[&Op]) -> Vec<Result<Progress, OpError>> + Send + 'a;

/// How a plan went.
#[derive(Debug, Default)]
pub struct Applied {
    /// How every op ended.
    pub report: Report,
    /// What else ended meanwhile.
    pub finished: Vec<Finished>,
}

/// What a run depends on besides the plan.
pub struct Terms<'a> {
    /// What failed before, and when it is to be tried again.
    pub retries: &'a Retries,
    /// The time, since the start that `retries` count from.
    pub now: Duration,
    /// Families whose rules were never read.
    pub unread: Vec<Family>,
    /// How long addresses that are to be opened wait for a program that writes their filter.
    pub patience: Duration,
    /// Called between groups of ops: the run makes progress.
    pub progress: &'a (dyn Fn() + Sync),
}

/// Runs a plan.
pub fn apply(kernel: &mut dyn Kernel, plan: &Plan, terms: Terms<'_>) -> Applied {
    let failures = Failures::new(terms.retries, terms.now, terms.unread);
    let outcomes = Vec::with_capacity(plan.ops.len());
    let (patience, progress) = (terms.patience, terms.progress);
    let mut run = Run { kernel, plan, failures, outcomes, finished: Vec::new(), patience, progress };
    let (first, rest) = plan.ops.split_at(plan.priority);
    for part in [first, rest] {
        let mut groups =
            part.chunk_by(|a, b| (a.phase(), a.subsystem()) == (b.phase(), b.subsystem())).peekable();
        while let Some(group) = groups.next() {
            (run.progress)();
            match groups.next_if(|next| overlaps(group, next)) {
                Some(open) => run.both(group, open),
                None => run.group(group),
            }
        }
    }
    Applied { report: Report { outcomes: run.outcomes }, finished: run.finished }
}

/// Whether the second group may run beside the first.
fn overlaps(serve: &[Op], open: &[Op]) -> bool {
    let is = |group: &[Op], phase, subsystem| {
        group.first().is_some_and(|op| (op.phase(), op.subsystem()) == (phase, subsystem))
    };
    is(serve, Phase::Serve, Subsystem::Ipvs)
        && is(open, Phase::Open, Subsystem::Addresses)
        && open.len() > PART
}

struct Run<'a> {
    kernel: &'a mut dyn Kernel,
    plan: &'a Plan,
    failures: Failures<'a>,
    outcomes: Vec<Outcome>,
    finished: Vec<Finished>,
    patience: Duration,
    progress: &'a (dyn Fn() + Sync),
}

impl Run<'_> {
    fn group(&mut self, group: &[Op]) {
        self.await_filter(group);
        let ops: Vec<&Op> = group.iter().collect();
        let (free, verdicts) = sort_out(&mut self.failures, &ops);
        let results = if free.is_empty() { Vec::new() } else { self.kernel.execute(&free) };
        let outcomes = judge(&ops, verdicts, results, &mut self.failures);
        self.outcomes.extend(outcomes);
    }

    /// Waits for programs that write the filter of addresses which are about to be opened.
    fn await_filter(&mut self, open: &[Op]) {
        if !open.iter().any(|op| matches!(op, Op::Bind(_))) {
            return;
        }
        let family = |op: &Op| if let Op::Bind(addr) = op { Some(Family::of(*addr)) } else { None };
        let opens = |family_of: Family| open.iter().any(|op| family(op) == Some(family_of));
        let deadline = Instant::now() + self.patience;
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
            ended.into_iter().for_each(|finished| self.settle(finished));
        }
    }

    /// An op of this run that was started may have ended.
    fn settle(&mut self, finished: Finished) {
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

    /// Virtual and real servers, and the addresses in front of them.
    fn both(&mut self, serve: &[Op], open: &[Op]) {
        self.await_filter(open);
        let parts = split(serve, open);
        let mut served: Vec<Option<Outcome>> = vec![None; serve.len()];
        let mut opened: Vec<Option<Outcome>> = vec![None; open.len()];
        let (failures, progress) = (&mut self.failures, self.progress);
        let mut servers = |part: &Batch, run: &mut Runner<'_>| {
            let ops: Vec<&Op> = part.serve.iter().map(|i| &serve[*i]).collect();
            let (free, verdicts) = sort_out(failures, &ops);
            let results = run(&free);
            let outcomes = judge(&ops, verdicts, results, failures);
            part.serve.iter().zip(outcomes).for_each(|(i, outcome)| served[*i] = Some(outcome));
            let addresses: Vec<&Op> = part.open.clone().map(|i| &open[i]).collect();
            sort_out(failures, &addresses)
        };
        let mut results: Vec<(Verdicts, Vec<Result<Progress, OpError>>)> = Vec::new();
        self.kernel.beside(&mut |ipvs, addresses| {
            let (send, receive) = mpsc::channel::<(Vec<&Op>, Verdicts)>();
            std::thread::scope(|scope| {
                let opener = scope.spawn(|| {
                    let open = |(free, verdicts): (Vec<&Op>, _)| {
                        let results = addresses(&free);
                        progress();
                        (verdicts, results)
                    };
                    receive.into_iter().map(open).collect::<Vec<_>>()
                });
                for part in &parts {
                    // The receiver lives until the sender is gone.
                    let _ = send.send(servers(part, ipvs));
                    progress();
                }
                drop(send);
                results = opener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        });
        for (part, (verdicts, results)) in parts.iter().zip(results) {
            let ops: Vec<&Op> = part.open.clone().map(|i| &open[i]).collect();
            let outcomes = judge(&ops, verdicts, results, &mut self.failures);
            part.open.clone().zip(outcomes).for_each(|(i, outcome)| opened[i] = Some(outcome));
        }
        let lost = || Outcome::Failed(OpError::no_answer());
        self.outcomes.extend(served.into_iter().chain(opened).map(|outcome| outcome.unwrap_or_else(lost)));
    }
}

/// Addresses that are opened together, and what has to stand behind them, as places in their groups.
struct Batch {
    serve: Vec<usize>,
    open: std::ops::Range<usize>,
}

/// Splits addresses into parts, with the servers of each; servers without an address to open come first.
fn split(serve: &[Op], open: &[Op]) -> Vec<Batch> {
    let count = open.len().div_ceil(PART);
    let range = |n: usize| n * PART..((n + 1) * PART).min(open.len());
    let mut parts: Vec<Batch> = (0..count).map(|n| Batch { serve: Vec::new(), open: range(n) }).collect();
    let address = |op: &Op| if let Op::Bind(addr) = op { Some(*addr) } else { None };
    let places: Map<IpAddr, usize> =
        open.iter().enumerate().filter_map(|(i, op)| Some((address(op)?, i / PART))).collect();
    for (i, op) in serve.iter().enumerate() {
        let part = op.subject().virtual_server().and_then(|vs| places.get(&vs.addr)).copied().unwrap_or(0);
        parts[part].serve.push(i);
    }
    parts
}

/// How each op ended. `verdicts` say of every op why it did not run, `results` how those that ran did.
fn judge(
    ops: &[&Op],
    verdicts: Verdicts,
    results: Vec<Result<Progress, OpError>>,
    failures: &mut Failures<'_>,
) -> Vec<Outcome> {
    let mut results = results.into_iter();
    let mut outcomes: Vec<Outcome> = verdicts
        .into_iter()
        .map(|verdict| match verdict {
            Some(outcome) => outcome,
            None => results.next().unwrap_or_else(|| Err(OpError::no_answer())).into(),
        })
        .collect();
    let stands = |outcome: &Outcome| match outcome {
        // What waits was noted where it was held back.
        Outcome::Done | Outcome::Waiting => true,
        Outcome::Failed(error) => error.degraded,
        Outcome::Started | Outcome::Blocked(_) => false,
    };
    for (op, outcome) in ops.iter().zip(&outcomes) {
        if !stands(outcome) {
            failures.note(op);
        }
    }
    // A dependent that travelled with what it depends on (a real server with its virtual server, an entry
    // with its set) failed after it: that is blocked, with the cause.
    for (op, outcome) in ops.iter().zip(&mut outcomes) {
        if let (Outcome::Failed(_), Some(cause)) = (&*outcome, failures.blocks(op))
            && cause != op.subject()
        {
            *outcome = Outcome::Blocked(cause);
        }
    }
    outcomes
}

/// The ops that may run, and what the others ended with.
fn sort_out<'a>(failures: &mut Failures<'_>, ops: &[&'a Op]) -> (Vec<&'a Op>, Verdicts) {
    let verdicts: Verdicts = ops.iter().map(|op| failures.verdict(op)).collect();
    let free = ops.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_none()).map(|(op, _)| *op);
    (free.collect(), verdicts)
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
