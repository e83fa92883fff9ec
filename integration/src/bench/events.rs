// SPDX-License-Identifier: Apache-2.0
//! What changes cost the loop of a node with many Services.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube_ipvs::core::model::{RsKey, VsKey};
use kube_ipvs::core::op::Op;
use kube_ipvs::inbox::Inbox;
use kube_ipvs::kernel::linux::Traffic;
use kube_ipvs::schedule::{Due, Schedule};
use kube_ipvs::store::Store;
use nix::sys::socket::SockProtocol;

use super::node::{Node, Size, put_service, slice, virtual_server};
use crate::replay::{RawSocket, encode_commands};

/// Events that are measured, after as many that are not.
const EVENTS: u32 = 50;
/// Endpoints of the Service that is restarted, by slice.
const SLICE: u32 = 100;
const SLICES: u32 = 5;
/// Pause between changes while delays are measured.
const PAUSE: Duration = Duration::from_millis(30);
/// How long a change may take at all.
const LIMIT: Duration = Duration::from_secs(20);

/// What one endpoint costs, from its event to the acknowledgement of the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndpointCost {
    /// One that comes.
    pub comes: Duration,
    /// One that goes.
    pub goes: Duration,
    /// The command alone, encoded beforehand: send and acknowledgement.
    pub limit: Duration,
}

/// Measures one endpoint, on a node with everything programmed.
///
/// # Errors
/// When the kernel refuses something.
pub fn endpoint(node: &mut Node, size: Size) -> Result<EndpointCost> {
    let mut cost = EndpointCost::default();
    let step = (size.services / EVENTS).max(1);
    for round in 0..2 {
        cost = EndpointCost::default();
        for event in 0..EVENTS {
            let n = (event * step + round) % size.services;
            cost.comes += timed(node, n, size.endpoints + 1)?;
            cost.goes += timed(node, n, size.endpoints)?;
        }
    }
    cost.limit = endpoint_limit(size, step)?;
    cost.comes /= EVENTS;
    cost.goes /= EVENTS;
    Ok(cost)
}

fn timed(node: &mut Node, n: u32, endpoints: u32) -> Result<Duration> {
    let start = Instant::now();
    node.store.update(|update| update.put(slice(n, 0, 0..endpoints)));
    let plan = node.follow()?;
    let took = start.elapsed();
    ensure!(plan.ops.len() == 1, "one op was expected, not:\n{plan}");
    Ok(took)
}

fn endpoint_limit(size: Size, step: u32) -> Result<Duration> {
    let mut raw = RawSocket::open(SockProtocol::NetlinkGeneric)?;
    let family = raw.family()?;
    let rs = RsKey { addr: [203, 0, 113, 1].into(), port: 8080 };
    let mut total = Duration::ZERO;
    for event in 0..EVENTS {
        let vs = virtual_server(event * step % size.services);
        let [add, remove] = [Op::AddRealServer(vs, rs), Op::RemoveRealServer(vs, rs)]
            .map(|op| encode_commands(family, &[&op]));
        let start = Instant::now();
        raw.send(&add)?;
        total += start.elapsed();
        raw.send(&remove)?;
    }
    Ok(total / EVENTS)
}

/// What went to the kernel between two readings of the counters.
pub fn difference(before: Traffic, after: Traffic) -> Traffic {
    let each = |a: [u64; 3], b: [u64; 3]| std::array::from_fn(|i| b[i] - a[i]);
    Traffic {
        sends: each(before.sends, after.sends),
        bytes: each(before.bytes, after.bytes),
        commands: after.commands - before.commands,
        dumps: after.dumps - before.dumps,
        processes: after.processes - before.processes,
        tables: after.tables - before.tables,
    }
}

/// What goes to the kernel when one more Service with two remote endpoints is created.
///
/// # Errors
/// When the kernel refuses something.
pub fn service_created(node: &mut Node, size: Size) -> Result<Traffic> {
    let before = node.reconciler.kernel().kernel.traffic();
    node.store.update(|update| {
        put_service(update, size.services, 0);
        update.put(slice(size.services, 0, 1..3));
    });
    node.follow()?;
    Ok(difference(before, node.reconciler.kernel().kernel.traffic()))
}

/// What a rolling restart took.
#[derive(Clone, Copy, Debug)]
pub struct Restarted {
    /// Events: an endpoint went, or one came.
    pub events: u64,
    /// IPVS commands.
    pub commands: u64,
    /// Batches of IPVS commands, one or two per pass.
    pub batches: u64,
}

/// A Service of 500 endpoints whose pods are all replaced, one after the other, as fast as the API server
/// tells, while the loop runs with a pause of `min_period` between passes.
///
/// # Errors
/// When the kernel refuses something, or the end is not as wanted.
pub fn rolling_restart(node: &mut Node, n: u32, min_period: Duration) -> Result<Restarted> {
    node.store.update(|update| {
        put_service(update, n, 0);
        (0..SLICES).for_each(|s| update.put(slice(n, s, s * SLICE..(s + 1) * SLICE)));
    });
    node.follow()?;
    let count = |node: &mut Node| {
        let kernel = node.reconciler.kernel();
        (kernel.kernel.traffic().commands, kernel.batches)
    };
    let before = count(node);
    let (store, inbox) = (node.store.clone(), node.inbox.clone());
    let restart = std::thread::spawn(move || {
        for s in 0..SLICES {
            let (old, new) = (s * SLICE, (SLICES + s) * SLICE);
            for replaced in 1..=SLICE {
                // An old one goes, then a new one comes; a slice has both kinds.
                store.update(|update| update.put(slice(n, s, old + replaced..old + SLICE)));
                store.update(|update| update.put(slice(n, SLICES + s, new..new + replaced)));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        while store.is_dirty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        inbox.stop();
    });
    run(node, min_period);
    restart.join().ok().context("the restarting thread ended")?;
    node.follow()?;
    let after = count(node);
    let there = ipvs_netlink::Client::open()?.destinations(&service_id(&virtual_server(n)))?.len();
    ensure!(there == (SLICES * SLICE) as usize, "{there} real servers after the restart");
    Ok(Restarted {
        events: u64::from(2 * SLICES * SLICE),
        commands: after.0 - before.0,
        batches: after.1 - before.1,
    })
}

fn service_id(vs: &VsKey) -> ipvs_netlink::ServiceId {
    ipvs_netlink::ServiceId::tcp(SocketAddr::new(vs.addr, vs.port))
}

/// Runs the loop until somebody stops it.
fn run(node: &mut Node, min_period: Duration) {
    node.store.update(|update| {
        for kind in kube_ipvs::store::Kind::ALL {
            update.finish_list(kind);
        }
    });
    let inbox = node.inbox.clone();
    node.reconciler.run(&inbox, Schedule::new(min_period, Duration::from_secs(3600)));
}

/// CPU time of an audit over a kernel that is as wanted.
///
/// # Errors
/// When it found something, or the kernel does not tell.
pub fn audit_cpu(node: &mut Node) -> Result<Duration> {
    let before = cpu_time()?;
    let pass = node.reconciler.sync(Due::Audit, Duration::ZERO);
    ensure!(pass.is_clean() && pass.plan.is_empty(), "the audit found something:\n{}", pass.plan);
    Ok(cpu_time()? - before)
}

/// How long this thread has worked.
///
/// # Errors
/// When the kernel does not tell.
pub fn cpu_time() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("cannot read CPU time")?;
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse().ok()).context("unknown CPU time")?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// The longest time from a change to its command, among changes that come one after the other while the
/// loop runs; `audits`: it audits all the time. The node's loop is at its end then.
///
/// # Errors
/// When a change is not carried out.
pub fn longest_delay(node: &mut Node, size: Size, audits: bool, changes: u32) -> Result<Duration> {
    let changer =
        Changer { store: node.store.clone(), inbox: node.inbox.clone(), changed: node.changed.clone() };
    let inbox = node.inbox.clone();
    let delays = std::thread::spawn(move || {
        let delays: Result<Vec<Duration>> =
            (0..changes + WARM_UP).map(|n| changer.change(n, size, audits)).collect();
        inbox.stop();
        delays
    });
    run(node, Duration::ZERO);
    let delays = delays.join().ok().context("the changing thread ended")??;
    delays.into_iter().skip(WARM_UP as usize).max().context("no change")
}

/// The first changes find the loop at its start.
const WARM_UP: u32 = 5;

struct Changer {
    store: Arc<Store>,
    inbox: Arc<Inbox>,
    changed: Arc<Mutex<HashMap<VsKey, Instant>>>,
}

impl Changer {
    /// Adds an endpoint to a Service, and waits until that is done.
    fn change(&self, number: u32, size: Size, audits: bool) -> Result<Duration> {
        std::thread::sleep(PAUSE);
        if audits {
            self.inbox.doubt();
            // Somewhere in the audit, each time elsewhere.
            std::thread::sleep(PAUSE + Duration::from_millis(u64::from(number * 37 % 200)));
        }
        let n = number * 7 % size.services;
        let at = Instant::now();
        self.store.update(|update| update.put(slice(n, 0, 0..size.endpoints + 1)));
        loop {
            let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(done) = changed.get(&virtual_server(n)).filter(|done| **done >= at) {
                return Ok(*done - at);
            }
            drop(changed);
            ensure!(at.elapsed() < LIMIT, "a change took longer than {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
