// SPDX-License-Identifier: Apache-2.0
//! The settings that plans depend on.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::service_defaults::ServiceDefault;
use super::{Family, PerFamily};

/// Must be 1 for endpoints that answer IPv4 clients directly, from the VIP: the node would drop packets with a source that is
/// its own. It is read, and never written.
pub const ACCEPT_LOCAL: &str = "/proc/sys/net/ipv4/conf/all/accept_local";

/// A sysctl and its required value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// The file, e.g. `/proc/sys/net/ipv4/vs/conntrack`.
    pub path: &'static str,
    pub value: i64,
    /// A larger value is also accepted.
    pub at_least: bool,
}

impl Sysctl {
    pub const fn exactly(path: &'static str, value: i64) -> Self {
        Self { path, value, at_least: false }
    }

    pub fn is_met(&self, current: Option<i64>) -> bool {
        current.is_some_and(|n| n == self.value || (self.at_least && n > self.value))
    }
}

/// IPVS timeouts of idle connections in seconds. 0: keep the kernel's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections after a FIN.
    pub tcp_fin: u32,
    /// UDP flows.
    pub udp: u32,
}

impl Timeouts {
    /// True when every value other than 0 is the current one.
    pub fn is_met(&self, current: &Timeouts) -> bool {
        let met = |wanted, current| wanted == 0 || wanted == current;
        met(self.tcp, current.tcp) && met(self.tcp_fin, current.tcp_fin) && met(self.udp, current.udp)
    }
}

/// What the sets and rules are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::Display, Serialize, Deserialize)]
#[strum(serialize_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum RulesMode {
    /// ipset and the programs of iptables, as in kube-proxy.
    #[default]
    Iptables,
    /// nf_tables over netlink.
    Nftables,
}

/// How to recognise traffic of local pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// By source: one CIDR of each family; `None`: not at all.
    Cidrs(PerFamily<Option<IpNet>>),
    /// By its input interface, in the notation of iptables (`cni0`, `veth+`).
    Interface(String),
}

impl Default for LocalTraffic {
    fn default() -> Self {
        LocalTraffic::Cidrs(PerFamily::default())
    }
}

/// Which external IPs are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalIps {
    /// All, as kube-proxy does.
    All,
    /// None: the feature gate `AllowServiceExternalIPs` is off.
    None,
    /// Those in these networks. Others are ignored and reported by an Event.
    Within(Vec<IpNet>),
}

/// `nodePortAddresses`: the node addresses that serve node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Those within these networks. A family without a network uses all addresses.
    Cidrs(Vec<IpNet>),
    /// `primary`: the node IPs.
    Primary,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// IP families of this node.
    pub families: Vec<Family>,
    pub rules: RulesMode,
    /// Scheduler of every virtual server.
    pub scheduler: Arc<str>,
    /// How to recognise traffic of local pods. Other traffic to ClusterIPs is masqueraded.
    pub local: LocalTraffic,
    /// Masquerade all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// The packet mark of packets to masquerade: a single bit.
    pub masquerade_mark: u32,
    pub sysctls: Vec<Sysctl>,
    pub timeouts: Timeouts,
    /// Virtual servers with an address in one of these are never removed.
    pub exclude_cidrs: Vec<IpNet>,
    pub node_port_addresses: NodePortAddresses,
    /// `bindAddress`: replaces the node IP of the Node object.
    pub bind_address: Option<IpAddr>,
    pub external_ips: ExternalIps,
    /// Longest drain of a real server. `None`: until its last connection ends, as in kube-proxy.
    pub drain_deadline: Option<Duration>,
    /// Keep established connections when `loadBalancerSourceRanges` change.
    pub keep_established: bool,
    /// VIPs in these networks are never bound, except ClusterIPs.
    pub protected: Vec<IpNet>,
    /// ClusterIPs in these networks are local by one route for each network. Other ClusterIPs are bound.
    pub routed: Vec<IpNet>,
    /// ClusterIPs behind a route are bound, too, slowly.
    pub binds_routed: bool,
    /// Seed of the order in which real servers are added; `None`: by address, as in kube-proxy. `rr` begins with the one
    /// that was added last.
    pub order_seed: Option<u64>,
    /// Another service proxy serves the other Services of this node (`serviceProxyName`): rules of other kube-proxy
    /// modes are in use.
    pub shares_node: bool,
    /// `kubeIPVS.serviceDefaults`: of several that select a Service, the first one that has a setting counts.
    pub service_defaults: Arc<[ServiceDefault]>,
}

impl Settings {
    /// Whether this node has the IP family of the address.
    pub fn manages(&self, addr: IpAddr) -> bool {
        self.families.contains(&Family::of(addr))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            families: Family::ALL.to_vec(),
            rules: RulesMode::default(),
            scheduler: "rr".into(),
            local: LocalTraffic::default(),
            masquerade_all: false,
            masquerade_mark: 1 << 14,
            sysctls: Vec::new(),
            timeouts: Timeouts::default(),
            exclude_cidrs: Vec::new(),
            node_port_addresses: NodePortAddresses::Cidrs(Vec::new()),
            bind_address: None,
            external_ips: ExternalIps::All,
            drain_deadline: None,
            keep_established: false,
            protected: Vec::new(),
            routed: Vec::new(),
            binds_routed: false,
            order_seed: None,
            shares_node: false,
            service_defaults: Arc::default(),
        }
    }
}
