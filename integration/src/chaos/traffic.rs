// SPDX-License-Identifier: Apache-2.0
//! Clients that use established connections, open new ones, and send traffic that filters must drop.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;

use super::tally::Tally;
use super::world::all_vips;
use crate::lab::Netns;
use crate::lab::traffic::{Connection, UdpFlow, ask_tcp};

/// Limit for opening a connection and for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// As [`PATIENCE`], for one datagram.
const DATAGRAM: Duration = Duration::from_secs(2);
/// Number of datagrams lost in a row that is a failure.
const DATAGRAMS: usize = 3;
/// Number of open connections of a client.
const KEPT: usize = 3;
/// A connection ends after this number of requests on average.
const CHURN: u16 = 300;
/// A client opens one more short connection after this number of rounds on average.
const FRESH: u16 = 4;
/// Pause between rounds of a client.
const PAUSE: Duration = Duration::from_millis(40);
/// A port that no Service has.
pub const CLOSED: u16 = 2222;

/// State that all clients share.
#[derive(Debug)]
pub struct Stage {
    /// Counters.
    pub tally: Tally,
    /// Locked for writing during flushes by other programs and while endpoints die: failures of that time are
    /// not caused by the agent.
    pub gate: RwLock<()>,
    /// Number of flushes of virtual servers by other programs. With `expire_nodest_conn`, which kube-proxy sets, the
    /// kernel ends all connections with them.
    pub flushes: AtomicU64,
    /// Clients must stop.
    pub stop: AtomicBool,
}

impl Stage {
    fn runs(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    fn violated(&self, counter: &AtomicU64, what: String) {
        Tally::count(counter);
        self.tally.note(what);
    }
}

/// One client: connects to these addresses from its namespace.
#[derive(Debug)]
pub struct Client<'a> {
    /// Its name, for reports of failures.
    pub name: String,
    /// Its namespace.
    pub ns: &'a Netns,
    /// The node whose IPVS it uses.
    pub node: &'a Netns,
    /// The addresses that it connects to.
    pub tcp: Vec<SocketAddr>,
    /// The addresses that it sends datagrams to.
    pub udp: Vec<SocketAddr>,
}

/// An open connection or flow.
struct Kept<T> {
    link: T,
    to: SocketAddr,
    /// The endpoint that answers.
    endpoint: String,
    /// [`Stage::flushes`] when it was opened.
    flushes: u64,
    opened: Instant,
}

impl Client<'_> {
    /// Sends requests until the end of the run.
    pub fn run(&self, stage: &Stage, mut rng: Rng) {
        let (mut connections, mut flows) = (Vec::new(), Vec::new());
        while stage.runs() {
            if let Ok(_open) = stage.gate.read() {
                connections =
                    connections.into_iter().filter_map(|kept| self.ask(stage, kept, &mut rng)).collect();
                flows.retain_mut(|flow| self.ask_flow(stage, flow, &mut rng));
                if connections.len() < KEPT && !self.tcp.is_empty() {
                    connections.extend(self.open(stage, self.tcp[rng.usize(..self.tcp.len())]));
                }
                if rng.u16(..FRESH) == 0 && !self.tcp.is_empty() {
                    // A reset, so that the kernel removes the entry soon.
                    let fresh = self.open(stage, self.tcp[rng.usize(..self.tcp.len())]);
                    fresh.map(|kept| kept.link.abort());
                }
                if flows.is_empty() && !self.udp.is_empty() {
                    flows.extend(self.open_flow(stage, self.udp[rng.usize(..self.udp.len())]));
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn open(&self, stage: &Stage, to: SocketAddr) -> Option<Kept<Connection>> {
        let opened = Connection::open(self.ns, to, PATIENCE).and_then(|mut link| {
            let endpoint = link.ask()?.name;
            Ok(Kept { link, to, endpoint, flushes: stage.flushes(), opened: Instant::now() })
        });
        match opened {
            Ok(kept) => {
                Tally::count(&stage.tally.opened);
                Some(kept)
            }
            Err(error) => {
                stage.violated(&stage.tally.refused, format!("{}: TCP to {to}: {error}", self.name));
                None
            }
        }
    }

    /// Sends a request over a connection. Drops the connection if it broke or is old enough.
    fn ask(&self, stage: &Stage, mut kept: Kept<Connection>, rng: &mut Rng) -> Option<Kept<Connection>> {
        if rng.u16(..CHURN) == 0 {
            let _ = kept.link.abort();
            return None;
        }
        match kept.link.ask() {
            Ok(answer) if answer.name == kept.endpoint => {
                Tally::count(&stage.tally.asked);
                return Some(kept);
            }
            _ if !stage.tally.is_alive(&kept.endpoint) => Tally::count(&stage.tally.ended),
            _ if kept.flushes != stage.flushes() => Tally::count(&stage.tally.flushed),
            other => {
                let how =
                    other.map_or_else(|error| error.to_string(), |answer| format!("{} answers", answer.name));
                let what = format!(
                    "{}: connection to {} at {}: {how}, {:.1?} old; {}",
                    self.name,
                    kept.to,
                    kept.endpoint,
                    kept.opened.elapsed(),
                    self.entries(kept.link.local().map_or(0, |local| local.port()))
                );
                stage.violated(&stage.tally.broken, what);
            }
        }
        None
    }

    /// The entries of IPVS and conntrack for a client's port.
    fn entries(&self, port: u16) -> String {
        let read = |file: &str, pattern: &str| {
            let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
            text.lines()
                .filter(|line| line.contains(pattern))
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let found = self.node.enter(|| {
            (read("ip_vs_conn", &format!(" {port:04X} ")), read("nf_conntrack", &format!("sport={port} ")))
        });
        match found {
            Ok((ipvs, tracked)) => format!("port {port}; IPVS: {ipvs}; connection tracking: {tracked}"),
            Err(error) => format!("port {port}; {error:#}"),
        }
    }

    fn open_flow(&self, stage: &Stage, to: SocketAddr) -> Option<Kept<UdpFlow>> {
        let flow = UdpFlow::open(self.ns, to, DATAGRAM).ok()?;
        match answer(&flow) {
            Ok(endpoint) => {
                Tally::count(&stage.tally.opened);
                Some(Kept { link: flow, to, endpoint, flushes: stage.flushes(), opened: Instant::now() })
            }
            Err(error) => {
                stage.violated(&stage.tally.refused, format!("{}: UDP to {to}: {error}", self.name));
                None
            }
        }
    }

    /// Sends a request over a flow, whose endpoint may change. False: the flow has failed.
    fn ask_flow(&self, stage: &Stage, kept: &mut Kept<UdpFlow>, rng: &mut Rng) -> bool {
        if rng.u16(..CHURN) == 0 {
            return false;
        }
        match answer(&kept.link) {
            Ok(endpoint) => {
                Tally::count(&stage.tally.asked);
                kept.endpoint = endpoint;
                true
            }
            Err(error) => {
                let what = format!("{}: flow to {} at {}: {error}", self.name, kept.to, kept.endpoint);
                stage.violated(&stage.tally.broken, what);
                false
            }
        }
    }
}

/// The backend that answers one of a few datagrams.
fn answer(flow: &UdpFlow) -> Result<String, String> {
    let mut last = String::new();
    for _ in 0..DATAGRAMS {
        match flow.ask() {
            Ok(answer) => return Ok(answer.name),
            Err(error) => last = error.to_string(),
        }
        // The kernel drops what follows at once, too: an entry without its endpoint ends with the next tick.
        std::thread::sleep(PAUSE);
    }
    Err(last)
}

/// Sends datagrams to every address that Services ever have, at a port that none has. The node's firewall,
/// not this, counts what gets through.
///
/// # Errors
/// When there is no socket.
pub fn knock(ns: &Netns, v6: bool, stage: &Stage) -> Result<()> {
    let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
    let socket = ns.enter(|| UdpSocket::bind(any))?.context("socket")?;
    socket.set_nonblocking(true).context("socket")?;
    let vips = all_vips(v6);
    while stage.runs() {
        for some in vips.chunks(8) {
            for vip in some {
                // What is refused comes back as an error here; the packet after it goes out all the same.
                if socket.send_to(b"!", (*vip, CLOSED)).is_ok() {
                    Tally::count(&stage.tally.probes);
                }
            }
            std::thread::sleep(Duration::from_millis(8));
        }
    }
    Ok(())
}

/// Connects to a load balancer whose source ranges exclude this client.
pub fn trespass(ns: &Netns, vips: &[IpAddr], stage: &Stage) {
    while stage.runs() {
        for vip in vips {
            let Ok(_open) = stage.gate.read() else { return };
            let to = SocketAddr::new(*vip, 80);
            Tally::count(&stage.tally.probes);
            if let Ok(answer) = ask_tcp(ns, to, Duration::from_millis(100)) {
                let what = format!("{} answers {to}, whose source ranges leave the client out", answer.name);
                stage.violated(&stage.tally.unfiltered, what);
            }
        }
        std::thread::sleep(PAUSE);
    }
}
