// SPDX-License-Identifier: Apache-2.0
//! The cost of a full audit, and the delay of changes during one.

use kube_ipvs::core::plan::pass::Due;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube_ipvs::core::model::VsKey;
use kube_ipvs::inbox::Inbox;
use kube_ipvs::store::Store;
use nix::time::{ClockId, clock_gettime};

use super::events::run;
use super::node::{Node, Size, slice, virtual_server};

/// Pause between changes while delays are measured.
const PAUSE: Duration = Duration::from_millis(30);
/// Limit for a change.
const LIMIT: Duration = Duration::from_secs(20);
/// The first changes find the loop at its start.
const WARM_UP: u32 = 5;

/// How long this thread has worked.
///
/// # Errors
/// If the kernel does not report it.
pub fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("no CPU time")?.into())
}

/// CPU time of an audit without drift.
///
/// # Errors
/// If the audit found drift, or the kernel does not report the time.
pub fn audit_cpu(node: &mut Node) -> Result<Duration> {
    let before = cpu_time()?;
    let pass = node.reconciler.sync(Due::Audit, Duration::ZERO);
    let after = cpu_time()?;
    ensure!(pass.is_clean() && pass.plan.is_empty(), "the audit found something:\n{}", pass.plan);
    Ok(after - before)
}

/// Delays of consecutive changes while the loop runs.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// The longest time from a change to its command.
    pub longest: Duration,
    /// The median.
    pub median: Duration,
    /// The changes.
    pub changes: u32,
    /// Number of changes during an audit.
    pub during_audits: u32,
}

/// Measures this number of changes. `audits`: audits run one after the other meanwhile. The node's loop has ended
/// afterwards.
///
/// # Errors
/// If a change is not programmed, or too few changes came during an audit.
pub fn delays(node: &mut Node, size: Size, audits: bool, changes: u32) -> Result<Delays> {
    let changer =
        Changer { store: node.store.clone(), changed: node.changed.clone(), auditing: node.auditing.clone() };
    let (inbox, ended) = (node.inbox.clone(), Arc::new(AtomicBool::new(false)));
    let doubter = audits.then(|| doubt(inbox.clone(), ended.clone()));
    let changing = thread::spawn(move || {
        let delays: Result<Vec<_>> = (0..changes + WARM_UP).map(|n| changer.change(n, size)).collect();
        ended.store(true, Ordering::Relaxed);
        inbox.stop();
        delays
    });
    run(node, Duration::ZERO);
    let all = changing.join().ok().context("the changing thread ended")??;
    if let Some(doubter) = doubter {
        doubter.join().ok().context("the doubting thread ended")?;
    }
    let measured = &all[WARM_UP as usize..];
    let mut sorted: Vec<Duration> = measured.iter().map(|(delay, _)| *delay).collect();
    sorted.sort_unstable();
    let longest = *sorted.last().context("no change")?;
    let median = sorted[sorted.len() / 2];
    let during_audits = measured.iter().filter(|(_, audit)| *audit).count() as u32;
    ensure!(
        !audits || 2 * during_audits >= changes,
        "only {during_audits} of {changes} changes met an audit"
    );
    Ok(Delays { longest, median, changes, during_audits })
}

/// Requests one audit after the other.
fn doubt(inbox: Arc<Inbox>, ended: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            inbox.audit();
            thread::sleep(Duration::from_millis(5));
        }
    })
}

struct Changer {
    store: Arc<Store>,
    changed: Arc<Mutex<HashMap<VsKey, Instant>>>,
    auditing: Arc<AtomicBool>,
}

impl Changer {
    /// Adds an endpoint to a Service and waits until that is done: how long it took, and whether an audit
    /// was going on.
    fn change(&self, number: u32, size: Size) -> Result<(Duration, bool)> {
        // Each time somewhere else in an audit.
        thread::sleep(PAUSE + Duration::from_millis(u64::from(number * 37 % 200)));
        let n = number * 7 % size.services;
        let auditing = self.auditing.load(Ordering::Relaxed);
        let at = Instant::now();
        self.store.update(|update| update.put(slice(n, 0, 0..size.endpoints + 1)));
        loop {
            let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(done) = changed.get(&virtual_server(n)).filter(|done| **done >= at) {
                return Ok((*done - at, auditing));
            }
            drop(changed);
            ensure!(at.elapsed() < LIMIT, "a change took longer than {LIMIT:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_thread_uses_no_time() {
        let (wall, before) = (Instant::now(), cpu_time().unwrap());
        thread::sleep(Duration::from_millis(200));
        let slept = cpu_time().unwrap() - before;
        assert!(
            wall.elapsed() >= Duration::from_millis(200) && slept < Duration::from_millis(100),
            "{slept:?}"
        );
        while cpu_time().unwrap() - before < Duration::from_millis(20) {
            std::hint::black_box(0);
        }
    }
}
