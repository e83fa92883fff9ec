// SPDX-License-Identifier: Apache-2.0
//! Reads what kube-proxy or an agent left on a node and removes it step by step. Works also on a kernel that lacks
//! IPVS or ipset: there is nothing to remove then.

use std::time::Duration;

use anyhow::Context;
use dummy_iface::DummyDevice;
use ipvs_netlink as ipvs;
use ipvs_netlink::ErrorKind;
use netlink_batch::Error as Netlink;
use nftables_netlink::{Command, CommitError, Scope};

use super::host::routes::Routes;
use super::iptables::Iptables;
use super::ipvs::{service_id, vs_key};
use super::netfilter::ipset::{IpsetClient, IpsetError};
use super::netfilter::nft_tables::{self, nft_family};
use super::nftables::{read_set, removal_commands, save_text};
use crate::core::mirror::ObservedSet;
use crate::core::model::Family;
use crate::core::model::map::Map;
use crate::core::model::sets::SetId;
use crate::core::plan::cleanup_plan::{CleanupStep, Found};
use crate::core::plan::outcome::{Cause, OpError};
use crate::core::plan::ownership::DEVICE;
use crate::core::rules::nftables::{SERVICES, TABLE};
use crate::words::causes;

/// How long an ipset may be in use after the last rule that uses it is removed.
const DESTROY: Duration = Duration::from_secs(2);

/// Clients of the kernel; `None`: the kernel lacks the subsystem.
pub struct Teardown {
    ipvs: Option<ipvs::Client>,
    device: DummyDevice,
    routes: Routes,
    sets: Option<IpsetClient>,
    iptables: Iptables,
    /// Rules of iptables are read and removed in nf_tables.
    without_programs: bool,
    nft: nftables_netlink::Client,
}

impl Teardown {
    /// Opens the sockets in the current network namespace.
    ///
    /// # Errors
    /// When the process lacks a privilege.
    pub fn open() -> anyhow::Result<Self> {
        let ipvs = match ipvs::Client::open() {
            Err(ipvs::Error::FamilyMissing) => None,
            client => Some(client.context("IPVS is not usable")?),
        };
        let sets = match IpsetClient::open() {
            Ok(client) => Some(client),
            Err(error @ IpsetError::Netlink(Netlink::NotPermitted)) => {
                return Err(error).context("ipset is not usable");
            }
            Err(_) => None,
        };
        Ok(Self {
            ipvs,
            device: DummyDevice::open(DEVICE).context("rtnetlink is not usable")?,
            routes: Routes::open().context("rtnetlink is not usable")?,
            sets,
            iptables: Iptables::default(),
            without_programs: false,
            nft: nftables_netlink::Client::open().context("netfilter is not usable")?,
        })
    }

    /// What was found, and a message for each part that could not be read.
    pub fn observe(&mut self, families: &[Family]) -> (Found, Vec<String>) {
        let (mut found, mut unreadable) = (Found::default(), Vec::new());
        if let Some(ipvs) = &mut self.ipvs {
            match ipvs.services() {
                Ok(services) => found.servers = services.iter().filter_map(|s| vs_key(&s.id)).collect(),
                Err(error) => unreadable.push(format!("virtual servers: {}", causes(&error))),
            }
        }
        match self.device.state() {
            Ok(None) => {}
            Ok(Some(_)) => match self.device.addresses() {
                Ok(addresses) => found.bound = addresses.own.map(|own| own.into_iter().collect()),
                Err(error) => unreadable.push(format!("device {DEVICE}: {}", causes(&error))),
            },
            Err(error) => unreadable.push(format!("device {DEVICE}: {}", causes(&error))),
        }
        match self.routes.read() {
            Ok(routes) => found.routes = routes.own,
            Err(error) => unreadable.push(format!("routes: {}", causes(&error))),
        }
        if let Some(sets) = &mut self.sets {
            match sets.list() {
                Ok(list) => found.sets = list,
                Err(error) => unreadable.push(format!("ipsets: {}", causes(&error))),
            }
        }
        for family in families {
            match self.save(*family) {
                Ok(text) => found.rules.push((*family, text)),
                Err(error) => unreadable.push(format!("{family} rules: {error}")),
            }
        }
        match nft_tables::find(&mut self.nft) {
            Ok(tables) => found.nft_tables = tables,
            Err(error) => unreadable.push(format!("nftables: {}", causes(&error))),
        }
        match self.nft_sets(families, &found) {
            Ok(sets) => found.nft_sets = sets,
            Err(error) => unreadable.push(format!("nftables sets: {error}")),
        }
        (found, unreadable)
    }

    /// Removes one object. An object that does not exist counts as removed.
    ///
    /// # Errors
    /// Why it could not be removed.
    pub fn run(&mut self, step: &CleanupStep) -> Result<(), String> {
        match step {
            CleanupStep::NftServices(family) => {
                let (table, chain) = (TABLE.to_owned(), SERVICES.to_owned());
                let flush = Command::FlushChain { family: nft_family(*family), table, chain };
                match self.nft.commit(&[flush].into_iter().collect()) {
                    // An incomplete table has no such chain.
                    Err(CommitError::Refused { .. }) | Ok(()) => Ok(()),
                    Err(error) => Err(causes(&error)),
                }
            }
            CleanupStep::Device(_) => self.device.delete().map(drop).map_err(|error| causes(&error)),
            CleanupStep::Route(net) => self.routes.remove(*net).map_err(|error| causes(&error)),
            CleanupStep::Server(vs) => match self.ipvs.as_mut().map(|ipvs| ipvs.del_service(&service_id(vs)))
            {
                None | Some(Ok(())) => Ok(()),
                Some(Err(ipvs::Error::Command(error))) if error.kind == ErrorKind::NoSuchService => Ok(()),
                Some(Err(error)) => Err(causes(&error)),
            },
            CleanupStep::Rules(family, removal) if self.without_programs => {
                let commands = removal_commands(*family, removal).into_iter();
                self.nft.commit(&commands.collect()).map_err(|error| causes(&error))
            }
            CleanupStep::Rules(family, removal) => {
                self.iptables.remove(*family, removal).map_err(|error| error.to_string())
            }
            CleanupStep::Set(set) => {
                self.sets.as_mut().map_or(Ok(()), |sets| sets.destroy_soon(*set, DESTROY))
            }
            CleanupStep::NftTable(family, table) => {
                nft_tables::remove(&mut self.nft, *family, table).map_err(|error| causes(&error))
            }
        }
    }

    /// The rules of iptables. Where its programs are not installed or do not work, those in nf_tables.
    fn save(&mut self, family: Family) -> Result<String, OpError> {
        match self.iptables.save(family) {
            Err(error) if matches!(error.cause, Cause::ProgramMissing | Cause::NotSupported) => {
                self.without_programs = true;
                let scope = Scope::Family(nft_family(family));
                let chains = match self.nft.chains(scope) {
                    // The kernel has no nf_tables.
                    Err(nftables_netlink::Error::Refused(_)) => return Ok(String::new()),
                    chains => chains,
                };
                let text = chains.and_then(|chains| save_text(&mut self.nft, family, &chains));
                text.map_err(|error| OpError::plain(Cause::Other, causes(&error)))
            }
            saved => saved,
        }
    }

    fn nft_sets(
        &mut self,
        families: &[Family],
        found: &Found,
    ) -> Result<Map<SetId, ObservedSet>, nftables_netlink::Error> {
        let mut sets = Map::default();
        for family in families.iter().filter(|family| found.nft_tables[**family].kube_ipvs) {
            for id in SetId::all(*family) {
                if let Some(set) = read_set(&mut self.nft, id)? {
                    sets.insert(id, set);
                }
            }
        }
        Ok(sets)
    }
}
