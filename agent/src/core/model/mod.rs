// SPDX-License-Identifier: Apache-2.0
//! The vocabulary of the pure core: Kubernetes objects in their compact form, and the names of
//! kernel objects. Everything here is a value; nothing knows where it came from.

pub mod address;
pub mod backoff;
pub mod changes;
pub mod flows;
pub mod map;
pub mod members;
mod per_family;
pub mod sets;
pub mod settings;
pub mod trigger;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

pub use self::per_family::PerFamily;

/// A list that nearly always has one member, kept for every Service: the one needs no allocation.
pub type Few<T> = smallvec::SmallVec<[T; 1]>;

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
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Port on the node's own addresses, 0 for none.
    pub node_port: u16,
}

/// A Service that this agent proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// Creation time in seconds since the epoch; decides who wins a contested VIP and port.
    pub created: i64,
    /// Programmed before all others: the API server's Service and the cluster's DNS.
    pub first: bool,
    /// The ClusterIP of each family.
    pub cluster_ips: PerFamily<Option<IpAddr>>,
    /// `spec.externalIPs`, both families, in the order given.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of `status.loadBalancer.ingress` that nodes are to serve (ipMode `VIP`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, without host bits; none of a family: no restriction there.
    pub source_ranges: Vec<IpNet>,
    /// `externalTrafficPolicy: Local`, where the Service can be reached from outside at all.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// Seconds of `sessionAffinity: ClientIP`.
    pub affinity: Option<u32>,
    /// `spec.healthCheckNodePort` of a load balancer with `externalTrafficPolicy: Local`, 0 for none.
    pub health_check_node_port: u16,
    /// The ports.
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// The source ranges of a family. A range of everything lifts the restriction.
    pub fn source_ranges(&self, family: Family) -> Vec<IpNet> {
        let ranges: Vec<IpNet> =
            self.source_ranges.iter().filter(|net| Family::of_net(net) == family).copied().collect();
        if ranges.iter().any(|net| net.prefix_len() == 0) { Vec::new() } else { ranges }
    }

    /// The external IPs of a family.
    pub fn external_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.external_ips.iter().copied().filter(move |ip| Family::of(*ip) == family)
    }

    /// The load-balancer IPs of a family.
    pub fn load_balancer_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.load_balancer_ips.iter().copied().filter(move |ip| Family::of(*ip) == family)
    }
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
    /// Where it is, as far as that is known; the endpoints of a node share it.
    pub place: Option<Arc<Place>>,
}

/// What endpoints have in common that run on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The node that the endpoint runs on.
    pub node: Option<Arc<str>>,
    /// For whom the endpoint is meant, if somebody said so.
    pub hints: Hints,
}

impl Place {
    /// A place on a node that is meant for nobody in particular.
    pub fn on(node: &str) -> Arc<Self> {
        Arc::new(Self { node: Some(node.into()), hints: Hints::default() })
    }
}

/// The hints of an endpoint, as the EndpointSlice controller writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// `forZones`.
    pub zones: Box<[Arc<str>]>,
    /// `forNodes`.
    pub nodes: Box<[Arc<str>]>,
}

/// An EndpointSlice of an IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service that it belongs to. Without a name: to none that is served here, but its addresses are somebody's.
    pub service: ObjectName,
    /// Address family of all endpoints.
    pub family: Family,
    /// Ports, shared by all endpoints.
    pub ports: Box<[SlicePort]>,
    /// Endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// The Node object of this node, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Node name.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP, then of type ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// First `spec.podCIDRs` entry of each family.
    pub pod_cidrs: PerFamily<Option<IpNet>>,
    /// Is being deleted, or marked for deletion by the cluster autoscaler: no place for new traffic.
    pub leaving: bool,
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

/// `IP_VS_SVC_F_PERSISTENT`
pub const PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_ONEPACKET`
pub const ONE_PACKET: u32 = 0x4;

impl VsSpec {
    /// Whether the kernel's table shows it like this: only two of the flags are in it, and the timeout only
    /// where it is persistent.
    pub fn looks_like(&self, shown: &VsSpec) -> bool {
        let persistent = self.flags & PERSISTENT != 0;
        self.scheduler == shown.scheduler
            && self.flags & (PERSISTENT | ONE_PACKET) == shown.flags
            && (!persistent || self.timeout == shown.timeout)
    }
}
