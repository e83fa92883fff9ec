// SPDX-License-Identifier: Apache-2.0
//! Runs a plan: phase by phase, lane by lane, each lane in as few sends as the kernel allows. A failed op
//! blocks its dependents only.
//!
//! Where many addresses are to be opened, each part of them is opened as soon as the virtual servers
//! behind it are acknowledged, while those of the next part are being added: IPVS and addresses have
//! different locks in the kernel and cost about as much as each other.

use std::net::IpAddr;
use std::sync::mpsc;

use super::{Kernel, OpError, Outcome, Report};
use crate::core::failures::Failures;
use crate::core::map::Map;
use crate::core::model::VsKey;
use crate::core::op::{Lane, Op, Phase, Plan};

/// So many addresses are opened together: as many as fill a send.
const PART: usize = 1600;

/// Why each of some ops must not run, if so.
type Blocked = Vec<Option<String>>;

/// Something that runs ops of one lane.
pub type Runner<'a> = dyn FnMut(&[&Op]) -> Vec<Result<(), OpError>> + Send + 'a;

/// Runs a plan.
pub fn apply(kernel: &mut dyn Kernel, plan: &Plan) -> Report {
    let mut run = Run { kernel, failures: Failures::default(), outcomes: Vec::with_capacity(plan.ops.len()) };
    let (first, rest) = plan.ops.split_at(plan.first);
    for part in [first, rest] {
        let mut groups = part.chunk_by(|a, b| (a.phase(), a.lane()) == (b.phase(), b.lane())).peekable();
        while let Some(group) = groups.next() {
            match groups.next_if(|next| overlaps(group, next)) {
                Some(open) => run.both(group, open),
                None => run.group(group),
            }
        }
    }
    Report { outcomes: run.outcomes }
}

/// Whether the second group may run beside the first.
fn overlaps(serve: &[Op], open: &[Op]) -> bool {
    let is =
        |group: &[Op], phase, lane| group.first().is_some_and(|op| (op.phase(), op.lane()) == (phase, lane));
    is(serve, Phase::Serve, Lane::Ipvs) && is(open, Phase::Open, Lane::Addresses) && open.len() > PART
}

struct Run<'a> {
    kernel: &'a mut dyn Kernel,
    failures: Failures,
    outcomes: Vec<Outcome>,
}

impl Run<'_> {
    fn group(&mut self, group: &[Op]) {
        let ops: Vec<&Op> = group.iter().collect();
        let (free, blocked) = self.failures.sort_out(&ops);
        let results = if free.is_empty() { Vec::new() } else { self.kernel.execute(&free) };
        let outcomes = judge(&ops, blocked, results, &mut self.failures);
        self.outcomes.extend(outcomes);
    }

    /// Virtual and real servers, and the addresses in front of them.
    fn both(&mut self, serve: &[Op], open: &[Op]) {
        let parts = split(serve, open);
        let mut served: Vec<Option<Outcome>> = vec![None; serve.len()];
        let mut opened: Vec<Option<Outcome>> = vec![None; open.len()];
        let failures = &mut self.failures;
        let mut servers = |part: &Part, run: &mut Runner<'_>| {
            let ops: Vec<&Op> = part.serve.iter().map(|i| &serve[*i]).collect();
            let (free, blocked) = failures.sort_out(&ops);
            let results = run(&free);
            let outcomes = judge(&ops, blocked, results, failures);
            part.serve.iter().zip(outcomes).for_each(|(i, outcome)| served[*i] = Some(outcome));
            let addresses: Vec<&Op> = part.open.clone().map(|i| &open[i]).collect();
            failures.sort_out(&addresses)
        };
        let mut results: Vec<(Blocked, Vec<Result<(), OpError>>)> = Vec::new();
        self.kernel.beside(&mut |ipvs, addresses| {
            let (send, receive) = mpsc::channel::<(Vec<&Op>, Blocked)>();
            std::thread::scope(|scope| {
                let opener = scope.spawn(|| {
                    let open = |(free, blocked): (Vec<&Op>, _)| (blocked, addresses(&free));
                    receive.into_iter().map(open).collect::<Vec<_>>()
                });
                for part in &parts {
                    // The receiver lives until the sender is gone.
                    let _ = send.send(servers(part, ipvs));
                }
                drop(send);
                results = opener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        });
        for (part, (blocked, results)) in parts.iter().zip(results) {
            let ops: Vec<&Op> = part.open.clone().map(|i| &open[i]).collect();
            let outcomes = judge(&ops, blocked, results, &mut self.failures);
            part.open.clone().zip(outcomes).for_each(|(i, outcome)| opened[i] = Some(outcome));
        }
        let lost = || Outcome::Failed(OpError::doubt("no answer"));
        self.outcomes.extend(served.into_iter().chain(opened).map(|outcome| outcome.unwrap_or_else(lost)));
    }
}

/// Addresses that are opened together, and what has to stand behind them, as places in their groups.
struct Part {
    serve: Vec<usize>,
    open: std::ops::Range<usize>,
}

/// Splits addresses into parts, with the servers of each; servers without an address to open come first.
fn split(serve: &[Op], open: &[Op]) -> Vec<Part> {
    let count = open.len().div_ceil(PART);
    let range = |n: usize| n * PART..((n + 1) * PART).min(open.len());
    let mut parts: Vec<Part> = (0..count).map(|n| Part { serve: Vec::new(), open: range(n) }).collect();
    let address = |op: &Op| if let Op::Bind(addr) = op { Some(*addr) } else { None };
    let places: Map<IpAddr, usize> =
        open.iter().enumerate().filter_map(|(i, op)| Some((address(op)?, i / PART))).collect();
    for (i, op) in serve.iter().enumerate() {
        let part = server(op).and_then(|vs| places.get(&vs.addr)).copied().unwrap_or(0);
        parts[part].serve.push(i);
    }
    parts
}

fn server(op: &Op) -> Option<&VsKey> {
    match op {
        Op::AddVirtualServer(vs, _)
        | Op::EditVirtualServer(vs, _)
        | Op::AddRealServer(vs, _)
        | Op::EditRealServer(vs, _) => Some(vs),
        _ => None,
    }
}

/// How each op ended. `blocked` says of every op why it did not run, `results` how those that ran did.
fn judge(
    ops: &[&Op],
    blocked: Blocked,
    results: Vec<Result<(), OpError>>,
    failures: &mut Failures,
) -> Vec<Outcome> {
    let mut results = results.into_iter();
    let mut outcomes: Vec<Outcome> = blocked
        .into_iter()
        .map(|blocked| match blocked {
            Some(why) => Outcome::Skipped(why),
            None => match results.next() {
                Some(Ok(())) => Outcome::Done,
                Some(Err(error)) => Outcome::Failed(error),
                None => Outcome::Failed(OpError::doubt("no answer")),
            },
        })
        .collect();
    let degraded = |outcome: &Outcome| matches!(outcome, Outcome::Failed(error) if error.degraded);
    for (op, outcome) in ops.iter().zip(&outcomes) {
        if *outcome != Outcome::Done && !degraded(outcome) {
            failures.note(op);
        }
    }
    // A dependent that travelled with what it depends on (a real server with its virtual server, an entry
    // with its set) failed after it: that is skipped, with the cause.
    for (op, outcome) in ops.iter().zip(&mut outcomes) {
        if let (Outcome::Failed(_), Some(why)) = (&*outcome, failures.blocks(op)) {
            *outcome = Outcome::Skipped(why);
        }
    }
    outcomes
}

impl Failures {
    /// The ops that may run, and why each may not.
    fn sort_out<'a>(&self, ops: &[&'a Op]) -> (Vec<&'a Op>, Blocked) {
        let blocked: Blocked = ops.iter().map(|op| self.blocks(op)).collect();
        let free = ops.iter().zip(&blocked).filter(|(_, why)| why.is_none()).map(|(op, _)| *op);
        (free.collect(), blocked)
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
