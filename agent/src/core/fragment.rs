// SPDX-License-Identifier: Apache-2.0
//! What one Service contributes to the node: virtual servers, addresses, set entries.

use std::net::IpAddr;
use std::sync::Arc;

use super::endpoints::{self, PortEndpoint};
use super::model::{
    EndpointSlice, Family, NodeFacts, ObjectName, RsKey, Service, ServicePort, Settings, VsKey, VsSpec,
};
use super::sets::{Entry, SetId, SetKind};

/// A wanted virtual server with its real servers, all of weight 1 and masqueraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// Protocol, VIP and port.
    pub key: VsKey,
    /// How it balances.
    pub spec: VsSpec,
    /// Real servers, sorted.
    pub real_servers: Vec<RsKey>,
    /// The Service behind it.
    pub service: ObjectName,
    /// Name of the Service port behind it, empty when unnamed.
    pub port_name: Arc<str>,
}

/// The contribution of one Service. Each list is sorted and free of duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// When the Service was created; the oldest claim on a virtual server wins.
    pub created: i64,
    /// Virtual servers.
    pub virtual_servers: Vec<Arc<VirtualServer>>,
    /// Addresses to bind to `kube-ipvs0`.
    pub addresses: Vec<IpAddr>,
    /// Set entries.
    pub entries: Vec<(SetId, Entry)>,
}

/// The kinds of VIP a Service can have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VipKind {
    ClusterIp,
    ExternalIp,
}

impl VipKind {
    fn set(self) -> SetKind {
        match self {
            VipKind::ClusterIp => SetKind::ClusterIp,
            VipKind::ExternalIp => SetKind::ExternalIp,
        }
    }

    /// A ClusterIP is always bound. Any other VIP that the node already has on another link stays
    /// there: binding it twice would only hide the host behind our filter.
    fn is_bound(self, vip: IpAddr, node: &NodeFacts) -> bool {
        self == VipKind::ClusterIp || node.addresses.binary_search(&vip).is_err()
    }
}

/// Builds the contribution of `service`.
pub fn build_fragment<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeFacts,
    settings: &Settings,
) -> Fragment {
    let mut fragment = Fragment { created: service.created, ..Fragment::default() };
    for &family in &settings.families {
        let vips = vips(service, family);
        if vips.is_empty() {
            continue;
        }
        for port in &service.ports {
            let all = endpoints::build_endpoints(port, family, slices.clone(), &node.name);
            add_loop_back(&mut fragment, port, family, &all);
            let serving = endpoints::serving(&all);
            for &(kind, vip) in &vips {
                add_vip(&mut fragment, service, port, (kind, vip), &serving, node, settings);
            }
        }
    }
    fragment.virtual_servers.sort_by_key(|vs| vs.key);
    fragment.virtual_servers.dedup_by_key(|vs| vs.key);
    fragment.addresses.sort_unstable();
    fragment.addresses.dedup();
    fragment.entries.sort_unstable();
    fragment.entries.dedup();
    fragment
}

/// All VIPs of a family. A Service without ClusterIP in a family has nothing there, not even
/// its external IPs.
fn vips(service: &Service, family: Family) -> Vec<(VipKind, IpAddr)> {
    let Some(cluster_ip) = service.cluster_ips[family.index()] else {
        return Vec::new();
    };
    let external = service.external_ips.iter().filter(|ip| Family::of(**ip) == family);
    std::iter::once((VipKind::ClusterIp, cluster_ip))
        .chain(external.map(|ip| (VipKind::ExternalIp, *ip)))
        .collect()
}

fn add_loop_back(fragment: &mut Fragment, port: &ServicePort, family: Family, all: &[PortEndpoint]) {
    let set = SetId { kind: SetKind::LoopBack, family };
    fragment.entries.extend(all.iter().filter(|e| e.local).map(|e| {
        let RsKey { addr, port: number } = e.target;
        (set, Entry::IpPortIp(addr, port.protocol, number, addr))
    }));
}

fn add_vip(
    fragment: &mut Fragment,
    service: &Service,
    port: &ServicePort,
    (kind, vip): (VipKind, IpAddr),
    serving: &[RsKey],
    node: &NodeFacts,
    settings: &Settings,
) {
    let family = Family::of(vip);
    let key = VsKey { protocol: port.protocol, addr: vip, port: port.port };
    fragment.virtual_servers.push(Arc::new(VirtualServer {
        key,
        spec: VsSpec { scheduler: settings.scheduler.clone(), flags: 0, timeout: 0 },
        real_servers: serving.to_vec(),
        service: service.name.clone(),
        port_name: port.name.clone(),
    }));
    let set = SetId { kind: kind.set(), family };
    fragment.entries.push((set, Entry::IpPort(vip, port.protocol, port.port)));
    if kind.is_bound(vip, node) {
        fragment.addresses.push(vip);
        fragment.entries.push((SetId { kind: SetKind::IpvsIps, family }, Entry::Ip(vip)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{Endpoint, Protocol, SlicePort};

    fn settings() -> Settings {
        Settings::default()
    }

    fn service(v4: Option<&str>, v6: Option<&str>, external: &[&str]) -> Service {
        let ip = |s: &str| s.parse().unwrap();
        Service {
            name: ObjectName::new("shop", "web"),
            created: 7,
            cluster_ips: [v4.map(ip), v6.map(ip)],
            external_ips: external.iter().map(|s| ip(s)).collect(),
            ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }],
        }
    }

    fn slice(family: Family, addrs: &[&str]) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("shop", "web-1"),
            service: ObjectName::new("shop", "web"),
            family,
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: addrs
                .iter()
                .map(|a| Endpoint {
                    addr: a.parse().unwrap(),
                    ready: true,
                    serving: true,
                    terminating: false,
                    node: Some("n1".into()),
                })
                .collect(),
        }
    }

    fn node(addresses: &[&str]) -> NodeFacts {
        NodeFacts { name: "n1".into(), addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
    }

    fn entries(fragment: &Fragment) -> Vec<String> {
        fragment.entries.iter().map(|(set, entry)| format!("{set} {entry}")).collect()
    }

    #[test]
    fn dual_stack_keeps_the_families_apart() {
        let slices = [slice(Family::V4, &["10.244.1.5"]), slice(Family::V6, &["fd00:244::5"])];
        let f = build_fragment(
            &service(Some("10.96.0.5"), Some("fd00:96::5"), &[]),
            &slices,
            &node(&[]),
            &settings(),
        );
        let keys: Vec<String> =
            f.virtual_servers.iter().map(|v| format!("{} {}", v.key, v.real_servers[0])).collect();
        assert_eq!(keys, ["TCP 10.96.0.5:80 10.244.1.5:8080", "TCP [fd00:96::5]:80 [fd00:244::5]:8080"]);
        assert!(entries(&f).contains(&"KUBE-6-LOOP-BACK fd00:244::5,tcp:8080,fd00:244::5".to_owned()));
    }

    #[test]
    fn no_endpoints_still_means_a_bound_virtual_server() {
        let f = build_fragment(&service(Some("10.96.0.5"), None, &[]), &[], &node(&[]), &settings());
        assert!(f.virtual_servers[0].real_servers.is_empty());
        assert_eq!(f.addresses.len(), 1);
        assert_eq!(entries(&f), ["KUBE-CLUSTER-IP 10.96.0.5,tcp:80", "KUBE-IPVS-IPS 10.96.0.5"]);
    }

    #[test]
    fn an_external_ip_that_the_node_has_is_served_but_not_bound() {
        let svc = service(Some("10.96.0.5"), None, &["192.168.10.5", "198.51.100.20", "fd00::1"]);
        let f = build_fragment(&svc, &[], &node(&["192.168.10.5"]), &settings());
        assert_eq!(f.virtual_servers.len(), 3, "the IPv6 one needs an IPv6 ClusterIP");
        assert_eq!(
            entries(&f),
            [
                "KUBE-CLUSTER-IP 10.96.0.5,tcp:80",
                "KUBE-EXTERNAL-IP 192.168.10.5,tcp:80",
                "KUBE-EXTERNAL-IP 198.51.100.20,tcp:80",
                "KUBE-IPVS-IPS 10.96.0.5",
                "KUBE-IPVS-IPS 198.51.100.20",
            ]
        );
    }

    #[test]
    fn a_cluster_ip_is_bound_even_if_the_node_has_it_elsewhere() {
        let f =
            build_fragment(&service(Some("10.96.0.5"), None, &[]), &[], &node(&["10.96.0.5"]), &settings());
        assert_eq!(f.addresses.len(), 1);
    }
}
