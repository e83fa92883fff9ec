// SPDX-License-Identifier: Apache-2.0
//! The wanted state of the node: every Service's fragment, indexed by kernel object.
//!
//! Keys shared by several Services (an external IP with two ports, a virtual server that two
//! Services claim) are counted or ranked, so an update touches its own fragment's keys only.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::fragment::{Fragment, VirtualServer};
use super::model::{Family, ObjectName, VsKey};
use super::sets::{Entry, SetId, SetKind};

/// Kernel objects whose wanted state may have changed, in a stable order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Virtual servers, their real servers included.
    pub virtual_servers: BTreeSet<VsKey>,
    /// Addresses on `kube-ipvs0`.
    pub addresses: BTreeSet<IpAddr>,
    /// Set entries.
    pub entries: BTreeSet<(SetId, Entry)>,
}

impl Changes {
    /// True when nothing changed.
    pub fn is_empty(&self) -> bool {
        self.virtual_servers.is_empty() && self.addresses.is_empty() && self.entries.is_empty()
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.virtual_servers.len() + self.addresses.len() + self.entries.len()
    }

    /// Adds everything of `other`.
    pub fn merge(&mut self, mut other: Changes) {
        self.virtual_servers.append(&mut other.virtual_servers);
        self.addresses.append(&mut other.addresses);
        self.entries.append(&mut other.entries);
    }
}

/// A Service's claim on a virtual server. The smallest claim wins: the oldest Service, then the
/// first name, so every node decides alike.
#[derive(Clone, Debug)]
struct Claim {
    created: i64,
    server: Arc<VirtualServer>,
}

impl Claim {
    fn rank(&self) -> (i64, &ObjectName) {
        (self.created, &self.server.service)
    }
}

/// All fragments and their indexes.
#[derive(Debug, Default)]
pub struct Desired {
    fragments: HashMap<ObjectName, Fragment>,
    virtual_servers: HashMap<VsKey, Vec<Claim>>,
    addresses: HashMap<IpAddr, u32>,
    entries: HashMap<(SetId, Entry), u32>,
    members: HashMap<SetId, u32>,
}

impl Desired {
    /// Replaces what `name` contributes (`None`: nothing any more) and adds every kernel object
    /// whose wanted state changed to `changes`.
    pub fn update(&mut self, name: &ObjectName, new: Option<Fragment>, changes: &mut Changes) {
        let old = self.fragments.remove(name).unwrap_or_default();
        if let Some(new) = &new
            && *new == old
        {
            self.fragments.insert(name.clone(), old);
            return;
        }
        let next = new.unwrap_or_default();
        self.update_servers(name, &old, &next, changes);
        for addr in &next.addresses {
            count_up(&mut self.addresses, *addr, || changes.addresses.insert(*addr));
        }
        for addr in &old.addresses {
            count_down(&mut self.addresses, *addr, || changes.addresses.insert(*addr));
        }
        for entry in &next.entries {
            count_up(&mut self.entries, *entry, || {
                *self.members.entry(entry.0).or_default() += 1;
                changes.entries.insert(*entry)
            });
        }
        for entry in &old.entries {
            count_down(&mut self.entries, *entry, || {
                if let Some(n) = self.members.get_mut(&entry.0) {
                    *n -= 1;
                }
                changes.entries.insert(*entry)
            });
        }
        if !next.virtual_servers.is_empty() {
            self.fragments.insert(name.clone(), next);
        }
    }

    fn update_servers(&mut self, name: &ObjectName, old: &Fragment, next: &Fragment, changes: &mut Changes) {
        let keys: BTreeSet<VsKey> =
            old.virtual_servers.iter().chain(&next.virtual_servers).map(|vs| vs.key).collect();
        for key in keys {
            let before = self.virtual_server(&key).cloned();
            let claims = self.virtual_servers.entry(key).or_default();
            claims.retain(|c| c.server.service != *name);
            if let Ok(i) = next.virtual_servers.binary_search_by_key(&key, |vs| vs.key) {
                let claim = Claim { created: next.created, server: next.virtual_servers[i].clone() };
                let at = claims.partition_point(|c| c.rank() < claim.rank());
                claims.insert(at, claim);
            }
            if claims.is_empty() {
                self.virtual_servers.remove(&key);
            }
            if self.virtual_server(&key) != before.as_ref() {
                changes.virtual_servers.insert(key);
            }
        }
    }

    /// The virtual server wanted at `key`: the winning claim.
    pub fn virtual_server(&self, key: &VsKey) -> Option<&Arc<VirtualServer>> {
        self.virtual_servers.get(key).and_then(|claims| claims.first()).map(|c| &c.server)
    }

    /// Every wanted virtual server, in no order.
    pub fn virtual_servers(&self) -> impl Iterator<Item = &Arc<VirtualServer>> {
        self.virtual_servers.values().filter_map(|claims| claims.first()).map(|c| &c.server)
    }

    /// Whether `addr` is to be bound to `kube-ipvs0`.
    pub fn wants_address(&self, addr: IpAddr) -> bool {
        self.addresses.contains_key(&addr)
    }

    /// Every address to be bound, in no order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.keys().copied()
    }

    /// Whether the set is to hold the entry.
    pub fn wants_entry(&self, entry: &(SetId, Entry)) -> bool {
        self.entries.contains_key(entry)
    }

    /// Every wanted set entry, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &(SetId, Entry)> {
        self.entries.keys()
    }

    /// Whether the set is to hold anything: rules over empty sets are left out.
    pub fn has_members(&self, kind: SetKind, family: Family) -> bool {
        self.members.get(&SetId { kind, family }).is_some_and(|n| *n > 0)
    }

    /// Names of all Services that contribute something.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.fragments.keys()
    }
}

fn count_up<K: std::hash::Hash + Eq>(map: &mut HashMap<K, u32>, key: K, first: impl FnOnce() -> bool) {
    let count = map.entry(key).or_default();
    *count += 1;
    if *count == 1 {
        first();
    }
}

fn count_down<K: std::hash::Hash + Eq>(map: &mut HashMap<K, u32>, key: K, last: impl FnOnce() -> bool) {
    if let Some(count) = map.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            map.remove(&key);
            last();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{Protocol, RsKey, VsSpec};

    fn fragment(name: &str, created: i64, vip: &str, rs: &[&str]) -> Fragment {
        let addr: IpAddr = vip.parse().unwrap();
        let key = VsKey { protocol: Protocol::Tcp, addr, port: 80 };
        Fragment {
            created,
            virtual_servers: vec![Arc::new(VirtualServer {
                key,
                spec: VsSpec { scheduler: "rr".into(), flags: 0, timeout: 0 },
                real_servers: rs.iter().map(|a| RsKey { addr: a.parse().unwrap(), port: 1 }).collect(),
                service: ObjectName::new("d", name),
                port_name: "".into(),
            })],
            addresses: vec![addr],
            entries: vec![(SetId { kind: SetKind::IpvsIps, family: Family::V4 }, Entry::Ip(addr))],
        }
    }

    fn update(desired: &mut Desired, name: &str, fragment: Option<Fragment>) -> Changes {
        let mut changes = Changes::default();
        desired.update(&ObjectName::new("d", name), fragment, &mut changes);
        changes
    }

    #[test]
    fn an_equal_fragment_changes_nothing() {
        let mut desired = Desired::default();
        assert_eq!(update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[]))).len(), 3);
        assert!(update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[]))).is_empty());
    }

    #[test]
    fn an_endpoint_touches_only_its_virtual_server() {
        let mut desired = Desired::default();
        update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[])));
        let changes = update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &["10.1.0.1"])));
        assert_eq!((changes.virtual_servers.len(), changes.len()), (1, 1));
    }

    #[test]
    fn shared_keys_go_with_their_last_owner() {
        let mut desired = Desired::default();
        update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[])));
        let changes = update(&mut desired, "b", Some(fragment("b", 2, "10.0.0.1", &[])));
        assert!(changes.is_empty(), "the older claim stands: {changes:?}");
        let changes = update(&mut desired, "a", None);
        assert_eq!(changes.len(), 1, "only the owner of the virtual server changed: {changes:?}");
        assert!(desired.wants_address("10.0.0.1".parse().unwrap()));
        assert!(desired.has_members(SetKind::IpvsIps, Family::V4));
        assert_eq!(update(&mut desired, "b", None).len(), 3);
        assert!(!desired.has_members(SetKind::IpvsIps, Family::V4));
        assert_eq!(desired.addresses().count() + desired.entries().count(), 0);
    }

    #[test]
    fn the_oldest_service_wins_in_any_order() {
        for order in [["a", "b"], ["b", "a"]] {
            let mut desired = Desired::default();
            for name in order {
                let created = if name == "b" { 1 } else { 2 };
                update(&mut desired, name, Some(fragment(name, created, "10.0.0.1", &[])));
            }
            let winner = desired.virtual_servers().next().unwrap();
            assert_eq!(&*winner.service.name, "b");
        }
    }

    #[test]
    fn a_change_noted_for_one_service_survives_an_unchanged_other() {
        let mut desired = Desired::default();
        update(&mut desired, "a", Some(fragment("a", 1, "10.0.0.1", &[])));
        update(&mut desired, "b", Some(fragment("b", 2, "10.0.0.1", &[])));
        let mut changes = Changes::default();
        desired.update(&ObjectName::new("d", "a"), None, &mut changes);
        let again = fragment("b", 2, "10.0.0.1", &[]);
        desired.update(&ObjectName::new("d", "b"), Some(again), &mut changes);
        assert_eq!(changes.virtual_servers.len(), 1);
    }
}
