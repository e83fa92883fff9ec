// SPDX-License-Identifier: Apache-2.0
//! The one place that sources write and the reconcile loop reads: a compact model of Services,
//! EndpointSlices and this Node, with the names of the Services that changed.
//!
//! A source writes inside [`Store::update`]; what happens in one call is seen at once or not at all.

mod index;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::core::model::{EndpointSlice, Node, ObjectName, Service};
use crate::inbox::Inbox;
use crate::metrics::programming::{MAX_TRIGGERS, Trigger};
use crate::tally::Tally;
use index::Index;

/// The kinds of object that the agent follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node; only the one with our name.
    Node,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A decoded object, or the reason why there is nothing to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service to proxy.
    Service(Service),
    /// An EndpointSlice to use.
    EndpointSlice(EndpointSlice),
    /// An EndpointSlice that says when the change happened that it is about.
    TriggeredSlice(EndpointSlice, Trigger),
    /// A Node.
    Node(Node),
    /// A well-formed object that is not for this agent, with the reason; an earlier version of
    /// it is forgotten.
    NotOurs(Kind, ObjectName, &'static str),
}

/// A change of one Service: its new version and its slices.
#[derive(Clone, Debug)]
pub struct Dirty {
    /// Which Service.
    pub name: ObjectName,
    /// Its current version; `None` when it is gone.
    pub service: Option<Arc<Service>>,
    /// Its slices, in the order of their names.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// What its slices changed for, as far as they say.
    pub triggers: Vec<Trigger>,
}

#[derive(Debug, Default)]
struct Inner {
    index: Index,
    node: Option<Node>,
    node_changed: bool,
    dirty: BTreeSet<ObjectName>,
    /// Of the kinds whose lists go on: what was there before and has not come up yet.
    unseen: HashMap<Kind, HashSet<ObjectName>>,
    synced: HashSet<Kind>,
    /// What waiting changes of slices say about their cause; not kept with the slices.
    triggers: HashMap<ObjectName, Vec<Trigger>>,
    tally: Tally,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    inbox: Arc<Inbox>,
}

impl Store {
    /// An empty store that wakes `inbox` on every change, once every kind has been listed.
    pub fn new(inbox: Arc<Inbox>) -> Self {
        Self { inner: Mutex::default(), inbox }
    }

    /// A panic while the lock was held cannot leave the maps torn: every method finishes its
    /// change before it can fail.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a group of changes visible at once.
    pub fn update<R>(&self, change: impl FnOnce(&mut Update<'_>) -> R) -> R {
        let mut inner = self.lock();
        let result = change(&mut Update { inner: &mut inner });
        inner.tally.stamp();
        let synced = inner.is_synced();
        drop(inner);
        // Before that the loop can do nothing with it.
        if synced {
            self.inbox.wake();
        }
        result
    }

    /// True once every kind has been listed completely.
    pub fn is_synced(&self) -> bool {
        self.lock().is_synced()
    }

    /// The kinds whose first list has not ended.
    pub fn waiting_for(&self) -> Vec<Kind> {
        let inner = self.lock();
        Kind::ALL.into_iter().filter(|kind| !inner.synced.contains(kind)).collect()
    }

    /// Whether changes are waiting.
    pub fn is_dirty(&self) -> bool {
        let inner = self.lock();
        inner.node_changed || !inner.dirty.is_empty()
    }

    /// Takes the changed Services, in the order of their names. A change of the Node counts as seen.
    pub fn take_dirty(&self) -> Vec<Dirty> {
        let mut inner = self.lock();
        inner.node_changed = false;
        inner.tally.taken();
        let names = std::mem::take(&mut inner.dirty);
        let mut triggers = std::mem::take(&mut inner.triggers);
        let read = |name| {
            let triggers = triggers.remove(&name).unwrap_or_default();
            Dirty { triggers, ..inner.read(name) }
        };
        names.into_iter().map(read).collect()
    }

    /// Every Service that exists.
    pub fn all(&self) -> Vec<Dirty> {
        let inner = self.lock();
        inner.index.services().map(|name| inner.read(name.clone())).collect()
    }

    /// This node's object, if it exists.
    pub fn node(&self) -> Option<Node> {
        self.lock().node.clone()
    }

    /// How many times an object could not be decoded.
    pub fn malformed(&self) -> u64 {
        self.lock().tally.malformed.iter().sum()
    }

    /// What came in so far.
    pub fn tally(&self) -> Tally {
        self.lock().tally.clone()
    }

    /// When the oldest change that nobody has taken yet came in.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.lock().tally.waiting_since
    }
}

impl Inner {
    fn is_synced(&self) -> bool {
        self.synced.len() == Kind::ALL.len()
    }

    fn read(&self, name: ObjectName) -> Dirty {
        let slices = self.index.slices_of(&name).to_vec();
        Dirty { service: self.index.service(&name).cloned(), slices, name, triggers: Vec::new() }
    }

    /// Forgets a slice; its Service changed.
    fn drop_slice(&mut self, name: &ObjectName) -> Option<Arc<EndpointSlice>> {
        let slice = self.index.remove_slice(name)?;
        self.dirty.insert(slice.service.clone());
        Some(slice)
    }
}

/// Write access to the store.
#[derive(Debug)]
pub struct Update<'a> {
    inner: &'a mut Inner,
}

impl Update<'_> {
    /// A complete list of `kind` begins: what is not put before [`Self::finish_list`] is gone then.
    pub fn begin_list(&mut self, kind: Kind) {
        let inner = &mut *self.inner;
        let known = match kind {
            Kind::Service => inner.index.services().cloned().collect(),
            Kind::EndpointSlice => inner.index.slices().cloned().collect(),
            Kind::Node => inner.node.iter().map(|node| ObjectName::new("", &node.name)).collect(),
        };
        inner.unseen.insert(kind, known);
    }

    /// The list of `kind` is complete.
    pub fn finish_list(&mut self, kind: Kind) {
        for name in self.inner.unseen.remove(&kind).unwrap_or_default() {
            self.remove(kind, &name);
        }
        self.inner.synced.insert(kind);
    }

    /// Adds an object or replaces its earlier version.
    pub fn put(&mut self, object: Object) {
        match object {
            Object::Service(service) => {
                self.seen(Kind::Service, &service.name);
                let inner = &mut *self.inner;
                if inner.index.service(&service.name).is_none_or(|old| **old != service) {
                    inner.tally.service(&service.name);
                    inner.dirty.insert(service.name.clone());
                    inner.index.put_service(service);
                }
            }
            Object::EndpointSlice(slice) => self.put_slice(slice, None),
            Object::TriggeredSlice(slice, trigger) => self.put_slice(slice, Some(trigger)),
            Object::Node(node) => {
                self.seen(Kind::Node, &ObjectName::new("", &node.name));
                self.set_node(Some(node));
            }
            Object::NotOurs(kind, name, _) => self.remove(kind, &name),
        }
    }

    fn put_slice(&mut self, slice: EndpointSlice, trigger: Option<Trigger>) {
        self.seen(Kind::EndpointSlice, &slice.name);
        let inner = &mut *self.inner;
        if inner.index.slice(&slice.name).is_some_and(|old| **old == slice) {
            return;
        }
        // A slice may move to another Service.
        inner.drop_slice(&slice.name);
        inner.tally.slice(slice.family);
        if let Some(trigger) = trigger.filter(|trigger| inner.tally.counts(trigger)) {
            let triggers = inner.triggers.entry(slice.service.clone()).or_default();
            if triggers.len() < MAX_TRIGGERS {
                triggers.push(trigger);
            }
        }
        inner.dirty.insert(slice.service.clone());
        inner.index.add_slice(slice);
    }

    /// Forgets an object; one that is not there is fine.
    pub fn remove(&mut self, kind: Kind, name: &ObjectName) {
        let inner = &mut *self.inner;
        match kind {
            Kind::Service => {
                if inner.index.remove_service(name) {
                    inner.tally.service(name);
                    inner.dirty.insert(name.clone());
                }
            }
            Kind::EndpointSlice => {
                if let Some(slice) = inner.drop_slice(name) {
                    inner.tally.slice(slice.family);
                    // As in kube-proxy: when a slice goes, nothing says when that was asked for.
                    inner.triggers.remove(&slice.service);
                }
            }
            Kind::Node => self.set_node(None),
        }
    }

    fn set_node(&mut self, node: Option<Node>) {
        if self.inner.node != node {
            self.inner.node_changed = true;
            self.inner.tally.changed();
            self.inner.node = node;
        }
    }

    /// An object could not be decoded: it is counted, and its last good version stays in force,
    /// through a complete list too.
    pub fn malformed(&mut self, kind: Kind, name: &ObjectName, error: &str) {
        self.seen(kind, name);
        self.inner.tally.malformed(kind);
        let known = match kind {
            Kind::Service => self.inner.index.service(name).is_some(),
            Kind::EndpointSlice => self.inner.index.slice(name).is_some(),
            Kind::Node => self.inner.node.is_some(),
        };
        let kept =
            if known { "its last good version stays in force" } else { "it is left out until it is fixed" };
        let count: u64 = self.inner.tally.malformed.iter().sum();
        tracing::warn!(%kind, object = %name, count, "malformed object: {error}; {kept}");
    }

    fn seen(&mut self, kind: Kind, name: &ObjectName) {
        match self.inner.unseen.get_mut(&kind) {
            // There is only one.
            Some(unseen) if kind == Kind::Node => unseen.clear(),
            Some(unseen) => drop(unseen.remove(name)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{Family, Protocol, SlicePort};
    use std::time::{Duration, SystemTime};

    fn service(name: &str, vip: &str) -> Object {
        Object::Service(Service {
            name: ObjectName::new("d", name),
            cluster_ips: [Some(vip.parse().unwrap()), None],
            ..Service::default()
        })
    }

    fn slice(name: &str, service: &str) -> Object {
        Object::EndpointSlice(EndpointSlice {
            name: ObjectName::new("d", name),
            service: ObjectName::new("d", service),
            family: Family::V4,
            ports: Box::default(),
            endpoints: Box::default(),
        })
    }

    fn store() -> Store {
        Store::new(Arc::new(Inbox::default()))
    }

    fn dirty(store: &Store) -> Vec<String> {
        store
            .take_dirty()
            .iter()
            .map(|d| format!("{} {} {}", d.name, d.service.is_some(), d.slices.len()))
            .collect()
    }

    #[test]
    fn an_equal_object_is_no_change() {
        let store = store();
        store.update(|u| {
            u.put(service("a", "10.0.0.1"));
            u.put(slice("a-1", "a"));
        });
        assert_eq!(dirty(&store), ["d/a true 1"]);
        store.update(|u| {
            u.put(service("a", "10.0.0.1"));
            u.put(slice("a-1", "a"));
        });
        assert!(dirty(&store).is_empty());
    }

    #[test]
    fn a_new_list_drops_what_it_does_not_name_but_keeps_the_malformed() {
        let store = store();
        store.update(|u| {
            for name in ["a", "b", "c"] {
                u.put(service(name, "10.0.0.1"));
            }
        });
        store.take_dirty();
        store.update(|u| {
            u.begin_list(Kind::Service);
            u.put(service("a", "10.0.0.1"));
            u.malformed(Kind::Service, &ObjectName::new("d", "b"), "port is not a number");
            u.finish_list(Kind::Service);
        });
        assert_eq!(dirty(&store), ["d/c false 0"]);
        assert_eq!(store.malformed(), 1);
    }

    #[test]
    fn a_slice_that_moves_changes_both_services() {
        let store = store();
        store.update(|u| u.put(slice("s", "a")));
        store.take_dirty();
        store.update(|u| u.put(slice("s", "b")));
        assert_eq!(dirty(&store), ["d/a false 0", "d/b false 1"]);
    }

    fn triggered(number: u8, at: SystemTime) -> Object {
        let Object::EndpointSlice(mut slice) = slice("a-1", "a") else { panic!() };
        slice.ports = [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: number.into() }].into();
        Object::TriggeredSlice(slice, Trigger { family: Family::V4, at })
    }

    #[test]
    fn what_slices_say_about_their_cause_waits_beside_them() {
        let (store, later) = (store(), |s| SystemTime::now() + Duration::from_secs(s));
        let triggers =
            |store: &Store| store.take_dirty().iter().map(|d| d.triggers.len()).collect::<Vec<_>>();
        store.update(|u| {
            u.put(triggered(1, later(1)));
            u.put(triggered(1, later(2)));
            u.put(triggered(2, later(3)));
            u.put(triggered(3, SystemTime::UNIX_EPOCH));
        });
        assert_eq!(triggers(&store), [2], "neither an equal slice nor one from before the start");
        store.update(|u| u.put(slice("a-1", "a")));
        assert_eq!(triggers(&store), [0], "they are taken once");
        store.update(|u| {
            u.put(triggered(4, later(4)));
            u.remove(Kind::EndpointSlice, &ObjectName::new("d", "a-1"));
        });
        assert_eq!(triggers(&store), [0], "nothing is measured when a slice goes");
        store.update(|u| (0..=255).for_each(|n| u.put(triggered(n, later(5)))));
        assert_eq!(triggers(&store), [MAX_TRIGGERS]);
    }

    #[test]
    fn changes_are_counted_and_wait_until_they_are_taken() {
        let store = store();
        store.update(|u| {
            u.put(service("a", "10.0.0.1"));
            u.put(service("a", "10.0.0.1"));
            u.put(service("a", "10.0.0.2"));
            u.put(slice("a-1", "a"));
            u.malformed(Kind::Service, &ObjectName::new("d", "b"), "no");
        });
        let tally = store.tally();
        assert_eq!((tally.services, tally.slices, tally.malformed), (2, [1, 0], [1, 0, 0]));
        assert_eq!((tally.pending_services.len(), tally.pending_slices), (1, 1));
        assert_eq!(store.waiting_since(), tally.waiting_since);
        assert!(tally.waiting_since.is_some());
        store.take_dirty();
        let tally = store.tally();
        assert_eq!((tally.services, tally.slices), (2, [1, 0]), "totals stay");
        assert_eq!((tally.pending_services.len(), tally.pending_slices, tally.waiting_since), (0, 0, None));
        store.update(|u| u.remove(Kind::Service, &ObjectName::new("d", "a")));
        store.update(|u| u.remove(Kind::Service, &ObjectName::new("d", "a")));
        assert_eq!(store.tally().services, 3, "what is not there cannot go");
    }

    #[test]
    fn the_loop_is_woken_once_everything_was_listed() {
        let inbox = Arc::new(Inbox::default());
        let store = Store::new(inbox.clone());
        let woken = || inbox.is_woken();
        store.update(|u| u.begin_list(Kind::Service));
        store.update(|u| u.put(service("a", "10.0.0.1")));
        store.update(|u| Kind::ALL[1..].iter().for_each(|kind| u.finish_list(*kind)));
        assert!(!woken(), "it can do nothing yet");
        store.update(|u| u.finish_list(Kind::Service));
        assert!(woken());
        inbox.wait(None);
        store.update(|u| u.put(service("a", "10.0.0.2")));
        assert!(woken());
    }

    #[test]
    fn in_sync_needs_every_kind() {
        let store = store();
        for kind in Kind::ALL {
            assert!(!store.is_synced());
            assert!(store.waiting_for().contains(&kind));
            store.update(|u| {
                u.begin_list(kind);
                u.finish_list(kind);
            });
        }
        assert!(store.is_synced());
    }

    #[test]
    fn a_changed_node_makes_the_store_dirty_once() {
        let store = store();
        let node = |zone: &str| Node { zone: Some(zone.into()), ..Node::default() };
        for (zone, dirty) in [("za", true), ("za", false), ("zb", true)] {
            store.update(|u| u.put(Object::Node(node(zone))));
            assert_eq!(store.is_dirty(), dirty, "{zone}");
            store.take_dirty();
        }
        store.update(|u| u.remove(Kind::Node, &ObjectName::new("", "")));
        assert!(store.is_dirty());
    }

    #[test]
    fn an_object_that_stops_being_ours_is_forgotten() {
        let store = store();
        store.update(|u| u.put(service("a", "10.0.0.1")));
        store.take_dirty();
        store.update(|u| u.put(Object::NotOurs(Kind::Service, ObjectName::new("d", "a"), "headless")));
        assert_eq!(dirty(&store), ["d/a false 0"]);
    }
}
