// SPDX-License-Identifier: Apache-2.0
//! TCP checks of endpoints. `state.rs` decides, `connect.rs` connects, and one task drives them.
//!
//! A timeout of up to one second means one single packet: TCP repeats the first one after that time.

mod connect;
#[cfg(test)]
mod prober_tests;
mod spec;
mod state;
#[cfg(test)]
mod state_tests;

use std::future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::state::{Check, Checks, Reply};
use crate::core::model::RsKey;
use crate::lock::lock;
use crate::pace::Pace;
use crate::words;

pub use self::state::ProbeCounters;
pub use crate::core::model::ProbeSpec;

/// An endpoint to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeTarget {
    pub spec: ProbeSpec,
    /// It counts as dead until it answers. Only of a new target.
    pub is_dead: bool,
}

/// Changes of the endpoints to check, one for each endpoint; `None`: it is checked no longer.
pub type TargetChanges = Vec<(RsKey, Option<ProbeTarget>)>;

/// The handle of the checks. Dropping it ends them, without a report.
#[derive(Debug)]
pub struct Prober {
    changes: mpsc::UnboundedSender<TargetChanges>,
    counters: Arc<Mutex<ProbeCounters>>,
}

impl Prober {
    /// Starts the checks on the current runtime of tokio. `report` is called with the endpoints that changed, sorted:
    /// true = dead, false = it answers again or is no target any more. It must return soon: no check starts
    /// meanwhile.
    ///
    /// An endpoint is dead after `threshold` consecutive failures if it answered once since it is a target, or if it was
    /// dead from the start; one answer makes it alive.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn start(report: impl Fn(Vec<(RsKey, bool)>) + Send + Sync + 'static) -> Self {
        let (sender, changes) = mpsc::unbounded_channel();
        let counters = Arc::<Mutex<ProbeCounters>>::default();
        let runner = ProbeTask {
            checks: Checks::default(),
            running: JoinSet::new(),
            begin: Instant::now(),
            faults: Pace::default(),
            counters: counters.clone(),
        };
        tokio::spawn(runner.run(changes, report));
        Self { changes: sender, counters }
    }

    /// Changes the endpoints to check, soon. Callable from any thread.
    pub fn change_targets(&self, changes: TargetChanges) {
        // The task ends only with the runtime.
        let _ = self.changes.send(changes);
    }

    /// Numbers for metrics, all of one moment. Before an endpoint is reported, it is counted.
    pub fn counters(&self) -> ProbeCounters {
        *lock(&self.counters)
    }
}

struct ProbeTask {
    checks: Checks,
    running: JoinSet<(Check, io::Result<()>)>,
    begin: Instant,
    /// The lines about faults of the node.
    faults: Pace,
    counters: Arc<Mutex<ProbeCounters>>,
}

impl ProbeTask {
    async fn run(
        mut self,
        mut changes: mpsc::UnboundedReceiver<TargetChanges>,
        report: impl Fn(Vec<(RsKey, bool)>),
    ) {
        loop {
            let now = self.begin.elapsed();
            while let Some(check) = self.checks.start(now) {
                self.running.spawn(async move {
                    let result = connect::connect(check.key, check.timeout).await;
                    (check, result)
                });
            }
            *lock(&self.counters) = self.checks.counters();
            if let Some(results) = self.checks.report(now) {
                report(results);
            }
            let wake = self.checks.wake_at().map(|at| self.begin + at);
            tokio::select! {
                changes = changes.recv() => {
                    let Some(changes) = changes else { return };
                    self.checks.change_targets(&changes, self.begin.elapsed());
                }
                // A connect does not panic and is not cancelled: all come back.
                Some(Ok((check, result))) = self.running.join_next() => self.finish(&check, &result),
                () = until(wake) => {}
            }
        }
    }

    fn finish(&mut self, check: &Check, result: &io::Result<()>) {
        let (answer, now) = (connect::judge(result), self.begin.elapsed());
        self.checks.finish(check, answer, now);
        if let (Reply::Fault, Err(error)) = (answer, result) {
            self.log_fault(check.key, error, now);
        }
    }

    fn log_fault(&mut self, key: RsKey, error: &io::Error, now: Duration) {
        let why = words::io_error(error);
        if self.faults.happened(1, now) {
            tracing::warn!("the node cannot check endpoint {key}, which counts as before: {why}");
        } else if let Some((count, time)) = self.faults.due(now) {
            let (count, time) = (words::count(count, "check"), words::time(time));
            tracing::warn!(
                "the node failed to make {count} of endpoints in {time}, the last of {key}: {why}"
            );
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => future::pending().await,
    }
}
