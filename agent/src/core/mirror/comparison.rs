// SPDX-License-Identifier: Apache-2.0
//! Compares the mirror with a fresh read of the kernel, piece by piece.
//!
//! Each piece is compared with the mirror as soon as it is read, so a sync between two pieces is not drift.
//! A dump of virtual servers in several parts may miss some of them or show an older state. A virtual server
//! that differs from the mirror in a dump is therefore a suspect, and is read again by itself at the end.

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
use crate::core::rules::nftables;

/// One read of a part of the kernel state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Virtual servers with their specs. For an empty mirror every virtual server comes in a piece of this
    /// kind and in a `Shown` piece.
    Listed(Vec<(VsKey, VsSpec)>),
    /// Virtual servers with the part of their specs that `/proc/net/ip_vs` has ([`VsSpec::looks_like`]), and
    /// their real servers.
    Shown(Vec<(VsKey, VsSpec, RealServers)>),
    /// One of our sets; `None`: it does not exist.
    Set(SetId, Option<ObservedSet>),
    /// Addresses of `kube-ipvs0` and of the other links.
    Addresses(Addresses),
    /// Everything else.
    Rest(NodeState),
}

/// Which piece to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStep {
    /// The first piece, to fill an empty mirror.
    Fill,
    /// The first piece, to compare with a filled mirror.
    Compare,
    /// The piece after the last one.
    Next,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Whether `kube-ipvs0` exists.
    pub device: bool,
    /// The addresses on it.
    pub bound: Set<IpNet>,
    /// Addresses on all other links, without loopback, sorted.
    pub elsewhere: Vec<IpAddr>,
}

/// State of the node that no other piece has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    pub timeouts: Timeouts,
    /// Current values of the sysctls in the settings; a sysctl that cannot be read is absent.
    pub sysctls: BTreeMap<&'static str, i64>,
    /// Networks with a local route of ours.
    pub routes: BTreeSet<IpNet>,
    /// Next hops of all routes, sorted.
    pub next_hops: Vec<IpAddr>,
    /// Routers in the DHCP leases of the node.
    pub lease_routers: Vec<IpAddr>,
    /// DNS and DHCP servers in the configuration files of the node.
    pub name_servers: Vec<IpAddr>,
    /// Listening sockets of the node, sorted.
    pub listeners: Vec<OpenPort>,
    /// Tables of other modes.
    pub nft_tables: PerFamily<NftTables>,
    /// Sets with one of our names that the other rules mode has left.
    pub other_sets: BTreeMap<SetId, ObservedSet>,
}

/// The table of kube-proxy's nftables mode, one for each family.
pub const KUBE_PROXY: &str = "kube-proxy";

/// Tables of nf_tables that this mode does not use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NftTables {
    /// The table of kube-proxy's nftables mode exists.
    pub kube_proxy: bool,
    /// The table of our rules mode `nftables` exists, and the mode is `iptables`.
    pub kube_ipvs: bool,
}

impl NftTables {
    /// The names of those that exist.
    pub fn names(self) -> Vec<&'static str> {
        let all = [(self.kube_proxy, KUBE_PROXY), (self.kube_ipvs, nftables::TABLE)];
        all.into_iter().filter(|(exists, _)| *exists).map(|(_, name)| name).collect()
    }
}

/// A comparison of the mirror with the kernel, and the differences found so far. The default is an audit of single
/// pieces: virtual servers that no piece contains are not compared.
#[derive(Debug, Default)]
pub struct Audit {
    /// The mirror is being filled for the first time.
    fills: bool,
    /// Virtual servers of the mirror that no `Shown` piece contained yet.
    unshown: Set<VsKey>,
    suspects: BTreeSet<VsKey>,
    /// Some virtual servers could not be read.
    skipped: bool,
    found: Changes,
}

impl Audit {
    /// An audit that fills an empty mirror.
    pub fn fill() -> Self {
        Self { fills: true, ..Self::default() }
    }

    /// An audit of the whole mirror.
    pub fn compare(observed: &Observed) -> Self {
        Self { unshown: observed.virtual_servers.keys().copied().collect(), ..Self::default() }
    }

    /// Compares a piece and updates the mirror. Virtual servers that differ become suspects, see
    /// [`Self::take_suspects`].
    pub fn add(&mut self, piece: Piece, observed: &mut Observed) {
        match piece {
            Piece::Listed(list) => list.into_iter().for_each(|(key, spec)| self.listed(key, spec, observed)),
            Piece::Shown(list) => {
                list.into_iter().for_each(|(key, spec, rs)| self.shown(key, &spec, rs, observed));
            }
            Piece::Set(id, set) => self.set(id, set, observed),
            Piece::Addresses(addresses) => self.addresses(addresses, observed),
            Piece::Rest(node) => observed.node = node,
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
        let is_new = self.unshown.remove(&key);
        match observed.virtual_servers.get_mut(&key) {
            Some(server) if server.real_servers.look_like(&real_servers) && server.spec.looks_like(spec) => {}
            Some(server) if self.fills && is_new => server.real_servers = real_servers,
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
                // An address with a wider prefix may have replaced ours.
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

    /// The remaining virtual servers cannot be read: the mirror keeps the state it has of them.
    pub fn skip_servers(&mut self) {
        self.unshown.clear();
        self.skipped = true;
    }

    /// Whether some virtual servers could not be read.
    pub fn skipped_servers(&self) -> bool {
        self.skipped
    }

    /// After the last piece: the virtual servers that appear to differ from the mirror. Read each by itself and
    /// pass the result to [`Self::confirm`].
    pub fn take_suspects(&mut self, observed: &Observed) -> Vec<VsKey> {
        let missing = self.unshown.drain();
        // The agent may have removed a virtual server since the audit began.
        self.suspects.extend(missing.filter(|key| observed.virtual_servers.contains_key(key)));
        std::mem::take(&mut self.suspects).into_iter().collect()
    }

    /// Compares a suspect with a read of this one virtual server. `None`: it does not exist.
    pub fn confirm(&mut self, key: VsKey, server: Option<ObservedServer>, observed: &mut Observed) {
        if observed.virtual_servers.get(&key) == server.as_ref() {
            return;
        }
        self.found.virtual_servers.insert(key);
        match server {
            Some(server) => observed.virtual_servers.insert(key, server),
            None => observed.virtual_servers.remove(&key),
        };
    }

    /// All differences found.
    pub fn finish(self) -> Changes {
        self.found
    }
}

#[cfg(test)]
#[path = "comparison_tests.rs"]
mod tests;
