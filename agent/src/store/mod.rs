// SPDX-License-Identifier: Apache-2.0
//! The objects that sources write and the reconcile loop reads: a compact model of Services, EndpointSlices and
//! this Node, with the names of the Services that changed.
//!
//! A source writes in [`Store::update`]; all changes of one call become visible at once.

mod contents;
mod index;
mod object;
mod tally;
mod update;
mod vips;

use std::collections::{BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::watch;

use crate::core::model::{EndpointSlice, Node, ObjectName, Service};
use crate::core::service::protected::Peers;
use crate::inbox::Inbox;
use crate::lock::lock;
use contents::{Contents, ServiceCidrs};
pub use object::{Decoded, Dirty, Kind, Object};
pub use tally::Tally;
pub use update::Update;

/// A summary of the external and load-balancer IPs of all Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipSummary {
    pub any: bool,
    pub any_v6: bool,
    /// The number of such addresses added so far.
    pub added: u64,
}

/// The store, shared by the sources, the loop and the metrics.
#[derive(Debug)]
pub struct Store {
    contents: Mutex<Contents>,
    inbox: Arc<Inbox>,
    vips_added: watch::Sender<u64>,
}

impl Store {
    /// An empty store. It wakes `inbox` when the priority Services are known, and on every change once every kind
    /// has been listed.
    pub fn new(inbox: Arc<Inbox>) -> Self {
        Self { contents: Mutex::default(), inbox, vips_added: watch::channel(0).0 }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        lock(&self.contents)
    }

    /// Makes a group of changes visible at once.
    pub fn update<R>(&self, change: impl FnOnce(&mut Update<'_>) -> R) -> R {
        let mut contents = self.lock();
        let had_priority = contents.has_priority();
        let result = change(&mut Update(&mut contents));
        contents.tally.stamp();
        let early = std::mem::take(&mut contents.early);
        let useful = early || contents.is_synced() || contents.has_priority() != had_priority;
        if contents.is_synced() {
            contents.synced_at.get_or_insert_with(Instant::now);
        }
        let added = contents.index.vips.added;
        drop(contents);
        self.vips_added.send_if_modified(|known| std::mem::replace(known, added) != added);
        // Otherwise the loop cannot use the change yet.
        if useful {
            self.inbox.wake();
        }
        result
    }

    /// Whether every kind has been listed completely.
    pub fn is_synced(&self) -> bool {
        self.lock().is_synced()
    }

    /// Whether the priority Services and the Node are known, whatever else is missing.
    pub fn has_priority(&self) -> bool {
        self.lock().has_priority()
    }

    /// The priority Services: those of the API server and of DNS. They stay pending changes.
    pub fn priority(&self) -> Vec<Dirty> {
        let mut contents = self.lock();
        contents.index.count_vips();
        let is_priority =
            |name: &&ObjectName| contents.index.service(name).is_some_and(|service| service.priority);
        contents.index.services().filter(is_priority).map(|name| contents.read(name.clone())).collect()
    }

    /// The kinds whose first list is not complete.
    pub fn waiting_for(&self) -> Vec<Kind> {
        let contents = self.lock();
        Kind::ALL.into_iter().filter(|kind| !contents.synced.contains(kind)).collect()
    }

    /// Whether changes are pending.
    pub fn is_dirty(&self) -> bool {
        let contents = self.lock();
        contents.node_changed || !contents.dirty.is_empty()
    }

    /// Takes the changed Services, sorted by name, and marks the change of the Node as taken. `all` is called after
    /// that, without a lock: true takes all other Services too.
    pub fn take_dirty(&self, all: impl FnOnce() -> bool) -> Vec<Dirty> {
        let (mut names, mut triggers) = {
            let mut contents = self.lock();
            contents.index.count_vips();
            contents.node_changed = false;
            contents.tally.taken();
            (std::mem::take(&mut contents.dirty), std::mem::take(&mut contents.triggers))
        };
        let all = all();
        let contents = self.lock();
        if all {
            names.extend(contents.index.services().cloned());
        }
        let mut names: Vec<ObjectName> = names.into_iter().collect();
        names.sort_unstable();
        let read = |name| {
            let triggers = triggers.remove(&name).unwrap_or_default();
            Dirty { triggers, ..contents.read(name) }
        };
        names.into_iter().map(read).collect()
    }

    /// Marks Services as changed, to have them built again.
    pub fn touch<'a>(&self, names: impl IntoIterator<Item = &'a ObjectName>) {
        let mut contents = self.lock();
        names.into_iter().for_each(|name| _ = contents.dirty.insert(name.clone()));
    }

    /// Every Service, in any order. Changes stay pending.
    pub fn all(&self) -> Vec<Dirty> {
        let mut contents = self.lock();
        contents.index.count_vips();
        contents.index.services().map(|name| contents.read(name.clone())).collect()
    }

    /// The first `most` Services, sorted by name, that `is_it` selects by the Service and its slices, with their slices.
    pub fn find(&self, most: usize, is_it: impl Fn(&Service, &[Arc<EndpointSlice>]) -> bool) -> Vec<Dirty> {
        let mut contents = self.lock();
        contents.index.count_vips();
        let index = &contents.index;
        let is_it = |name: &&ObjectName| {
            index.service(name).is_some_and(|service| is_it(service, index.slices_of(name)))
        };
        let mut names: Vec<ObjectName> = index.services().filter(is_it).cloned().collect();
        names.sort_unstable();
        names.truncate(most);
        names.into_iter().map(|name| contents.read(name)).collect()
    }

    /// The first `most` Services after the name, sorted by name.
    pub fn services_after(&self, after: Option<&ObjectName>, most: usize) -> Vec<Arc<Service>> {
        let contents = self.lock();
        let names = first_after(contents.index.services(), after.as_ref(), most);
        names.into_iter().filter_map(|name| contents.index.service(name).cloned()).collect()
    }

    /// The first `most` EndpointSlices after the name, sorted by name.
    pub fn slices_after(&self, after: Option<&ObjectName>, most: usize) -> Vec<Arc<EndpointSlice>> {
        let contents = self.lock();
        let names = first_after(contents.index.slices(), after.as_ref(), most);
        names.into_iter().filter_map(|name| contents.index.slice(name).cloned()).collect()
    }

    /// The object of this Node, if it exists.
    pub fn node(&self) -> Option<Node> {
        self.lock().node.clone()
    }

    /// The number of times that an object could not be decoded.
    pub fn malformed(&self) -> u64 {
        self.lock().tally.malformed.iter().sum()
    }

    pub fn tally(&self) -> Tally {
        self.lock().tally.clone()
    }

    /// The age of the oldest pending change, counted from when every list was complete: the loop takes no change
    /// before.
    pub fn waiting_for_loop(&self) -> Option<Duration> {
        let contents = self.lock();
        let since = contents.tally.waiting_since?.max(contents.synced_at?);
        Some(since.elapsed())
    }

    pub fn waiting_since(&self) -> Option<Instant> {
        self.lock().tally.waiting_since
    }

    /// The addresses that the cluster uses, as far as they are known.
    pub fn peers(&self) -> Peers {
        let contents = self.lock();
        let mut peers = contents.peers.clone();
        let mut api_servers: BTreeSet<SocketAddr> = contents.index.api_server_endpoints().collect();
        if !api_servers.is_empty() {
            api_servers.extend(peers.api_servers.iter());
            peers.api_servers = api_servers.into_iter().collect();
        }
        peers
    }

    /// The ranges of ClusterIPs, if the source reads them; `Some(None)`: they are not known.
    pub fn service_cidrs(&self) -> Option<Option<Arc<[IpNet]>>> {
        let contents = self.lock();
        contents.service_cidrs.as_ref().map(|ranges| match ranges {
            ServiceCidrs::Known(ranges) => Some(ranges.clone()),
            ServiceCidrs::Awaited | ServiceCidrs::Unknown => None,
        })
    }

    /// Whether the addresses of the Nodes are not known yet.
    pub fn awaits_nodes(&self) -> bool {
        self.lock().awaits_nodes
    }

    /// Notifies when an external or load-balancer IP is added.
    pub fn watch_vips(&self) -> watch::Receiver<u64> {
        self.vips_added.subscribe()
    }

    /// The same by [`Kind`].
    pub fn malformed_by_kind(&self) -> [u64; Kind::ALL.len()] {
        self.lock().tally.malformed
    }

    /// A summary of the external and load-balancer IPs.
    pub fn vips(&self) -> VipSummary {
        self.lock().index.vips.summary()
    }
}

/// The smallest `most` names after `after`, sorted: a page of a list that needs no memory for the whole list.
pub fn first_after<T: Ord>(names: impl Iterator<Item = T>, after: Option<&T>, most: usize) -> Vec<T> {
    // The largest is on top.
    let mut smallest = BinaryHeap::with_capacity(most + 1);
    for name in names.filter(|name| after.is_none_or(|after| name > after)) {
        if smallest.len() < most || smallest.peek().is_some_and(|largest| name < *largest) {
            smallest.push(name);
        }
        if smallest.len() > most {
            smallest.pop();
        }
    }
    smallest.into_sorted_vec()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
