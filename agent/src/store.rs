// SPDX-License-Identifier: Apache-2.0
//! The one place that sources write and the reconcile loop reads: a compact model of Services,
//! EndpointSlices and this Node, with the names of the Services that changed.
//!
//! A source writes inside [`Store::update`]; what happens in one call is seen at once or not at all.

mod index;
mod peers;
mod vips;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::core::model::{EndpointSlice, Family, Node, ObjectName, Service};
use crate::core::service::protected::Peers;
use crate::inbox::Inbox;
use crate::metrics::programming::{MAX_TRIGGERS, Trigger};
use crate::tally::Tally;
use crate::words;
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

/// Which external and load-balancer IPs there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vips {
    /// Some Service has one.
    pub any: bool,
    /// Some Service has one of IPv6.
    pub any_v6: bool,
    /// How many came so far.
    pub came: u64,
}

/// An object as far as it could be decoded.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The object, or a sentence that names the field and what is wrong with it.
    pub object: Result<Object, String>,
    /// What is left out of the object, a sentence each. The rest serves.
    pub ignored: Vec<String>,
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
    /// Its external and load-balancer IPs that endpoints of any Service have.
    pub of_endpoints: Box<[IpAddr]>,
    /// What its slices changed for, as far as they say.
    pub triggers: Vec<Trigger>,
}

#[derive(Debug, Default)]
struct Inner {
    index: Index,
    node: Option<Node>,
    node_changed: bool,
    peers: Peers,
    /// The source does not know the addresses of Nodes yet.
    awaits_nodes: bool,
    /// Something came that the loop can use before every list is complete.
    early: bool,
    dirty: BTreeSet<ObjectName>,
    /// Of the kinds whose lists go on: what was there before and has not come up yet.
    unseen: HashMap<Kind, HashSet<ObjectName>>,
    synced: HashSet<Kind>,
    /// When the last list became complete.
    synced_at: Option<Instant>,
    /// The Services to be programmed first are here, with their slices.
    first_are_known: bool,
    /// What waiting changes of slices say about their cause; not kept with the slices.
    triggers: HashMap<ObjectName, Vec<Trigger>>,
    /// What was told to be wrong with objects.
    told: HashMap<(Kind, ObjectName), String>,
    tally: Tally,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    inbox: Arc<Inbox>,
    /// How many VIPs came, for whoever waits for a new one.
    vips_came: watch::Sender<u64>,
}

impl Store {
    /// An empty store that wakes `inbox` when the first Services are known, and on every change once every
    /// kind has been listed.
    pub fn new(inbox: Arc<Inbox>) -> Self {
        Self { inner: Mutex::default(), inbox, vips_came: watch::channel(0).0 }
    }

    /// A panic while the lock was held cannot leave the maps torn: every method finishes its
    /// change before it can fail.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a group of changes visible at once.
    pub fn update<R>(&self, change: impl FnOnce(&mut Update<'_>) -> R) -> R {
        let mut inner = self.lock();
        let had_first = inner.has_first();
        let result = change(&mut Update { inner: &mut inner });
        inner.tally.stamp();
        let early = std::mem::take(&mut inner.early);
        let useful = early || inner.is_synced() || inner.has_first() != had_first;
        if inner.is_synced() {
            inner.synced_at.get_or_insert_with(Instant::now);
        }
        let came = inner.index.vips().came();
        drop(inner);
        self.vips_came.send_if_modified(|told| std::mem::replace(told, came) != came);
        // Otherwise the loop can do nothing with it.
        if useful {
            self.inbox.wake();
        }
        result
    }

    /// True once every kind has been listed completely.
    pub fn is_synced(&self) -> bool {
        self.lock().is_synced()
    }

    /// True once the Services to be programmed first are known, and the Node, whatever else is missing.
    pub fn has_first(&self) -> bool {
        self.lock().has_first()
    }

    /// The Services to be programmed first. They stay changes that wait.
    pub fn first(&self) -> Vec<Dirty> {
        let mut inner = self.lock();
        inner.index.count_vips();
        let is_priority = |name: &&ObjectName| inner.index.service(name).is_some_and(|service| service.first);
        inner.index.services().filter(is_priority).map(|name| inner.read(name.clone())).collect()
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
        inner.index.count_vips();
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
        let mut inner = self.lock();
        inner.index.count_vips();
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

    /// How long the oldest change waits that the loop could have taken: not before every list is complete.
    pub fn waiting_for_loop(&self) -> Option<Duration> {
        let inner = self.lock();
        let since = inner.tally.waiting_since?.max(inner.synced_at?);
        Some(since.elapsed())
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

    fn has_first(&self) -> bool {
        self.first_are_known && self.synced.contains(&Kind::Node)
    }

    fn read(&self, name: ObjectName) -> Dirty {
        let slices = self.index.slices_of(&name).to_vec();
        let service = self.index.service(&name).cloned();
        let of_endpoints = service.as_ref().map(|service| self.index.vips().of_endpoints(service));
        let of_endpoints = of_endpoints.unwrap_or_default();
        Dirty { service, slices, of_endpoints, name, triggers: Vec::new() }
    }

    /// Counts a slice that came, changed or went. One that concerns no Service is no change that waits.
    fn count_slice(&mut self, family: Family) {
        if !self.dirty.is_empty() {
            self.tally.slice(family);
        }
    }

    /// Forgets a slice; its Service changed.
    fn drop_slice(&mut self, name: &ObjectName) -> Option<Arc<EndpointSlice>> {
        let (slice, changed) = self.index.remove_slice(name)?;
        if !slice.service.name.is_empty() {
            self.dirty.insert(slice.service.clone());
        }
        self.dirty.extend(changed);
        Some(slice)
    }
}

/// The first few parts of an object that are ignored, and how many there are.
fn some_ignored(ignored: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    (!ignored.is_empty()).then(|| format!("ignored: {}", words::some(ignored, SHOWN, ignored.len())))
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

    /// What there is to know about the Services to be programmed first has been put, before any list of
    /// Services or slices.
    pub fn first_are_known(&mut self) {
        self.inner.first_are_known = true;
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
        let family = slice.family;
        if let Some(trigger) = trigger.filter(|trigger| inner.tally.counts(trigger)) {
            let triggers = inner.triggers.entry(slice.service.clone()).or_default();
            if triggers.len() < MAX_TRIGGERS {
                triggers.push(trigger);
            }
        }
        if !slice.service.name.is_empty() {
            inner.dirty.insert(slice.service.clone());
        }
        let changed = inner.index.add_slice(slice);
        inner.dirty.extend(changed);
        inner.count_slice(family);
    }

    /// Forgets an object; one that is not there is fine.
    pub fn remove(&mut self, kind: Kind, name: &ObjectName) {
        let inner = &mut *self.inner;
        if !inner.told.is_empty() {
            inner.told.remove(&(kind, name.clone()));
        }
        match kind {
            Kind::Service => {
                if inner.index.remove_service(name) {
                    inner.tally.service(name);
                    inner.dirty.insert(name.clone());
                }
            }
            Kind::EndpointSlice => {
                if let Some(slice) = inner.drop_slice(name) {
                    inner.count_slice(slice.family);
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

    /// Adds what could be decoded of an object. What is wrong with it is told when it is new.
    pub fn put_decoded(&mut self, kind: Kind, name: &ObjectName, decoded: Decoded) {
        let wrong = match &decoded.object {
            Err(error) => Some(format!("malformed: {error}")),
            Ok(_) => some_ignored(&decoded.ignored),
        };
        let told = &mut self.inner.told;
        let key = (kind, name.clone());
        let is_new = match &wrong {
            Some(wrong) => told.insert(key, wrong.clone()).is_none_or(|before| before != *wrong),
            // Nearly always there is nothing.
            None => !told.is_empty() && told.remove(&key).is_some(),
        };
        match decoded.object {
            Err(error) => self.malformed(kind, name, &error, is_new),
            Ok(object) => {
                match &wrong {
                    Some(wrong) if is_new => {
                        tracing::warn!(%kind, object = %name, "{wrong}; the rest of the object serves");
                    }
                    None if is_new => tracing::info!(%kind, object = %name, "the object is valid now"),
                    _ => {}
                }
                self.put(object);
            }
        }
    }

    /// An object could not be decoded: it is counted, and its last good version stays in force,
    /// through a complete list too.
    fn malformed(&mut self, kind: Kind, name: &ObjectName, error: &str, is_new: bool) {
        self.seen(kind, name);
        self.inner.tally.malformed(kind);
        let known = match kind {
            Kind::Service => self.inner.index.service(name).is_some(),
            Kind::EndpointSlice => self.inner.index.slice(name).is_some(),
            Kind::Node => self.inner.node.is_some(),
        };
        let kept =
            if known { "its last good version stays in force" } else { "it is left out until it is fixed" };
        if is_new {
            tracing::warn!(%kind, object = %name, "malformed: {error}; {kept}");
        }
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
#[path = "store/store_tests.rs"]
mod tests;
