// SPDX-License-Identifier: Apache-2.0
//! Which endpoints belong to a Service port, and which of them serve.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::node_facts::NodeFacts;
use crate::core::model::{Endpoint, EndpointSlice, Family, Hints, RsKey, ServicePort};

/// An endpoint of one Service port, merged over all slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEndpoint<'a> {
    /// Where it listens.
    pub target: RsKey,
    /// Takes new traffic in the ordinary case.
    pub ready: bool,
    /// Would still answer, ready or not.
    pub serving: bool,
    /// Is going away.
    pub terminating: bool,
    /// Runs on this node.
    pub local: bool,
    /// For whom it is meant, if somebody said so.
    pub hints: Option<&'a Hints>,
}

impl PortEndpoint<'_> {
    /// Whether it gets traffic, at least where there is nothing better.
    pub fn is_usable(&self) -> bool {
        self.ready || (self.serving && self.terminating)
    }
}

/// The endpoints of `port` in `family`, one per address and port, sorted.
///
/// A slice port matches by name **and** protocol. Where slices repeat an endpoint, one that stays
/// beats one that terminates, a ready one beats one that is not, and else the later slice wins.
pub fn build_endpoints<'a>(
    port: &ServicePort,
    family: Family,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &str,
) -> Vec<PortEndpoint<'a>> {
    let mut merged: BTreeMap<RsKey, PortEndpoint<'a>> = BTreeMap::new();
    for slice in slices {
        if slice.family != family {
            continue;
        }
        for slice_port in slice.ports.iter() {
            if slice_port.name != port.name || slice_port.protocol != port.protocol {
                continue;
            }
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
        local: !node.is_empty() && place.is_some_and(|p| p.node.as_deref() == Some(node)),
        hints: place.map(|p| &p.hints),
    }
}

/// Lower is better among duplicates.
fn rank(endpoint: &PortEndpoint<'_>) -> (bool, bool) {
    (endpoint.terminating, !endpoint.ready)
}

/// The endpoints that serve one port, by where the traffic may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// For policy Cluster.
    pub cluster: Arc<[RsKey]>,
    /// For policy Local.
    pub local: Arc<[RsKey]>,
}

impl Selection {
    /// What a frontend gets. Under a Local policy without a local endpoint kube-proxy's ipvs mode
    /// goes on with the cluster's, so that a load balancer which has not noticed yet loses nothing.
    pub fn of(&self, local: bool) -> Arc<[RsKey]> {
        if local && !self.local.is_empty() { self.local.clone() } else { self.cluster.clone() }
    }
}

/// Which of `all` serve. `cluster`, `local`: whether any frontend needs that list; a Service that
/// is internal only and Local has no cluster list, so it refuses rather than leaves the node.
pub fn select(all: &[PortEndpoint<'_>], cluster: bool, local: bool, node: &NodeFacts) -> Selection {
    let mut selection = Selection::default();
    if cluster {
        let near = topology(all, node);
        let ready = |e: &&PortEndpoint<'_>| e.ready && near.takes(e, node);
        selection.cluster = ready_or_terminating(all.iter(), ready);
    }
    if local {
        // Hints are about other nodes' endpoints: here they say nothing.
        selection.local = ready_or_terminating(all.iter().filter(|e| e.local), |e| e.ready);
    }
    selection
}

/// Ready endpoints; where there are none, those that terminate but still serve.
fn ready_or_terminating<'a, 'b: 'a>(
    all: impl Iterator<Item = &'a PortEndpoint<'b>> + Clone,
    ready: impl Fn(&&'a PortEndpoint<'b>) -> bool,
) -> Arc<[RsKey]> {
    let chosen: Arc<[RsKey]> = all.clone().filter(ready).map(|e| e.target).collect();
    if chosen.is_empty() {
        return all.filter(|e| e.serving && e.terminating).map(|e| e.target).collect();
    }
    chosen
}

/// How far traffic goes; decided once for a port, all or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

impl Topology {
    fn takes(self, endpoint: &PortEndpoint<'_>, node: &NodeFacts) -> bool {
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

/// Hints count only if every ready endpoint has one of the kind and one of them names this node or
/// zone: a cluster where they are half written must not lose endpoints.
fn topology(all: &[PortEndpoint<'_>], node: &NodeFacts) -> Topology {
    let ready = || all.iter().filter(|e| e.ready);
    let every =
        |names: fn(&Hints) -> &[Arc<str>]| ready().all(|e| e.hints.is_some_and(|h| !names(h).is_empty()));
    let any = |mode: Topology| ready().any(|e| mode.takes(e, node));
    if every(|h| &h.nodes) && any(Topology::SameNode) {
        Topology::SameNode
    } else if every(|h| &h.zones) && any(Topology::SameZone) {
        Topology::SameZone
    } else {
        Topology::Anywhere
    }
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
