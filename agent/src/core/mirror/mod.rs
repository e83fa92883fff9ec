// SPDX-License-Identifier: Apache-2.0
//! The mirror: the kernel state as last read or acknowledged.
//!
//! An audit reads the whole state. After that only acknowledged ops change the mirror.

pub mod comparison;

use std::net::IpAddr;

use ipnet::IpNet;

use self::comparison::NodeState;
use crate::core::model::map::{Map, Set};
use crate::core::model::members::Members;
use crate::core::model::real_servers::{RsState, WantedServers};
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::{Family, PerFamily, Protocol, RsKey, VsKey, VsSpec};
use crate::core::rules::save::ObservedRules;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedServer {
    pub spec: VsSpec,
    pub real_servers: RealServers,
}

/// Real servers of one virtual server, sorted by key, without duplicates. A list needs less memory than a map:
/// there are many lists, and nearly all are short.
#[derive(Clone, Debug)]
pub struct RealServers(ServerList);

#[derive(Clone, Debug)]
enum ServerList {
    /// Exactly the wanted real servers in the wanted state: shares the list of the wanted virtual server.
    Wanted(WantedServers),
    Other(Vec<(RsKey, RsState)>),
}

impl RealServers {
    /// Shares the list of the wanted virtual server if both lists are equal.
    pub fn share(&mut self, wanted: &WantedServers) {
        if self.iter().eq(wanted.iter()) {
            self.0 = ServerList::Wanted(wanted.clone());
        }
    }

    fn at(&self, i: usize) -> (RsKey, RsState) {
        match &self.0 {
            ServerList::Wanted(wanted) => (wanted.keys()[i], wanted.state(i)),
            ServerList::Other(list) => list[i],
        }
    }

    fn find(&self, rs: &RsKey) -> Result<usize, usize> {
        match &self.0 {
            ServerList::Wanted(wanted) => wanted.keys().binary_search(rs),
            ServerList::Other(list) => list.binary_search_by_key(rs, |(key, _)| *key),
        }
    }

    fn list_mut(&mut self) -> &mut Vec<(RsKey, RsState)> {
        if let ServerList::Wanted(wanted) = &self.0 {
            self.0 = ServerList::Other(wanted.iter().collect());
        }
        match &mut self.0 {
            ServerList::Other(list) => list,
            ServerList::Wanted(_) => unreachable!("replaced above"),
        }
    }

    /// Whether `/proc/net/ip_vs` shows these real servers as `shown`: it has no limits of connections.
    pub fn look_like(&self, shown: &RealServers) -> bool {
        let same = |((rs, state), (other, shown)): ((RsKey, RsState), (RsKey, RsState))| {
            rs == other && state.looks_like(&shown)
        };
        self.len() == shown.len() && self.iter().zip(shown.iter()).all(same)
    }

    pub fn get(&self, rs: &RsKey) -> Option<RsState> {
        self.find(rs).ok().map(|i| self.at(i).1)
    }

    pub fn insert(&mut self, rs: RsKey, state: RsState) {
        let found = self.find(&rs);
        let list = self.list_mut();
        match found {
            Ok(i) => list[i].1 = state,
            Err(i) => list.insert(i, (rs, state)),
        }
    }

    pub fn remove(&mut self, rs: &RsKey) -> Option<RsState> {
        let i = self.find(rs).ok()?;
        Some(self.list_mut().remove(i).1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (RsKey, RsState)> + '_ {
        (0..self.len()).map(|i| self.at(i))
    }

    pub fn keys(&self) -> impl Iterator<Item = RsKey> + '_ {
        self.iter().map(|(rs, _)| rs)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut RsState> {
        self.list_mut().iter_mut().map(|(_, state)| state)
    }

    pub fn len(&self) -> usize {
        match &self.0 {
            ServerList::Wanted(wanted) => wanted.keys().len(),
            ServerList::Other(list) => list.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for RealServers {
    fn default() -> Self {
        Self(ServerList::Other(Vec::new()))
    }
}

impl PartialEq for RealServers {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for RealServers {}

impl FromIterator<(RsKey, RsState)> for RealServers {
    /// Of duplicates the last one counts.
    fn from_iter<I: IntoIterator<Item = (RsKey, RsState)>>(iter: I) -> Self {
        let mut list: Vec<(RsKey, RsState)> = iter.into_iter().collect();
        list.sort_by_key(|(rs, _)| *rs);
        list.reverse();
        list.dedup_by_key(|(rs, _)| *rs);
        list.reverse();
        Self(ServerList::Other(list))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedSet {
    pub members: Members,
    /// The set has a wrong type or family and must be replaced.
    pub misfit: bool,
    /// Largest number of members.
    pub capacity: u32,
}

impl ObservedSet {
    /// An empty set as the agent creates it.
    pub fn fresh(set: SetId) -> Self {
        Self { capacity: set.kind.set_type().capacity(), ..Self::default() }
    }
}

/// The kernel state that plans are built from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Virtual servers that have an address. Services by fwmark are never ours and are left out.
    pub virtual_servers: Map<VsKey, ObservedServer>,
    /// Real servers that had connections when their counters were last read.
    pub busy: Set<(VsKey, RsKey)>,
    /// Whether `kube-ipvs0` exists.
    pub device: bool,
    /// Addresses on `kube-ipvs0`.
    pub addresses: Set<IpNet>,
    /// Existing sets that have one of our names.
    pub sets: Map<SetId, ObservedSet>,
    pub rules: PerFamily<ObservedRules>,
    /// Families whose rules were never read: `rules` is then meaningless.
    pub unread_rules: PerFamily<bool>,
    /// Addresses on all other links, without loopback, sorted.
    pub node_addresses: Vec<IpAddr>,
    pub node: NodeState,
}

/// A listening socket of a program on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    pub port: u16,
    /// The local address; unspecified: all addresses of the family.
    pub addr: IpAddr,
}

impl OpenPort {
    /// Whether the socket gets packets to this address and port.
    pub fn receives(&self, key: &VsKey) -> bool {
        let is_here =
            self.addr == key.addr || (self.addr.is_unspecified() && Family::of(self.addr) == key.family());
        is_here && (self.protocol, self.port) == (key.protocol, key.port)
    }
}

impl Observed {
    /// Whether the node was never programmed: it has no virtual server, no address on `kube-ipvs0`, no set entry
    /// and no rule, neither of ours nor of another kube-proxy mode.
    pub fn is_blank(&self) -> bool {
        let no_rules = |rules: &ObservedRules| rules.chains.is_empty() && rules.leftovers.is_empty();
        self.virtual_servers.is_empty()
            && self.addresses.is_empty()
            && self.sets.values().all(|set| set.members.is_empty())
            && self.rules.iter().all(no_rules)
            && self.unread_rules == PerFamily::default()
            && self.node.nft_tables == PerFamily::default()
    }

    /// Whether packets to the VIP are for this node: its address is bound, or a route of ours makes it local.
    pub fn is_local(&self, vip: IpAddr) -> bool {
        self.addresses.contains(&vip.into()) || self.node.routes.iter().any(|net| net.contains(&vip))
    }

    /// Whether it is an address of the node on another link than `kube-ipvs0`, or loopback.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        self.node_addresses.binary_search(&addr).is_ok() || addr.is_loopback()
    }

    /// Whether the set exists and has members.
    pub fn has_members(&self, kind: SetKind, family: Family) -> bool {
        self.sets.get(&SetId { kind, family }).is_some_and(|set| !set.members.is_empty())
    }

    pub fn has_entry(&self, set: SetId, entry: &Entry) -> bool {
        self.sets.get(&set).is_some_and(|s| s.members.contains(entry))
    }
}
