// SPDX-License-Identifier: Apache-2.0
//! Protected addresses: they belong to other hosts that this node needs. If they were bound here, the node could not
//! reach these hosts.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use crate::core::mirror::Observed;
use crate::core::model::{Protocol, VsKey};

/// Why an address must not be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
pub enum Protection {
    /// The operator lists it under `kubeIPVS.protectedCIDRs`.
    #[strum(serialize = "ProtectedCIDR")]
    Listed,
    /// The agent reaches the API server at this address.
    #[strum(serialize = "APIServer")]
    ApiServer,
    /// The address of an endpoint of an EndpointSlice.
    Endpoint,
    /// The next hop of a current or former route of the node, or the router of a DHCP lease.
    Gateway,
    /// A DNS or DHCP server of the node.
    NameServer,
    /// An address of another Node.
    OtherNode,
}

impl Protection {
    pub const ALL: &'static [Protection] = Protection::VARIANTS;

    /// The value of a metric's label `reason`.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Completes the sentence `10.0.0.2 is …`.
impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protection::Listed => "in kubeIPVS.protectedCIDRs of the configuration",
            Protection::ApiServer => "an address of the API server",
            Protection::Endpoint => "the address of an endpoint",
            Protection::Gateway => "a gateway of this node",
            Protection::NameServer => "a DNS or DHCP server of this node",
            Protection::OtherNode => "an address of another Node",
        })
    }
}

/// Addresses of the API server and of Nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// All addresses and ports of the API server that the agent uses, and of the proxy to it; sorted.
    pub api_servers: Arc<[SocketAddr]>,
    /// All addresses of all Nodes, including this one; sorted.
    pub nodes: Arc<[IpAddr]>,
}

/// Protected addresses, except those of endpoints, which change with every pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protected {
    pub peers: Peers,
    /// `kubeIPVS.protectedCIDRs`.
    pub listed: Vec<IpNet>,
    /// Gateways since the start. A gateway stays protected after its route is removed, so that the route can come back.
    pub gateways: BTreeSet<IpAddr>,
    /// DNS and DHCP servers since the start.
    pub name_servers: BTreeSet<IpAddr>,
}

impl Protected {
    /// Whether the mirror and the peers have no address that is not protected yet.
    pub fn knows(&self, observed: &Observed, peers: &Peers) -> bool {
        let mut gateways = observed.node.next_hops.iter().chain(&observed.node.lease_routers);
        self.peers == *peers
            && gateways.all(|gateway| self.gateways.contains(gateway))
            && observed.node.name_servers.iter().all(|server| self.name_servers.contains(server))
    }

    /// Adds the gateways and name servers of the mirror.
    pub fn learn(&mut self, observed: &Observed) {
        self.gateways.extend(observed.node.next_hops.iter().chain(&observed.node.lease_routers));
        self.name_servers.extend(&observed.node.name_servers);
    }

    /// Whether a virtual server would capture the agent's own connections to the API server, even if its address is not
    /// bound.
    pub fn is_way_to_api_server(&self, key: &VsKey) -> bool {
        let at = SocketAddr::new(key.addr, key.port);
        key.protocol == Protocol::Tcp && self.peers.api_servers.contains(&at)
    }

    /// A host in the network that the node reaches directly, if there is one: a local route for the network would cut it
    /// off. Returns why it counts. `own`: the addresses of this Node, whose neighbours are such hosts. The API server and DNS servers may be
    /// ClusterIPs, and do not count.
    pub fn neighbour_in(&self, net: &IpNet, own: &[IpAddr]) -> Option<(IpAddr, &'static str)> {
        let inside = |addr: &&IpAddr| net.contains(*addr);
        let gateway = || Some((*self.gateways.iter().find(inside)?, "a gateway of this node"));
        let this = || Some((*own.iter().find(inside)?, "an address of this Node"));
        let other = || Some((*self.peers.nodes.iter().find(inside)?, "an address of another Node"));
        gateway().or_else(this).or_else(other)
    }

    /// Why the address is protected, if it is.
    pub fn find(&self, addr: IpAddr) -> Option<Protection> {
        if self.listed.iter().any(|net| net.contains(&addr)) {
            Some(Protection::Listed)
        } else if self.peers.api_servers.iter().any(|server| server.ip() == addr) {
            Some(Protection::ApiServer)
        } else if self.gateways.contains(&addr) {
            Some(Protection::Gateway)
        } else if self.name_servers.contains(&addr) {
            Some(Protection::NameServer)
        } else if self.peers.nodes.binary_search(&addr).is_ok() {
            Some(Protection::OtherNode)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::mirror::comparison::NodeState;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_gateway_stays_protected_after_its_route_is_removed() {
        let mut protected = Protected::default();
        let gateway = ips(&["192.168.50.1"]);
        let node = NodeState { next_hops: gateway.clone(), ..NodeState::default() };
        protected.learn(&Observed { node, ..Observed::default() });
        protected.learn(&Observed::default());
        assert_eq!(protected.find(gateway[0]), Some(Protection::Gateway));
        let (router, server) = (ips(&["192.168.50.3"]), ips(&["192.168.50.53", "fd00::53"]));
        let node =
            NodeState { lease_routers: router.clone(), name_servers: server.clone(), ..NodeState::default() };
        protected.learn(&Observed { node, ..Observed::default() });
        assert_eq!(protected.find(router[0]), Some(Protection::Gateway));
        assert_eq!(protected.find(server[1]), Some(Protection::NameServer));
        assert_eq!(protected.find(ips(&["192.168.50.9"])[0]), None);
    }

    #[test]
    fn every_protected_address_has_its_reason() {
        let listed = vec!["203.0.113.0/24".parse().unwrap()];
        let api_servers = Arc::from([SocketAddr::from(([10, 0, 0, 1], 6443))]);
        let peers = Peers { api_servers, nodes: ips(&["10.0.0.1", "10.0.0.2"]).into() };
        let protected = Protected { peers, listed, ..Protected::default() };
        let found =
            ["203.0.113.9", "10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| protected.find(ip.parse().unwrap()));
        let expected =
            [Some(Protection::Listed), Some(Protection::ApiServer), Some(Protection::OtherNode), None];
        assert_eq!(found, expected);
    }
}
