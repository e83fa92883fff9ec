// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs trace`: follows packets of a virtual server through the rules of nf_tables and IPVS.
//!
//! A table of nf_tables marks the first packets of connections, and the kernel reports each rule that they meet. Connection
//! tracking reports who answers, and whom. What IPVS did is read from its connections at the end: IPVS reports nothing.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::cli::TraceArgs;
use crate::core::model::{Family, Protocol, VsKey};
use crate::inspect::filter::{Filter, QueryTarget};
use crate::inspect::ipvs_conn;
use crate::inspect::ipvs_table::IpvsTable;
use crate::inspect::owners::{OwnersOf, ServiceOwners};
use crate::inspect::trace::{PacketCollector, TraceFacts, TraceReport, silence_note};
use crate::kernel::host::links;
use crate::kernel::ipvs::vs_key;
use crate::kernel::netfilter::conntrack_watch::{Collected, ConntrackWatch};
use crate::kernel::netfilter::nft_trace::PacketTracer;
use crate::words;

/// Most virtual servers of one trace: each is a rule that every packet of the node meets.
const TARGETS: usize = 64;
/// How long the loop waits for steps before it looks at the clock and at signals.
const WAIT: Duration = Duration::from_millis(200);
/// How long the steps of the last packet, and the answer to it, may take.
const REST: Duration = Duration::from_millis(500);

/// Traces packets and prints them. The code is 1 if none came.
///
/// # Errors
/// A privilege or nf_tables is missing, another trace runs, or the target is a Service and no agent runs that knows it.
pub fn run(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let stop = stop_on_signal()?;
    let mut notes = Vec::new();
    let owners = match ServiceOwners::ask(&OwnersOf::default()) {
        Ok(owners) => owners,
        Err(error) if matches!(args.target, QueryTarget::Service { .. }) => {
            return Err(error).context("cannot find the Service: give VIP:PORT instead");
        }
        Err(error) => {
            notes.push(format!("Services are not shown: {error}"));
            ServiceOwners::default()
        }
    };
    let targets = targets(args, &owners)?;
    let conntrack = ConntrackWatch::start(targets.clone(), args.from);
    let mut tracer = PacketTracer::start(&targets, args.from)?;
    let shown = shown(args, &targets, &owners);
    eprintln!("kube-ipvs: tracing new connections to {shown} for {} s", args.seconds);
    let mut collector = PacketCollector::new(tracer.hooked_chains(), args.packets);
    if follow(&mut tracer, &mut collector, args, &stop)? {
        notes.push("the kernel dropped some steps: packets came faster than they could be read".to_owned());
    }
    notes.extend(targets.iter().filter_map(|target| legacy_note(target.family())));
    notes.dedup();
    let tracked = conntrack.map(ConntrackWatch::finish).unwrap_or_else(|error| {
        notes.push(format!("no events of connection tracking: {error}"));
        // The note has the cause.
        Collected { heard: true, ..Collected::default() }
    });
    notes.extend(tracked.lost.then(|| "some events of connection tracking were lost".to_owned()));
    let facts = facts(&mut tracer, &collector, &targets, owners, &mut notes);
    let packets = collector.finish(&TraceFacts { tracked: tracked.events, ..facts });
    notes.extend(silence_note(tracked.heard, &packets));
    drop(tracer);
    let report = TraceReport::new(shown, args.seconds, packets, notes);
    super::print_answer(&report, args.answer.output, |layout| report.text(layout))?;
    Ok(if report.packets.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The target in words.
fn shown(args: &TraceArgs, targets: &[VsKey], owners: &ServiceOwners) -> String {
    let is_known = targets.iter().any(|target| owners.get(&target.to_string()).is_some());
    match args.target {
        QueryTarget::Vip(addr, Some(port)) if !is_known => SocketAddr::new(addr, port).to_string(),
        _ => words::some(targets, 3, targets.len()),
    }
}

/// The virtual servers of the target. An address that no agent knows is traced in every protocol.
fn targets(args: &TraceArgs, owners: &ServiceOwners) -> anyhow::Result<Vec<VsKey>> {
    let filter = Filter { target: Some(args.target.clone()), ..Filter::default() };
    let mut targets = owners.servers(&filter);
    if let (true, QueryTarget::Vip(addr, Some(port))) = (targets.is_empty(), &args.target) {
        let (addr, port) = (*addr, *port);
        targets = Protocol::ALL.map(|protocol| VsKey { protocol, addr, port }).into();
    }
    if let Some(from) = args.from {
        targets.retain(|target| target.family() == Family::of(from));
    }
    match (targets.len(), &args.target) {
        (0, QueryTarget::Vip(_, None)) => bail!("this address has no Service: give its port, too"),
        (0, _) if args.from.is_some() => bail!("the target has no address in the IP family of --from"),
        (0, _) => bail!("the agent serves no such Service or port: `kube-ipvs list -o wide` shows all"),
        (1..=TARGETS, _) => Ok(targets),
        (many, _) => {
            bail!("the target has {many} virtual servers, and a trace at most {TARGETS}: give VIP:PORT")
        }
    }
}

/// Receives steps until the time is over, enough packets came or a signal did. Returns whether steps were lost.
fn follow(
    tracer: &mut PacketTracer,
    collector: &mut PacketCollector,
    args: &TraceArgs,
    stop: &AtomicBool,
) -> anyhow::Result<bool> {
    let mut end = Instant::now() + Duration::from_secs(args.seconds);
    let (mut is_lost, mut is_marking) = (false, true);
    loop {
        let now = Instant::now();
        if is_marking && (now >= end || collector.is_full() || stop.load(Ordering::Relaxed)) {
            // No further packet is marked; those on their way come to their end.
            tracer.stop();
            (is_marking, end) = (false, now + REST);
        }
        let left = end.saturating_duration_since(now).min(WAIT);
        // A timeout of zero is none.
        if left < Duration::from_millis(1) {
            return Ok(is_lost);
        }
        let (events, lost) = tracer.receive(left)?;
        is_lost |= lost;
        events.iter().for_each(|event| collector.add(event));
    }
}

/// What is known beside the steps. What cannot be read becomes a note.
fn facts(
    tracer: &mut PacketTracer,
    collector: &PacketCollector,
    targets: &[VsKey],
    owners: ServiceOwners,
    notes: &mut Vec<String>,
) -> TraceFacts {
    let tables = collector.tables();
    let rules = tables.iter().flat_map(|(family, table)| tracer.rules(*family, table)).collect();
    let mut connections = Vec::new();
    let read = ipvs_conn::read(&Filter::default(), &owners, |connection| {
        if collector.has(connection) {
            connections.push(connection.clone());
        }
    });
    if let Err(error) = read {
        notes.push(words::chain(&error));
    }
    let servers = servers(targets, &owners).map_err(|error| notes.push(words::chain(&error))).ok();
    TraceFacts { owners, connections, tracked: VecDeque::new(), servers, rules, interfaces: links::names() }
}

/// The virtual servers that exist, and how many real servers of each take new connections.
fn servers(targets: &[VsKey], owners: &ServiceOwners) -> anyhow::Result<HashMap<VsKey, usize>> {
    let mut servers = HashMap::new();
    for target in targets {
        let filter = Filter {
            target: Some(QueryTarget::Vip(target.addr, Some(target.port))),
            protocol: Some(target.protocol),
            ..Filter::default()
        };
        for (service, destinations) in IpvsTable::read(&filter, owners, false)?.servers {
            let ready = destinations.iter().filter(|destination| destination.weight > 0).count();
            servers.extend(vs_key(&service.id).map(|key| (key, ready)));
        }
    }
    Ok(servers)
}

/// Rules of iptables-legacy are not in nf_tables.
fn legacy_note(family: Family) -> Option<String> {
    let file = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    let tables = std::fs::read_to_string(file).unwrap_or_default();
    let tables: Vec<&str> = tables.split_whitespace().collect();
    let tables = (!tables.is_empty()).then(|| tables.join(", "))?;
    Some(format!("{family} rules of iptables-legacy are not seen by a trace (tables {tables})"))
}

/// The flag is set by a signal, so that the table is removed by every kernel and what was seen is printed.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("cannot handle signals")?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.wait().is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
    })?;
    Ok(stop)
}
