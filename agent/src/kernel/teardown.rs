// SPDX-License-Identifier: Apache-2.0
//! Reads what is on a node and removes it piece by piece, also where the kernel lacks a part of what the
//! agent needs: what cannot be there needs no removal.

use std::time::Duration;

use anyhow::Context;
use dummy_iface::DummyDevice;
use ipvs_netlink as ipvs;
use ipvs_netlink::ErrorKind;

use super::iptables::Iptables;
use super::ipvs::{service_id, vs_key};
use super::netfilter::ipset::IpsetClient;
use super::netfilter::nfnetlink::{NfError, NfSocket};
use super::netfilter::nft_tables;
use crate::core::model::Family;
use crate::core::model::sets::SetId;
use crate::core::plan::cleanup_plan::{CleanupStep, Found};
use crate::core::plan::ownership::DEVICE;

/// A set is busy for a moment after the last rule over it went: the kernel frees rules late.
const TRIES: usize = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// The parts of the kernel that are there.
pub struct Teardown {
    ipvs: Option<ipvs::Client>,
    device: DummyDevice,
    sets: Option<IpsetClient>,
    iptables: Iptables,
    nft: NfSocket,
}

impl Teardown {
    /// Opens what the kernel has, in the current network namespace.
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
            Err(error @ NfError::NotPermitted) => return Err(error).context("ipset is not usable"),
            Err(_) => None,
        };
        Ok(Self {
            ipvs,
            device: DummyDevice::open(DEVICE).context("rtnetlink is not usable")?,
            sets,
            iptables: Iptables::default(),
            nft: NfSocket::open().context("netfilter is not usable")?,
        })
    }

    /// What is there, and what could not be read, in words.
    pub fn observe(&mut self, families: &[Family]) -> (Found, Vec<String>) {
        let (mut found, mut unreadable) = (Found::default(), Vec::new());
        if let Some(ipvs) = &mut self.ipvs {
            match ipvs.services() {
                Ok(services) => found.servers = services.iter().filter_map(|s| vs_key(&s.id)).collect(),
                Err(error) => unreadable.push(format!("virtual servers: {error}")),
            }
        }
        match self.device.state() {
            Ok(None) => {}
            Ok(Some(_)) => match self.device.list() {
                Ok(addresses) => found.bound = Some(addresses.into_iter().collect()),
                Err(error) => unreadable.push(format!("device {DEVICE}: {error}")),
            },
            Err(error) => unreadable.push(format!("device {DEVICE}: {error}")),
        }
        if let Some(sets) = &mut self.sets {
            match sets.list() {
                Ok(list) => found.sets = list,
                Err(error) => unreadable.push(format!("ipsets: {error}")),
            }
        }
        for family in families {
            match self.iptables.save(*family) {
                Ok(text) => found.rules.push((*family, text)),
                Err(error) => unreadable.push(format!("{family} rules: {error}")),
            }
        }
        match nft_tables::find(&mut self.nft) {
            Ok(tables) => found.nft_tables = tables,
            Err(error) => unreadable.push(format!("nftables: {error}")),
        }
        (found, unreadable)
    }

    /// Removes one thing. What is gone already is removed.
    ///
    /// # Errors
    /// Why it is still there.
    pub fn run(&mut self, step: &CleanupStep) -> Result<(), String> {
        match step {
            CleanupStep::Device(_) => self.device.remove().map(drop).map_err(|error| error.to_string()),
            CleanupStep::Server(vs) => match self.ipvs.as_mut().map(|ipvs| ipvs.del_service(&service_id(vs)))
            {
                None | Some(Ok(())) => Ok(()),
                Some(Err(ipvs::Error::Command(error))) if error.kind == ErrorKind::NoSuchService => Ok(()),
                Some(Err(error)) => Err(error.to_string()),
            },
            CleanupStep::Rules(family, removal) => {
                self.iptables.remove(*family, removal).map_err(|error| error.to_string())
            }
            CleanupStep::Set(set) => self.destroy(*set),
            CleanupStep::NftTable(family) => {
                nft_tables::remove(&mut self.nft, *family).map_err(|error| error.to_string())
            }
        }
    }

    fn destroy(&mut self, set: SetId) -> Result<(), String> {
        let Some(sets) = &mut self.sets else { return Ok(()) };
        let mut tries = 0;
        loop {
            match sets.destroy(set) {
                Err(_) if tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                result => return result,
            }
        }
    }
}
