// SPDX-License-Identifier: Apache-2.0
//! The real kernel: IPVS, the dummy device, sets, rules and sysctls of the network namespace of the
//! process.

use crate::core::plan::outcome::{Cause, ObserveError, OpError, Progress};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use dummy_iface::{DummyDevice, Watch};
use ipvs_netlink as ipvs;
use ipvs_netlink::{Command, Destination, ErrorKind, Service, ServiceFlags, ServiceId};
use netlink_batch::Error as Netlink;

use super::errors::{address_error, client_error, device_error, ipvs_error, route_error};
use super::host::routes::Routes;
use super::host::sysctl;
use super::iptables::worker::Wake;
use super::ipvs::{proc_ip_vs, service_id};
use super::netfilter::conntrack::ConntrackClient;
use super::netfilter::nft_watch::OwnPorts;
use super::packet_filter::PacketFilter;
use super::reading::{ReadState, failed};
use super::{Kernel, ProbeResult, Runner};
use crate::core::mirror::ObservedServer;
use crate::core::mirror::comparison::{Piece, ReadStep};
use crate::core::model::flows::FlowFilter;
use crate::core::model::map::{Map, Set};
use crate::core::model::options::{FLAGGED, SCHED_FLAGS};
use crate::core::model::real_servers::{ConnectionLimits, RsState};
use crate::core::model::sets::ProbedSet;
use crate::core::model::settings::{ACCEPT_LOCAL, Settings};
use crate::core::model::{Family, RsKey, VsKey, VsSpec};
use crate::core::plan::op::{Op, Subsystem};
use crate::core::plan::outcome::Finished;
use crate::core::plan::ownership::DEVICE;
use crate::core::plan::subject::Part;
use crate::words;

/// Connections of at most this many virtual servers are read one by one; for more, `/proc/net/ip_vs` is read
/// once, and those that it does not show one by one.
const MAX_BUSY_QUERIES: usize = 8;
/// At most this many virtual servers are read one by one; for more, all virtual servers are read.
const MAX_SERVER_QUERIES: usize = 256;

/// The virtual server that schedulers are tried with, at a documentation address (RFC 5737).
const TRIED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), 20000);

/// Traffic with the kernel since the start, for tests that assert counts and for logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// Datagrams sent to IPVS, to ipset or nf_tables, and to rtnetlink.
    pub sends: [u64; 3],
    /// Bytes in them.
    pub bytes: [u64; 3],
    /// IPVS commands sent.
    pub commands: u64,
    /// Dumps requested, in all subsystems.
    pub dumps: u64,
    /// Processes started.
    pub processes: u64,
    /// Readings of the whole table of virtual servers.
    pub tables: u64,
}

/// Receives the family, the duration and the number of deleted flows of each search for stale flows.
pub type FlowObserver = Box<dyn Fn(Family, Duration, u64) + Send>;

/// The real kernel.
pub struct LinuxKernel {
    pub(super) ipvs: ipvs::Client,
    pub(super) device: DummyDevice,
    pub(super) filter: PacketFilter,
    conntrack: ConntrackClient,
    pub(super) nft: nftables_netlink::Client,
    pub(super) routes: Routes,
    pub(super) families: Vec<Family>,
    reading: ReadState,
    /// The reading fills an empty mirror.
    pub(super) fills: bool,
    /// The configured scheduler: virtual servers that have it share this string.
    pub(super) scheduler: Arc<str>,
    pub(super) hidden: Hidden,
    pub(super) sysctls: Vec<&'static str>,
    pub(super) tables: u64,
    /// Dumps over sockets that are closed now.
    pub(super) lists: u64,
    flows: Option<FlowObserver>,
}

impl LinuxKernel {
    /// Opens all sockets in the current network namespace. Writes nothing, but the kernel may load modules.
    ///
    /// # Errors
    /// A missing module or privilege, with the remedy.
    pub fn open(settings: &Settings) -> anyhow::Result<Self> {
        Ok(Self {
            ipvs: ipvs::Client::open().context("IPVS is not usable")?,
            device: DummyDevice::open(DEVICE).context("rtnetlink is not usable")?,
            filter: PacketFilter::open(settings)?,
            conntrack: ConntrackClient::open().context("connection tracking is not usable")?,
            nft: nftables_netlink::Client::open().context("netfilter is not usable")?,
            routes: Routes::open().context("rtnetlink is not usable")?,
            families: settings.families.clone(),
            reading: ReadState::End,
            fills: false,
            scheduler: settings.scheduler.clone(),
            hidden: Hidden::default(),
            lists: 0,
            sysctls: settings.sysctls.iter().map(|s| s.path).chain([ACCEPT_LOCAL]).collect(),
            tables: 0,
            flows: None,
        })
    }

    /// Calls `wake` whenever a program has ended.
    pub fn wake(&mut self, wake: Wake) {
        self.filter.wake(wake);
    }

    /// Reports each search for stale flows to `observer`.
    pub fn observe_flows(&mut self, observer: FlowObserver) {
        self.flows = Some(observer);
    }

    /// Watches the addresses of the device. Changes that this kernel made itself are ignored where that is known.
    ///
    /// # Errors
    /// When the process cannot subscribe to changes of addresses.
    pub fn watch_addresses(&self) -> Result<Watch, dummy_iface::Error> {
        self.device.watch()
    }

    /// The netlink ports that write rules for this agent.
    pub fn rule_writers(&self) -> OwnPorts {
        self.filter.own_ports()
    }

    /// Checks that the kernel has the scheduler. If no virtual server uses it yet, a virtual server at a
    /// documentation address (RFC 5737) is added and removed again.
    ///
    /// # Errors
    /// When the kernel does not have the scheduler, with the remedy.
    pub fn check_scheduler(&mut self, scheduler: &str) -> anyhow::Result<()> {
        let services = self.ipvs.services().context("IPVS is not usable")?;
        if services.iter().any(|s| s.scheduler == scheduler && s.id != ServiceId::tcp(TRIED)) {
            return Ok(());
        }
        let (added, removed) = self.try_scheduler(scheduler);
        match added {
            Err(ipvs::Error::Command(error)) if error.kind == ErrorKind::NoSuchScheduler => anyhow::bail!(
                "ipvs.scheduler: the kernel does not know {scheduler:?}: check its spelling, or load its module \
                 (`modprobe ip_vs_{scheduler}`)"
            ),
            Err(ipvs::Error::Command(error)) if error.kind == ErrorKind::ServiceExists => {}
            other => other.context("cannot try the scheduler")?,
        }
        removed.context("cannot remove the virtual server that the scheduler was tried with")
    }

    /// Adds a virtual server with the scheduler, and removes it: an interrupted try may have left it.
    fn try_scheduler(&mut self, scheduler: &str) -> (Result<(), ipvs::Error>, Result<(), ipvs::Error>) {
        let id = ServiceId::tcp(TRIED);
        let added = self.ipvs.new_service(&Service::new(id, scheduler));
        (added, self.ipvs.del_service(&id))
    }

    /// Traffic with the kernel so far.
    pub fn traffic(&self) -> KernelCounters {
        let (ipvs, sets, addresses) = (self.ipvs.counters(), self.filter.counters(), self.device.counters());
        let (routes, flows) = (self.routes.counters(), self.conntrack.counters());
        KernelCounters {
            sends: [ipvs.sends, sets.sends, addresses.sends + routes.sends],
            bytes: [ipvs.bytes_sent, sets.bytes_sent, addresses.bytes_sent + routes.bytes_sent],
            commands: ipvs.commands,
            dumps: ipvs.dumps + self.lists + sets.dumps + addresses.dumps + routes.dumps + flows.dumps,
            processes: self.filter.started(),
            tables: self.tables,
        }
    }

    fn forget_flows(&mut self, filter: &FlowFilter) -> Result<(), OpError> {
        let start = Instant::now();
        let count = self.conntrack.forget(filter);
        let count = count.map_err(|error| OpError::plain(Cause::Other, words::causes(&error)))?;
        if let Some(observe) = &self.flows {
            observe(filter.family, start.elapsed(), count);
        }
        if count > 0 {
            tracing::info!(count, family = %filter.family, "deleted stale UDP flows");
        }
        Ok(())
    }

    fn execute_one(&mut self, op: &Op) -> Result<Progress, OpError> {
        let done = match op {
            Op::SetSysctl(sysctl) => sysctl::write(sysctl),
            Op::SetTimeouts(timeouts) => {
                let config = ipvs::Config { tcp: timeouts.tcp, tcp_fin: timeouts.tcp_fin, udp: timeouts.udp };
                self.ipvs.set_config(config).map_err(|error| client_error(&error))
            }
            Op::ForgetFlows(flows) => self.forget_flows(&flows.filter),
            Op::CreateDevice => self.device.create().map(drop).map_err(|error| device_error(&error)),
            Op::WriteRules(_) | Op::RemoveLeftovers(_) => return self.filter.execute_rules(op),
            Op::AddVirtualServer(..)
            | Op::EditVirtualServer(..)
            | Op::RemoveVirtualServer(_)
            | Op::AddRealServer(..)
            | Op::EditRealServer(..)
            | Op::DrainRealServer(..)
            | Op::RemoveRealServer(..) => return execute_ipvs(&mut self.ipvs, &[op]).swap_remove(0),
            Op::DestroySet(_)
            | Op::CreateSet(_)
            | Op::GrowSet(_)
            | Op::AddEntry(..)
            | Op::RemoveEntry(..) => return self.filter.execute_sets(&[op]).swap_remove(0),
            Op::AddRoute(net) => self.routes.add(*net).map_err(|error| route_error(&error)),
            Op::RemoveRoute(net) => self.routes.remove(*net).map_err(|error| route_error(&error)),
            Op::Bind(_) | Op::Unbind(_) => return execute_addresses(&mut self.device, &[op]).swap_remove(0),
        };
        done.map(|()| Progress::Done)
    }
}

impl Kernel for LinuxKernel {
    fn read(&mut self, step: ReadStep) -> Result<Option<Piece>, ObserveError> {
        if step != ReadStep::Next {
            self.reading = self.begin_reading(step);
        }
        let reading = std::mem::replace(&mut self.reading, ReadState::End);
        let (piece, next) = self.read_piece(reading);
        self.reading = next;
        piece
    }

    fn read_part(&mut self, part: Part) -> Result<Piece, ObserveError> {
        match part {
            Part::Set(id) => self.read_set(id),
            Part::Addresses => self.read_addresses(),
            Part::Node => self.read_rest(),
            Part::Ipvs | Part::Rules(_) => {
                Err(ObserveError { part, error: OpError::plain(Cause::Other, "cannot be read as one piece") })
            }
        }
    }

    fn sets_are_known(&mut self) -> bool {
        self.filter.sets_are_known()
    }

    fn read_rules(&mut self, families: &[Family], afresh: bool) {
        self.filter.read_rules(families, &mut self.nft, afresh);
    }

    fn finished(&mut self, limit: Duration) -> Vec<Finished> {
        self.filter.finished(limit)
    }

    fn probe(&mut self, servers: &[VsKey], sets: &[ProbedSet]) -> ProbeResult {
        let exists = |vs: &VsKey| match self.ipvs.service(&service_id(vs)) {
            Ok(_) => Ok(true),
            Err(ipvs::Error::Command(error)) if error.kind == ErrorKind::NoSuchService => Ok(false),
            Err(error) => {
                Err((failed(Part::Ipvs)(&error), matches!(error, ipvs::Error::Netlink(Netlink::Timeout))))
            }
        };
        let servers = query_each(servers, exists);
        let sets = self.filter.have(sets);
        ProbeResult { servers, sets }
    }

    fn has_scheduler(&mut self, name: &str) -> bool {
        self.try_scheduler(name).0.is_ok()
    }

    fn read_servers(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError> {
        // The table has no limits.
        if servers.len() > MAX_SERVER_QUERIES && !self.hidden.has_limits {
            return self.read_all_servers(servers);
        }
        servers.iter().map(|vs| self.read_server(vs)).collect()
    }

    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError> {
        let shown = if servers.len() > MAX_BUSY_QUERIES {
            self.tables += 1;
            proc_ip_vs::read_busy().map_err(|error| failed(Part::Ipvs)(&error))?
        } else {
            Map::default()
        };
        let mut busy = Set::default();
        for vs in servers {
            if let Some(real_servers) = shown.get(vs) {
                busy.extend(real_servers.iter().map(|rs| (*vs, *rs)));
                continue;
            }
            // The table may lack it: then its connections are not known yet.
            let dests = self.ipvs.destinations(&service_id(vs));
            let dests = dests.map_err(|error| failed(Part::Ipvs)(&error))?;
            let with_connections = dests.iter().filter(|dest| has_connections(dest));
            busy.extend(with_connections.map(|dest| (*vs, RsKey { addr: dest.addr, port: dest.port })));
        }
        Ok(busy)
    }

    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>)) {
        let Self { ipvs, device, hidden, .. } = self;
        let mut run_ipvs = |ops: &[&Op]| {
            hidden.note(ops);
            execute_ipvs(ipvs, ops)
        };
        work(&mut run_ipvs, &mut |ops| execute_addresses(device, ops));
    }

    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        match ops.first().map(|op| op.subsystem()) {
            None => Vec::new(),
            Some(Subsystem::Ipvs) => {
                self.hidden.note(ops);
                execute_ipvs(&mut self.ipvs, ops)
            }
            Some(Subsystem::Sets) => self.filter.execute_sets(ops),
            Some(Subsystem::Addresses) => execute_addresses(&mut self.device, ops),
            Some(
                Subsystem::Sysctl
                | Subsystem::Device
                | Subsystem::Routes
                | Subsystem::Conntrack
                | Subsystem::Rules
                | Subsystem::Leftovers,
            ) => ops.iter().map(|op| self.execute_one(op)).collect(),
        }
    }
}

/// Runs one query for each item. After a timeout, which the second part of an error indicates, the remaining items
/// get the same error without a query: the loop waits for one timeout at most.
fn query_each<T, A>(
    items: &[T],
    mut query: impl FnMut(&T) -> Result<A, (ObserveError, bool)>,
) -> Vec<Result<A, ObserveError>> {
    let mut timeout: Option<ObserveError> = None;
    let query_one = |item: &T| match &timeout {
        Some(error) => Err(error.clone()),
        None => query(item).map_err(|(error, timed_out)| {
            timeout = timed_out.then(|| error.clone());
            error
        }),
    };
    items.iter().map(query_one).collect()
}

/// Whether the virtual server has flags of a scheduler, or a scheduler that another program can give flags to.
pub(super) fn can_have_flags(spec: &VsSpec) -> bool {
    spec.flags & SCHED_FLAGS != 0 || FLAGGED.contains(&&*spec.scheduler)
}

/// What exists that `/proc/net/ip_vs` does not show.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hidden {
    /// Some virtual server can have flags of a scheduler, which only the list has.
    pub has_flags: bool,
    /// Some real server was given limits of connections.
    pub has_limits: bool,
}

impl Hidden {
    fn note(&mut self, ops: &[&Op]) {
        let unlimited = ConnectionLimits::default();
        for op in ops {
            match op {
                Op::AddVirtualServer(_, spec) | Op::EditVirtualServer(_, spec) => {
                    self.has_flags |= can_have_flags(spec);
                }
                Op::AddRealServer(.., state) | Op::EditRealServer(.., state) => {
                    self.has_limits |= state.limits != unlimited;
                }
                _ => {}
            }
        }
    }
}

fn execute_ipvs(client: &mut ipvs::Client, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
    let mut results = vec![Ok(Progress::Done); ops.len()];
    match client.batch(ops.iter().filter_map(|op| command(op))) {
        Ok(report) => {
            for (index, error) in report.failures {
                results[index] = Err(ipvs_error(ops[index], &error));
            }
        }
        Err(error) => results.fill(Err(client_error(&error))),
    }
    results
}

fn execute_addresses(device: &mut DummyDevice, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
    let bind: Vec<IpAddr> =
        ops.iter().filter_map(|op| if let Op::Bind(a) = op { Some(*a) } else { None }).collect();
    let failures = if bind.is_empty() {
        let unbind: Vec<_> =
            ops.iter().filter_map(|op| if let Op::Unbind(n) = op { Some(*n) } else { None }).collect();
        device.delete_addresses(&unbind)
    } else {
        device.add_addresses(&bind)
    };
    let mut results = vec![Ok(Progress::Done); ops.len()];
    match failures {
        Ok(failures) => {
            for (index, error) in failures {
                results[index] = Err(address_error(&error));
            }
        }
        Err(error) => results.fill(Err(device_error(&error))),
    }
    results
}

fn has_connections(dest: &Destination) -> bool {
    dest.active_connections > 0 || dest.inactive_connections > 0
}

fn service(key: &VsKey, spec: &VsSpec) -> Service {
    let mut service = Service::new(service_id(key), spec.scheduler.as_ref());
    service.flags = ServiceFlags::from_bits(spec.flags);
    service.timeout = spec.timeout;
    service
}

fn destination(rs: &RsKey, state: RsState) -> Destination {
    let mut destination = Destination::new(SocketAddr::new(rs.addr, rs.port));
    destination.weight = state.weight;
    destination.forward = state.forward.into();
    (destination.upper_threshold, destination.lower_threshold) = (state.limits.upper, state.limits.lower);
    destination
}

fn command(op: &Op) -> Option<Command> {
    Some(match op {
        Op::AddVirtualServer(vs, spec) => Command::NewService(service(vs, spec)),
        Op::EditVirtualServer(vs, spec) => Command::SetService(service(vs, spec)),
        Op::RemoveVirtualServer(vs) => Command::DelService(service_id(vs)),
        Op::AddRealServer(vs, rs, state) => Command::NewDest(service_id(vs), destination(rs, *state)),
        Op::EditRealServer(vs, rs, state) => Command::SetDest(service_id(vs), destination(rs, *state)),
        Op::DrainRealServer(vs, rs) => Command::SetDest(service_id(vs), destination(rs, RsState::DRAINING)),
        Op::RemoveRealServer(vs, rs) => Command::DelDest(service_id(vs), SocketAddr::new(rs.addr, rs.port)),
        Op::SetSysctl(_)
        | Op::SetTimeouts(_)
        | Op::CreateDevice
        | Op::DestroySet(_)
        | Op::CreateSet(_)
        | Op::GrowSet(_)
        | Op::AddEntry(..)
        | Op::RemoveEntry(..)
        | Op::WriteRules(_)
        | Op::RemoveLeftovers(_)
        | Op::ForgetFlows(_)
        | Op::Bind(_)
        | Op::Unbind(_)
        | Op::AddRoute(_)
        | Op::RemoveRoute(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(why: &str) -> ObserveError {
        ObserveError { part: Part::Ipvs, error: OpError::plain(Cause::Other, why) }
    }

    #[test]
    fn a_refused_query_affects_one_item_and_a_timeout_ends_the_queries() {
        let mut queries = 0;
        let mut query = |answer: &Option<bool>| {
            queries += 1;
            answer.ok_or_else(|| (failure("refused"), false))
        };
        let refused = || Err(failure("refused"));
        assert_eq!(
            query_each(&[Some(true), None, Some(false)], &mut query),
            [Ok(true), refused(), Ok(false)]
        );
        assert_eq!(queries, 3);
        let mut queries = 0;
        let silent = |_: &u8| -> Result<bool, _> {
            queries += 1;
            Err((failure("no answer"), true))
        };
        assert!(query_each(&[1, 2, 3], silent).iter().all(Result::is_err));
        assert_eq!(queries, 1);
    }
}
