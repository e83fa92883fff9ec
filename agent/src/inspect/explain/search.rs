// SPDX-License-Identifier: Apache-2.0
//! Finds the Services that a target names.

use std::net::IpAddr;

use super::ExplainRequest;
use crate::core::model::{Family, Service};
use crate::core::service::fragment::VirtualServer;
use crate::core::service::node_facts::NodeFacts;
use crate::inspect::filter::QueryTarget;
use crate::store::{Dirty, Store};

pub(super) const CLUSTER_IP: &str = "ClusterIP";
pub(super) const EXTERNAL_IP: &str = "external IP";
pub(super) const LOAD_BALANCER_IP: &str = "load-balancer IP";
pub(super) const NODE_PORT: &str = "node port";
/// Services of one answer.
const MOST: usize = 20;

/// What a target names.
#[derive(Clone, Debug)]
pub struct FoundServices {
    pub target: QueryTarget,
    /// The target is the address of an endpoint, and no VIP.
    pub is_pod: bool,
    pub services: Vec<Dirty>,
}

/// Finds the Services of a request.
///
/// # Errors
/// The target is malformed, or names a Service that does not exist.
pub fn find(store: &Store, request: &ExplainRequest) -> Result<FoundServices, String> {
    let target: QueryTarget = request.target.parse()?;
    if let Some(from) = &request.from {
        super::path::ClientPlace::parse(from)?;
    }
    let mut is_pod = false;
    let services = match &target {
        QueryTarget::Service { namespace, name, .. } => {
            let is_it = |service: &Service| {
                *service.name.name == **name
                    && namespace.as_deref().is_none_or(|namespace| *service.name.namespace == *namespace)
            };
            let services = store.find(MOST, |service, _| is_it(service));
            if services.is_empty() {
                return Err(match namespace {
                    Some(namespace) => {
                        format!("there is no Service {namespace}/{name} that this agent serves")
                    }
                    None => format!("there is no Service {name} that this agent serves"),
                });
            }
            services
        }
        QueryTarget::Vip(addr, port) => {
            let by_vip = store.find(MOST, |service, _| has_address(service, *addr, *port));
            is_pod = by_vip.is_empty();
            if is_pod {
                store.find(MOST, |_, slices| slices.iter().any(|slice| has_endpoint(slice, *addr)))
            } else {
                by_vip
            }
        }
    };
    Ok(FoundServices { target, is_pod, services })
}

/// Whether the Service can have the address and port: a node port is at any address of the node.
fn has_address(service: &Service, addr: IpAddr, port: Option<u16>) -> bool {
    service.vip_kind(addr).is_some()
        || port.is_some_and(|port| service.ports.iter().any(|own| own.node_port == port && port != 0))
}

fn has_endpoint(slice: &crate::core::model::EndpointSlice, addr: IpAddr) -> bool {
    slice.endpoints.iter().any(|endpoint| endpoint.addr == addr)
}

impl Service {
    /// What the address is for this Service.
    fn vip_kind(&self, addr: IpAddr) -> Option<&'static str> {
        if self.cluster_ips[Family::of(addr)] == Some(addr) {
            Some(CLUSTER_IP)
        } else if self.load_balancer_ips.contains(&addr) {
            Some(LOAD_BALANCER_IP)
        } else if self.external_ips.contains(&addr) {
            Some(EXTERNAL_IP)
        } else {
            None
        }
    }

    /// Whether it has more than ClusterIPs: then its internal policy falls back to all endpoints.
    pub(super) fn has_other_vips(&self) -> bool {
        let has_node_port = self.ports.iter().any(|port| port.node_port != 0);
        has_node_port || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }
}

/// What the virtual server is for its Service.
pub(super) fn kind_of(service: &Service, server: &VirtualServer, node: &NodeFacts) -> &'static str {
    let is_node_port = node.node_port_addresses[server.key.family()].contains(&server.key.addr)
        && service.ports.iter().any(|port| port.node_port == server.key.port);
    match service.vip_kind(server.key.addr) {
        Some(kind) if !is_node_port => kind,
        _ => NODE_PORT,
    }
}

impl FoundServices {
    /// Whether the target names the virtual server.
    pub(super) fn has(&self, server: &VirtualServer) -> bool {
        match &self.target {
            QueryTarget::Service { port, .. } => {
                port.as_deref().is_none_or(|port| *server.port_name == *port)
            }
            QueryTarget::Vip(..) if self.is_pod => true,
            QueryTarget::Vip(addr, port) => {
                server.key.addr == *addr && port.is_none_or(|port| port == server.key.port)
            }
        }
    }

    /// Whether an answer shows this endpoint: if the target is a pod, only that one.
    pub(super) fn has_endpoint(&self, addr: IpAddr) -> bool {
        !self.is_pod || matches!(&self.target, QueryTarget::Vip(pod, _) if *pod == addr)
    }
}
