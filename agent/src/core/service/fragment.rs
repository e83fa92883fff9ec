// SPDX-License-Identifier: Apache-2.0
//! Fragments: the wanted state of one Service as virtual servers, addresses, set entries and UDP frontends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::chosen;
use super::endpoints::{self, PortEndpoint, Selection};
use super::node_facts::{Binding, NodeFacts};
use crate::core::model::Few;
use crate::core::model::options::ServiceOptions;
use crate::core::model::real_servers::{RsState, WantedServers};
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::settings::{ExternalIps, Settings};
use crate::core::model::{
    EndpointSlice, Family, ObjectName, PerFamily, Protocol, RsKey, Service, ServicePort, VsKey, VsSpec,
};

/// A wanted virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    pub key: VsKey,
    pub spec: VsSpec,
    pub real_servers: WantedServers,
    /// Set entries of this VIP and port; wanted only while this claim wins.
    pub entries: Few<(SetId, Entry)>,
    /// The node itself is outside the Service's source ranges: drop its own traffic to this virtual server.
    pub closed_to_node: bool,
    /// Creation time of the Service in seconds since the epoch.
    pub created: i64,
    pub service: ObjectName,
    /// Name of the Service port, empty when unnamed.
    pub port_name: Arc<str>,
    /// What annotations of the Service and `kubeIPVS.serviceDefaults` choose.
    pub options: Option<Arc<ServiceOptions>>,
}

impl VirtualServer {
    /// The same with its real servers in other states.
    pub fn with_states(&self, state: impl Fn(&RsKey, RsState) -> RsState) -> Arc<Self> {
        Arc::new(Self { real_servers: self.real_servers.map(state), ..self.clone() })
    }
}

/// Frontends and endpoints of one UDP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpPort {
    pub family: Family,
    /// VIPs and port.
    pub frontends: Vec<(IpAddr, u16)>,
    /// The node port, 0 for none.
    pub node_port: u16,
    /// Every serving endpoint, sorted.
    pub endpoints: Vec<RsKey>,
}

/// A condition of a Service that is reported to the operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// The external IP is not on the allow-list.
    ExternalIpRefused(IpAddr),
    /// The VIP is not bound, or bound without the access filter.
    SpecialVip(IpAddr, Binding),
    /// The agent reaches the API server at this address and port: it gets no virtual server.
    ApiServerPort(VsKey),
    /// An annotation has no effect, and why.
    AnnotationIgnored(Arc<str>),
    /// A setting has no effect, and why. `is_own`: an annotation of the Service or of its slices asks for it, else
    /// `kubeIPVS.serviceDefaults`.
    SettingIgnored { why: Arc<str>, is_own: bool },
    /// The kernel lacks the scheduler that an annotation chooses: that of `ipvs.scheduler` is used.
    SchedulerMissing(Arc<str>),
    /// As [`Notice::SchedulerMissing`], for a scheduler that `kubeIPVS.serviceDefaults` choose.
    DefaultSchedulerMissing(Arc<str>),
    /// The scheduler with these flags refuses the clients of endpoints that the settings close. `is_own`: annotations of the
    /// Service or of its slices choose some of this.
    RefusesClients { scheduler: Arc<str>, flags: u32, settings: Arc<str>, is_own: bool },
}

/// The answer at a Service's health-check node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: u16,
    /// Number of ready endpoint addresses on this node, of each family. `None`: the Service does not have the
    /// family.
    pub local: PerFamily<Option<u32>>,
}

/// The wanted state of one Service. Lists are sorted and have no duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Programmed before other Services.
    pub priority: bool,
    pub virtual_servers: Few<Arc<VirtualServer>>,
    /// Addresses to bind to `kube-ipvs0`.
    pub addresses: Few<IpAddr>,
    /// Set entries that belong to no single virtual server.
    pub entries: Few<(SetId, Entry)>,
    /// UDP ports with endpoints.
    pub udp: Box<[UdpPort]>,
    pub notices: Box<[Notice]>,
    /// Whether the Service has a Local policy and all its endpoints are on other nodes, of each family: the internal
    /// policy, then the external policy.
    pub no_local: PerFamily<[bool; 2]>,
    pub health: Option<HealthCheck>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum VipKind {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
}

/// Builds the fragment of `service`. `of_endpoints`: its VIPs that are also addresses of endpoints.
pub fn build_fragment<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    of_endpoints: &[IpAddr],
    node: &NodeFacts,
    settings: &Settings,
) -> Fragment {
    let draft = Fragment { priority: service.priority, ..Fragment::default() };
    let options = chosen::options(service, settings);
    let (udp, mut notices) = (Vec::new(), chosen::notices(service, options.as_deref(), node));
    notices.extend(slices.clone().into_iter().filter_map(chosen::wrong_weights));
    let spec = chosen::spec(service, options.as_deref(), node, settings);
    let mut builder = Builder { service, options, of_endpoints, node, settings, spec, draft, udp, notices };
    for &family in &settings.families {
        // Without a ClusterIP of the family the Service gets nothing in it, not even its external IPs.
        let Some(cluster_ip) = service.cluster_ips[family] else { continue };
        let vips = builder.vips(family, cluster_ip);
        let mut ready = BTreeSet::new();
        for port in &service.ports {
            let all = endpoints::build_endpoints(port, family, slices.clone(), &node.name);
            builder.add_port(port, family, &vips, &all);
            ready.extend(all.iter().filter(|e| e.local && e.ready && e.weight > 0).map(|e| e.target.addr));
        }
        // As in kube-proxy, a Service without ports has no health check.
        if !service.ports.is_empty() {
            builder.add_health_check(family, ready.len());
        }
    }
    builder.finish()
}

struct Builder<'a> {
    service: &'a Service,
    options: Option<Arc<ServiceOptions>>,
    of_endpoints: &'a [IpAddr],
    node: &'a NodeFacts,
    settings: &'a Settings,
    spec: VsSpec,
    /// The unfinished fragment: its lists are neither sorted nor free of duplicates.
    draft: Fragment,
    udp: Vec<UdpPort>,
    notices: Vec<Notice>,
}

impl Builder<'_> {
    /// All VIPs of a family. Refused external IPs become notices.
    fn vips(&mut self, family: Family, cluster_ip: IpAddr) -> Vec<(VipKind, IpAddr)> {
        let mut vips = vec![(VipKind::ClusterIp, cluster_ip)];
        for ip in self.service.external_ips(family) {
            match &self.settings.external_ips {
                ExternalIps::All => vips.push((VipKind::ExternalIp, ip)),
                ExternalIps::Within(nets) if nets.iter().any(|net| net.contains(&ip)) => {
                    vips.push((VipKind::ExternalIp, ip));
                }
                ExternalIps::Within(_) => self.notices.push(Notice::ExternalIpRefused(ip)),
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
            // As in kube-proxy, a port without an address for its node port has no health check.
            return;
        }
        if self.service.health_check_node_port != 0 {
            let set = SetId { kind: SetKind::HealthCheckNodePort, family };
            self.draft.entries.push((set, Entry::Port(self.service.health_check_node_port)));
        }
    }

    /// Records the number of ready local endpoint addresses of a family.
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
        let selection =
            chosen::selection(self.options.as_deref(), endpoints::select(all, cluster, local, self.node));
        if local && selection.local.is_empty() && all.iter().any(PortEndpoint::is_usable) {
            let no_local = &mut self.draft.no_local[family];
            no_local[0] |= service.internal_local;
            no_local[1] |= service.external_local;
        }
        selection
    }

    /// Adds every local endpoint, whatever its state: traffic of a pod to itself through a VIP must be masqueraded.
    fn add_loop_back(&mut self, port: &ServicePort, family: Family, all: &[PortEndpoint<'_>]) {
        if !chosen::is_hairpin(self.options.as_deref()) {
            return;
        }
        let set = SetId { kind: SetKind::LoopBack, family };
        self.draft.entries.extend(all.iter().filter(|e| e.local).map(|e| {
            let RsKey { addr, port: number } = e.target;
            (set, Entry::IpPortIp(addr, port.protocol, number, addr))
        }));
    }

    fn add_vip(&mut self, port: &ServicePort, (kind, vip): (VipKind, IpAddr), selection: &Selection) {
        let family = Family::of(vip);
        let key = VsKey { protocol: port.protocol, addr: vip, port: port.port };
        // A ClusterIP is exempt: pods and the agent reach the API server through the ClusterIP of `kubernetes`.
        if kind != VipKind::ClusterIp && self.node.protected.is_way_to_api_server(&key) {
            self.add_address(kind, vip);
            return self.notices.push(Notice::ApiServerPort(key));
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
        let mut real_servers = selection.of(local);
        if kind != VipKind::ClusterIp {
            let local = (local, selection.is_of_local(local));
            let options = self.options.as_deref();
            match chosen::direct_return(options, self.service, key, &real_servers, local, self.node) {
                Ok(direct) => real_servers = direct.unwrap_or(real_servers),
                Err(notice) => self.notices.push(notice),
            }
        }
        self.add_server(port, key, real_servers, entries, closed_to_node);
        self.add_address(kind, vip);
    }

    /// Adds the set entries of a restricted VIP. True when the node itself is outside the source ranges.
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

    /// A ClusterIP is always local, by a route or bound. Another VIP is not bound if that would cut the node off from a
    /// host that it needs. Its virtual servers and set entries are still programmed, for traffic of the node and for
    /// forwarded traffic.
    fn add_address(&mut self, kind: VipKind, vip: IpAddr) {
        let binding = match kind {
            VipKind::ClusterIp if self.node.is_routed(vip) => {
                // The rule of the range guards it.
                self.draft.addresses.extend(self.settings.binds_routed.then_some(vip));
                return;
            }
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
            // A notice follows when the binding is known.
            Binding::Unknown => {}
            binding => self.notices.push(Notice::SpecialVip(vip, binding)),
        }
    }

    /// Adds virtual servers on every node-port address. False when there is no such address.
    fn add_node_port(&mut self, port: &ServicePort, family: Family, selection: &Selection) -> bool {
        let node = self.node;
        let addresses = &node.node_port_addresses[family];
        if addresses.is_empty() {
            return false;
        }
        let external_local = self.service.external_local;
        let (all, local) = SetKind::of_node_ports(port.protocol);
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
        real_servers: WantedServers,
        mut entries: Few<(SetId, Entry)>,
        closed_to_node: bool,
    ) {
        entries.shrink_to_fit();
        let spec = chosen::weighted_spec(&self.spec, &real_servers, self.options.as_deref(), self.node);
        let spec = spec.unwrap_or_else(|notice| {
            self.notices.push(notice);
            self.spec.clone()
        });
        let options = self.options.as_deref();
        self.notices.extend(chosen::ignored_weights(&spec, &real_servers, self.service, options, self.node));
        self.notices.extend(chosen::refused_clients(
            &spec,
            &real_servers,
            key.protocol,
            self.service,
            options,
            self.node,
        ));
        self.draft.virtual_servers.push(Arc::new(VirtualServer {
            key,
            spec,
            real_servers,
            entries,
            closed_to_node,
            created: self.service.created,
            service: self.service.name.clone(),
            port_name: port.name.clone(),
            options: self.options.clone(),
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
        self.udp.push(UdpPort { family, frontends, node_port: port.node_port, endpoints });
    }

    fn finish(self) -> Fragment {
        let Self { mut draft, mut notices, udp, .. } = self;
        merge_servers(&mut draft.virtual_servers);
        sort(&mut draft.addresses);
        sort(&mut draft.entries);
        notices.sort_unstable();
        notices.dedup();
        draft.virtual_servers.shrink_to_fit();
        Fragment { udp: udp.into(), notices: notices.into(), ..draft }
    }
}

fn sort<T: Ord>(list: &mut Few<T>) {
    list.sort_unstable();
    list.dedup();
    list.shrink_to_fit();
}

/// One address may be several VIPs of a Service, such as external IP and load-balancer IP. As in kube-proxy, the last
/// kind decides about the real servers, and all kinds keep their set entries.
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

#[cfg(test)]
#[path = "fragment_tests.rs"]
mod tests;
