// SPDX-License-Identifier: Apache-2.0
//! The ipsets. Names, types and entries are exactly those of kube-proxy.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use strum::{IntoStaticStr, VariantArray};

use super::{Family, Protocol};

/// The purpose of a set. One set of each kind exists per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    LoopBack,
    ClusterIp,
    ExternalIp,
    ExternalIpLocal,
    LoadBalancer,
    LoadBalancerFw,
    LoadBalancerLocal,
    LoadBalancerSourceIp,
    LoadBalancerSourceCidr,
    NodePortTcp,
    NodePortLocalTcp,
    NodePortUdp,
    NodePortLocalUdp,
    NodePortSctp,
    NodePortLocalSctp,
    HealthCheckNodePort,
    IpvsIps,
}

/// The ipset type of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
pub enum SetType {
    #[strum(serialize = "hash:ip")]
    HashIp,
    #[strum(serialize = "hash:ip,port")]
    HashIpPort,
    #[strum(serialize = "hash:ip,port,ip")]
    HashIpPortIp,
    #[strum(serialize = "hash:ip,port,net")]
    HashIpPortNet,
    /// Range 0-65535.
    #[strum(serialize = "bitmap:port")]
    BitmapPort,
}

impl SetType {
    pub const ALL: &'static [SetType] = SetType::VARIANTS;

    /// `maxelem` of a set that the agent creates.
    pub fn capacity(self) -> u32 {
        if self == SetType::BitmapPort { 1 << 16 } else { MAXELEM }
    }

    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Kind, name after `KUBE-`, type, and the comment of rules that match the set.
type Row = (SetKind, &'static str, SetType, &'static str);

#[rustfmt::skip]
const ROWS: [Row; 17] = {
    use SetKind as K;
    use SetType as T;
    [
        (K::LoopBack, "LOOP-BACK", T::HashIpPortIp, "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"),
        (K::ClusterIp, "CLUSTER-IP", T::HashIpPort, "Kubernetes service cluster ip + port for masquerade purpose"),
        (K::ExternalIp, "EXTERNAL-IP", T::HashIpPort, "Kubernetes service external ip + port for masquerade and filter purpose"),
        (K::ExternalIpLocal, "EXTERNAL-IP-LOCAL", T::HashIpPort, "Kubernetes service external ip + port with externalTrafficPolicy=local"),
        (K::LoadBalancer, "LOAD-BALANCER", T::HashIpPort, "Kubernetes service lb portal"),
        (K::LoadBalancerFw, "LOAD-BALANCER-FW", T::HashIpPort, "Kubernetes service load balancer ip + port for load balancer with sourceRange"),
        (K::LoadBalancerLocal, "LOAD-BALANCER-LOCAL", T::HashIpPort, "Kubernetes service load balancer ip + port with externalTrafficPolicy=local"),
        (K::LoadBalancerSourceIp, "LOAD-BALANCER-SOURCE-IP", T::HashIpPortIp, "Kubernetes service load balancer ip + port + source IP for packet filter purpose"),
        (K::LoadBalancerSourceCidr, "LOAD-BALANCER-SOURCE-CIDR", T::HashIpPortNet, "Kubernetes service load balancer ip + port + source cidr for packet filter purpose"),
        (K::NodePortTcp, "NODE-PORT-TCP", T::BitmapPort, "Kubernetes nodeport TCP port for masquerade purpose"),
        (K::NodePortLocalTcp, "NODE-PORT-LOCAL-TCP", T::BitmapPort, "Kubernetes nodeport TCP port with externalTrafficPolicy=local"),
        (K::NodePortUdp, "NODE-PORT-UDP", T::BitmapPort, "Kubernetes nodeport UDP port for masquerade purpose"),
        (K::NodePortLocalUdp, "NODE-PORT-LOCAL-UDP", T::BitmapPort, "Kubernetes nodeport UDP port with externalTrafficPolicy=local"),
        (K::NodePortSctp, "NODE-PORT-SCTP-HASH", T::HashIpPort, "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'"),
        (K::NodePortLocalSctp, "NODE-PORT-LOCAL-SCTP-HASH", T::HashIpPort, "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'"),
        (K::HealthCheckNodePort, "HEALTH-CHECK-NODE-PORT", T::BitmapPort, "Kubernetes health check node port"),
        (K::IpvsIps, "IPVS-IPS", T::HashIp, "Addresses on the ipvs interface"),
    ]
};

/// `maxelem` of a hash set, as in kube-proxy: its `ipset create -exist` fails if the set has another `maxelem`, and
/// then all its syncs fail. A set that becomes too small is replaced by a larger one.
pub const MAXELEM: u32 = 1 << 16;

/// Longest set name of the kernel (`IPSET_MAXNAMELEN` - 1). kube-proxy truncates names to it.
pub const MAX_NAME: usize = 31;

impl SetKind {
    /// The sets of VIPs with their ports, apart from those with a policy or a source range.
    pub const VIPS: [SetKind; 4] =
        [SetKind::LoadBalancer, SetKind::ClusterIp, SetKind::ExternalIp, SetKind::ExternalIpLocal];

    /// The set of all node ports of a protocol, and the set of those with policy Local.
    pub fn of_node_ports(protocol: Protocol) -> (SetKind, SetKind) {
        match protocol {
            Protocol::Tcp => (SetKind::NodePortTcp, SetKind::NodePortLocalTcp),
            Protocol::Udp => (SetKind::NodePortUdp, SetKind::NodePortLocalUdp),
            Protocol::Sctp => (SetKind::NodePortSctp, SetKind::NodePortLocalSctp),
        }
    }

    fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    pub fn set_type(self) -> SetType {
        self.row().2
    }

    pub fn comment(self) -> &'static str {
        self.row().3
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId {
    pub kind: SetKind,
    pub family: Family,
}

impl SetId {
    pub fn all(family: Family) -> impl Iterator<Item = SetId> {
        ROWS.iter().map(move |row| SetId { kind: row.0, family })
    }

    /// The name in the kernel: `KUBE-…`, for IPv6 `KUBE-6-…`, truncated to [`MAX_NAME`].
    pub fn name(self) -> String {
        let prefix = match self.family {
            Family::V4 => "KUBE-",
            Family::V6 => "KUBE-6-",
        };
        let mut name = format!("{prefix}{}", self.kind.row().1);
        name.truncate(MAX_NAME);
        name
    }

    /// The set with this name; `None` for names that are not ours.
    pub fn from_name(name: &str) -> Option<SetId> {
        Family::ALL.into_iter().flat_map(SetId::all).find(|id| id.name() == name)
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// One member of a set. The variant always fits the set's [`SetType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// `hash:ip`
    Ip(IpAddr),
    /// `hash:ip,port`
    IpPort(IpAddr, Protocol, u16),
    /// `hash:ip,port,ip`
    IpPortIp(IpAddr, Protocol, u16, IpAddr),
    /// `hash:ip,port,net`
    IpPortNet(IpAddr, Protocol, u16, IpNet),
    /// `bitmap:port`
    Port(u16),
}

/// A set and one of its members, which a probe tests; `None`: it has none.
pub type ProbedSet = (SetId, Option<Entry>);

/// The text of `ipset save`: host prefixes without their length.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Ip(ip) => write!(f, "{ip}"),
            Entry::IpPort(ip, proto, port) => write!(f, "{ip},{}:{port}", proto.lower()),
            Entry::IpPortIp(ip, proto, port, ip2) => write!(f, "{ip},{}:{port},{ip2}", proto.lower()),
            Entry::IpPortNet(ip, proto, port, net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{ip},{}:{port},{}", proto.lower(), net.addr())
            }
            Entry::IpPortNet(ip, proto, port, net) => write!(f, "{ip},{}:{port},{net}", proto.lower()),
            Entry::Port(port) => write!(f, "{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_the_order_of_the_kinds() {
        for (i, row) in ROWS.iter().enumerate() {
            assert_eq!(row.0 as usize, i, "{}", row.1);
        }
    }

    #[test]
    fn names_are_those_of_kube_proxy_and_truncated() {
        let v6 = |kind| SetId { kind, family: Family::V6 }.name();
        assert_eq!(v6(SetKind::LoadBalancerSourceCidr), "KUBE-6-LOAD-BALANCER-SOURCE-CID");
        assert_eq!(v6(SetKind::NodePortLocalSctp), "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS");
        assert_eq!(SetId { kind: SetKind::ClusterIp, family: Family::V4 }.name(), "KUBE-CLUSTER-IP");
    }

    #[test]
    fn every_set_is_found_by_its_name() {
        for id in Family::ALL.into_iter().flat_map(SetId::all) {
            assert_eq!(SetId::from_name(&id.name()), Some(id));
        }
        assert_eq!(SetId::from_name("KUBE-CLUSTER-IPS"), None);
    }

    #[test]
    fn entries_are_printed_as_ipset_prints_them() {
        let ip: IpAddr = "10.96.0.1".parse().unwrap();
        let host: IpNet = "198.51.100.7/32".parse().unwrap();
        let net: IpNet = "172.16.0.0/12".parse().unwrap();
        let cases = [
            (Entry::Ip(ip), "10.96.0.1"),
            (Entry::IpPort(ip, Protocol::Sctp, 9), "10.96.0.1,sctp:9"),
            (Entry::IpPortIp(ip, Protocol::Tcp, 53, ip), "10.96.0.1,tcp:53,10.96.0.1"),
            (Entry::IpPortNet(ip, Protocol::Tcp, 443, host), "10.96.0.1,tcp:443,198.51.100.7"),
            (Entry::IpPortNet(ip, Protocol::Tcp, 443, net), "10.96.0.1,tcp:443,172.16.0.0/12"),
            (Entry::Port(30080), "30080"),
        ];
        for (entry, text) in cases {
            assert_eq!(entry.to_string(), text);
        }
    }
}
