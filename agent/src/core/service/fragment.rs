// SPDX-License-Identifier: Apache-2.0
//! What one Service contributes to the node: virtual servers, addresses, set entries, UDP frontends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::endpoints::{self, PortEndpoint, Selection};
use super::node_facts::{Binding, NodeFacts};
use crate::core::model::Few;
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::settings::{ExternalIps, Settings};
use crate::core::model::{
    EndpointSlice, Family, ObjectName, PERSISTENT, PerFamily, Protocol, RsKey, Service, ServicePort, VsKey,
    VsSpec,
};

/// `IP_VS_SVC_F_SCHED_MH_PORT`: kube-proxy hashes the source port too.
const MH_PORT: u32 = 0x10;

/// A wanted virtual server with its real servers, all of weight 1 and masqueraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// Protocol, VIP and port.
    pub key: VsKey,
    /// How it balances.
    pub spec: VsSpec,
    /// Real servers, sorted.
    pub real_servers: Arc<[RsKey]>,
    /// Set entries of this VIP and port; they count only while this claim wins.
    pub entries: Few<(SetId, Entry)>,
    /// The node itself is outside of the Service's source ranges: drop what it gets from here.
    pub closed_to_node: bool,
    /// Programmed before all others.
    pub first: bool,
    /// When the Service behind it was created, in seconds since the epoch.
    pub created: i64,
    /// The Service behind it.
    pub service: ObjectName,
    /// Name of the Service port behind it, empty when unnamed.
    pub port_name: Arc<str>,
}

/// Who may answer a UDP port of the Service, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpPort {
    /// Family.
    pub family: Family,
    /// VIPs and port.
    pub frontends: Vec<(IpAddr, u16)>,
    /// The node port, 0 for none.
    pub node_port: u16,
    /// Every endpoint that still serves, sorted.
    pub endpoints: Vec<RsKey>,
}

/// Something that the operator should know about the Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// The external IP is not on the allow-list.
    ExternalIpRefused(IpAddr),
    /// The VIP is an address of the node, of its next hop, or of no use as one.
    SpecialVip(IpAddr, Binding),
    /// The agent reaches the API server at this address and port: no virtual server takes its connections.
    ApiServerPort(VsKey),
}

/// What a load balancer is told that asks at the Service's health-check node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// Ready endpoints on this node, counted by address, of each family; `None`:
    /// the Service is not of that family.
    pub local: PerFamily<Option<u32>>,
}

/// The contribution of one Service. Each list is sorted and free of duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Programmed before all others.
    pub first: bool,
    /// Virtual servers.
    pub virtual_servers: Few<Arc<VirtualServer>>,
    /// Addresses to bind to `kube-ipvs0`.
    pub addresses: Few<IpAddr>,
    /// Set entries that belong to no virtual server.
    pub entries: Few<(SetId, Entry)>,
    /// UDP ports with endpoints.
    pub udp: Box<[UdpPort]>,
    /// What the operator should know.
    pub notices: Box<[Notice]>,
    /// Whether a policy Local finds endpoints, but none on this node, of each family, by
    /// the internal policy, then the external one.
    pub no_local: PerFamily<[bool; 2]>,
    /// The health-check node port, if the Service has one.
    pub health: Option<HealthCheck>,
}

/// The kinds of VIP a Service can have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VipKind {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
}

/// Builds the contribution of `service`. `of_endpoints`: its VIPs that endpoints of any Service have.
pub fn build_fragment<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    of_endpoints: &[IpAddr],
    node: &NodeFacts,
    settings: &Settings,
) -> Fragment {
    let mut builder = Builder { service, of_endpoints, node, settings, draft: Draft::default() };
    for &family in &settings.families {
        // A Service without ClusterIP in a family has nothing there, not even its external IPs.
        let Some(cluster_ip) = service.cluster_ips[family] else { continue };
        let vips = builder.vips(family, cluster_ip);
        let mut ready = BTreeSet::new();
        for port in &service.ports {
            let all = endpoints::build_endpoints(port, family, slices.clone(), &node.name);
            builder.add_port(port, family, &vips, &all);
            ready.extend(all.iter().filter(|e| e.local && e.ready).map(|e| e.target.addr));
        }
        // As in kube-proxy a Service without ports has no health check.
        if !service.ports.is_empty() {
            builder.add_health_check(family, ready.len());
        }
    }
    builder.finish()
}

struct Builder<'a> {
    service: &'a Service,
    of_endpoints: &'a [IpAddr],
    node: &'a NodeFacts,
    settings: &'a Settings,
    draft: Draft,
}

/// A fragment in the making.
#[derive(Default)]
struct Draft {
    virtual_servers: Few<Arc<VirtualServer>>,
    addresses: Few<IpAddr>,
    entries: Few<(SetId, Entry)>,
    udp: Vec<UdpPort>,
    notices: Vec<Notice>,
    no_local: PerFamily<[bool; 2]>,
    health: Option<HealthCheck>,
}

impl Builder<'_> {
    /// All VIPs of a family; external IPs that are refused become notices.
    fn vips(&mut self, family: Family, cluster_ip: IpAddr) -> Vec<(VipKind, IpAddr)> {
        let mut vips = vec![(VipKind::ClusterIp, cluster_ip)];
        for ip in self.service.external_ips(family) {
            match &self.settings.external_ips {
                ExternalIps::All => vips.push((VipKind::ExternalIp, ip)),
                ExternalIps::Within(nets) if nets.iter().any(|net| net.contains(&ip)) => {
                    vips.push((VipKind::ExternalIp, ip));
                }
                ExternalIps::Within(_) => self.draft.notices.push(Notice::ExternalIpRefused(ip)),
                ExternalIps::None => {}
            }
        }
        vips.extend(self.service.load_balancer_ips(family).map(|ip| (VipKind::LoadBalancer, ip)));
        vips
    }

    fn add_port(
        &mut self,
        port: &ServicePort,
        family: Family,
        vips: &[(VipKind, IpAddr)],
        all: &[PortEndpoint<'_>],
    ) {
        self.add_loop_back(port, family, all);
        let selection = self.select(port, family, all);
        for &(kind, vip) in vips {
            self.add_vip(port, (kind, vip), &selection);
        }
        self.add_udp(port, family, vips, all);
        if port.node_port != 0 && !self.add_node_port(port, family, &selection) {
            // As kube-proxy: without an address for its node port a port has no health check either.
            return;
        }
        if self.service.health_check_node_port != 0 {
            let set = SetId { kind: SetKind::HealthCheckNodePort, family };
            self.draft.entries.push((set, Entry::Port(self.service.health_check_node_port)));
        }
    }

    /// Counts the local ready endpoints of a family, each address once.
    fn add_health_check(&mut self, family: Family, ready: usize) {
        let port = self.service.health_check_node_port;
        if port != 0 {
            let check = self.draft.health.get_or_insert(HealthCheck { port, local: PerFamily::default() });
            check.local[family] = Some(u32::try_from(ready).unwrap_or(u32::MAX));
        }
    }

    fn select(&mut self, port: &ServicePort, family: Family, all: &[PortEndpoint<'_>]) -> Selection {
        let service = self.service;
        let outside = port.node_port != 0
            || service.load_balancer_ips(family).next().is_some()
            || service.external_ips(family).next().is_some();
        let cluster = !service.internal_local || outside;
        let local = service.internal_local || (service.external_local && outside);
        let selection = endpoints::select(all, cluster, local, self.node);
        if local && selection.local.is_empty() && all.iter().any(PortEndpoint::is_usable) {
            let no_local = &mut self.draft.no_local[family];
            no_local[0] |= service.internal_local;
            no_local[1] |= service.external_local;
        }
        selection
    }

    /// Every local endpoint, whatever its state: a pod that reaches itself must be masqueraded.
    fn add_loop_back(&mut self, port: &ServicePort, family: Family, all: &[PortEndpoint<'_>]) {
        let set = SetId { kind: SetKind::LoopBack, family };
        self.draft.entries.extend(all.iter().filter(|e| e.local).map(|e| {
            let RsKey { addr, port: number } = e.target;
            (set, Entry::IpPortIp(addr, port.protocol, number, addr))
        }));
    }

    fn add_vip(&mut self, port: &ServicePort, (kind, vip): (VipKind, IpAddr), selection: &Selection) {
        let family = Family::of(vip);
        let key = VsKey { protocol: port.protocol, addr: vip, port: port.port };
        // Pods reach the API server at a ClusterIP, and that works.
        if kind != VipKind::ClusterIp && self.node.protected.is_way_to_api_server(&key) {
            self.add_address(kind, vip);
            return self.draft.notices.push(Notice::ApiServerPort(key));
        }
        let member = Entry::IpPort(vip, port.protocol, port.port);
        let external_local = self.service.external_local;
        let set = |kind| SetId { kind, family };
        let mut entries = Few::new();
        let mut closed_to_node = false;
        match kind {
            VipKind::ClusterIp => entries.push((set(SetKind::ClusterIp), member)),
            VipKind::ExternalIp if external_local => entries.push((set(SetKind::ExternalIpLocal), member)),
            VipKind::ExternalIp => entries.push((set(SetKind::ExternalIp), member)),
            VipKind::LoadBalancer => {
                entries.push((set(SetKind::LoadBalancer), member));
                if external_local {
                    entries.push((set(SetKind::LoadBalancerLocal), member));
                }
                closed_to_node = self.add_source_ranges(port, vip, &mut entries);
            }
        }
        let local = if kind == VipKind::ClusterIp { self.service.internal_local } else { external_local };
        self.add_server(port, key, selection.of(local), entries, closed_to_node);
        self.add_address(kind, vip);
    }

    /// Adds what guards a restricted VIP; true when the node itself is outside of the ranges.
    fn add_source_ranges(&self, port: &ServicePort, vip: IpAddr, entries: &mut Few<(SetId, Entry)>) -> bool {
        let family = Family::of(vip);
        let ranges = self.service.source_ranges(family);
        if ranges.is_empty() {
            return false;
        }
        let set = |kind| SetId { kind, family };
        let (protocol, number) = (port.protocol, port.port);
        entries.push((set(SetKind::LoadBalancerFw), Entry::IpPort(vip, protocol, number)));
        entries.extend(ranges.iter().map(|range| {
            (set(SetKind::LoadBalancerSourceCidr), Entry::IpPortNet(vip, protocol, number, *range))
        }));
        let node = self.node.ips[family];
        let inside = node.is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip)));
        if inside {
            let from_node = Entry::IpPortIp(vip, protocol, number, vip);
            entries.push((set(SetKind::LoadBalancerSourceIp), from_node));
        }
        !inside
    }

    /// A ClusterIP is always bound. Any other VIP is not where that would cut the node off; its virtual servers
    /// and set entries stay, for the node's own traffic and for what is forwarded to whoever has it.
    fn add_address(&mut self, kind: VipKind, vip: IpAddr) {
        let binding = match kind {
            VipKind::ClusterIp => Binding::Guarded,
            _ => self.node.binding(vip, self.of_endpoints.contains(&vip)),
        };
        if binding.is_bound() {
            self.draft.addresses.push(vip);
        }
        match binding {
            Binding::Guarded => {
                let set = SetId { kind: SetKind::IpvsIps, family: Family::of(vip) };
                self.draft.entries.push((set, Entry::Ip(vip)));
            }
            // Soon it is known, and then there is something to say, if at all.
            Binding::Unknown => {}
            binding => self.draft.notices.push(Notice::SpecialVip(vip, binding)),
        }
    }

    /// Virtual servers on every node address; false when there is none to serve on.
    fn add_node_port(&mut self, port: &ServicePort, family: Family, selection: &Selection) -> bool {
        let node = self.node;
        let addresses = &node.node_port_addresses[family];
        if addresses.is_empty() {
            return false;
        }
        let external_local = self.service.external_local;
        let (all, local) = node_port_sets(port.protocol);
        let kinds = std::iter::once(all).chain(external_local.then_some(local));
        for set in kinds.map(|kind| SetId { kind, family }) {
            if port.protocol == Protocol::Sctp {
                let entry = |ip: &IpAddr| (set, Entry::IpPort(*ip, port.protocol, port.node_port));
                self.draft.entries.extend(addresses.iter().map(entry));
            } else {
                self.draft.entries.push((set, Entry::Port(port.node_port)));
            }
        }
        for addr in addresses {
            let key = VsKey { protocol: port.protocol, addr: *addr, port: port.node_port };
            self.add_server(port, key, selection.of(external_local), Few::new(), false);
        }
        true
    }

    fn add_server(
        &mut self,
        port: &ServicePort,
        key: VsKey,
        real_servers: Arc<[RsKey]>,
        mut entries: Few<(SetId, Entry)>,
        closed_to_node: bool,
    ) {
        entries.shrink_to_fit();
        let affinity = self.service.affinity;
        let scheduler = self.settings.scheduler.clone();
        let persistent = if affinity.is_some() { PERSISTENT } else { 0 };
        let flags = persistent | if *scheduler == *"mh" { MH_PORT } else { 0 };
        self.draft.virtual_servers.push(Arc::new(VirtualServer {
            key,
            spec: VsSpec { scheduler, flags, timeout: affinity.unwrap_or(0) },
            real_servers,
            entries,
            closed_to_node,
            first: self.service.first,
            created: self.service.created,
            service: self.service.name.clone(),
            port_name: port.name.clone(),
        }));
    }

    fn add_udp(
        &mut self,
        port: &ServicePort,
        family: Family,
        vips: &[(VipKind, IpAddr)],
        all: &[PortEndpoint<'_>],
    ) {
        let endpoints: Vec<RsKey> = all.iter().filter(|e| e.serving).map(|e| e.target).collect();
        if port.protocol != Protocol::Udp || endpoints.is_empty() {
            return;
        }
        let frontends = vips.iter().map(|(_, vip)| (*vip, port.port)).collect();
        self.draft.udp.push(UdpPort { family, frontends, node_port: port.node_port, endpoints });
    }

    fn finish(self) -> Fragment {
        let mut draft = self.draft;
        merge_servers(&mut draft.virtual_servers);
        sort(&mut draft.addresses);
        sort(&mut draft.entries);
        draft.notices.sort_unstable();
        draft.notices.dedup();
        draft.virtual_servers.shrink_to_fit();
        Fragment {
            first: self.service.first,
            virtual_servers: draft.virtual_servers,
            addresses: draft.addresses,
            entries: draft.entries,
            udp: draft.udp.into(),
            notices: draft.notices.into(),
            no_local: draft.no_local,
            health: draft.health,
        }
    }
}

fn sort<T: Ord>(list: &mut Few<T>) {
    list.sort_unstable();
    list.dedup();
    list.shrink_to_fit();
}

/// One address may be several VIPs of one Service, e.g. external IP and load balancer: the later
/// kind decides about the servers, as in kube-proxy, and all kinds keep their set entries.
fn merge_servers(servers: &mut Few<Arc<VirtualServer>>) {
    servers.sort_by_key(|vs| vs.key);
    servers.dedup_by(|later, kept| {
        if later.key != kept.key {
            return false;
        }
        let mut merged = VirtualServer::clone(later);
        let mut entries: Few<(SetId, Entry)> = later.entries.iter().chain(&kept.entries).copied().collect();
        sort(&mut entries);
        merged.entries = entries;
        merged.closed_to_node |= kept.closed_to_node;
        *kept = Arc::new(merged);
        true
    });
}

/// The set of all node ports of a protocol, and that of those with policy Local.
fn node_port_sets(protocol: Protocol) -> (SetKind, SetKind) {
    match protocol {
        Protocol::Tcp => (SetKind::NodePortTcp, SetKind::NodePortLocalTcp),
        Protocol::Udp => (SetKind::NodePortUdp, SetKind::NodePortLocalUdp),
        Protocol::Sctp => (SetKind::NodePortSctp, SetKind::NodePortLocalSctp),
    }
}

#[cfg(test)]
#[path = "fragment_tests.rs"]
mod tests;
