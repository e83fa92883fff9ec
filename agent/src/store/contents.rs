// SPDX-License-Identifier: Apache-2.0
//! What the store holds, behind its lock.

use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::index::Index;
use super::object::{Dirty, Kind};
use super::tally::Tally;
use crate::core::model::map::{Map, Set};
use crate::core::model::trigger::Trigger;
use crate::core::model::{EndpointSlice, Family, Node, ObjectName};
use crate::core::service::protected::Peers;

#[derive(Debug, Default)]
pub(super) struct Contents {
    pub index: Index,
    pub node: Option<Node>,
    /// The Node, or the addresses that the cluster uses, changed since the loop took the changes.
    pub node_changed: bool,
    pub peers: Peers,
    /// The source has not reported the addresses of the Nodes yet.
    pub awaits_nodes: bool,
    /// The ranges of ClusterIPs, if the source reads them.
    pub service_cidrs: Option<ServiceCidrs>,
    /// A change that the loop can use before every list is complete.
    pub early: bool,
    pub dirty: Set<ObjectName>,
    /// For each kind that is being listed: the objects known before that the list has not named yet.
    pub unseen: Map<Kind, Set<ObjectName>>,
    pub synced: Set<Kind>,
    pub synced_at: Option<Instant>,
    /// The priority Services and their slices are in the store.
    pub priority_known: bool,
    /// The triggers of pending changes; not kept with the slices.
    pub triggers: Map<ObjectName, Vec<Trigger>>,
    /// The last reported defect of each object that has one.
    pub reported: Map<(Kind, ObjectName), String>,
    pub tally: Tally,
}

/// The ranges of ClusterIPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServiceCidrs {
    /// Not read yet; the first sync waits.
    Awaited,
    /// Not read in time.
    Unknown,
    Known(Arc<[IpNet]>),
}

impl Contents {
    pub fn is_synced(&self) -> bool {
        self.synced.len() == Kind::ALL.len() && !self.awaits_service_cidrs()
    }

    pub fn has_priority(&self) -> bool {
        self.priority_known && self.synced.contains(&Kind::Node) && !self.awaits_service_cidrs()
    }

    fn awaits_service_cidrs(&self) -> bool {
        self.service_cidrs == Some(ServiceCidrs::Awaited)
    }

    pub fn read(&self, name: ObjectName) -> Dirty {
        let slices = self.index.slices_of(&name).to_vec();
        let service = self.index.service(&name).cloned();
        let of_endpoints = service.as_ref().map(|service| self.index.vips.of_endpoints(service));
        Dirty { service, slices, of_endpoints: of_endpoints.unwrap_or_default(), name, triggers: Vec::new() }
    }

    /// Counts a slice that was added, changed or removed. A slice that concerns no Service is no pending change.
    pub fn count_slice(&mut self, family: Family) {
        if !self.dirty.is_empty() {
            self.tally.slice(family);
        }
    }

    /// Removes a slice and marks its Service as changed.
    pub fn drop_slice(&mut self, name: &ObjectName) -> Option<Arc<EndpointSlice>> {
        let (slice, changed) = self.index.remove_slice(name)?;
        if !slice.service.name.is_empty() {
            self.dirty.insert(slice.service.clone());
        }
        self.dirty.extend(changed);
        Some(slice)
    }
}
