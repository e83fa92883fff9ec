// SPDX-License-Identifier: Apache-2.0
//! Traffic per Service, from the kernel's own counters.
//!
//! A scrape asks a thread of its own for a fresh reading, which is one dump. The reconcile loop only reports which
//! Service owns a virtual server, and never waits. The kernel counts per virtual server and drops the counters when
//! one is removed, so the metrics sum up the increments that were seen.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::register::declare;
use crate::core::model::{ObjectName, VsKey};
use crate::kernel::ipvs::traffic::{ReadCounters, ServerCounters};
use crate::lock::lock;

/// The minimum time between readings; scrapes in between show the last one.
pub const MIN_PAUSE: Duration = Duration::from_secs(5);
/// Dumps take at most 1/20 of the time.
const DUTY: u32 = 20;
/// The time that a scrape waits for a fresh reading, before it shows the last one.
const PATIENCE: Duration = Duration::from_secs(2);
/// The number of pending changes of ownership that the thread takes without a scrape.
const MAX_CHANGES: usize = 4096;
/// The Service of the series for all Services without a series of their own; its namespace is empty.
const OTHER: &str = "other";

declare! {
    struct TrafficMetrics {
        connections: IntCounterVec = "kube_ipvs_service_connections_total" ["namespace", "service"]
            => "Connections to a Service through this node.";
        packets: IntCounterVec = "kube_ipvs_service_packets_total" ["namespace", "service", "direction"]
            => "Packets from (in) and to (out) the clients of a Service through this node.";
        bytes: IntCounterVec = "kube_ipvs_service_bytes_total" ["namespace", "service", "direction"]
            => "Bytes from (in) and to (out) the clients of a Service through this node.";
        readings: IntCounterVec = "kube_ipvs_service_readings_total" ["result"]
            => "Readings of the kernel's counters for Services, by result.";
    }
}

/// Connections, packets in and out, bytes in and out.
fn in_order(counters: &ServerCounters) -> [u64; 5] {
    let ServerCounters { connections, packets, bytes } = counters;
    [*connections, packets[0], packets[1], bytes[0], bytes[1]]
}

/// The increments since `before`; all of `now` when the kernel has started again from zero.
fn increments(now: &ServerCounters, before: &ServerCounters) -> [u64; 5] {
    let (now, before) = (in_order(now), in_order(before));
    if now.iter().zip(before).any(|(now, before)| *now < before) {
        return now;
    }
    std::array::from_fn(|i| now[i] - before[i])
}

/// The counters of one Service, in the order of [`in_order`].
type Series = [IntCounter; 5];

impl TrafficMetrics {
    /// The metrics of a Service with their labels, in the order of [`in_order`].
    fn of<'a>(&self, namespace: &'a str, service: &'a str) -> [(&IntCounterVec, Vec<&'a str>); 5] {
        let with = |direction| vec![namespace, service, direction];
        [
            (&self.connections, vec![namespace, service]),
            (&self.packets, with("in")),
            (&self.packets, with("out")),
            (&self.bytes, with("in")),
            (&self.bytes, with("out")),
        ]
    }

    fn series(&self, namespace: &str, service: &str) -> Series {
        self.of(namespace, service).map(|(counters, labels)| counters.with_label_values(&labels))
    }

    fn remove(&self, name: &ObjectName) {
        // All exist: `series` creates them together.
        let all = self.of(&name.namespace, &name.name);
        all.iter().for_each(|(counters, labels)| _ = counters.remove_label_values(labels));
    }
}

/// A virtual server has this owner now, or none.
type Change = (VsKey, Option<ObjectName>);

/// Sums up readings.
#[derive(Debug)]
struct Account {
    metrics: TrafficMetrics,
    /// The number of Services with series of their own.
    limit: usize,
    /// The first reading was taken as the base: counters start at zero, without the traffic before the start.
    based: bool,
    owners: HashMap<VsKey, ObjectName>,
    last: HashMap<VsKey, ServerCounters>,
    named: HashMap<ObjectName, Series>,
    other: Series,
}

impl Account {
    fn new(metrics: TrafficMetrics, limit: usize) -> Self {
        let other = metrics.series("", OTHER);
        let (owners, last, named) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { metrics, limit, based: false, owners, last, named, other }
    }

    /// Applies changes of ownership. Removes the series of deleted Services; Services without a series get the free
    /// places in the order of their names.
    fn change(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        for (key, owner) in changes {
            match owner {
                Some(owner) => self.owners.insert(key, owner),
                None => self.owners.remove(&key),
            };
        }
        let services: BTreeSet<&ObjectName> = self.owners.values().collect();
        let metrics = &self.metrics;
        self.named.retain(|name, _| {
            let stays = services.contains(name);
            if !stays {
                metrics.remove(name);
            }
            stays
        });
        for name in services {
            if self.named.len() >= self.limit {
                break;
            }
            let series = || metrics.series(&name.namespace, &name.name);
            self.named.entry(name.clone()).or_insert_with(series);
        }
    }

    /// A dump of a table that changes meanwhile may have a virtual server twice, or not at all.
    fn take(&mut self, reading: &[(VsKey, ServerCounters)]) {
        let mut seen = HashSet::with_capacity(reading.len());
        for (key, counts) in reading {
            if !seen.insert(*key) {
                continue;
            }
            let Some(owner) = self.owners.get(key) else {
                // The base for a later owner.
                if !self.based {
                    self.last.insert(*key, *counts);
                }
                continue;
            };
            let before = self.last.insert(*key, *counts);
            if self.based || before.is_some() {
                let series = self.named.get(owner).unwrap_or(&self.other);
                for (counter, added) in series.iter().zip(increments(counts, &before.unwrap_or_default())) {
                    counter.inc_by(added);
                }
            }
        }
        let owners = &self.owners;
        self.last.retain(|key, _| seen.contains(key) || owners.contains_key(key));
        self.based = true;
    }
}

#[derive(Debug, Default)]
struct ScrapeState {
    changes: Vec<Change>,
    /// A scrape waits.
    asked: bool,
    /// The last reading is recent: no new one yet.
    resting: bool,
    /// Readings so far.
    readings: u64,
}

#[derive(Debug, Default)]
struct Scrapes {
    state: Mutex<ScrapeState>,
    condvar: Condvar,
}

/// Handle for the reconcile loop and for scrapes.
#[derive(Debug)]
pub(super) struct ServiceTraffic(Arc<Scrapes>);

impl ServiceTraffic {
    /// Starts the thread, which takes the first reading, the base, at once. Readings are at least `pause` apart.
    pub fn start(
        registry: &Registry,
        limit: usize,
        pause: Duration,
        reader: ReadCounters,
    ) -> anyhow::Result<Self> {
        let account = Account::new(TrafficMetrics::register(registry)?, limit);
        let shared = Arc::new(Scrapes::default());
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("traffic".to_owned())
            .spawn(move || run(&of_thread, account, pause, reader))?;
        Ok(Self(shared))
    }

    /// Changes the owners of virtual servers.
    pub fn own(&self, changes: impl Iterator<Item = Change>) {
        let mut state = lock(&self.0.state);
        state.changes.extend(changes);
        if state.changes.len() >= MAX_CHANGES {
            self.0.condvar.notify_all();
        }
    }

    /// Waits for a fresh reading, unless the last one is recent. May block.
    pub fn refresh(&self) {
        let mut state = lock(&self.0.state);
        if state.resting {
            return;
        }
        let before = state.readings;
        state.asked = true;
        self.0.condvar.notify_all();
        let fresh = |state: &mut ScrapeState| state.readings == before;
        drop(
            self.0.condvar.wait_timeout_while(state, PATIENCE, fresh).unwrap_or_else(PoisonError::into_inner),
        );
    }
}

fn run(shared: &Scrapes, mut account: Account, pause: Duration, mut reader: ReadCounters) {
    let results = ["done", "failed"].map(|result| account.metrics.readings.with_label_values(&[result]));
    loop {
        let start = Instant::now();
        let reading = reader();
        let took = start.elapsed();
        account.change(std::mem::take(&mut lock(&shared.state).changes));
        match reading {
            Ok(reading) => {
                account.take(&reading);
                results[0].inc();
            }
            Err(error) => {
                results[1].inc();
                tracing::debug!("cannot read the traffic of Services: {error}");
            }
        }
        finish(shared, (took * DUTY).max(pause));
        wait(shared, &mut account);
    }
}

/// Wakes the scrapes that wait, and takes no new reading for a while.
fn finish(shared: &Scrapes, pause: Duration) {
    let mut state = lock(&shared.state);
    state.readings += 1;
    state.asked = false;
    shared.condvar.notify_all();
    // The first scrape does not wait after the base.
    if state.readings > 1 {
        state.resting = true;
        drop(state);
        std::thread::sleep(pause);
        lock(&shared.state).resting = false;
    }
}

/// Waits for a scrape; meanwhile applies changes of ownership when too many are pending.
fn wait(shared: &Scrapes, account: &mut Account) {
    let mut state = lock(&shared.state);
    while !state.asked {
        let idle = |state: &mut ScrapeState| !state.asked && state.changes.len() < MAX_CHANGES;
        state = shared.condvar.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        let changes = std::mem::take(&mut state.changes);
        drop(state);
        account.change(changes);
        state = lock(&shared.state);
    }
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
