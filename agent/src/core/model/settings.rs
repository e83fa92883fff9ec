// SPDX-License-Identifier: Apache-2.0
//! The settings that change the plan.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{Family, PerFamily};

/// A file of the kernel's and the number it must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// The file, e.g. `/proc/sys/net/ipv4/vs/conntrack`.
    pub path: &'static str,
    /// The wanted number.
    pub value: i64,
    /// A larger number is fine too.
    pub at_least: bool,
}

impl Sysctl {
    /// A file that must hold exactly `value`.
    pub const fn exactly(path: &'static str, value: i64) -> Self {
        Self { path, value, at_least: false }
    }

    /// Whether `current` is as wanted.
    pub fn is_met(&self, current: Option<i64>) -> bool {
        current.is_some_and(|n| n == self.value || (self.at_least && n > self.value))
    }
}

/// How long IPVS keeps idle connections, in seconds. 0: leave the kernel's value.
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
    /// True when every value that is asked for is the current one.
    pub fn is_met(&self, current: &Timeouts) -> bool {
        let met = |want, has| want == 0 || want == has;
        met(self.tcp, current.tcp) && met(self.tcp_fin, current.tcp_fin) && met(self.udp, current.udp)
    }
}

/// How traffic of local pods is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// By source: one CIDR of each family; `None`: not at all.
    Cidrs(PerFamily<Option<IpNet>>),
    /// By the interface it comes in on, in the notation of iptables (`cni0`, `veth+`).
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
    /// Those in these networks; the others are refused with an Event.
    Within(Vec<IpNet>),
}

/// `nodePortAddresses`: which of the node's addresses serve node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Those within these networks; a family without one uses all.
    Cidrs(Vec<IpNet>),
    /// `primary`: the node IPs.
    Primary,
}

/// Settings that change the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Families that this node has.
    pub families: Vec<Family>,
    /// Scheduler of every virtual server.
    pub scheduler: Arc<str>,
    /// How traffic of local pods is recognised: other traffic to a ClusterIP is masqueraded.
    pub local: LocalTraffic,
    /// Masquerade all traffic to ClusterIPs, wherever it comes from.
    pub masquerade_all: bool,
    /// The packet mark that asks for masquerading: a single bit.
    pub masquerade_mark: u32,
    /// Sysctls to assert.
    pub sysctls: Vec<Sysctl>,
    /// IPVS timeouts to assert.
    pub timeouts: Timeouts,
    /// Virtual servers with an address in one of these are never removed.
    pub exclude_cidrs: Vec<IpNet>,
    /// Which addresses of the node serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// A node IP that replaces the Node object's (`bindAddress`).
    pub bind_address: Option<IpAddr>,
    /// Which external IPs are served.
    pub external_ips: ExternalIps,
    /// How long a real server may drain; `None`: until its last connection ends, as kube-proxy.
    pub drain_deadline: Option<Duration>,
    /// Connections that stand are not cut when `loadBalancerSourceRanges` change.
    pub keep_established: bool,
    /// VIPs in these networks are never bound, but ClusterIPs.
    pub protected: Vec<IpNet>,
    /// Another service proxy serves the other Services of this node (`serviceProxyName`): what looks
    /// like leftovers of kube-proxy is in use.
    pub shares_node: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            families: Family::ALL.to_vec(),
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
            shares_node: false,
        }
    }
}
