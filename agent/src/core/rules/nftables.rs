// SPDX-License-Identifier: Apache-2.0
//! The rules of rules mode `nftables`: one table for each family, which has the rules of kube-proxy's chains by the same
//! names.
//!
//! Unlike the rules of iptables they do not depend on which sets have members. What changes with Services and with the
//! node is in sets, so that most changes are one element. Some sets have no ipset: they are pseudo-chains here, whose
//! name begins with `@` and whose "rules" are their elements.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::chains::Table;
use super::{Chains, RulesInput};
use crate::core::model::sets::{SetId, SetKind};
use crate::core::model::settings::{LocalTraffic, Settings};
use crate::core::model::{Family, Protocol, VsKey};

/// Our table in each family.
pub const TABLE: &str = "kube-ipvs";
/// Set of the node's addresses on all links but `kube-ipvs0`. kube-proxy's rules match addresses of the type LOCAL; not
/// every kernel has that in nf_tables.
pub const NODE_ADDRESSES: &str = "node-addresses";
/// Set of the virtual servers that the node itself may not use: VIP, protocol and port, and the VIP as the source.
pub const CLOSED_TO_NODE: &str = "closed-to-node";
/// Set of the networks that have a local route.
pub const SERVICE_RANGES: &str = "service-ranges";
/// The sets that have no ipset.
pub const OWN_SETS: [&str; 3] = [NODE_ADDRESSES, CLOSED_TO_NODE, SERVICE_RANGES];

const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// The chain for packets to VIPs and node ports.
pub const SERVICES: &str = "KUBE-SERVICES";
const SOURCE_RANGES: &str = "KUBE-SOURCE-RANGES-FIREWALL";
const NODE_PORT: &str = "KUBE-NODE-PORT";

/// A base chain: its type, its hook, and its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseHook {
    pub name: &'static str,
    /// `nat` or `filter`.
    pub kind: &'static str,
    pub hook: &'static str,
    pub priority: i32,
}

const fn base(name: &'static str, kind: &'static str, hook: &'static str, priority: i32) -> BaseHook {
    BaseHook { name, kind, hook, priority }
}

impl BaseHook {
    /// The base chain with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        BASE_CHAINS.iter().find(|base| base.name == name)
    }
}

/// The base chains. Each runs before those of iptables at its hook, as kube-proxy's jumps are at the top of the built-in
/// chains. IPVS takes packets of the node in the hook output at -99, and other packets in the hook input at 98.
pub const BASE_CHAINS: [BaseHook; 6] = [
    base("nat-prerouting", "nat", "prerouting", -101),
    base("nat-output", "nat", "output", -101),
    base("nat-postrouting", "nat", "postrouting", 99),
    base("filter-input", "filter", "input", -1),
    base("filter-forward", "filter", "forward", -1),
    base("filter-output", "filter", "output", -101),
];

/// The chains that base chains jump to.
pub const CHAINS: [&str; 9] = [
    SERVICES,
    "KUBE-LOAD-BALANCER",
    NODE_PORT,
    MARK_MASQ,
    "KUBE-POSTROUTING",
    "KUBE-PROXY-FIREWALL",
    SOURCE_RANGES,
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// The text of a base chain's properties, as nft(8) has it: the first "rule" of a base chain.
impl fmt::Display for BaseHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type {} hook {} priority {}", self.kind, self.hook, self.priority)
    }
}

/// A field of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketField {
    Source,
    Destination,
    Protocol,
    DestinationPort,
}

const TO_VIP: &[PacketField] =
    &[PacketField::Destination, PacketField::Protocol, PacketField::DestinationPort];
const FROM_VIP: &[PacketField] = &[PacketField::Source, PacketField::Protocol, PacketField::DestinationPort];
const TO_VIP_FROM: &[PacketField] =
    &[PacketField::Destination, PacketField::Protocol, PacketField::DestinationPort, PacketField::Source];
const TO: &[PacketField] = &[PacketField::Destination];
const TO_PORT: &[PacketField] = &[PacketField::DestinationPort];

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The source is in the network, or is not.
    Source(IpNet, bool),
    /// The packet did not come in by this interface; one that ends with `+` stands for all that begin alike.
    NotFrom(String),
    Protocol(Protocol),
    /// The packet does not have the mark.
    Unmarked(u32),
    /// The packet begins a connection.
    New,
    /// The packet belongs to a connection.
    Established,
    /// The fields are a member of the set.
    In(&'static [PacketField], String),
    /// VIP, protocol and port, the network of the source with this prefix length, and the length are a member of the
    /// set.
    FromNetwork(u8, String),
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Jump(&'static str),
    Return,
    Drop,
    /// Refuses with "port unreachable".
    Reject,
    /// Sets the bits of the mark.
    Mark(u32),
    /// Turns the bits of the mark.
    Unmark(u32),
    /// `true`: with random ports.
    Masquerade(bool),
    /// No later chain changes the destination. The verdict `accept` ends only our base chain: a host port with the number
    /// of a Service port would take the traffic of a VIP. `ACCEPT` in kube-proxy's rules.
    KeepDestination,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftRule {
    /// All must hold.
    pub matches: Vec<Match>,
    pub action: Action,
}

/// The chains of a family with their rules.
pub type NftChains = BTreeMap<&'static str, Vec<NftRule>>;

/// The rules of a family. `by_route`: some ClusterIPs are local by a route; `prefixes`: the prefix lengths of source
/// ranges.
pub fn build_rules(
    family: Family,
    settings: &Settings,
    by_route: bool,
    prefixes: impl IntoIterator<Item = u8>,
) -> NftChains {
    let names = BASE_CHAINS.iter().map(|base| base.name).chain(CHAINS);
    let chains = names.map(|name| (name, Vec::new())).collect();
    let mut writer = NftWriter { family, settings, chains };
    writer.add_nat_rules(by_route);
    writer.add_node_port_rules();
    writer.add_filter_rules(prefixes);
    writer.chains
}

/// The wanted chains of `family` as text, with the sets that have no ipset.
pub fn build_text(family: Family, settings: &Settings, input: &RulesInput<'_>) -> Chains {
    let rules = build_rules(family, settings, !input.routes.is_empty(), input.prefixes.iter().copied());
    let mut chains = Chains::new();
    for (name, rules) in rules {
        let base = BaseHook::named(name).map(ToString::to_string);
        let text = |rule: &NftRule| rule.text(family);
        chains.insert(key(name), base.into_iter().chain(rules.iter().map(text)).collect());
    }
    // No Service is at a link-local address.
    let is_own = |addr: &&IpAddr| match addr {
        IpAddr::V4(_) => family == Family::V4,
        IpAddr::V6(addr) => family == Family::V6 && !addr.is_unicast_link_local(),
    };
    let own = input.node_addresses.iter().filter(is_own);
    chains.insert(set_key(NODE_ADDRESSES), sorted(own.map(IpAddr::to_string)));
    chains.insert(set_key(CLOSED_TO_NODE), sorted(input.closed.iter().map(closed_text)));
    chains.insert(set_key(SERVICE_RANGES), ranges(input.routes.iter().copied()));
    chains
}

/// The elements of [`SERVICE_RANGES`]: nf_tables refuses intervals that overlap.
fn ranges(nets: impl Iterator<Item = IpNet>) -> Vec<String> {
    sorted(IpNet::aggregate(&nets.collect()).iter().map(IpNet::to_string))
}

fn sorted(elements: impl Iterator<Item = String>) -> Vec<String> {
    elements.collect::<BTreeSet<_>>().into_iter().collect()
}

/// An element of [`CLOSED_TO_NODE`].
pub fn closed_text(vs: &VsKey) -> String {
    format!("{} . {} . {}", vs.addr, vs.protocol.lower(), vs.port)
}

/// The key of a chain.
pub fn key(chain: &str) -> (Table, String) {
    (Table::KubeIpvs, chain.to_owned())
}

/// The key of a set that has no ipset.
pub fn set_key(set: &str) -> (Table, String) {
    (Table::KubeIpvs, format!("@{set}"))
}

/// What the rules in `has` protect stays protected in `meanwhile`, until the tidy phase: virtual servers that are closed
/// to the node, networks with a route, and source ranges.
pub fn keep_protected(has: &Chains, meanwhile: &mut Chains) {
    for set in [CLOSED_TO_NODE, SERVICE_RANGES] {
        let key = set_key(set);
        if let (Some(has), Some(meanwhile)) = (has.get(&key), meanwhile.get_mut(&key)) {
            let both = has.iter().chain(&*meanwhile);
            *meanwhile = match set {
                SERVICE_RANGES => ranges(both.filter_map(|net| net.parse().ok())),
                _ => sorted(both.cloned()),
            };
        }
    }
    let (Some(has), Some(meanwhile)) = (has.get(&key(SOURCE_RANGES)), meanwhile.get_mut(&key(SOURCE_RANGES)))
    else {
        return;
    };
    let at = meanwhile.len().saturating_sub(1);
    let kept = has.iter().filter(|rule| rule.ends_with(" return") && !meanwhile.contains(rule));
    let kept: Vec<String> = kept.cloned().collect();
    meanwhile.splice(at..at, kept);
}

/// Other kube-proxy modes change the destination of packets to VIPs until IPVS is programmed.
pub fn keep_dispatch(meanwhile: &mut Chains) {
    if let Some(services) = meanwhile.get_mut(&key(SERVICES)) {
        services.retain(|rule| !rule.contains(" dnat to "));
    }
}

/// Writes the rules of one family.
struct NftWriter<'a> {
    family: Family,
    settings: &'a Settings,
    chains: NftChains,
}

impl NftWriter<'_> {
    fn add(&mut self, chain: &'static str, matches: impl Into<Vec<Match>>, action: Action) {
        self.chains.entry(chain).or_default().push(NftRule { matches: matches.into(), action });
    }

    /// Matches a set of the ipsets.
    fn set(&self, fields: &'static [PacketField], kind: SetKind) -> Match {
        Match::In(fields, SetId { kind, family: self.family }.name())
    }

    fn loopback(&self) -> IpNet {
        match self.family {
            Family::V4 => IpNet::new_assert([127, 0, 0, 0].into(), 8),
            Family::V6 => IpNet::new_assert(std::net::Ipv6Addr::LOCALHOST.into(), 128),
        }
    }

    fn add_nat_rules(&mut self, by_route: bool) {
        self.add(SERVICES, [Match::Source(self.loopback(), true)], Action::Return);
        self.add(SERVICES, [self.set(TO_VIP, SetKind::LoadBalancer)], Action::Jump("KUBE-LOAD-BALANCER"));
        self.add("KUBE-LOAD-BALANCER", [self.set(TO_VIP, SetKind::LoadBalancerLocal)], Action::Return);
        self.add("KUBE-LOAD-BALANCER", [], Action::Jump(MARK_MASQ));
        self.add_cluster_ip_rules(by_route);
        self.add("nat-prerouting", [], Action::Jump(SERVICES));
        self.add("nat-output", [], Action::Jump(SERVICES));
        self.add(SERVICES, [self.set(TO_VIP, SetKind::ExternalIp)], Action::Jump(MARK_MASQ));
        for kind in [SetKind::ExternalIp, SetKind::ExternalIpLocal] {
            self.add(SERVICES, [self.set(TO_VIP, kind)], Action::KeepDestination);
        }
        // Together these are the addresses of the type LOCAL that kube-proxy's rule matches.
        let own = [NODE_ADDRESSES, SERVICE_RANGES].map(|set| Match::In(TO, set.to_owned()));
        for local in own.into_iter().chain([self.set(TO, SetKind::IpvsIps)]) {
            self.add(SERVICES, [local], Action::Jump(NODE_PORT));
        }
        for kind in [SetKind::ClusterIp, SetKind::LoadBalancer] {
            self.add(SERVICES, [self.set(TO_VIP, kind)], Action::KeepDestination);
        }
        let mark = self.settings.masquerade_mark;
        self.add(MARK_MASQ, [], Action::Mark(mark));
        self.add("nat-postrouting", [], Action::Jump("KUBE-POSTROUTING"));
        let hairpin = self.set(TO_VIP_FROM, SetKind::LoopBack);
        self.add("KUBE-POSTROUTING", [hairpin], Action::Masquerade(false));
        self.add("KUBE-POSTROUTING", [Match::Unmarked(mark)], Action::Return);
        self.add("KUBE-POSTROUTING", [], Action::Unmark(mark));
        self.add("KUBE-POSTROUTING", [], Action::Masquerade(true));
    }

    /// Marks the traffic to ClusterIPs that is masqueraded, as kube-proxy's rule does. Traffic of the node itself has no
    /// input interface; over a route its source need not be the ClusterIP. Both are told apart by the hook.
    fn add_cluster_ip_rules(&mut self, by_route: bool) {
        let to = self.set(TO_VIP, SetKind::ClusterIp);
        let marks = Action::Jump(MARK_MASQ);
        let not_loopback = Match::Source(self.loopback(), false);
        match &self.settings.local {
            _ if self.settings.masquerade_all => self.add(SERVICES, [to], marks),
            LocalTraffic::Interface(name) => {
                let from = Match::NotFrom(name.clone());
                self.add("nat-prerouting", [not_loopback.clone(), from, to.clone()], marks);
                self.add("nat-output", [not_loopback, to], marks);
            }
            LocalTraffic::Cidrs(cidrs) => match cidrs[self.family] {
                Some(cidr) => self.add(SERVICES, [Match::Source(cidr, false), to], marks),
                None if by_route => self.add("nat-output", [not_loopback, to], marks),
                None => self.add(SERVICES, [self.set(FROM_VIP, SetKind::ClusterIp)], marks),
            },
        }
    }

    /// Traffic to node ports is masqueraded unless the policy is Local.
    fn add_node_port_rules(&mut self) {
        for protocol in Protocol::ALL {
            let (all, local) = SetKind::of_node_ports(protocol);
            let fields = if protocol == Protocol::Sctp { TO_VIP } else { TO_PORT };
            for (kind, action) in [(local, Action::Return), (all, Action::Jump(MARK_MASQ))] {
                self.add(NODE_PORT, [Match::Protocol(protocol), self.set(fields, kind)], action);
            }
        }
    }

    fn add_filter_rules(&mut self, prefixes: impl IntoIterator<Item = u8>) {
        const FILTER: &str = "KUBE-IPVS-FILTER";
        const FIREWALL: &str = "KUBE-PROXY-FIREWALL";
        self.add("filter-input", [], Action::Jump(FILTER));
        self.add("filter-input", [], Action::Jump(FIREWALL));
        self.add("filter-forward", [], Action::Jump(FIREWALL));
        self.add(FIREWALL, [self.set(TO_VIP, SetKind::LoadBalancerFw)], Action::Jump(SOURCE_RANGES));
        if self.settings.keep_established {
            self.add(SOURCE_RANGES, [Match::Established], Action::Return);
        }
        let sources = |kind| SetId { kind, family: self.family }.name();
        let networks = sources(SetKind::LoadBalancerSourceCidr);
        for prefix in prefixes {
            self.add(SOURCE_RANGES, [Match::FromNetwork(prefix, networks.clone())], Action::Return);
        }
        let from = self.set(TO_VIP_FROM, SetKind::LoadBalancerSourceIp);
        self.add(SOURCE_RANGES, [from], Action::Return);
        self.add(SOURCE_RANGES, [], Action::Drop);
        for kind in SetKind::VIPS {
            self.add(FILTER, [self.set(TO_VIP, kind)], Action::Return);
        }
        let health = self.set(TO_PORT, SetKind::HealthCheckNodePort);
        self.add(FILTER, [Match::Protocol(Protocol::Tcp), health], Action::Return);
        for vips in [self.set(TO, SetKind::IpvsIps), Match::In(TO, SERVICE_RANGES.to_owned())] {
            self.add(FILTER, [Match::New, vips], Action::Reject);
        }
        self.add("filter-output", [], Action::Jump("KUBE-IPVS-OUT-FILTER"));
        let closed = Match::In(TO_VIP_FROM, CLOSED_TO_NODE.to_owned());
        self.add("KUBE-IPVS-OUT-FILTER", [closed], Action::Drop);
    }
}

impl NftRule {
    /// The text, much as nft(8) prints it.
    pub fn text(&self, family: Family) -> String {
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let mut words: Vec<String> = self.matches.iter().map(|matched| matched.text(ip)).collect();
        words.push(match self.action {
            Action::Jump(chain) => format!("jump {chain}"),
            Action::Return => "return".to_owned(),
            Action::Drop => "drop".to_owned(),
            Action::Reject => "reject".to_owned(),
            Action::Mark(mark) => format!("meta mark set meta mark | {mark:#x}"),
            Action::Unmark(mark) => format!("meta mark set meta mark ^ {mark:#x}"),
            Action::Masquerade(false) => "masquerade".to_owned(),
            Action::Masquerade(true) => "masquerade fully-random".to_owned(),
            Action::KeepDestination => format!("dnat to {ip} daddr"),
        });
        words.join(" ")
    }
}

impl Match {
    fn text(&self, ip: &str) -> String {
        let fields = |fields: &[PacketField]| {
            let name = |field: &PacketField| match field {
                PacketField::Source => format!("{ip} saddr"),
                PacketField::Destination => format!("{ip} daddr"),
                PacketField::Protocol => "meta l4proto".to_owned(),
                PacketField::DestinationPort => "th dport".to_owned(),
            };
            fields.iter().map(name).collect::<Vec<_>>().join(" . ")
        };
        match self {
            Match::Source(net, true) => format!("{ip} saddr {net}"),
            Match::Source(net, false) => format!("{ip} saddr != {net}"),
            Match::NotFrom(name) => format!("iifname != {}", name.replace('+', "*")),
            Match::Protocol(protocol) => format!("meta l4proto {}", protocol.lower()),
            Match::Unmarked(mark) => format!("meta mark & {mark:#x} != {mark:#x}"),
            Match::New => "ct state new".to_owned(),
            Match::Established => "ct state established,related".to_owned(),
            Match::In(of, set) => format!("{} @{set}", fields(of)),
            Match::FromNetwork(prefix, set) => {
                format!("{} . {ip} saddr/{prefix} . {prefix} @{set}", fields(TO_VIP))
            }
        }
    }
}

#[cfg(test)]
#[path = "nftables_tests.rs"]
mod tests;
