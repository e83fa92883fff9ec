// SPDX-License-Identifier: Apache-2.0
//! Facts about this node from its Node object, links and routes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::protected::{Protected, Protection};
use crate::core::mirror::Observed;
use crate::core::model::address;
use crate::core::model::settings::{ACCEPT_LOCAL, NodePortAddresses, Settings};
use crate::core::model::{Family, Node, PerFamily};

/// The facts that fragments depend on. When they change, every fragment is rebuilt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Endpoints with this node name are local.
    pub name: Arc<str>,
    pub zone: Option<Arc<str>>,
    /// The node IP of each family; loopback while unknown.
    pub ips: PerFamily<Option<IpAddr>>,
    /// Addresses on all links except `kube-ipvs0`, without loopback and IPv6 link-local, sorted.
    pub addresses: Vec<IpAddr>,
    /// Addresses of the Node object that are on no link, such as a public address behind NAT; sorted.
    pub translated: Vec<IpAddr>,
    /// Addresses of other hosts that the node must reach.
    pub protected: Arc<Protected>,
    /// `Some` while the addresses of other Nodes are unknown: of VIPs other than ClusterIPs only these, which were bound
    /// before, are bound.
    pub kept: Option<Arc<BTreeSet<IpAddr>>>,
    /// Addresses that serve node ports, of each family, sorted.
    pub node_port_addresses: PerFamily<Vec<IpAddr>>,
    /// The networks of [`Settings::routed`] that can have a route.
    pub routed: Vec<IpNet>,
    /// The networks that cannot, each with an address that the node would cut itself off from, and what that address is.
    pub unroutable: Vec<(IpNet, IpAddr, &'static str)>,
    /// Schedulers that the kernel was asked for and does not have.
    pub missing_schedulers: Arc<BTreeSet<Arc<str>>>,
    /// The node lets packets in whose source is one of its addresses, see [`ACCEPT_LOCAL`].
    pub accepts_local_sources: bool,
}

/// How a VIP that is not a ClusterIP is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binding {
    /// Bound to `kube-ipvs0` behind the access filter: only ports of Services are reachable.
    Guarded,
    /// An address of this node's Node object that is on no link: bound without the access filter, so that other ports
    /// stay reachable.
    Translated,
    /// An address on a link of the node: served there and not bound.
    OnLink,
    /// An address of another host that the node needs: never bound.
    Protected(Protection),
    /// Loopback, multicast, unspecified, or IPv6 link-local: never bound.
    Special,
    /// The addresses of other Nodes are unknown: not bound yet.
    Unknown,
}

impl Binding {
    /// Whether the address is bound to `kube-ipvs0`.
    pub fn is_bound(self) -> bool {
        matches!(self, Binding::Guarded | Binding::Translated)
    }
}

impl NodeFacts {
    /// The facts from the Node object, if it exists, and the mirror.
    pub fn build(
        name: &Arc<str>,
        node: Option<&Node>,
        (observed, protected): (&Observed, &Arc<Protected>),
        settings: &Settings,
        kept: Option<Arc<BTreeSet<IpAddr>>>,
    ) -> Self {
        let named = node.map(|n| n.addresses.as_slice()).unwrap_or_default();
        let addresses: Vec<IpAddr> =
            observed.node_addresses.iter().copied().filter(|ip| !is_v6_link_local(*ip)).collect();
        let mut translated: Vec<IpAddr> =
            named.iter().copied().filter(|ip| addresses.binary_search(ip).is_err()).collect();
        translated.sort_unstable();
        translated.dedup();
        let ips = PerFamily::of(|family| node_ip(family, named, settings));
        let obstacle = |net: &IpNet| protected.neighbour_in(net, named).map(|(addr, why)| (*net, addr, why));
        let managed = || settings.routed.iter().filter(|net| settings.manages(net.addr()));
        let unroutable: Vec<_> = managed().filter_map(obstacle).collect();
        let can = |net: &IpNet| unroutable.iter().all(|(other, ..)| other != net);
        let routed = managed().copied().filter(can).collect();
        let node_port_addresses =
            PerFamily::of(|family| node_port_addresses(family, ips, &addresses, observed, settings));
        Self {
            name: name.clone(),
            zone: node.and_then(|n| n.zone.clone()),
            ips,
            addresses,
            translated,
            protected: protected.clone(),
            kept,
            node_port_addresses,
            routed,
            unroutable,
            missing_schedulers: Arc::default(),
            accepts_local_sources: observed.node.sysctls.get(ACCEPT_LOCAL).is_some_and(|value| *value > 0),
        }
    }

    /// Whether the ClusterIP is local by a route.
    pub fn is_routed(&self, cluster_ip: IpAddr) -> bool {
        self.routed.iter().any(|net| net.contains(&cluster_ip))
    }

    /// The addresses of health-check node ports, of each family. `None`: all. As in kube-proxy, loopback counts if it
    /// is inside the networks.
    pub fn health_check_addresses(&self, settings: &Settings) -> PerFamily<Option<Vec<IpAddr>>> {
        PerFamily::of(|family| {
            let nets = node_port_networks(family, self.ips, settings);
            if nets.is_empty() {
                return None;
            }
            let loopback = loopback(family);
            let inside = nets.iter().any(|net| net.contains(&loopback));
            let own = self.node_port_addresses[family].iter().copied();
            Some(own.chain(inside.then_some(loopback)).collect())
        })
    }

    /// How an external or load-balancer IP is bound. `of_endpoint`: it is also the address of an endpoint.
    pub fn binding(&self, vip: IpAddr, of_endpoint: bool) -> Binding {
        if self.addresses.binary_search(&vip).is_ok() {
            return Binding::OnLink;
        }
        if address::useless(vip).is_some() || is_v6_link_local(vip) {
            return Binding::Special;
        }
        let own = self.translated.binary_search(&vip).is_ok();
        let protection = of_endpoint.then_some(Protection::Endpoint).or_else(|| self.protected.find(vip));
        match (protection, &self.kept) {
            // The list of Node addresses includes those of this Node.
            (None | Some(Protection::OtherNode), _) if own => Binding::Translated,
            (Some(protection), _) => Binding::Protected(protection),
            (None, Some(kept)) if !kept.contains(&vip) => Binding::Unknown,
            (None, _) => Binding::Guarded,
        }
    }
}

fn is_v6_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// `bindAddress`, else the Node's first address of the family, else loopback.
fn node_ip(family: Family, named: &[IpAddr], settings: &Settings) -> Option<IpAddr> {
    let of_family = |ip: &IpAddr| Family::of(*ip) == family;
    let first = || named.iter().copied().find(of_family);
    Some(settings.bind_address.filter(of_family).or_else(first).unwrap_or(loopback(family)))
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The networks of `nodePortAddresses`. An empty list: all addresses.
fn node_port_networks(family: Family, ips: PerFamily<Option<IpAddr>>, settings: &Settings) -> Vec<IpNet> {
    let nets: Vec<IpNet> = match &settings.node_port_addresses {
        NodePortAddresses::Cidrs(nets) => {
            nets.iter().copied().filter(|net| Family::of(net.addr()) == family).collect()
        }
        NodePortAddresses::Primary => {
            let ip = ips[family].filter(|ip| !ip.is_loopback());
            ip.into_iter().map(IpNet::from).collect()
        }
    };
    if nets.iter().any(|net| net.prefix_len() == 0) { Vec::new() } else { nets }
}

/// As in kube-proxy: all addresses of the links, or the addresses inside the networks. With networks, addresses of
/// `kube-ipvs0` and IPv6 link-local addresses count too.
fn node_port_addresses(
    family: Family,
    ips: PerFamily<Option<IpAddr>>,
    addresses: &[IpAddr],
    observed: &Observed,
    settings: &Settings,
) -> Vec<IpAddr> {
    let of_family = |ip: &IpAddr| Family::of(*ip) == family;
    let nets = node_port_networks(family, ips, settings);
    if nets.is_empty() {
        return addresses.iter().copied().filter(of_family).collect();
    }
    let on_device = observed.addresses.iter().map(IpNet::addr);
    let all = observed.node_addresses.iter().copied().chain(on_device);
    let mut inside: Vec<IpAddr> =
        all.filter(|ip| of_family(ip) && nets.iter().any(|net| net.contains(ip))).collect();
    inside.sort_unstable();
    inside.dedup();
    inside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::mirror::comparison::NodeState;
    use crate::core::service::protected::Peers;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|t| ip(t)).collect()
    }

    fn observed() -> Observed {
        let mut node_addresses = ips(&["192.168.50.2", "10.77.0.5", "fd00:50::2", "fe80::1"]);
        node_addresses.sort_unstable();
        Observed {
            node_addresses,
            addresses: ["10.96.0.1/32".parse().unwrap()].into_iter().collect(),
            node: NodeState { next_hops: ips(&["192.168.50.1"]), ..NodeState::default() },
            ..Observed::default()
        }
    }

    fn facts(node: Option<&Node>, settings: &Settings) -> NodeFacts {
        let mut protected = Protected::default();
        protected.learn(&observed());
        let protected = Arc::new(protected);
        NodeFacts::build(&"n1".into(), node, (&observed(), &protected), settings, None)
    }

    fn cidrs(nets: &[&str]) -> Settings {
        let nets = nets.iter().map(|n| n.parse().unwrap()).collect();
        Settings { node_port_addresses: NodePortAddresses::Cidrs(nets), ..Settings::default() }
    }

    #[test]
    fn node_ports_are_on_every_link_unless_networks_are_given() {
        let all = facts(None, &Settings::default());
        assert_eq!(all.node_port_addresses[Family::V4], ips(&["10.77.0.5", "192.168.50.2"]));
        assert_eq!(all.node_port_addresses[Family::V6], ips(&["fd00:50::2"]));
        assert_eq!(
            facts(None, &cidrs(&["0.0.0.0/0", "10.0.0.0/8"])).node_port_addresses[Family::V4].len(),
            2
        );
        let one = facts(None, &cidrs(&["192.168.50.0/24"]));
        assert_eq!(one.node_port_addresses, PerFamily::new(ips(&["192.168.50.2"]), ips(&["fd00:50::2"])));
        // As in kube-proxy, VIPs inside the networks serve node ports.
        let vips = facts(None, &cidrs(&["10.96.0.0/12", "fe80::/10"]));
        assert_eq!(vips.node_port_addresses, PerFamily::new(ips(&["10.96.0.1"]), ips(&["fe80::1"])));
        assert!(facts(None, &cidrs(&["172.16.0.0/12"])).node_port_addresses[Family::V4].is_empty());
    }

    #[test]
    fn primary_is_the_node_ip_and_falls_back_to_all() {
        let primary = Settings { node_port_addresses: NodePortAddresses::Primary, ..Settings::default() };
        let node = Node { addresses: ips(&["192.168.50.2", "203.0.113.7"]), ..Node::default() };
        let facts = facts(Some(&node), &primary);
        assert_eq!(facts.node_port_addresses[Family::V4], ips(&["192.168.50.2"]));
        assert_eq!(facts.node_port_addresses[Family::V6], ips(&["fd00:50::2"]), "no IPv6 node IP is known");
    }

    #[test]
    fn the_bind_address_wins_over_the_node_object_in_its_family() {
        let node = Node { addresses: ips(&["192.168.50.2", "fd00:50::2"]), ..Node::default() };
        let settings = Settings { bind_address: Some(ip("10.77.0.5")), ..Settings::default() };
        assert_eq!(
            facts(Some(&node), &settings).ips,
            PerFamily::new(Some(ip("10.77.0.5")), Some(ip("fd00:50::2")))
        );
        assert_eq!(
            facts(None, &Settings::default()).ips,
            PerFamily::new(Some(ip("127.0.0.1")), Some(ip("::1")))
        );
    }

    #[test]
    fn addresses_of_the_node_and_its_gateway_are_not_bound_behind_the_filter() {
        let node = Node { addresses: ips(&["192.168.50.2", "203.0.113.7"]), ..Node::default() };
        let facts = facts(Some(&node), &Settings::default());
        let cases = [
            ("198.51.100.1", Binding::Guarded),
            ("192.168.50.2", Binding::OnLink),
            ("203.0.113.7", Binding::Translated),
            ("192.168.50.1", Binding::Protected(Protection::Gateway)),
            ("127.0.0.1", Binding::Special),
            ("169.254.1.1", Binding::Guarded),
            ("fe80::1", Binding::Special),
            ("224.0.0.1", Binding::Special),
            ("::1", Binding::Special),
        ];
        for (vip, expected) in cases {
            assert_eq!(facts.binding(ip(vip), false), expected, "{vip}");
        }
        for (vip, expected) in [
            ("198.51.100.1", Binding::Protected(Protection::Endpoint)),
            ("192.168.50.2", Binding::OnLink),
            ("203.0.113.7", Binding::Protected(Protection::Endpoint)),
        ] {
            assert_eq!(facts.binding(ip(vip), true), expected, "{vip} of an endpoint");
        }
    }

    #[test]
    fn addresses_of_other_nodes_are_not_bound_and_no_vip_is_bound_before_they_are_known() {
        let node = Node { addresses: ips(&["192.168.50.2", "203.0.113.7"]), ..Node::default() };
        let nodes = ips(&["192.168.50.2", "192.168.50.3", "203.0.113.7"]);
        let peers = Peers { nodes: nodes.into(), ..Peers::default() };
        let protected = Arc::new(Protected { peers, ..Protected::default() });
        let facts = |protected: &Arc<Protected>, kept: Option<&[&str]>| {
            let kept = kept.map(|kept| Arc::new(ips(kept).into_iter().collect()));
            NodeFacts::build(&"n1".into(), Some(&node), (&observed(), protected), &Settings::default(), kept)
        };
        let known = facts(&protected, None);
        assert_eq!(known.binding(ip("192.168.50.3"), false), Binding::Protected(Protection::OtherNode));
        assert_eq!(known.binding(ip("203.0.113.7"), false), Binding::Translated);
        assert_eq!(known.binding(ip("198.51.100.1"), false), Binding::Guarded);
        let unknown = facts(&Arc::default(), Some(&["198.51.100.1"]));
        assert_eq!(unknown.binding(ip("192.168.50.3"), false), Binding::Unknown);
        assert_eq!(unknown.binding(ip("198.51.100.1"), false), Binding::Guarded, "a restart unbinds nothing");
        assert_eq!(unknown.binding(ip("203.0.113.7"), false), Binding::Translated);
    }
}
