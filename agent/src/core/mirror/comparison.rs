// SPDX-License-Identifier: Apache-2.0
//! The mirror against a fresh reading of the kernel, piece by piece.
//!
//! Each piece is compared when it is read, with the mirror of that moment, so what is changed between two
//! pieces is no difference. A list of virtual servers that is read little by little may miss some or show
//! them as they were: what it says against the mirror is a suspicion, and the suspects are asked one by
//! one at the end.

use crate::core::model::PerFamily;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Observed, ObservedServer, ObservedSet, OpenPort, RealServers};
use crate::core::model::changes::Changes;
use crate::core::model::map::Set;
use crate::core::model::members::Members;
use crate::core::model::sets::SetId;
use crate::core::model::settings::Timeouts;
use crate::core::model::{VsKey, VsSpec};

/// A part of what the kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Virtual servers and how they balance. A reading for an empty mirror has every virtual server in one
    /// piece of this kind, and in one of the next.
    Listed(Vec<(VsKey, VsSpec)>),
    /// Virtual servers with what is seen of how they balance, see [`VsSpec::looks_like`], and their real
    /// servers.
    Shown(Vec<(VsKey, VsSpec, RealServers)>),
    /// One of our sets; `None`: it does not exist.
    Set(SetId, Option<ObservedSet>),
    /// The device with its addresses.
    Addresses(Addresses),
    /// What is small.
    Rest(NodeState),
}

/// What to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStep {
    /// The first piece, for a mirror that is empty.
    Fill,
    /// The first piece, to compare it with a mirror.
    Compare,
    /// The piece after the last one.
    Next,
}

/// Addresses of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Whether `kube-ipvs0` exists.
    pub device: bool,
    /// The addresses on it.
    pub bound: Set<IpNet>,
    /// Addresses on all other links, without loopback, sorted.
    pub elsewhere: Vec<IpAddr>,
}

/// Everything that no other piece has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// IPVS timeouts.
    pub timeouts: Timeouts,
    /// Current values of the sysctls asked for.
    pub sysctls: BTreeMap<&'static str, i64>,
    /// Next hops of all routes, sorted.
    pub next_hops: Vec<IpAddr>,
    /// Routers that DHCP leases name.
    pub lease_routers: Vec<IpAddr>,
    /// DNS and DHCP servers that the node's files name.
    pub name_servers: Vec<IpAddr>,
    /// Where programs of the node listen, sorted.
    pub listeners: Vec<OpenPort>,
    /// Whether the table of kube-proxy's nftables mode exists.
    pub nft_tables: PerFamily<bool>,
}

/// A comparison that goes on.
#[derive(Debug, Default)]
pub struct Audit {
    /// The mirror is being filled for the first time.
    fills: bool,
    /// Virtual servers of the mirror that no piece has shown.
    unshown: Set<VsKey>,
    suspects: BTreeSet<VsKey>,
    /// Not all virtual servers could be read.
    skipped: bool,
    found: Changes,
}

impl Audit {
    /// Fills an empty mirror.
    pub fn fill() -> Self {
        Self { fills: true, ..Self::default() }
    }

    /// Compares with what the mirror has, all of it.
    pub fn compare(observed: &Observed) -> Self {
        Self { unshown: observed.virtual_servers.keys().copied().collect(), ..Self::default() }
    }

    /// Compares some pieces with what the mirror has.
    pub fn partial() -> Self {
        Self::default()
    }

    /// Takes a piece. The mirror follows at once, but for virtual servers, see [`Self::suspects`].
    pub fn take(&mut self, piece: Piece, observed: &mut Observed) {
        match piece {
            Piece::Listed(list) => list.into_iter().for_each(|(key, spec)| self.listed(key, spec, observed)),
            Piece::Shown(list) => {
                list.into_iter().for_each(|(key, spec, rs)| self.shown(key, &spec, rs, observed));
            }
            Piece::Set(id, set) => self.set(id, set, observed),
            Piece::Addresses(addresses) => self.addresses(addresses, observed),
            Piece::Rest(rest) => {
                observed.timeouts = rest.timeouts;
                observed.sysctls = rest.sysctls;
                observed.next_hops = rest.next_hops;
                observed.lease_routers = rest.lease_routers;
                observed.name_servers = rest.name_servers;
                observed.listeners = rest.listeners;
                observed.nft_tables = rest.nft_tables;
            }
        }
    }

    fn listed(&mut self, key: VsKey, spec: VsSpec, observed: &mut Observed) {
        match observed.virtual_servers.get(&key) {
            Some(server) if server.spec == spec => {}
            None if self.fills => {
                self.unshown.insert(key);
                let server = ObservedServer { spec, real_servers: RealServers::default() };
                observed.virtual_servers.insert(key, server);
            }
            _ => _ = self.suspects.insert(key),
        }
    }

    fn shown(&mut self, key: VsKey, spec: &VsSpec, real_servers: RealServers, observed: &mut Observed) {
        let first = self.unshown.remove(&key);
        match observed.virtual_servers.get_mut(&key) {
            Some(server) if server.real_servers == real_servers && server.spec.looks_like(spec) => {}
            Some(server) if self.fills && first => server.real_servers = real_servers,
            _ => _ = self.suspects.insert(key),
        }
    }

    fn set(&mut self, id: SetId, set: Option<ObservedSet>, observed: &mut Observed) {
        let before = observed.sets.get(&id);
        if before == set.as_ref() {
            return;
        }
        if !self.fills {
            let none = Members::default();
            let [before, now] = [before, set.as_ref()].map(|set| set.map_or(&none, |set| &set.members));
            let differ = before.difference(now).chain(now.difference(before));
            self.found.entries.extend(differ.map(|entry| (id, entry)));
        }
        match set {
            Some(set) => observed.sets.insert(id, set),
            None => observed.sets.remove(&id),
        };
    }

    fn addresses(&mut self, addresses: Addresses, observed: &mut Observed) {
        let Addresses { device, bound, elsewhere } = addresses;
        if !self.fills {
            for net in observed.addresses.symmetric_difference(&bound) {
                // A wider prefix may have been in the way of ours.
                self.found.addresses.insert(net.addr());
                if net.prefix_len() != net.max_prefix_len() {
                    self.found.networks.insert(*net);
                }
            }
        }
        observed.device = device;
        observed.addresses = bound;
        observed.node_addresses = elsewhere;
    }

    /// The rest of the virtual servers cannot be read: those that no piece has shown are as they were.
    pub fn skip_servers(&mut self) {
        self.unshown.clear();
        self.skipped = true;
    }

    /// Whether not all virtual servers could be read.
    pub fn skipped_servers(&self) -> bool {
        self.skipped
    }

    /// After the last piece: the virtual servers that seem to differ from the mirror, or were missing in
    /// a list. Ask for each and tell [`Self::settle`].
    pub fn suspects(&mut self, observed: &Observed) -> Vec<VsKey> {
        let missing = self.unshown.drain();
        // One that was removed meanwhile is missing for a good reason.
        self.suspects.extend(missing.filter(|key| observed.virtual_servers.contains_key(key)));
        std::mem::take(&mut self.suspects).into_iter().collect()
    }

    /// What a suspect is really like; `None`: it does not exist.
    pub fn settle(&mut self, key: VsKey, server: Option<ObservedServer>, observed: &mut Observed) {
        if observed.virtual_servers.get(&key) == server.as_ref() {
            return;
        }
        self.found.virtual_servers.insert(key);
        match server {
            Some(server) => observed.virtual_servers.insert(key, server),
            None => observed.virtual_servers.remove(&key),
        };
    }

    /// What differed from the mirror.
    pub fn finish(self) -> Changes {
        self.found
    }
}

#[cfg(test)]
#[path = "comparison_tests.rs"]
mod tests;
