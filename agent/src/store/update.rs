// SPDX-License-Identifier: Apache-2.0
//! Write access to the store.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::contents::{Contents, ServiceCidrs};
use super::object::{Decoded, Kind, Object};
use crate::core::model::trigger::{MAX_TRIGGERS, Trigger};
use crate::core::model::{EndpointSlice, Node, ObjectName};
use crate::words;

/// Ignored parts of one object that a log line names.
const SHOWN: usize = 3;

/// A group of changes that becomes visible at once.
#[derive(Debug)]
pub struct Update<'a>(pub(super) &'a mut Contents);

impl Update<'_> {
    /// Begins a complete list of `kind`: [`Self::finish_list`] removes every object that is not put before it.
    pub fn begin_list(&mut self, kind: Kind) {
        let contents = &mut *self.0;
        let known = match kind {
            Kind::Service => contents.index.services().cloned().collect(),
            Kind::EndpointSlice => contents.index.slices().cloned().collect(),
            Kind::Node => contents.node.iter().map(|node| ObjectName::new("", &node.name)).collect(),
        };
        contents.unseen.insert(kind, known);
    }

    pub fn finish_list(&mut self, kind: Kind) {
        for name in self.0.unseen.remove(&kind).unwrap_or_default() {
            self.remove(kind, &name);
        }
        self.0.synced.insert(kind);
    }

    /// Every priority Service and its slices have been put, before any list of Services or slices.
    pub fn set_priority_known(&mut self) {
        self.0.priority_known = true;
    }

    /// Adds an object or replaces its earlier version.
    pub fn put(&mut self, object: Object) {
        match object {
            Object::Service(service) => {
                self.seen(Kind::Service, &service.name);
                let contents = &mut *self.0;
                if contents.index.service(&service.name).is_none_or(|old| **old != service) {
                    contents.tally.service(&service.name);
                    contents.dirty.insert(service.name.clone());
                    contents.index.put_service(service);
                }
            }
            Object::EndpointSlice(slice) => self.put_slice(slice, None),
            Object::TriggeredSlice(slice, trigger) => self.put_slice(slice, Some(trigger)),
            Object::Node(node) => {
                self.seen(Kind::Node, &ObjectName::new("", &node.name));
                self.set_node(Some(node));
            }
            Object::NotOurs(kind, name) => self.remove(kind, &name),
        }
    }

    fn put_slice(&mut self, slice: EndpointSlice, trigger: Option<Trigger>) {
        self.seen(Kind::EndpointSlice, &slice.name);
        let contents = &mut *self.0;
        if contents.index.slice(&slice.name).is_some_and(|old| **old == slice) {
            return;
        }
        // A slice may move to another Service.
        contents.drop_slice(&slice.name);
        let family = slice.family;
        if let Some(trigger) = trigger.filter(|trigger| contents.tally.counts(trigger)) {
            let triggers = contents.triggers.entry(slice.service.clone()).or_default();
            if triggers.len() < MAX_TRIGGERS {
                triggers.push(trigger);
            }
        }
        if !slice.service.name.is_empty() {
            contents.dirty.insert(slice.service.clone());
        }
        let changed = contents.index.add_slice(slice);
        contents.dirty.extend(changed);
        contents.count_slice(family);
    }

    /// Removes an object; does nothing if the store does not have it.
    pub fn remove(&mut self, kind: Kind, name: &ObjectName) {
        let contents = &mut *self.0;
        if !contents.reported.is_empty() {
            contents.reported.remove(&(kind, name.clone()));
        }
        match kind {
            Kind::Service => {
                if contents.index.remove_service(name) {
                    contents.tally.service(name);
                    contents.dirty.insert(name.clone());
                }
            }
            Kind::EndpointSlice => {
                if let Some(slice) = contents.drop_slice(name) {
                    contents.count_slice(slice.family);
                    // As in kube-proxy: no trigger is known for the removal of a slice.
                    contents.triggers.remove(&slice.service);
                }
            }
            Kind::Node => self.set_node(None),
        }
    }

    fn set_node(&mut self, node: Option<Node>) {
        if self.0.node != node {
            self.0.node = node;
            self.node_changed();
        }
    }

    fn node_changed(&mut self) {
        self.0.node_changed = true;
        self.0.tally.changed();
    }

    /// The addresses of the Nodes follow: until then the loop binds no new address that a Node might have.
    pub fn await_nodes(&mut self) {
        if !std::mem::replace(&mut self.0.awaits_nodes, true) {
            self.0.node_changed = true;
        }
    }

    /// Sets the addresses of all Nodes, sorted, as far as they are known.
    pub fn set_nodes(&mut self, nodes: Arc<[IpAddr]>) {
        if std::mem::take(&mut self.0.awaits_nodes) || self.0.peers.nodes != nodes {
            self.0.peers.nodes = nodes;
            self.node_changed();
        }
    }

    /// The ranges of ClusterIPs follow: until then the loop programs nothing.
    pub fn await_service_cidrs(&mut self) {
        self.0.service_cidrs = Some(ServiceCidrs::Awaited);
    }

    /// The ranges of ClusterIPs cannot be read in time. Ranges that are known stay.
    pub fn skip_service_cidrs(&mut self) {
        if self.0.service_cidrs == Some(ServiceCidrs::Awaited) {
            self.0.service_cidrs = Some(ServiceCidrs::Unknown);
            self.node_changed();
        }
    }

    /// Sets the ranges of ClusterIPs.
    pub fn set_service_cidrs(&mut self, ranges: Arc<[IpNet]>) {
        let known = Some(ServiceCidrs::Known(ranges));
        if self.0.service_cidrs != known {
            self.0.service_cidrs = known;
            self.node_changed();
        }
    }

    /// Sets the addresses and ports of the API server that the agent talks to, sorted.
    pub fn set_api_servers(&mut self, api_servers: Arc<[SocketAddr]>) {
        if self.0.peers.api_servers != api_servers {
            self.0.peers.api_servers = api_servers;
            self.0.early = true;
            self.node_changed();
        }
    }

    /// Puts a decoded object. A defect is logged when it is new. The last good version of a malformed object
    /// stays in force, also through a complete list.
    pub fn put_decoded(&mut self, kind: Kind, name: &ObjectName, decoded: Decoded) {
        let Decoded { object, ignored } = decoded;
        let defect = match &object {
            Err(error) => Some(format!("malformed: {error}")),
            Ok(_) if ignored.is_empty() => None,
            Ok(_) => Some(format!("ignored: {}", words::some(&ignored, SHOWN, ignored.len()))),
        };
        let reported = &mut self.0.reported;
        let key = (kind, name.clone());
        let is_new = match &defect {
            Some(defect) => reported.insert(key, defect.clone()).is_none_or(|before| before != *defect),
            // Nearly no object has a defect.
            None => !reported.is_empty() && reported.remove(&key).is_some(),
        };
        match (&object, defect) {
            _ if !is_new => {}
            (_, None) => tracing::info!(%kind, object = %name, "the object is valid now"),
            (Ok(_), Some(defect)) => {
                tracing::warn!(%kind, object = %name, "{defect}; the rest of the object is used");
            }
            (Err(_), Some(defect)) if self.knows(kind, name) => {
                tracing::warn!(%kind, object = %name, "{defect}; its last good version stays in force");
            }
            (Err(_), Some(defect)) => {
                tracing::warn!(%kind, object = %name, "{defect}; the object is ignored until it is fixed");
            }
        }
        match object {
            Ok(object) => self.put(object),
            Err(_) => {
                self.seen(kind, name);
                self.0.tally.malformed[kind as usize] += 1;
            }
        }
    }

    fn knows(&self, kind: Kind, name: &ObjectName) -> bool {
        match kind {
            Kind::Service => self.0.index.service(name).is_some(),
            Kind::EndpointSlice => self.0.index.slice(name).is_some(),
            Kind::Node => self.0.node.is_some(),
        }
    }

    fn seen(&mut self, kind: Kind, name: &ObjectName) {
        match self.0.unseen.get_mut(&kind) {
            // There is only one Node.
            Some(unseen) if kind == Kind::Node => unseen.clear(),
            Some(unseen) => drop(unseen.remove(name)),
            None => {}
        }
    }
}
