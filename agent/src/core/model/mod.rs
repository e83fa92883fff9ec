// SPDX-License-Identifier: Apache-2.0
//! Shared types of the core: Kubernetes objects in compact form, and keys of kernel objects.

pub mod address;
pub mod backoff;
pub mod changes;
pub mod flows;
pub mod map;
pub mod members;
pub mod options;
mod per_family;
mod probe_spec;
pub mod real_servers;
pub mod service_defaults;
pub mod sets;
pub mod settings;
pub mod trigger;

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::per_family::PerFamily;
pub use self::probe_spec::ProbeSpec;

/// A list that nearly always has one member: one member needs no allocation.
pub type Few<T> = smallvec::SmallVec<[T; 1]>;

/// An IP family. The families of a dual-stack node are programmed independently, as in kube-proxy.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::Display, Serialize, Deserialize,
)]
pub enum Family {
    #[strum(to_string = "IPv4")]
    V4,
    #[strum(to_string = "IPv6")]
    V6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// A transport protocol of a Service port. Its text is the spelling of Kubernetes and ipvsadm: `TCP`, `UDP`, `SCTP`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    strum::Display,
    strum::EnumString,
    Serialize,
    Deserialize,
)]
#[strum(serialize_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

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

    /// The protocol with this IANA number; `None` for other protocols.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }
}

/// `namespace/name` of a namespaced object. Sorted by namespace, then by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl Ord for ObjectName {
    fn cmp(&self, other: &Self) -> Ordering {
        // Objects share the text of their namespace.
        let is_same = Arc::ptr_eq(&self.namespace, &other.namespace);
        let by_namespace = if is_same { Ordering::Equal } else { self.namespace.cmp(&other.namespace) };
        by_namespace.then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One port of a Service. It has no `targetPort`: EndpointSlices have the ports of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Port name; empty when the Service has a single unnamed port.
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// Port on the VIPs.
    pub port: u16,
    /// Port on the addresses of the node, 0 for none.
    pub node_port: u16,
}

/// A Service that this agent proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: ObjectName,
    /// Creation time in seconds since the epoch: the older Service wins a contested VIP and port.
    pub created: i64,
    /// Programmed before other Services: the Service of the API server and the cluster's DNS.
    pub priority: bool,
    /// The ClusterIP of each family.
    pub cluster_ips: PerFamily<Option<IpAddr>>,
    /// `spec.externalIPs`, both families, in the order given.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of `status.loadBalancer.ingress` with ipMode `VIP`: nodes serve them.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, without host bits. A family without ranges is not restricted.
    pub source_ranges: Vec<IpNet>,
    /// `externalTrafficPolicy: Local` of a Service that can be reached from outside the cluster.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// Timeout of `sessionAffinity: ClientIP` in seconds.
    pub affinity: Option<u32>,
    /// `spec.healthCheckNodePort` of a load balancer with `externalTrafficPolicy: Local`, 0 for none.
    pub health_check_node_port: u16,
    /// What its annotations choose. Together with the defaults: [`crate::core::service::chosen::options`].
    pub own_options: Option<Arc<options::ServiceOptions>>,
    /// The labels that selectors of `kubeIPVS.serviceDefaults` name; `None` if it has none of them.
    pub labels: Option<Arc<service_defaults::Labels>>,
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// The source ranges of a family. A range of length 0 removes the restriction.
    pub fn source_ranges(&self, family: Family) -> Vec<IpNet> {
        let ranges: Vec<IpNet> =
            self.source_ranges.iter().filter(|net| Family::of(net.addr()) == family).copied().collect();
        if ranges.iter().any(|net| net.prefix_len() == 0) { Vec::new() } else { ranges }
    }

    pub fn external_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.external_ips.iter().copied().filter(move |ip| Family::of(*ip) == family)
    }

    pub fn load_balancer_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.load_balancer_ips.iter().copied().filter(move |ip| Family::of(*ip) == family)
    }
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlicePort {
    /// Equal to the name of the Service port.
    pub name: Arc<str>,
    /// Equal to the protocol of the Service port.
    pub protocol: Protocol,
    /// Port on the endpoint.
    pub port: u16,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The first address of the endpoint. As in kube-proxy, other addresses are ignored.
    pub addr: IpAddr,
    /// `conditions.ready`, absent meaning true.
    pub ready: bool,
    /// `conditions.serving`, absent meaning true.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// The weight that an annotation of the slice chooses; 1 without one, 0: no new connections. An agent of an earlier
    /// version does not tell it.
    #[serde(default = "usual_weight")]
    pub weight: u16,
    /// Where it is, as far as that is known; the endpoints of a node share it.
    pub place: Option<Arc<Place>>,
}

fn usual_weight() -> u16 {
    1
}

/// What endpoints have in common that run on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The node that the endpoint runs on.
    pub node: Option<Arc<str>>,
    /// The zones and nodes that the endpoint is for.
    pub hints: Hints,
}

impl Place {
    /// A place on a node that is meant for nobody in particular.
    pub fn on(node: &str) -> Arc<Self> {
        Arc::new(Self { node: Some(node.into()), hints: Hints::default() })
    }
}

/// The hints of an endpoint, as the EndpointSlice controller writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hints {
    /// `forZones`.
    pub zones: Box<[Arc<str>]>,
    /// `forNodes`.
    pub nodes: Box<[Arc<str>]>,
}

/// An EndpointSlice of an IP family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    pub name: ObjectName,
    /// The Service of the slice. An empty name: no Service of this agent, but its addresses are still protected.
    pub service: ObjectName,
    /// Address family of all endpoints.
    pub family: Family,
    /// Ports of every endpoint.
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[Endpoint]>,
    /// What is wrong with the annotation of weights.
    #[serde(default)]
    pub wrong_weights: Option<Box<str>>,
}

/// The used fields of this node's Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP, then of type ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// First `spec.podCIDRs` entry of each family.
    pub pod_cidrs: PerFamily<Option<IpNet>>,
    /// The Node is being deleted, or the cluster autoscaler marked it for deletion: load balancers should avoid it.
    pub leaving: bool,
}

/// Key of an IPVS virtual server: protocol, VIP and port. Sorted by them, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VsKey {
    pub protocol: Protocol,
    /// The VIP.
    pub addr: IpAddr,
    pub port: u16,
}

impl VsKey {
    pub fn family(&self) -> Family {
        Family::of(self.addr)
    }
}

impl fmt::Display for VsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.addr, self.port))
    }
}

/// The order of `IpAddr`, from numbers: a first sync sorts tens of thousands of keys, and comparing arrays costs more.
fn compare(a: IpAddr, b: IpAddr) -> Ordering {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.to_bits().cmp(&b.to_bits()),
        (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits().cmp(&b.to_bits()),
        _ => b.is_ipv4().cmp(&a.is_ipv4()),
    }
}

impl Ord for VsKey {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_address = || compare(self.addr, other.addr);
        self.protocol.cmp(&other.protocol).then_with(by_address).then_with(|| self.port.cmp(&other.port))
    }
}

impl PartialOrd for VsKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Key of a real server within its virtual server: address and port of the endpoint. Sorted by them, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RsKey {
    pub addr: IpAddr,
    pub port: u16,
}

impl Ord for RsKey {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.addr, other.addr).then_with(|| self.port.cmp(&other.port))
    }
}

impl PartialOrd for RsKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", SocketAddr::new(self.addr, self.port))
    }
}

/// Scheduler, flags and persistence timeout of a virtual server. A difference is repaired in place.
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
    /// Whether `/proc/net/ip_vs` shows this spec as `shown`. The file has only two of the flags, and the timeout of
    /// persistent virtual servers only.
    pub fn looks_like(&self, shown: &VsSpec) -> bool {
        let persistent = self.flags & PERSISTENT != 0;
        self.scheduler == shown.scheduler
            && self.flags & (PERSISTENT | ONE_PACKET) == shown.flags
            && (!persistent || self.timeout == shown.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_by_protocol_address_and_port() {
        let addresses = ["10.0.0.2", "10.0.1.1", "192.0.2.1", "::1", "2001:db8::1", "2001:db8::1:0"];
        let addresses: Vec<IpAddr> = addresses.into_iter().map(|text| text.parse().unwrap()).collect();
        let mut keys = Vec::new();
        for protocol in Protocol::ALL {
            for addr in &addresses {
                keys.extend([53, 300].map(|port| (protocol, *addr, port)));
            }
        }
        for (protocol, addr, port) in &keys {
            for (other_protocol, other_addr, other_port) in &keys {
                let [vs, other_vs] = [(protocol, addr, port), (other_protocol, other_addr, other_port)]
                    .map(|(protocol, addr, port)| VsKey { protocol: *protocol, addr: *addr, port: *port });
                let [rs, other_rs] = [vs, other_vs].map(|vs| RsKey { addr: vs.addr, port: vs.port });
                let derived = (protocol, addr, port).cmp(&(other_protocol, other_addr, other_port));
                assert_eq!(vs.cmp(&other_vs), derived);
                assert_eq!(rs.cmp(&other_rs), (addr, port).cmp(&(other_addr, other_port)));
            }
        }
    }
}
