// SPDX-License-Identifier: Apache-2.0
//! The wanted state of the node: the fragments of all Services, indexed by kernel object.
//!
//! Several Services may share a key, such as an address or a virtual server. Shared keys are counted or ranked, so that
//! an update visits only the keys of its own fragment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::fragment::{Fragment, HealthCheck, Notice, VirtualServer};
use ipnet::IpNet;

use super::node_facts::Binding;
use crate::core::model::Few;
use crate::core::model::changes::Changes;
use crate::core::model::flows::FlowFilter;
use crate::core::model::map::Map;
use crate::core::model::members::Members;
use crate::core::model::options::ServiceOptions;
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::{Family, ObjectName, PerFamily, Protocol, VsKey};

/// If several Services claim a virtual server, the smallest rank wins: the oldest Service, then the first name. So all
/// nodes choose the same winner.
fn rank(claim: &VirtualServer) -> (i64, &ObjectName) {
    (claim.created, &claim.service)
}

/// All fragments and their indexes.
#[derive(Debug, Default)]
pub struct Desired {
    fragments: Map<ObjectName, Box<Fragment>>,
    /// The claims on each virtual server, by rank.
    virtual_servers: Map<VsKey, Few<Arc<VirtualServer>>>,
    addresses: Map<IpAddr, u32>,
    entries: BTreeMap<SetId, Members<u32>>,
    /// Number of source ranges by prefix length.
    source_prefixes: PerFamily<BTreeMap<u8, u32>>,
    closed_to_node: BTreeSet<VsKey>,
    contested: BTreeSet<VsKey>,
    priority: BTreeSet<ObjectName>,
    /// Number of Services with a Local policy and without an endpoint on this node, see [`Fragment::no_local`].
    no_local: PerFamily<[u32; 2]>,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    unbound: BTreeMap<Binding, u32>,
    /// Services with UDP endpoints, by VIP.
    udp: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    /// Networks of ClusterIPs that are local by a route.
    pub routes: BTreeSet<IpNet>,
}

impl Desired {
    /// Replaces the fragment of the Service `name` (`None`: removes it). Adds every kernel object whose wanted state
    /// changed to `changes`.
    pub fn update(&mut self, name: &ObjectName, new: Option<Fragment>, changes: &mut Changes) {
        let old = self.fragments.remove(name).map(|fragment| *fragment).unwrap_or_default();
        if let Some(new) = &new
            && *new == old
        {
            self.fragments.insert(name.clone(), Box::new(old));
            return;
        }
        let next = new.unwrap_or_default();
        self.update_servers(name, &old, &next, changes);
        for addr in &next.addresses {
            if count_up(self.addresses.entry(*addr).or_default()) {
                changes.address(*addr);
            }
        }
        for addr in &old.addresses {
            if count_down(self.addresses.get_mut(addr)) {
                self.addresses.remove(addr);
                changes.address(*addr);
            }
        }
        self.update_entries(&old.entries, &next.entries, changes);
        if old.udp != next.udp {
            self.index_udp(name, &old, &next);
            if !next.udp.is_empty() {
                changes.flows.insert(name.clone());
            }
        }
        if old.notices != next.notices {
            changes.noticed.insert(name.clone());
            self.count_unbound(&old.notices, &next.notices);
        }
        self.count_no_local(&old, &next);
        if old.health != next.health {
            changes.health_checks = true;
            match next.health {
                Some(check) => self.health_checks.insert(name.clone(), check),
                None => self.health_checks.remove(name),
            };
        }
        self.priority.remove(name);
        if !next.virtual_servers.is_empty() || !next.notices.is_empty() {
            if next.priority {
                self.priority.insert(name.clone());
            }
            self.fragments.insert(name.clone(), Box::new(next));
        }
    }

    fn index_udp(&mut self, name: &ObjectName, old: &Fragment, next: &Fragment) {
        let vips = |fragment: &Fragment| -> BTreeSet<IpAddr> {
            fragment.udp.iter().flat_map(|port| &port.frontends).map(|(addr, _)| *addr).collect()
        };
        for vip in vips(old) {
            let is_last = |services: &mut BTreeSet<ObjectName>| services.remove(name) && services.is_empty();
            if self.udp.get_mut(&vip).is_some_and(is_last) {
                self.udp.remove(&vip);
            }
        }
        for vip in vips(next) {
            self.udp.entry(vip).or_default().insert(name.clone());
        }
    }

    fn count_no_local(&mut self, old: &Fragment, next: &Fragment) {
        for (counts, (old, next)) in
            self.no_local.iter_mut().zip(old.no_local.iter().zip(next.no_local.iter()))
        {
            for (count, (old, next)) in counts.iter_mut().zip(old.iter().zip(next)) {
                *count = *count + u32::from(*next) - u32::from(*old);
            }
        }
    }

    fn count_unbound(&mut self, old: &[Notice], next: &[Notice]) {
        let binding = |notice: &Notice| match notice {
            Notice::SpecialVip(_, binding) if !binding.is_bound() => Some(*binding),
            _ => None,
        };
        for binding in next.iter().filter_map(binding) {
            *self.unbound.entry(binding).or_default() += 1;
        }
        for binding in old.iter().filter_map(binding) {
            if count_down(self.unbound.get_mut(&binding)) {
                self.unbound.remove(&binding);
            }
        }
    }

    /// Counts up before it counts down, so that entries in both lists cause no change.
    fn update_entries(&mut self, old: &[(SetId, Entry)], next: &[(SetId, Entry)], changes: &mut Changes) {
        for entry in next {
            if count_up(self.entries.entry(entry.0).or_default().value_of(entry.1)) {
                changes.entry(*entry);
                if let Entry::IpPortNet(.., net) = entry.1 {
                    count_up(self.source_prefixes[entry.0.family].entry(net.prefix_len()).or_default());
                }
            }
        }
        for entry in old {
            let members = self.entries.entry(entry.0).or_default();
            if count_down(members.get_mut(&entry.1)) {
                members.remove(&entry.1);
                changes.entry(*entry);
                if let Entry::IpPortNet(.., net) = entry.1 {
                    let prefixes = &mut self.source_prefixes[entry.0.family];
                    if count_down(prefixes.get_mut(&net.prefix_len())) {
                        prefixes.remove(&net.prefix_len());
                    }
                }
            }
        }
    }

    fn update_servers(&mut self, name: &ObjectName, old: &Fragment, next: &Fragment, changes: &mut Changes) {
        let keys: BTreeSet<VsKey> =
            old.virtual_servers.iter().chain(&next.virtual_servers).map(|vs| vs.key).collect();
        for key in keys {
            let mut claims = self.virtual_servers.remove(&key).unwrap_or_default();
            let losers_before = claims.len().saturating_sub(1);
            let before = claims.first().cloned();
            claims.retain(|claim| claim.service != *name);
            if let Ok(i) = next.virtual_servers.binary_search_by_key(&key, |vs| vs.key) {
                let claim = next.virtual_servers[i].clone();
                let at = claims.partition_point(|other| rank(other) < rank(&claim));
                claims.insert(at, claim);
            }
            let losers = claims.len().saturating_sub(1);
            let after = claims.first().cloned();
            if !claims.is_empty() {
                self.virtual_servers.insert(key, claims);
            }
            keep(&mut self.contested, key, losers > 0);
            let owner = |vs: &Option<Arc<VirtualServer>>| vs.as_ref().map(|vs| vs.service.clone());
            if losers != losers_before || (losers > 0 && owner(&before) != owner(&after)) {
                changes.contested.insert(key);
            }
            self.change_winner(key, before, after, changes);
        }
    }

    /// Only the set entries of the winning claim are wanted.
    fn change_winner(
        &mut self,
        key: VsKey,
        before: Option<Arc<VirtualServer>>,
        after: Option<Arc<VirtualServer>>,
        changes: &mut Changes,
    ) {
        if before == after {
            return;
        }
        changes.virtual_servers.insert(key);
        let entries =
            |vs: &Option<Arc<VirtualServer>>| vs.as_ref().map(|vs| vs.entries.clone()).unwrap_or_default();
        self.update_entries(&entries(&before), &entries(&after), changes);
        keep(&mut self.closed_to_node, key, after.is_some_and(|vs| vs.closed_to_node));
    }

    /// The prefix lengths of source ranges.
    pub fn source_prefixes(&self, family: Family) -> BTreeSet<u8> {
        self.source_prefixes[family].keys().copied().collect()
    }

    /// The wanted virtual server at `key`: the winning claim.
    pub fn virtual_server(&self, key: &VsKey) -> Option<&Arc<VirtualServer>> {
        self.virtual_servers.get(key).and_then(|claims| claims.first())
    }

    /// What annotations and defaults choose for the Service of the wanted virtual server.
    pub fn options(&self, key: &VsKey) -> Option<&ServiceOptions> {
        self.virtual_server(key)?.options.as_deref()
    }

    /// The losing claims on `key`, by rank.
    pub fn losers(&self, key: &VsKey) -> impl Iterator<Item = &Arc<VirtualServer>> {
        self.virtual_servers.get(key).into_iter().flat_map(|claims| claims.iter().skip(1))
    }

    /// Virtual servers that more than one Service claims.
    pub fn contested(&self) -> &BTreeSet<VsKey> {
        &self.contested
    }

    pub fn fragment(&self, name: &ObjectName) -> Option<&Fragment> {
        self.fragments.get(name).map(|fragment| &**fragment)
    }

    pub fn notices(&self, name: &ObjectName) -> &[Notice] {
        self.fragments.get(name).map_or(&[], |fragment| &fragment.notices)
    }

    /// Every wanted virtual server, in no order.
    pub fn virtual_servers(&self) -> impl Iterator<Item = &Arc<VirtualServer>> {
        self.virtual_servers.values().filter_map(|claims| claims.first())
    }

    /// Restricted virtual servers of a family that the node itself may not use, sorted by VIP and port.
    pub fn closed_to_node(&self, family: Family) -> Vec<VsKey> {
        let of_family = self.closed_to_node.iter().filter(|key| key.family() == family);
        let mut closed: Vec<VsKey> = of_family.copied().collect();
        closed.sort_unstable_by_key(|key| (key.addr, key.port, key.protocol));
        closed
    }

    /// The keys of the priority Services.
    pub fn priority_keys(&self) -> Changes {
        let mut keys = Changes::default();
        for fragment in self.priority.iter().filter_map(|name| self.fragments.get(name)) {
            for server in &fragment.virtual_servers {
                keys.virtual_servers.insert(server.key);
                keys.entries.extend(&server.entries);
            }
            keys.addresses.extend(&fragment.addresses);
            keys.entries.extend(&fragment.entries);
        }
        keys
    }

    /// The filters that select the stale UDP flows of these Services, one for each family with UDP endpoints.
    pub fn stale_flows(&self, names: &BTreeSet<ObjectName>) -> Vec<FlowFilter> {
        let mut filters = PerFamily::of(|family| FlowFilter {
            family,
            frontends: BTreeMap::new(),
            node_ports: BTreeMap::new(),
        });
        for (name, fragment) in names.iter().filter_map(|name| Some((name, self.fragments.get(name)?))) {
            // Flows to a frontend that another Service won belong to that Service.
            let wins = |vs: &&Arc<VirtualServer>| {
                let winner = self.virtual_server(&vs.key);
                vs.key.protocol == Protocol::Udp && winner.is_some_and(|w| w.service == *name)
            };
            let won: BTreeSet<(IpAddr, u16)> =
                fragment.virtual_servers.iter().filter(wins).map(|vs| (vs.key.addr, vs.key.port)).collect();
            for port in &fragment.udp {
                let filter = &mut filters[port.family];
                for frontend in port.frontends.iter().filter(|frontend| won.contains(frontend)) {
                    filter.frontends.insert(*frontend, port.endpoints.clone());
                }
                if port.node_port != 0 && won.iter().any(|(_, number)| *number == port.node_port) {
                    filter.node_ports.insert(port.node_port, port.endpoints.clone());
                }
            }
        }
        filters.into_iter().filter(|filter| !filter.is_empty()).collect()
    }

    /// The Services with UDP endpoints at a VIP in this network.
    pub fn udp_services_in(&self, net: IpNet) -> impl Iterator<Item = &ObjectName> {
        let ends = (net.network(), net.broadcast());
        self.udp.range(ends.0..=ends.1).flat_map(|(_, services)| services)
    }

    /// Whether `addr` must be bound to `kube-ipvs0`.
    pub fn wants_address(&self, addr: IpAddr) -> bool {
        self.addresses.contains_key(&addr)
    }

    /// Every wanted address, in no order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.keys().copied()
    }

    pub fn wants_entry(&self, entry: &(SetId, Entry)) -> bool {
        self.entries.get(&entry.0).is_some_and(|members| members.contains(&entry.1))
    }

    /// Every wanted set entry, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (SetId, Entry)> + '_ {
        self.entries.iter().flat_map(|(set, members)| members.iter().map(move |entry| (*set, entry)))
    }

    /// Number of wanted entries of the set.
    pub fn members(&self, set: SetId) -> u32 {
        self.entries.get(&set).map_or(0, |members| u32::try_from(members.len()).unwrap_or(u32::MAX))
    }

    /// Whether the set has wanted entries.
    pub fn has_members(&self, kind: SetKind, family: Family) -> bool {
        self.members(SetId { kind, family }) > 0
    }

    /// Number of Services with a Local policy whose endpoints are all on other nodes: by the internal policy, and by the
    /// external policy.
    pub fn no_local(&self, family: Family) -> [u32; 2] {
        self.no_local[family]
    }

    /// Number of VIPs that are not bound, by reason.
    pub fn unbound(&self) -> &BTreeMap<Binding, u32> {
        &self.unbound
    }

    pub fn service_count(&self) -> usize {
        self.fragments.len()
    }

    /// Services with a health-check node port.
    pub fn health_checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.health_checks
    }

    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.fragments.keys()
    }
}

/// Adds or removes the key.
fn keep(keys: &mut BTreeSet<VsKey>, key: VsKey, wanted: bool) {
    if wanted {
        keys.insert(key)
    } else {
        keys.remove(&key)
    };
}

/// True if the count was 0.
fn count_up(count: &mut u32) -> bool {
    *count += 1;
    *count == 1
}

/// True if the count is now 0.
fn count_down(count: Option<&mut u32>) -> bool {
    count.is_some_and(|count| {
        *count -= 1;
        *count == 0
    })
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
