// SPDX-License-Identifier: Apache-2.0
//! The cost of changes on a node with many Services.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube_ipvs::core::model::real_servers::RsState;
use kube_ipvs::core::model::{RsKey, VsKey};
use kube_ipvs::core::plan::op::Op;
use kube_ipvs::kernel::linux::KernelCounters;
use kube_ipvs::reconcile::schedule::Schedule;
use nix::sys::socket::SockProtocol;

use super::node::{Node, Size, put_service, slice, virtual_server};
use crate::replay::{RawSocket, encode_commands};

/// Number of measured events, after the same number of warm-up events.
const EVENTS: u32 = 50;
/// Endpoints of the Service that is restarted, by slice.
const SLICE: u32 = 100;
const SLICES: u32 = 5;

/// The cost of one endpoint from its event to the acknowledgement of the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndpointCost {
    /// An added endpoint.
    pub comes: Duration,
    /// A removed endpoint.
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
            cost.comes += timed(node, n, size.endpoints + 1, 1)?;
            cost.goes += timed(node, n, size.endpoints, 2)?;
        }
    }
    cost.limit = endpoint_limit(size, step)?;
    cost.comes /= EVENTS;
    cost.goes /= EVENTS;
    Ok(cost)
}

/// `passes`: one that goes gets weight 0 in the first, and is removed in the second.
fn timed(node: &mut Node, n: u32, endpoints: u32, passes: usize) -> Result<Duration> {
    let start = Instant::now();
    node.store.update(|update| update.put(slice(n, 0, 0..endpoints)));
    let plans = (0..passes).map(|_| node.follow()).collect::<Result<Vec<_>>>()?;
    let took = start.elapsed();
    for plan in plans {
        ensure!(plan.ops.len() == 1, "one op was expected, not:\n{plan}");
    }
    Ok(took)
}

fn endpoint_limit(size: Size, step: u32) -> Result<Duration> {
    let mut raw = RawSocket::open(SockProtocol::NetlinkGeneric)?;
    let family = raw.family()?;
    let rs = RsKey { addr: [203, 0, 113, 1].into(), port: 8080 };
    let mut total = Duration::ZERO;
    for event in 0..2 * EVENTS {
        let vs = virtual_server(event * step % size.services);
        let [add, remove] = [Op::AddRealServer(vs, rs, RsState::USUAL), Op::RemoveRealServer(vs, rs)]
            .map(|op| encode_commands(family, &[&op]));
        let start = Instant::now();
        raw.send(&add)?;
        // The first half is the warm-up.
        total += if event < EVENTS { Duration::ZERO } else { start.elapsed() };
        raw.send(&remove)?;
    }
    Ok(total / EVENTS)
}

/// Sends to the kernel between two reads of the counters.
pub fn difference(before: KernelCounters, after: KernelCounters) -> KernelCounters {
    let each = |a: [u64; 3], b: [u64; 3]| std::array::from_fn(|i| b[i] - a[i]);
    KernelCounters {
        sends: each(before.sends, after.sends),
        bytes: each(before.bytes, after.bytes),
        commands: after.commands - before.commands,
        dumps: after.dumps - before.dumps,
        processes: after.processes - before.processes,
        tables: after.tables - before.tables,
    }
}

/// Sends to the kernel when one more Service with two remote endpoints is created.
///
/// # Errors
/// When the kernel refuses something.
pub fn service_created(node: &mut Node, size: Size) -> Result<KernelCounters> {
    let before = node.traffic();
    node.store.update(|update| {
        put_service(update, size.services, 0);
        update.put(slice(size.services, 0, 1..3));
    });
    node.follow()?;
    Ok(difference(before, node.traffic()))
}

/// Sends to the kernel when an endpoint is added to a Service.
///
/// # Errors
/// When the kernel refuses something.
pub fn endpoint_came(node: &mut Node, size: Size) -> Result<KernelCounters> {
    let before = node.traffic();
    node.store.update(|update| update.put(slice(1, 0, 0..size.endpoints + 1)));
    node.follow()?;
    Ok(difference(before, node.traffic()))
}

/// The cost of a rolling restart.
#[derive(Clone, Copy, Debug)]
pub struct Restarted {
    /// Number of events: added and removed endpoints.
    pub events: u64,
    /// IPVS commands.
    pub commands: u64,
    /// Number of syncs.
    pub passes: u64,
}

/// A rolling restart of a Service with 500 endpoints: all pods are replaced one after the other, as fast as events
/// come, while the loop runs with a pause of `min_period` between syncs.
///
/// # Errors
/// When the kernel refuses something, or the expected state is not reached.
pub fn rolling_restart(node: &mut Node, n: u32, min_period: Duration) -> Result<Restarted> {
    node.store.update(|update| {
        put_service(update, n, 0);
        (0..SLICES).for_each(|s| update.put(slice(n, s, s * SLICE..(s + 1) * SLICE)));
    });
    node.follow()?;
    let count = |node: &mut Node| anyhow::Ok((node.traffic().commands, node.passes()?));
    let before = count(node)?;
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
    (0..2).try_for_each(|_| node.follow().map(drop))?;
    let after = count(node)?;
    let there = ipvs_netlink::Client::open()?.destinations(&service_id(&virtual_server(n)))?.len();
    ensure!(there == (SLICES * SLICE) as usize, "{there} real servers after the restart");
    Ok(Restarted {
        events: u64::from(2 * SLICES * SLICE),
        commands: after.0 - before.0,
        passes: after.1 - before.1,
    })
}

fn service_id(vs: &VsKey) -> ipvs_netlink::ServiceId {
    ipvs_netlink::ServiceId::tcp(SocketAddr::new(vs.addr, vs.port))
}

/// Runs the loop until it is stopped.
pub(super) fn run(node: &mut Node, min_period: Duration) {
    node.store.update(|update| {
        for kind in kube_ipvs::store::Kind::ALL {
            update.finish_list(kind);
        }
    });
    let inbox = node.inbox.clone();
    node.reconciler.run(&inbox, Schedule::new(min_period, Duration::from_secs(3600)));
}
