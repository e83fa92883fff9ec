// SPDX-License-Identifier: Apache-2.0
//! Reads and writes the rules on one thread for each family: a program that fails, waits for a lock or hangs delays
//! only the rules of its family.
//!
//! The programs cost more than all other reads together, so rules are read only if they may have changed: nf_tables
//! has a generation, which every change increases; iptables-legacy has none, and its rules are always read.

use crate::core::plan::outcome::{Cause, OpError};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use super::{Iptables, SavedRules};
use crate::core::model::{Family, PerFamily};
use crate::core::plan::op::{LeftoversOp, Op, RulesOp};
use crate::core::plan::outcome::Finished;
use crate::core::plan::subject::Subject;
use crate::kernel::netfilter::nft_tables;

/// Wakes the loop when a job has ended.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

enum Job {
    Read,
    Write(RulesOp),
    Remove(LeftoversOp),
}

enum Ended {
    Read(Family, Result<SavedRules, OpError>),
    Op(Subject, Result<(), OpError>),
}

#[derive(Default)]
struct FamilyState {
    jobs: Option<Sender<Job>>,
    /// The generation at the last reading; `None`: unknown, or changed since.
    known: Option<u32>,
    /// The reading in progress.
    reading: Option<RulesReading>,
}

#[derive(Default)]
struct RulesReading {
    /// The generation before it began.
    generation: Option<u32>,
    /// This agent has written rules since: the result is discarded.
    stale: bool,
    /// Another program has written rules since: another reading follows, of this generation.
    again: Option<Option<u32>>,
}

/// The rules of both families, see the module.
pub(in crate::kernel) struct Rules {
    iptables: Iptables,
    states: PerFamily<FamilyState>,
    ended: Receiver<Ended>,
    results: Sender<Ended>,
    running: usize,
    /// Results that need no program.
    ready: Vec<Finished>,
    wake: Wake,
}

impl Rules {
    pub fn new(iptables: Iptables) -> Self {
        let (results, ended) = mpsc::channel();
        Self {
            iptables,
            states: Default::default(),
            ended,
            results,
            running: 0,
            ready: Vec::new(),
            wake: Arc::new(|| {}),
        }
    }

    /// Calls `wake` whenever a job has ended, from now on.
    pub fn wake(&mut self, wake: Wake) {
        self.wake = wake;
        // Running threads have the old function.
        self.states.iter_mut().for_each(|state| state.jobs = None);
    }

    /// Starts reading the rules of a family, if they may have changed or `afresh`.
    pub fn read(&mut self, family: Family, nft: &mut nftables_netlink::Client, afresh: bool) {
        let state = &mut self.states[family];
        let generation = nft_tables::generation(nft).unwrap_or_default();
        if let Some(reading) = &mut state.reading {
            // The reading in progress is sufficient, unless it may be outdated.
            reading.stale |= afresh;
            if generation.is_none() || generation != reading.generation {
                reading.again = Some(generation);
            }
            return;
        }
        if !afresh && generation.is_some() && generation == state.known {
            self.ready.push(Finished::Rules(family, Ok(None)));
            return (self.wake)();
        }
        if let Err(error) = self.begin_reading(family, generation) {
            self.ready.push(Finished::Rules(family, Err(error)));
            (self.wake)();
        }
    }

    fn begin_reading(&mut self, family: Family, generation: Option<u32>) -> Result<(), OpError> {
        self.states[family].reading = Some(RulesReading { generation, ..RulesReading::default() });
        let started = self.start(family, Job::Read);
        if started.is_err() {
            self.states[family].reading = None;
        }
        started
    }

    /// Starts writing rules, or removing leftovers.
    pub fn execute(&mut self, op: &Op) -> Result<(), OpError> {
        let (family, job) = match op {
            Op::WriteRules(rules) => (rules.family, Job::Write((**rules).clone())),
            Op::RemoveLeftovers(leftovers) => (leftovers.family, Job::Remove((**leftovers).clone())),
            other => return Err(OpError::plain(Cause::Other, format!("{other}: not an op on rules"))),
        };
        let state = &mut self.states[family];
        state.known = None;
        if let Some(reading) = &mut state.reading {
            reading.stale = true;
        }
        self.start(family, job)
    }

    fn start(&mut self, family: Family, job: Job) -> Result<(), OpError> {
        let state = &mut self.states[family];
        let jobs = match &state.jobs {
            Some(jobs) => jobs,
            None => {
                let (iptables, results, wake) =
                    (self.iptables.clone(), self.results.clone(), self.wake.clone());
                let (sender, jobs) = mpsc::channel();
                // A thread inherits the network namespace of its creator.
                let work = move || work(family, &iptables, &jobs, &results, &wake);
                let started = std::thread::Builder::new().name(format!("rules-{family}")).spawn(work);
                started.map_err(|error| {
                    OpError::plain(Cause::Other, format!("cannot start a thread: {error}"))
                })?;
                state.jobs.insert(sender)
            }
        };
        let sent = jobs.send(job);
        sent.map_err(|_| OpError::plain(Cause::Other, "the thread that runs iptables has ended"))?;
        self.running += 1;
        Ok(())
    }

    /// The results of jobs that have ended; waits up to `limit` for the first one.
    pub fn finished(&mut self, limit: Duration) -> Vec<Finished> {
        let deadline = Instant::now() + limit;
        let mut finished = std::mem::take(&mut self.ready);
        while self.running > 0 {
            let left = if finished.is_empty() {
                deadline.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            let Ok(ended) = self.ended.recv_timeout(left) else { break };
            self.running -= 1;
            match ended {
                Ended::Op(subject, result) => finished.push(Finished::Op(subject, result)),
                Ended::Read(family, result) => finished.extend(self.finish_reading(family, result)),
            }
        }
        finished
    }

    fn finish_reading(&mut self, family: Family, result: Result<SavedRules, OpError>) -> Option<Finished> {
        let state = &mut self.states[family];
        let RulesReading { generation, stale, again } = state.reading.take().unwrap_or_default();
        // Rules were written meanwhile: the result may be older.
        if stale {
            return self.begin_reading(family, None).err().map(|error| Finished::Rules(family, Err(error)));
        }
        // The result is returned anyway: a program that writes continuously must not hide the changes of others.
        if let Some(later) = again
            && let Err(error) = self.begin_reading(family, later)
        {
            return Some(Finished::Rules(family, Err(error)));
        }
        let state = &mut self.states[family];
        Some(Finished::Rules(
            family,
            result.map(|saved| {
                state.known = generation.filter(|_| saved.in_nft);
                Some(Box::new(saved.rules))
            }),
        ))
    }
}

/// Runs jobs one by one until the sender is dropped.
fn work(family: Family, iptables: &Iptables, jobs: &Receiver<Job>, results: &Sender<Ended>, wake: &Wake) {
    for job in jobs {
        let ended = match job {
            Job::Read => Ended::Read(family, iptables.read(family)),
            Job::Write(rules) => Ended::Op(Subject::Rules(family), iptables.write(&rules)),
            Job::Remove(leftovers) => {
                Ended::Op(Subject::Leftovers(family), remove_leftovers(iptables, &leftovers))
            }
        };
        if results.send(ended).is_err() {
            return;
        }
        wake();
    }
}

fn remove_leftovers(iptables: &Iptables, leftovers: &LeftoversOp) -> Result<(), OpError> {
    let family = leftovers.family;
    if !leftovers.removal.is_empty() {
        iptables.remove(family, &leftovers.removal)?;
        let (chains, rules) = leftovers.removal.count();
        tracing::info!(%family, chains, rules, "removed iptables rules of another kube-proxy mode");
    }
    nft_tables::remove_all(family, leftovers.nft_tables)
}
