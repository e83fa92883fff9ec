// SPDX-License-Identifier: Apache-2.0
//! Traffic per Service, from the kernel's own counters.
//!
//! A scrape asks a thread of its own for a fresh reading, which is one dump. The reconcile loop only
//! notes whose virtual server is whose; nothing here holds it up. The kernel counts per virtual server
//! and forgets when one is removed, so what is shown are the sums of what was seen to be added.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::{lock, register_counters};
use crate::core::model::{ObjectName, VsKey};

/// Readings are at least so far apart; scrapes in between show the last one.
pub const MIN_PAUSE: Duration = Duration::from_secs(5);
/// The kernel is not busy with dumps for more than one part in so many.
const DUTY: u32 = 20;
/// A scrape waits so long for a fresh reading, then it shows the last one.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many changes of ownership wait for the thread before it takes them unasked.
const MAX_CHANGES: usize = 4096;
/// The Service of the series that sums up those without one of their own; its namespace is empty.
const OTHER: &str = "other";

/// What the kernel counted for a virtual server. It never says less than before unless it began anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections.
    pub connections: u64,
    /// Packets from clients, and to them.
    pub packets: [u64; 2],
    /// Bytes from clients, and to them.
    pub bytes: [u64; 2],
}

impl Counts {
    fn all(&self) -> [u64; 5] {
        [self.connections, self.packets[0], self.packets[1], self.bytes[0], self.bytes[1]]
    }

    /// What was added since `before`; all of it when the kernel began anew.
    fn since(&self, before: &Counts) -> [u64; 5] {
        let (now, before) = (self.all(), before.all());
        if now.iter().zip(before).any(|(now, before)| *now < before) {
            return now;
        }
        std::array::from_fn(|i| now[i] - before[i])
    }
}

/// Every virtual server of the kernel with its counts.
pub type Reading = Vec<(VsKey, Counts)>;

/// Reads the kernel; an error says why it cannot.
pub type Reader = Box<dyn FnMut() -> Result<Reading, String> + Send>;

/// The series.
#[derive(Clone, Debug)]
struct Families {
    connections: IntCounterVec,
    packets: IntCounterVec,
    bytes: IntCounterVec,
    readings: IntCounterVec,
}

/// The counters of one Service, in the order of [`Counts::all`].
type Series = [IntCounter; 5];

impl Families {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let directions = &["namespace", "service", "direction"];
        Ok(Self {
            connections: register_counters(
                registry,
                "kube_ipvs_service_connections_total",
                "Connections to a Service through this node.",
                &["namespace", "service"],
            )?,
            packets: register_counters(
                registry,
                "kube_ipvs_service_packets_total",
                "Packets from (in) and to (out) the clients of a Service through this node.",
                directions,
            )?,
            bytes: register_counters(
                registry,
                "kube_ipvs_service_bytes_total",
                "Bytes from (in) and to (out) the clients of a Service through this node.",
                directions,
            )?,
            readings: register_counters(
                registry,
                "kube_ipvs_service_readings_total",
                "Readings of the kernel's counters for Services, by result.",
                &["result"],
            )?,
        })
    }

    fn series(&self, namespace: &str, service: &str) -> Series {
        let with = |vec: &IntCounterVec, direction| vec.with_label_values(&[namespace, service, direction]);
        [
            self.connections.with_label_values(&[namespace, service]),
            with(&self.packets, "in"),
            with(&self.packets, "out"),
            with(&self.bytes, "in"),
            with(&self.bytes, "out"),
        ]
    }

    fn remove(&self, name: &ObjectName) {
        let (namespace, service) = (&*name.namespace, &*name.name);
        // They exist: they were made together.
        let _ = self.connections.remove_label_values(&[namespace, service]);
        for direction in ["in", "out"] {
            let _ = self.packets.remove_label_values(&[namespace, service, direction]);
            let _ = self.bytes.remove_label_values(&[namespace, service, direction]);
        }
    }
}

/// A virtual server has this owner now, or none.
type Change = (VsKey, Option<ObjectName>);

/// Sums up readings.
#[derive(Debug)]
struct Account {
    families: Families,
    /// So many Services have series of their own.
    limit: usize,
    /// The first reading is only a base: what was counted before the start is not ours to tell, and a
    /// counter that does not begin at zero would look as if it all happened at once.
    based: bool,
    owners: HashMap<VsKey, ObjectName>,
    last: HashMap<VsKey, Counts>,
    named: HashMap<ObjectName, Series>,
    other: Series,
}

impl Account {
    fn new(families: Families, limit: usize) -> Self {
        let other = families.series("", OTHER);
        let (owners, last, named) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { families, limit, based: false, owners, last, named, other }
    }

    /// Follows changes of ownership. Series of Services that are gone end; the room goes to Services
    /// that have none, by name.
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
        let families = &self.families;
        self.named.retain(|name, _| {
            let stays = services.contains(name);
            if !stays {
                families.remove(name);
            }
            stays
        });
        for name in services {
            if self.named.len() >= self.limit {
                break;
            }
            let series = || families.series(&name.namespace, &name.name);
            self.named.entry(name.clone()).or_insert_with(series);
        }
    }

    /// The kernel's dumps count positions in a table: while it changes they may show a virtual server
    /// twice, or not at all.
    fn take(&mut self, reading: &[(VsKey, Counts)]) {
        let mut seen = HashSet::with_capacity(reading.len());
        for (key, counts) in reading {
            if !seen.insert(*key) {
                continue;
            }
            let Some(owner) = self.owners.get(key) else {
                // Whoever gets it later goes on from here.
                if !self.based {
                    self.last.insert(*key, *counts);
                }
                continue;
            };
            let before = self.last.insert(*key, *counts);
            if self.based || before.is_some() {
                let series = self.named.get(owner).unwrap_or(&self.other);
                for (counter, added) in series.iter().zip(counts.since(&before.unwrap_or_default())) {
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
struct State {
    changes: Vec<Change>,
    /// A scrape waits.
    asked: bool,
    /// No reading is due yet.
    resting: bool,
    /// Readings so far.
    readings: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    condvar: Condvar,
}

/// The loop's and the scrapes' side.
#[derive(Debug)]
pub(super) struct ServiceTraffic(Arc<Shared>);

impl ServiceTraffic {
    /// Starts the thread, which reads at once: what the kernel has counted so far is the base.
    /// Readings are at least `pause` apart.
    pub fn start(registry: &Registry, limit: usize, pause: Duration, reader: Reader) -> anyhow::Result<Self> {
        let families = Families::new(registry)?;
        let account = Account::new(families, limit);
        let shared = Arc::new(Shared::default());
        let threads = shared.clone();
        std::thread::Builder::new()
            .name("traffic".to_owned())
            .spawn(move || run(&threads, account, pause, reader))?;
        Ok(Self(shared))
    }

    /// Notes whose virtual servers they are.
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
        let fresh = |state: &mut State| state.readings == before;
        drop(
            self.0.condvar.wait_timeout_while(state, PATIENCE, fresh).unwrap_or_else(PoisonError::into_inner),
        );
    }
}

fn run(shared: &Shared, mut account: Account, pause: Duration, mut reader: Reader) {
    let results = ["done", "failed"].map(|result| account.families.readings.with_label_values(&[result]));
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
                tracing::debug!("no traffic of Services: {error}");
            }
        }
        finish(shared, (took * DUTY).max(pause));
        wait(shared, &mut account);
    }
}

/// Tells who waits, and lets nobody ask for a while.
fn finish(shared: &Shared, pause: Duration) {
    let mut state = lock(&shared.state);
    state.readings += 1;
    state.asked = false;
    shared.condvar.notify_all();
    // The base is followed by the first real reading as soon as somebody asks.
    if state.readings > 1 {
        state.resting = true;
        drop(state);
        std::thread::sleep(pause);
        lock(&shared.state).resting = false;
    }
}

/// Waits for a scrape, and keeps changes of ownership from piling up.
fn wait(shared: &Shared, account: &mut Account) {
    let mut state = lock(&shared.state);
    while !state.asked {
        let idle = |state: &mut State| !state.asked && state.changes.len() < MAX_CHANGES;
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
