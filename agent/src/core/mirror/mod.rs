// SPDX-License-Identifier: Apache-2.0
//! The mirror: what the kernel is known to hold.
//!
//! It is read whole by an audit and from then on follows acknowledged operations only.

pub mod comparison;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::core::model::map::{Map, Set};
use crate::core::model::members::Members;
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::settings::Timeouts;
use crate::core::model::{Family, PerFamily, Protocol, RsKey, VsKey, VsSpec};
use crate::core::rules::save::ObservedRules;

/// A real server as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RsState {
    /// Weight; 0 takes no new connections.
    pub weight: u32,
    /// Forwarding method, `IP_VS_CONN_F_*`; 0 is masquerading.
    pub forward: u32,
}

impl RsState {
    /// How every wanted real server must be: weight 1, masqueraded.
    pub const WANTED: RsState = RsState { weight: 1, forward: 0 };
    /// A real server that takes no new connections.
    pub const DRAINING: RsState = RsState { weight: 0, forward: 0 };
}

/// A virtual server as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedServer {
    /// How it balances.
    pub spec: VsSpec,
    /// Its real servers.
    pub real_servers: RealServers,
}

/// Real servers of one virtual server, sorted, each once. A list and not a map: there are many lists, and
/// nearly all are short.
#[derive(Clone, Debug)]
pub struct RealServers(ServerList);

#[derive(Clone, Debug)]
enum ServerList {
    /// Exactly those that are wanted, as they must be: the list is the one of the wanted state.
    Wanted(Arc<[RsKey]>),
    Other(Vec<(RsKey, RsState)>),
}

impl RealServers {
    /// Shares the list of the wanted state, if it is the same.
    pub fn share(&mut self, wanted: &Arc<[RsKey]>) {
        let same =
            |((rs, state), wanted): ((&RsKey, &RsState), &RsKey)| rs == wanted && *state == RsState::WANTED;
        if self.len() == wanted.len() && self.iter().zip(wanted.iter()).all(same) {
            self.0 = ServerList::Wanted(wanted.clone());
        }
    }

    fn at(&self, i: usize) -> (&RsKey, &RsState) {
        match &self.0 {
            ServerList::Wanted(keys) => (&keys[i], &RsState::WANTED),
            ServerList::Other(list) => (&list[i].0, &list[i].1),
        }
    }

    fn find(&self, rs: &RsKey) -> Result<usize, usize> {
        match &self.0 {
            ServerList::Wanted(keys) => keys.binary_search(rs),
            ServerList::Other(list) => list.binary_search_by_key(rs, |(key, _)| *key),
        }
    }

    fn list_mut(&mut self) -> &mut Vec<(RsKey, RsState)> {
        if let ServerList::Wanted(keys) = &self.0 {
            self.0 = ServerList::Other(keys.iter().map(|rs| (*rs, RsState::WANTED)).collect());
        }
        match &mut self.0 {
            ServerList::Other(list) => list,
            ServerList::Wanted(_) => unreachable!("it was just replaced"),
        }
    }

    /// The state of one, if it is there.
    pub fn get(&self, rs: &RsKey) -> Option<&RsState> {
        self.find(rs).ok().map(|i| self.at(i).1)
    }

    /// Whether it is there.
    pub fn contains_key(&self, rs: &RsKey) -> bool {
        self.find(rs).is_ok()
    }

    /// Adds one or changes its state.
    pub fn insert(&mut self, rs: RsKey, state: RsState) {
        let place = self.find(&rs);
        let list = self.list_mut();
        match place {
            Ok(i) => list[i].1 = state,
            Err(i) => list.insert(i, (rs, state)),
        }
    }

    /// Takes one away.
    pub fn remove(&mut self, rs: &RsKey) -> Option<RsState> {
        let i = self.find(rs).ok()?;
        Some(self.list_mut().remove(i).1)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&RsKey, &RsState)> {
        (0..self.len()).map(|i| self.at(i))
    }

    /// Their names, in order.
    pub fn keys(&self) -> impl Iterator<Item = &RsKey> {
        self.iter().map(|(rs, _)| rs)
    }

    /// Their states, in order, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut RsState> {
        self.list_mut().iter_mut().map(|(_, state)| state)
    }

    /// How many.
    pub fn len(&self) -> usize {
        match &self.0 {
            ServerList::Wanted(keys) => keys.len(),
            ServerList::Other(list) => list.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for RealServers {
    fn default() -> Self {
        Self(ServerList::Other(Vec::new()))
    }
}

/// However they are kept.
impl PartialEq for RealServers {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for RealServers {}

impl FromIterator<(RsKey, RsState)> for RealServers {
    /// One that comes twice counts as it came last.
    fn from_iter<I: IntoIterator<Item = (RsKey, RsState)>>(iter: I) -> Self {
        let mut list: Vec<(RsKey, RsState)> = iter.into_iter().collect();
        list.sort_by_key(|(rs, _)| *rs);
        list.reverse();
        list.dedup_by_key(|(rs, _)| *rs);
        list.reverse();
        Self(ServerList::Other(list))
    }
}

/// A set as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedSet {
    /// Its members.
    pub members: Members,
    /// The set has another type or family than it must have: it cannot be used.
    pub misfit: bool,
    /// How many members it has room for.
    pub capacity: u32,
}

impl ObservedSet {
    /// A set as the agent creates it.
    pub fn fresh(set: SetId) -> Self {
        Self { capacity: set.kind.set_type().capacity(), ..Self::default() }
    }
}

/// Everything the plan looks at, complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Virtual servers by address; fwmark services are not ours and not here.
    pub virtual_servers: Map<VsKey, ObservedServer>,
    /// Real servers that had connections when they were last looked at.
    pub busy: Set<(VsKey, RsKey)>,
    /// IPVS timeouts.
    pub timeouts: Timeouts,
    /// Whether `kube-ipvs0` exists.
    pub device: bool,
    /// Addresses on `kube-ipvs0`.
    pub addresses: Set<IpNet>,
    /// Our sets that exist.
    pub sets: Map<SetId, ObservedSet>,
    /// Rules.
    pub rules: PerFamily<ObservedRules>,
    /// Families whose rules were never read: what is in `rules` says nothing.
    pub unread_rules: PerFamily<bool>,
    /// Whether the table of kube-proxy's nftables mode exists.
    pub nft_tables: PerFamily<bool>,
    /// Current values of the sysctls asked for; one that cannot be read is absent.
    pub sysctls: BTreeMap<&'static str, i64>,
    /// Addresses on all other links, without loopback, sorted.
    pub node_addresses: Vec<IpAddr>,
    /// Next hops of all routes, sorted.
    pub next_hops: Vec<IpAddr>,
    /// Routers that DHCP leases name.
    pub lease_routers: Vec<IpAddr>,
    /// DNS and DHCP servers that the node's files name.
    pub name_servers: Vec<IpAddr>,
    /// Where programs of the node listen, sorted.
    pub listeners: Vec<OpenPort>,
}

/// A port that a program of the node listens at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// The address; unspecified for all of its family.
    pub addr: IpAddr,
}

impl OpenPort {
    /// Whether it would get what is sent to this address and port.
    pub fn hears(&self, key: &VsKey) -> bool {
        let here =
            self.addr == key.addr || (self.addr.is_unspecified() && Family::of(self.addr) == key.family());
        here && (self.protocol, self.port) == (key.protocol, key.port)
    }
}

impl Observed {
    /// Whether nothing serves Services yet: no virtual server, no address on the device, no entry of a set,
    /// and no rule, neither ours nor of another mode of kube-proxy.
    pub fn is_blank(&self) -> bool {
        let no_rules = |rules: &ObservedRules| rules.chains.is_empty() && rules.leftovers.is_empty();
        self.virtual_servers.is_empty()
            && self.addresses.is_empty()
            && self.sets.values().all(|set| set.members.is_empty())
            && self.rules.iter().all(no_rules)
            && self.unread_rules == PerFamily::default()
            && self.nft_tables == PerFamily::default()
    }

    /// Whether a set exists and holds anything.
    pub fn has_members(&self, kind: SetKind, family: Family) -> bool {
        self.sets.get(&SetId { kind, family }).is_some_and(|set| !set.members.is_empty())
    }

    /// Whether the set holds the entry.
    pub fn has_entry(&self, set: SetId, entry: &Entry) -> bool {
        self.sets.get(&set).is_some_and(|s| s.members.contains(entry))
    }
}
