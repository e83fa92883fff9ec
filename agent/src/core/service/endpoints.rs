// SPDX-License-Identifier: Apache-2.0
//! The endpoints of a Service port, and the selection of those that get traffic.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::node_facts::NodeFacts;
use crate::core::model::real_servers::{RsState, WantedServers};
use crate::core::model::{Endpoint, EndpointSlice, Family, Hints, RsKey, ServicePort, SlicePort};

/// An endpoint of one Service port, merged over all slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEndpoint<'a> {
    pub target: RsKey,
    /// Gets new traffic.
    pub ready: bool,
    /// Can still serve traffic, ready or not.
    pub serving: bool,
    pub terminating: bool,
    pub weight: u16,
    /// Runs on this node.
    pub local: bool,
    /// Nodes and zones that should use the endpoint.
    pub hints: Option<&'a Hints>,
}

impl PortEndpoint<'_> {
    /// Whether it can get traffic if no better endpoint exists.
    pub fn is_usable(&self) -> bool {
        self.ready || (self.serving && self.terminating)
    }
}

/// The endpoints of `port` in `family`, one per address and port, sorted.
///
/// A slice port matches by name **and** protocol. If several slices have the same endpoint, a copy that does not
/// terminate wins, then a ready one, then the one of the later slice.
pub fn build_endpoints<'a>(
    port: &ServicePort,
    family: Family,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &str,
) -> Vec<PortEndpoint<'a>> {
    let mut merged: BTreeMap<RsKey, PortEndpoint<'a>> = BTreeMap::new();
    for slice in slices.into_iter().filter(|slice| slice.family == family) {
        let is_same = |other: &&SlicePort| other.name == port.name && other.protocol == port.protocol;
        for slice_port in slice.ports.iter().filter(is_same) {
            for endpoint in slice.endpoints.iter() {
                let target = RsKey { addr: endpoint.addr, port: slice_port.port };
                let new = build_port_endpoint(target, endpoint, node);
                let keep_old = merged.get(&target).is_some_and(|old| rank(old) < rank(&new));
                if !keep_old {
                    merged.insert(target, new);
                }
            }
        }
    }
    merged.into_values().collect()
}

fn build_port_endpoint<'a>(target: RsKey, endpoint: &'a Endpoint, node: &str) -> PortEndpoint<'a> {
    let place = endpoint.place.as_deref();
    PortEndpoint {
        target,
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        weight: endpoint.weight,
        local: !node.is_empty() && place.is_some_and(|p| p.node.as_deref() == Some(node)),
        hints: place.map(|p| &p.hints),
    }
}

/// Of duplicates the lowest rank wins.
fn rank(endpoint: &PortEndpoint<'_>) -> (bool, bool) {
    (endpoint.terminating, !endpoint.ready)
}

/// The endpoints that get traffic of one port, by traffic policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Under policy Cluster.
    pub cluster: WantedServers,
    /// Under policy Local.
    pub local: WantedServers,
}

impl Selection {
    /// The real servers of a frontend. Under policy Local without a local endpoint, all endpoints of the cluster are used
    /// as in kube-proxy's ipvs mode, so that connections work until the load balancer notices.
    pub fn of(&self, local: bool) -> WantedServers {
        if self.is_of_local(local) { self.local.clone() } else { self.cluster.clone() }
    }

    /// Whether the list of [`Self::of`] is that of policy Local. Endpoints in maintenance take no new connections: they do not
    /// count while others do.
    pub fn is_of_local(&self, local: bool) -> bool {
        local && (self.local.have_open() || (!self.local.is_empty() && !self.cluster.have_open()))
    }
}

/// Selects the endpoints that get traffic. `cluster`, `local`: whether a frontend needs that list. An internal Service
/// under policy Local has no cluster list: without local endpoints its connections are refused.
pub fn select(all: &[PortEndpoint<'_>], cluster: bool, local: bool, node: &NodeFacts) -> Selection {
    let mut selection = Selection::default();
    if cluster {
        let topology = topology(all, node);
        let ready = |e: &&PortEndpoint<'_>| e.ready && topology.allows(e, node);
        selection.cluster = ready_or_terminating(all.iter(), ready);
    }
    if local {
        // Policy Local ignores topology hints.
        selection.local = ready_or_terminating(all.iter().filter(|e| e.local), |e| e.ready);
    }
    selection
}

/// Ready endpoints; if there are none, endpoints that terminate but still serve.
fn ready_or_terminating<'a, 'b: 'a>(
    all: impl Iterator<Item = &'a PortEndpoint<'b>> + Clone,
    ready: impl Fn(&&'a PortEndpoint<'b>) -> bool,
) -> WantedServers {
    let wanted = |e: &PortEndpoint<'_>| (e.target, RsState { weight: e.weight.into(), ..RsState::USUAL });
    let chosen: Vec<_> = all.clone().filter(ready).map(wanted).collect();
    if chosen.is_empty() {
        return WantedServers::new(all.filter(|e| e.serving && e.terminating).map(wanted).collect());
    }
    WantedServers::new(chosen)
}

/// Which topology hints apply to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

impl Topology {
    fn allows(self, endpoint: &PortEndpoint<'_>, node: &NodeFacts) -> bool {
        let hinted = |names: fn(&Hints) -> &[Arc<str>], name: &str| {
            endpoint.hints.is_some_and(|h| names(h).iter().any(|n| **n == *name))
        };
        match self {
            Topology::SameNode => hinted(|h| &h.nodes, &node.name),
            Topology::SameZone => hinted(|h| &h.zones, node.zone.as_deref().unwrap_or_default()),
            Topology::Anywhere => true,
        }
    }
}

/// Hints of a kind apply only if every ready endpoint has one and one of them names this node or zone. Otherwise hints
/// that are not written for all endpoints yet would hide endpoints.
fn topology(all: &[PortEndpoint<'_>], node: &NodeFacts) -> Topology {
    let ready = || all.iter().filter(|e| e.ready);
    let every =
        |names: fn(&Hints) -> &[Arc<str>]| ready().all(|e| e.hints.is_some_and(|h| !names(h).is_empty()));
    let any = |mode: Topology| ready().any(|e| mode.allows(e, node));
    if every(|h| &h.nodes) && any(Topology::SameNode) {
        Topology::SameNode
    } else if every(|h| &h.zones) && any(Topology::SameZone) {
        Topology::SameZone
    } else {
        Topology::Anywhere
    }
}

/// Why an endpoint gets traffic of a frontend, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Serves,
    /// It is being deleted, and no endpoint is ready.
    ServesUntilDeleted,
    NotReady,
    /// It is being deleted, and others serve.
    Deleted,
    /// The policy is Local.
    OnOtherNode,
    /// The hints of all ready endpoints name other nodes for it.
    HintsOtherNode,
    /// The hints of all ready endpoints name other zones for it.
    HintsOtherZone,
}

impl Role {
    /// Whether it gets traffic.
    pub fn serves(self) -> bool {
        matches!(self, Role::Serves | Role::ServesUntilDeleted)
    }
}

/// The role of each endpoint for a frontend. `chosen`: its real servers, sorted, as [`select`] chose them; `is_local`:
/// they are those of policy Local.
pub fn roles(all: &[PortEndpoint<'_>], chosen: &[RsKey], is_local: bool, node: &NodeFacts) -> Vec<Role> {
    let topology = topology(all, node);
    let role = |endpoint: &PortEndpoint<'_>| match chosen.binary_search(&endpoint.target) {
        Ok(_) if endpoint.ready => Role::Serves,
        Ok(_) => Role::ServesUntilDeleted,
        Err(_) if endpoint.terminating => Role::Deleted,
        Err(_) if !endpoint.ready => Role::NotReady,
        Err(_) if is_local => Role::OnOtherNode,
        Err(_) if topology == Topology::SameNode => Role::HintsOtherNode,
        Err(_) => Role::HintsOtherZone,
    };
    all.iter().map(role).collect()
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
