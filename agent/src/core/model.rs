// SPDX-License-Identifier: Apache-2.0
//! The vocabulary of the pure core: Kubernetes objects in their compact form, and the names of
//! kernel objects. Everything here is a value; nothing knows where it came from.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

/// An IP family. Dual stack is two independent halves, as in kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The family of a prefix.
    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    /// 0 for IPv4, 1 for IPv6: an index into per-family arrays.
    pub fn index(self) -> usize {
        match self {
            Family::V4 => 0,
            Family::V6 => 1,
        }
    }

    /// The prefix length of a single address: 32 or 128.
    pub fn host_prefix(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A transport protocol that a Service port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The spelling of ipset and iptables: `tcp`, `udp`, `sctp`.
    pub fn lower(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol with this IANA number, if it is one of ours.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

/// `TCP`, `UDP`, `SCTP`: the spelling of Kubernetes and ipvsadm.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// `namespace/name` of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name inside the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Builds a name from its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One port of a Service. `targetPort` is absent on purpose: endpoints carry their own port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port name; empty when the Service has a single unnamed port.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the VIPs.
    pub port: u16,
}

/// A Service that this agent proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// Creation time in seconds since the epoch; decides who wins a contested VIP and port.
    pub created: i64,
    /// The ClusterIP of each family, by [`Family::index`].
    pub cluster_ips: [Option<IpAddr>; 2],
    /// `spec.externalIPs`, both families, in the order given.
    pub external_ips: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<ServicePort>,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name that matches the Service port's name.
    pub name: Arc<str>,
    /// Transport protocol; must match the Service port's.
    pub protocol: Protocol,
    /// Port on the endpoint.
    pub port: u16,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// First address of the endpoint; the others are never used, as in kube-proxy.
    pub addr: IpAddr,
    /// `conditions.ready`, absent meaning true.
    pub ready: bool,
    /// `conditions.serving`, absent meaning true.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// The node that the endpoint runs on.
    pub node: Option<Arc<str>>,
}

/// An EndpointSlice of an IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service that it belongs to.
    pub service: ObjectName,
    /// Address family of all endpoints.
    pub family: Family,
    /// Ports, shared by all endpoints.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// The Node object of this node, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Node name.
    pub name: Arc<str>,
    /// First `spec.podCIDRs` entry of each family, by [`Family::index`].
    pub pod_cidrs: [Option<IpNet>; 2],
}

/// Identity of an IPVS virtual server: protocol, VIP and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VsKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The VIP.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
}

impl VsKey {
    /// The address family.
    pub fn family(&self) -> Family {
        Family::of(self.addr)
    }
}

impl fmt::Display for VsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.addr, self.port))
    }
}

/// Identity of a real server inside its virtual server: address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RsKey {
    /// Endpoint address.
    pub addr: IpAddr,
    /// Endpoint port.
    pub port: u16,
}

impl fmt::Display for RsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", SocketAddr::new(self.addr, self.port))
    }
}

/// How a virtual server balances. Two specs that are equal need no `SET_SERVICE`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VsSpec {
    /// Scheduler name, e.g. `rr`.
    pub scheduler: Arc<str>,
    /// `IP_VS_SVC_F_*` without `HASHED`.
    pub flags: u32,
    /// Persistence timeout in seconds, 0 when not persistent.
    pub timeout: u32,
}

/// What the agent knows about the node it runs on, as far as the plan depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Own node name: endpoints with it are local.
    pub name: Arc<str>,
    /// Addresses on every link but `kube-ipvs0`, without loopback and IPv6 link-local, sorted.
    /// An external IP among them is served but never bound to `kube-ipvs0`.
    pub addresses: Vec<IpAddr>,
}

/// A sysctl and the value it must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// Path below `/proc/sys/`, e.g. `net/ipv4/vs/conntrack`.
    pub path: &'static str,
    /// The wanted number.
    pub value: i64,
}

/// How traffic of local pods is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// By source: one CIDR of each family, by [`Family::index`]; `None`: not at all.
    Cidrs([Option<IpNet>; 2]),
    /// By the interface it comes in on, in the notation of iptables (`cni0`, `veth+`).
    Interface(String),
}

impl Default for LocalTraffic {
    fn default() -> Self {
        LocalTraffic::Cidrs([None, None])
    }
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
    /// Virtual servers with an address in one of these are never removed.
    pub exclude_cidrs: Vec<IpNet>,
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
            exclude_cidrs: Vec::new(),
        }
    }
}
