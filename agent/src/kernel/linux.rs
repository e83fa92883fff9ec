// SPDX-License-Identifier: Apache-2.0
//! The real kernel: IPVS, the dummy device, ipsets, iptables and sysctls of the network namespace
//! that the process runs in. The translator on the kernel's side.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use dummy_iface::DummyDevice;
use ipvs_netlink as ipvs;
use ipvs_netlink::{Command, Destination, ErrorKind, Service, ServiceFlags, ServiceId};

use super::conntrack::ConntrackClient;
use super::ipset::IpsetClient;
use super::iptables::Iptables;
use super::nfnetlink::NfSocket;
use super::nft_watch::Children;
use super::reading::Reading;
use super::rules_reader::RulesReader;
use super::{Kernel, ObserveError, OpError, Runner, nft_tables, sysctl, table};
use crate::core::audit::{Piece, Step};
use crate::core::flows::FlowFilter;
use crate::core::map::Set;
use crate::core::model::{Family, Protocol, RsKey, VsKey, VsSpec};
use crate::core::observed::ObservedServer;
use crate::core::op::{Lane, LeftoversOp, Op};
use crate::core::ownership::DEVICE;
use crate::core::settings::Settings;
use crate::metrics::proxy::FlowCounter;

/// Up to so many virtual servers are asked one by one for their connections; more are read from the
/// kernel's table in one go.
const ASKED_ONE_BY_ONE: usize = 8;

/// What went to the kernel since the start, for tests that assert counts and for logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Datagrams sent to IPVS, to the set subsystem, and for addresses.
    pub sends: [u64; 3],
    /// Bytes in them.
    pub bytes: [u64; 3],
    /// IPVS commands sent.
    pub commands: u64,
    /// Dumps asked for, all subsystems.
    pub dumps: u64,
    /// Processes started.
    pub processes: u64,
    /// Readings of the whole table of virtual servers.
    pub tables: u64,
}

/// The real kernel.
pub struct LinuxKernel {
    pub(super) ipvs: ipvs::Client,
    pub(super) device: DummyDevice,
    pub(super) sets: IpsetClient,
    conntrack: ConntrackClient,
    pub(super) iptables: Iptables,
    pub(super) nft: NfSocket,
    pub(super) families: Vec<Family>,
    /// The programs of every one of `families` have worked once.
    pub(super) families_tried: bool,
    pub(super) rules: RulesReader,
    reading: Option<Reading>,
    /// The name of the scheduler that nearly all virtual servers have.
    pub(super) scheduler: Arc<str>,
    pub(super) sysctls: Vec<&'static str>,
    pub(super) tables: u64,
    /// Dumps over sockets that are closed by now.
    pub(super) lists: u64,
    flows: Option<FlowCounter>,
}

impl LinuxKernel {
    /// Opens everything in the current network namespace. Writes nothing, but the kernel may load
    /// the modules asked for.
    ///
    /// # Errors
    /// A missing module or privilege, with the remedy.
    pub fn open(settings: &Settings) -> anyhow::Result<Self> {
        Ok(Self {
            ipvs: ipvs::Client::open().context("IPVS is not usable")?,
            device: DummyDevice::open(DEVICE).context("rtnetlink is not usable")?,
            sets: IpsetClient::open().context("ipset is not usable")?,
            conntrack: ConntrackClient::open().context("connection tracking is not usable")?,
            iptables: Iptables::default(),
            nft: NfSocket::open().context("netfilter is not usable")?,
            families: settings.families.clone(),
            families_tried: false,
            rules: RulesReader::default(),
            reading: None,
            scheduler: settings.scheduler.clone(),
            lists: 0,
            sysctls: settings.sysctls.iter().map(|s| s.path).collect(),
            tables: 0,
            flows: None,
        })
    }

    /// Counts the stale flows that are forgotten.
    pub fn count_flows(&mut self, counter: FlowCounter) {
        self.flows = Some(counter);
    }

    /// The netlink port that address changes of ours carry.
    pub fn address_port(&self) -> u32 {
        self.device.port_number()
    }

    /// The processes that write rules for this agent.
    pub fn rule_writers(&self) -> Children {
        self.iptables.children()
    }

    /// Whether the kernel has the scheduler. Where no virtual server uses it yet, one is added at an
    /// address for documentation (RFC 5737) and removed again.
    ///
    /// # Errors
    /// Names the scheduler and the remedy.
    pub fn check_scheduler(&mut self, scheduler: &str) -> anyhow::Result<()> {
        const PROBE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), 20000);
        let services = self.ipvs.services().context("IPVS is not usable")?;
        let probe = ServiceId::tcp(PROBE);
        if services.iter().any(|s| s.scheduler == scheduler && s.id != probe) {
            return Ok(());
        }
        let added = self.ipvs.new_service(&Service::new(probe, scheduler));
        // An earlier probe may have been interrupted; either way nothing of it stays.
        let removed = self.ipvs.del_service(&probe);
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

    /// What went to the kernel so far.
    pub fn traffic(&self) -> Traffic {
        let (ipvs, sets, addresses) = (self.ipvs.counters(), self.sets.counters(), self.device.counters());
        Traffic {
            sends: [ipvs.sends, sets.sends, addresses.sends],
            bytes: [ipvs.bytes_sent, sets.bytes, addresses.bytes_sent],
            commands: ipvs.commands,
            dumps: ipvs.dumps + self.lists + sets.dumps + addresses.dumps + self.conntrack.counters().dumps,
            processes: self.iptables.started(),
            tables: self.tables,
        }
    }

    fn forget_flows(&mut self, filter: &FlowFilter) -> Result<(), OpError> {
        let start = Instant::now();
        let count = self.conntrack.forget(filter);
        let count = count.map_err(|error| OpError::plain(format!("connection tracking: {error}")))?;
        if let Some(counter) = &self.flows {
            counter.forgot(filter.family, start.elapsed(), count);
        }
        if count > 0 {
            tracing::info!(count, family = %filter.family, "forgot stale UDP flows");
        }
        Ok(())
    }

    fn remove_leftovers(&mut self, leftovers: &LeftoversOp) -> Result<(), String> {
        let family = leftovers.family;
        self.rules.forget();
        if !leftovers.removal.is_empty() {
            self.iptables.remove(family, &leftovers.removal)?;
            let (chains, rules) = leftovers.removal.count();
            tracing::info!(%family, chains, rules, "removed what another mode of kube-proxy left in iptables");
        }
        if leftovers.nft_table {
            nft_tables::remove(&mut self.nft, family)
                .map_err(|error| format!("table kube-proxy of nftables: {error}"))?;
            tracing::info!(%family, "removed the nftables table that kube-proxy left");
        }
        Ok(())
    }

    fn execute_one(&mut self, op: &Op) -> Result<(), OpError> {
        match op {
            Op::SetSysctl(sysctl) => sysctl::write(sysctl),
            Op::SetTimeouts(timeouts) => {
                let config = ipvs::Config { tcp: timeouts.tcp, tcp_fin: timeouts.tcp_fin, udp: timeouts.udp };
                self.ipvs.set_config(config).map_err(|e| OpError::plain(e.to_string()))
            }
            Op::ForgetFlows(flows) => self.forget_flows(&flows.filter),
            Op::RemoveLeftovers(leftovers) => self.remove_leftovers(leftovers).map_err(OpError::plain),
            Op::CreateDevice => self.device.ensure().map(drop).map_err(|e| OpError::plain(e.to_string())),
            other => Err(OpError::plain(format!("{other} is not executed one by one"))),
        }
    }
}

impl Kernel for LinuxKernel {
    fn read(&mut self, step: Step) -> Result<Option<Piece>, ObserveError> {
        let reading = match self.reading.take().filter(|_| step == Step::Next) {
            Some(reading) => reading,
            None => self.begin_reading(step)?,
        };
        let (piece, reading) = self.read_piece(reading)?;
        self.reading = Some(reading);
        Ok(piece)
    }

    fn look_up(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError> {
        servers.iter().map(|vs| self.look_up_one(vs)).collect()
    }

    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError> {
        let unreadable =
            |error: &dyn std::fmt::Display| ObserveError { what: "connections", message: error.to_string() };
        if servers.len() > ASKED_ONE_BY_ONE {
            self.tables += 1;
            return table::read_busy().map_err(|error| unreadable(&error));
        }
        let mut busy = Set::default();
        for vs in servers {
            let dests = self.ipvs.destinations(&service_id(vs)).map_err(|error| unreadable(&error))?;
            let with_connections = dests.iter().filter(|dest| has_connections(dest));
            busy.extend(with_connections.map(|dest| (*vs, RsKey { addr: dest.addr, port: dest.port })));
        }
        Ok(busy)
    }

    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>)) {
        let (ipvs, device) = (&mut self.ipvs, &mut self.device);
        work(&mut |ops| execute_ipvs(ipvs, ops), &mut |ops| execute_addresses(device, ops));
    }

    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<(), OpError>> {
        match ops.first().map(|op| op.lane()) {
            None => Vec::new(),
            Some(Lane::Ipvs) => execute_ipvs(&mut self.ipvs, ops),
            Some(Lane::Sets) => self.sets.execute(ops),
            Some(Lane::Addresses) => execute_addresses(&mut self.device, ops),
            Some(Lane::Rules) => {
                self.rules.forget();
                let rules =
                    ops.iter().filter_map(|op| if let Op::WriteRules(r) = op { Some(&**r) } else { None });
                self.iptables.write(&rules.collect::<Vec<_>>())
            }
            Some(Lane::Sysctl | Lane::Device | Lane::Conntrack | Lane::Leftovers) => {
                ops.iter().map(|op| self.execute_one(op)).collect()
            }
        }
    }
}

fn execute_ipvs(client: &mut ipvs::Client, ops: &[&Op]) -> Vec<Result<(), OpError>> {
    let commands: Vec<Command> = ops.iter().filter_map(|op| command(op)).collect();
    let mut results = vec![Ok(()); ops.len()];
    match client.batch(&commands) {
        Ok(report) => {
            for (index, error) in report.failures {
                results[index] = Err(ipvs_error(&error));
            }
        }
        Err(error) => results.fill(Err(OpError::doubt(error.to_string()))),
    }
    results
}

fn execute_addresses(device: &mut DummyDevice, ops: &[&Op]) -> Vec<Result<(), OpError>> {
    let bind: Vec<IpAddr> =
        ops.iter().filter_map(|op| if let Op::Bind(a) = op { Some(*a) } else { None }).collect();
    let failures = if bind.is_empty() {
        let unbind: Vec<_> =
            ops.iter().filter_map(|op| if let Op::Unbind(n) = op { Some(*n) } else { None }).collect();
        device.remove_addrs(&unbind)
    } else {
        device.add(&bind)
    };
    let mut results = vec![Ok(()); ops.len()];
    match failures {
        Ok(failures) => {
            for (index, error) in failures {
                results[index] = Err(OpError::doubt(error.to_string()));
            }
        }
        Err(error) => results.fill(Err(OpError::doubt(error.to_string()))),
    }
    results
}

/// Whether clients are connected, or were a moment ago.
fn has_connections(dest: &Destination) -> bool {
    dest.active_connections > 0 || dest.inactive_connections > 0
}

/// Our name of an IPVS service, if it can be one of ours.
pub fn vs_key(id: &ServiceId) -> Option<VsKey> {
    match id {
        ServiceId::Address { protocol, addr, port } => {
            let protocol = match protocol {
                ipvs::Protocol::Tcp => Protocol::Tcp,
                ipvs::Protocol::Udp => Protocol::Udp,
                ipvs::Protocol::Sctp => Protocol::Sctp,
                _ => return None,
            };
            Some(VsKey { protocol, addr: *addr, port: *port })
        }
        _ => None,
    }
}

/// The IPVS service of that name.
pub(super) fn service_id(key: &VsKey) -> ServiceId {
    let protocol = match key.protocol {
        Protocol::Tcp => ipvs::Protocol::Tcp,
        Protocol::Udp => ipvs::Protocol::Udp,
        Protocol::Sctp => ipvs::Protocol::Sctp,
    };
    ServiceId::Address { protocol, addr: key.addr, port: key.port }
}

fn service(key: &VsKey, spec: &VsSpec) -> Service {
    let mut service = Service::new(service_id(key), spec.scheduler.as_ref());
    service.flags = ServiceFlags::from_bits(spec.flags);
    service.timeout = spec.timeout;
    service
}

fn command(op: &Op) -> Option<Command> {
    let target = |rs: &RsKey| SocketAddr::new(rs.addr, rs.port);
    Some(match op {
        Op::AddVirtualServer(vs, spec) => Command::NewService(service(vs, spec)),
        Op::EditVirtualServer(vs, spec) => Command::SetService(service(vs, spec)),
        Op::RemoveVirtualServer(vs) => Command::DelService(service_id(vs)),
        Op::AddRealServer(vs, rs) => Command::NewDest(service_id(vs), Destination::new(target(rs))),
        Op::EditRealServer(vs, rs) => Command::SetDest(service_id(vs), Destination::new(target(rs))),
        Op::DrainRealServer(vs, rs) => {
            let mut draining = Destination::new(target(rs));
            draining.weight = 0;
            Command::SetDest(service_id(vs), draining)
        }
        Op::RemoveRealServer(vs, rs) => Command::DelDest(service_id(vs), target(rs)),
        _ => return None,
    })
}

/// Which answers mean that the mirror is wrong.
fn ipvs_error(error: &ipvs::CommandError) -> OpError {
    let doubt = matches!(
        error.kind,
        ErrorKind::ServiceExists
            | ErrorKind::NoSuchService
            | ErrorKind::DestinationExists
            | ErrorKind::NoSuchDestination
    );
    OpError { message: error.to_string(), doubt, degraded: false }
}
