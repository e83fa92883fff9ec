// SPDX-License-Identifier: Apache-2.0
//! Reads the real kernel in pieces.

use crate::core::plan::outcome::{Cause, ObserveError, OpError};
use std::net::IpAddr;
use std::path::Path;

use ipvs_netlink as ipvs;
use ipvs_netlink::{Client, Destination, ErrorKind, Service, ServiceList};

use super::host::name_servers::NamedHosts;
use super::host::{sockets, sysctl};
use super::ipvs::proc_ip_vs::{Shown, TableReader};
use super::ipvs::{service_id, vs_key};
use super::linux::{LinuxKernel, can_have_flags};
use super::netfilter::nft_tables;
use super::packet_filter::PacketFilter;
use crate::core::mirror::comparison::{Addresses, Audit, NftTables, NodeState, Piece, ReadStep};
use crate::core::mirror::{Observed, ObservedServer};
use crate::core::model::real_servers::{ConnectionLimits, RsState};
use crate::core::model::sets::SetId;
use crate::core::model::settings::Timeouts;
use crate::core::model::{PerFamily, RsKey, VsKey, VsSpec};
use crate::core::plan::subject::Part;
use crate::words;

/// Datagrams of the list of virtual servers in one piece, about 130 virtual servers each.
const LISTED: usize = 4;
/// Pages of `/proc/net/ip_vs` in one piece, about 10 virtual servers each.
const SHOWN: usize = 12;

/// Position of a reading.
#[derive(Debug)]
pub(super) enum ReadState {
    List,
    /// Uses a separate socket: a socket has one dump at a time, and commands are sent meanwhile.
    Listed(Box<(Client, ServiceList)>),
    Table,
    Shown(Box<TableReader>),
    /// Sets follow, to fill an empty mirror or to compare.
    BeginSets,
    /// Number of sets that have been read, and whether all of them could be.
    Sets(usize, bool),
    Addresses,
    Rest,
    End,
}

pub(super) fn failed(part: Part) -> impl Fn(&(dyn std::error::Error + 'static)) -> ObserveError {
    move |error| ObserveError { part, error: OpError::plain(Cause::Other, words::causes(error)) }
}

impl LinuxKernel {
    pub(super) fn begin_reading(&mut self, step: ReadStep) -> ReadState {
        self.fills = step == ReadStep::Fill;
        // The table shows everything except the flags, which only two schedulers have.
        if step == ReadStep::Compare && !self.hidden.has_flags {
            return ReadState::Table;
        }
        // The list tells it again.
        self.hidden.has_flags = false;
        ReadState::List
    }

    /// The next piece, and the position after it.
    pub(super) fn read_piece(
        &mut self,
        reading: ReadState,
    ) -> (Result<Option<Piece>, ObserveError>, ReadState) {
        match reading {
            ReadState::List => match self.open_list() {
                Ok(list) => self.read_piece(ReadState::Listed(list)),
                Err(error) => (Err(failed(Part::Ipvs)(&error)), ReadState::BeginSets),
            },
            ReadState::Listed(mut list) => match self.read_listed(&mut list) {
                Ok(Some(listed)) => (Ok(Some(Piece::Listed(listed))), ReadState::Listed(list)),
                Ok(None) => self.read_piece(ReadState::Table),
                Err(error) => (Err(failed(Part::Ipvs)(&error)), ReadState::BeginSets),
            },
            ReadState::Table => {
                self.tables += 1;
                match TableReader::open(self.scheduler.clone()) {
                    Ok(table) => self.read_piece(ReadState::Shown(Box::new(table))),
                    Err(error) => (Err(failed(Part::Ipvs)(&error)), ReadState::BeginSets),
                }
            }
            ReadState::Shown(mut table) => match table.next(SHOWN) {
                Ok(Some(shown)) => (Ok(Some(shown_piece(shown))), ReadState::Shown(table)),
                Ok(None) => self.read_piece(ReadState::BeginSets),
                Err(error) => (Err(failed(Part::Ipvs)(&error)), ReadState::BeginSets),
            },
            ReadState::BeginSets => match self.filter.begin_sets(self.fills) {
                true => self.read_piece(ReadState::Sets(0, true)),
                false => self.read_piece(ReadState::Addresses),
            },
            ReadState::Sets(n, complete) => match self.families.iter().flat_map(|f| SetId::all(*f)).nth(n) {
                Some(id) => {
                    let set = self.read_set(id).map(Some);
                    let complete = complete && set.is_ok();
                    (set, ReadState::Sets(n + 1, complete))
                }
                None => {
                    self.filter.end_sets(complete);
                    self.read_piece(ReadState::Addresses)
                }
            },
            ReadState::Addresses => (self.read_addresses().map(Some), ReadState::Rest),
            ReadState::Rest => (self.read_rest().map(Some), ReadState::End),
            ReadState::End => (Ok(None), ReadState::End),
        }
    }

    /// Tables of other modes. Only a table that certainly exists is removed.
    fn other_tables(&mut self) -> PerFamily<NftTables> {
        let mut found = nft_tables::find(&mut self.nft).unwrap_or_default();
        if matches!(self.filter, PacketFilter::Nftables { .. }) {
            found.iter_mut().for_each(|tables| tables.kube_ipvs = false);
        }
        found
    }

    fn open_list(&mut self) -> Result<Box<(Client, ServiceList)>, ipvs::Error> {
        self.lists += 1;
        let mut lister = Client::open()?;
        let list = lister.begin_services()?;
        Ok(Box::new((lister, list)))
    }

    pub(super) fn read_set(&mut self, id: SetId) -> Result<Piece, ObserveError> {
        Ok(Piece::Set(id, self.filter.get(id)?))
    }

    fn read_listed(
        &mut self,
        (lister, list): &mut (Client, ServiceList),
    ) -> Result<Option<Vec<(VsKey, VsSpec)>>, ipvs::Error> {
        let mut listed = None;
        for _ in 0..LISTED {
            let Some(services) = lister.more_services(list)? else { break };
            // A service by fwmark, or of a protocol that Services cannot have, belongs to another program.
            let ours = services.iter().filter_map(|service| Some((vs_key(&service.id)?, self.spec(service))));
            let listed = listed.get_or_insert_with(Vec::new);
            let before = listed.len();
            listed.extend(ours);
            self.hidden.has_flags |= listed[before..].iter().any(|(_, spec)| can_have_flags(spec));
        }
        Ok(listed)
    }

    fn spec(&self, service: &Service) -> VsSpec {
        let usual = *service.scheduler == *self.scheduler;
        VsSpec {
            scheduler: if usual { self.scheduler.clone() } else { service.scheduler.as_str().into() },
            flags: service.flags.without_hashed().bits(),
            timeout: service.timeout,
        }
    }

    pub(super) fn read_server(&mut self, vs: &VsKey) -> Result<Option<ObservedServer>, ObserveError> {
        let id = service_id(vs);
        let service = match self.ipvs.service(&id) {
            Ok(service) => service,
            Err(ipvs::Error::Command(error)) if error.kind == ErrorKind::NoSuchService => return Ok(None),
            Err(error) => return Err(failed(Part::Ipvs)(&error)),
        };
        let destinations = self.ipvs.destinations(&id).map_err(|error| failed(Part::Ipvs)(&error))?;
        self.hidden.has_limits |= destinations.iter().any(|dest| dest.upper_threshold > 0);
        let real_servers = destinations.iter().map(real_server).collect();
        Ok(Some(ObservedServer { spec: self.spec(&service), real_servers }))
    }

    /// Like [`Self::read_server`], for many servers: reads the list and the table once.
    pub(super) fn read_all_servers(
        &mut self,
        servers: &[VsKey],
    ) -> Result<Vec<Option<ObservedServer>>, ObserveError> {
        let ipvs = failed(Part::Ipvs);
        let mut list = self.open_list().map_err(|error| ipvs(&error))?;
        let mut audit = Audit::fill();
        let mut observed = Observed::default();
        while let Some(listed) = self.read_listed(&mut list).map_err(|error| ipvs(&error))? {
            audit.add(Piece::Listed(listed), &mut observed);
        }
        self.tables += 1;
        let mut table = TableReader::open(self.scheduler.clone()).map_err(|error| ipvs(&error))?;
        while let Some(shown) = table.next(SHOWN).map_err(|error| ipvs(&error))? {
            audit.add(shown_piece(shown), &mut observed);
        }
        // Virtual servers that differ between the list and the table.
        for key in audit.take_suspects(&observed) {
            let server = self.read_server(&key)?;
            audit.confirm(key, server, &mut observed);
        }
        Ok(servers.iter().map(|key| observed.virtual_servers.remove(key)).collect())
    }

    pub(super) fn read_addresses(&mut self) -> Result<Piece, ObserveError> {
        let all = self.device.addresses().map_err(|error| failed(Part::Addresses)(&error))?;
        Ok(Piece::Addresses(Addresses {
            device: all.own.is_some(),
            bound: all.own.unwrap_or_default().into_iter().collect(),
            elsewhere: node_addresses(all.elsewhere.iter().map(|a| a.addr.addr())),
        }))
    }

    pub(super) fn read_rest(&mut self) -> Result<Piece, ObserveError> {
        let NamedHosts { servers, routers } = NamedHosts::read(Path::new("/"));
        let routes = self.routes.read().map_err(|error| failed(Part::Node)(&error))?;
        let nft_tables = self.other_tables();
        let config = self.ipvs.config().map_err(|error| failed(Part::Node)(&error))?;
        Ok(Piece::Rest(NodeState {
            timeouts: Timeouts { tcp: config.tcp, tcp_fin: config.tcp_fin, udp: config.udp },
            sysctls: self.sysctls.iter().filter_map(|path| Some((*path, sysctl::read(path)?))).collect(),
            routes: routes.own,
            next_hops: routes.next_hops,
            lease_routers: routers,
            name_servers: servers,
            // Only used for Events.
            listeners: sockets::listeners().unwrap_or_default(),
            other_sets: self.filter.other_sets(&self.families, &nft_tables, &mut self.nft),
            nft_tables,
        }))
    }
}

fn shown_piece(shown: Vec<Shown>) -> Piece {
    Piece::Shown(shown.into_iter().map(|shown| (shown.key, shown.spec, shown.real_servers)).collect())
}

fn real_server(dest: &Destination) -> (RsKey, RsState) {
    let limits = ConnectionLimits { upper: dest.upper_threshold, lower: dest.lower_threshold };
    let state = RsState { weight: dest.weight, forward: dest.forward.into(), limits };
    (RsKey { addr: dest.addr, port: dest.port }, state)
}

/// Sorts and deduplicates the addresses, without loopback.
fn node_addresses(all: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = all.filter(|ip| !ip.is_loopback()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_addresses_exclude_loopback() {
        let all =
            ["fe80::1", "10.0.0.2", "::1", "127.0.0.1", "10.0.0.1", "fd00::1", "169.254.1.1", "10.0.0.1"];
        let got = node_addresses(all.iter().map(|a| a.parse().unwrap()));
        let got: Vec<String> = got.iter().map(ToString::to_string).collect();
        assert_eq!(got, ["10.0.0.1", "10.0.0.2", "169.254.1.1", "fd00::1", "fe80::1"]);
    }
}
