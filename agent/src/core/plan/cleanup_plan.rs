// SPDX-License-Identifier: Apache-2.0
//! The steps of `cleanup`, in order.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::ownership::{DEVICE, is_provably_ours};
use crate::core::mirror::ObservedSet;
use crate::core::mirror::comparison::NftTables;
use crate::core::model::map::{Map, Set};
use crate::core::model::sets::SetId;
use crate::core::model::{Family, PerFamily, VsKey};
use crate::core::rules::nftables::SERVICES;
use crate::core::rules::removal::{Extent, Removal, find_removal, iptables_mode_is_active};

/// The state of the node before a cleanup.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Every virtual server that has an address.
    pub servers: Vec<VsKey>,
    /// The addresses on `kube-ipvs0`; `None`: the device does not exist.
    pub bound: Option<Set<IpNet>>,
    /// Networks with a local route of ours.
    pub routes: BTreeSet<IpNet>,
    /// Existing sets that have one of our names.
    pub sets: Map<SetId, ObservedSet>,
    /// The output of `iptables-save` and `ip6tables-save`.
    pub rules: Vec<(Family, String)>,
    /// The sets of rules mode `nftables`.
    pub nft_sets: Map<SetId, ObservedSet>,
    /// The tables of kube-proxy's nftables mode and of our rules mode `nftables`.
    pub nft_tables: PerFamily<NftTables>,
}

/// What a cleanup may remove.
#[derive(Clone, Debug, Default)]
pub struct CleanupScope {
    /// Also remove everything that other kube-proxy modes create.
    pub every_mode: bool,
    /// Virtual servers with an address in one of these networks are kept.
    pub exclude_cidrs: Vec<IpNet>,
}

/// One removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CleanupStep {
    /// The rules in our table of nf_tables that keep packets to VIPs from the rules of another kube-proxy mode. They go
    /// first: that mode may serve the VIPs already.
    NftServices(Family),
    /// `kube-ipvs0` and the number of its addresses: traffic stops before virtual servers are removed.
    Device(usize),
    /// The local route of a network of ClusterIPs.
    Route(IpNet),
    Server(VsKey),
    /// Jumps and chains of one table of a family.
    Rules(Family, Removal),
    /// A set. The step comes after the rules that use the set are removed.
    Set(SetId),
    /// A table of nf_tables.
    NftTable(Family, &'static str),
}

/// One line for each object.
impl fmt::Display for CleanupStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CleanupStep::NftServices(family) => write!(f, "{family} nftables: rules of {SERVICES}"),
            CleanupStep::Device(addresses) => write!(f, "device {DEVICE} with {addresses} addresses"),
            CleanupStep::Route(net) => write!(f, "local route {net}"),
            CleanupStep::Server(vs) => write!(f, "virtual server {vs}"),
            CleanupStep::Rules(family, removal) => {
                let mut lines = Vec::new();
                for (table, found) in &removal.tables {
                    let rules = found.rules.iter();
                    lines.extend(rules.map(|(from, rule)| format!("{family} {table}: -A {from} {rule}")));
                    lines.extend(found.chains.iter().map(|chain| format!("{family} {table}: chain {chain}")));
                }
                f.write_str(&lines.join("\n"))
            }
            CleanupStep::Set(set) => write!(f, "ipset {set}"),
            CleanupStep::NftTable(family, table) => write!(f, "{family} nftables: table {table}"),
        }
    }
}

/// The steps in order, and a message for each chain that is kept because another rule uses it.
pub fn build_steps(found: &Found, scope: &CleanupScope) -> (Vec<CleanupStep>, Vec<String>) {
    let ours = Family::ALL.into_iter().filter(|family| found.nft_tables[*family].kube_ipvs);
    let mut steps: Vec<CleanupStep> = ours.map(CleanupStep::NftServices).collect();
    steps.extend(found.bound.iter().map(|bound| CleanupStep::Device(bound.len())));
    steps.extend(found.routes.iter().copied().map(CleanupStep::Route));
    steps.extend(own_servers(found, scope).into_iter().map(CleanupStep::Server));
    let mut kept = Vec::new();
    for (family, text) in &found.rules {
        let extent = match scope.every_mode {
            true => Extent::EveryMode,
            false if iptables_mode_is_active(text) => Extent::OursAlone,
            false => Extent::Ours,
        };
        let removal = find_removal(text, extent);
        kept.extend(removal.kept.iter().map(|chain| format!("{family} {chain}")));
        // One step for each table: a table that cannot be changed does not block the others.
        steps.extend(
            removal.tables.into_iter().map(|table| {
                CleanupStep::Rules(*family, Removal { tables: [table].into(), kept: Vec::new() })
            }),
        );
    }
    let mut sets: Vec<SetId> = found.sets.keys().copied().collect();
    sets.sort_unstable_by_key(|set| (set.family, set.kind));
    steps.extend(sets.into_iter().map(CleanupStep::Set));
    for family in Family::ALL {
        let found = found.nft_tables[family];
        let tables = NftTables { kube_proxy: found.kube_proxy && scope.every_mode, ..found };
        steps.extend(tables.names().into_iter().map(|table| CleanupStep::NftTable(family, table)));
    }
    (steps, kept)
}

/// Whether another mode of kube-proxy serves the VIPs already.
pub fn is_served_otherwise(found: &Found) -> bool {
    let has_table = Family::ALL.into_iter().any(|family| found.nft_tables[family].kube_proxy);
    has_table || found.rules.iter().any(|(_, text)| iptables_mode_is_active(text))
}

/// The virtual servers that are provably ours. The sets that prove it are removed last, so that an interrupted
/// cleanup can be repeated.
fn own_servers(found: &Found, scope: &CleanupScope) -> BTreeSet<VsKey> {
    let bound: Set<IpAddr> = found.bound.iter().flatten().map(IpNet::addr).collect();
    let is_ours = |vs: &&VsKey| {
        [&found.sets, &found.nft_sets].into_iter().any(|sets| is_provably_ours(vs, &bound, sets))
    };
    let excluded = |vs: &&VsKey| scope.exclude_cidrs.iter().any(|net| net.contains(&vs.addr));
    found.servers.iter().filter(|vs| is_ours(vs) && !excluded(vs)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::Protocol;
    use crate::core::model::sets::{Entry, SetKind};

    fn server(protocol: Protocol, addr: &str, port: u16) -> VsKey {
        VsKey { protocol, addr: addr.parse().unwrap(), port }
    }

    fn set(kind: SetKind, family: Family, members: &[Entry]) -> (SetId, ObservedSet) {
        let id = SetId { kind, family };
        (id, ObservedSet { members: members.iter().copied().collect(), ..ObservedSet::fresh(id) })
    }

    /// A node with objects of the agent and of other programs, with IPv6.
    fn node() -> Found {
        use Protocol::{Sctp, Tcp, Udp};
        let entry = |addr: &str, port| Entry::IpPort(addr.parse().unwrap(), Tcp, port);
        let sctp = Entry::IpPort("192.168.50.2".parse().unwrap(), Sctp, 30090);
        Found {
            servers: vec![
                server(Tcp, "10.96.0.10", 80),
                server(Udp, "10.96.0.10", 9),
                server(Tcp, "192.168.50.2", 30080),
                server(Udp, "192.168.50.2", 30080),
                server(Sctp, "192.168.50.2", 30090),
                server(Sctp, "192.168.50.3", 30090),
                server(Tcp, "192.168.50.2", 443),
                server(Tcp, "192.0.2.7", 80),
                server(Tcp, "fd00:96::10", 80),
                server(Tcp, "10.96.0.9", 80),
            ],
            bound: Some(["10.96.0.10/32", "10.96.0.9/32"].iter().map(|a| a.parse().unwrap()).collect()),
            sets: [
                set(SetKind::NodePortTcp, Family::V4, &[Entry::Port(30080)]),
                set(SetKind::NodePortSctp, Family::V4, &[sctp]),
                set(SetKind::ExternalIp, Family::V4, &[entry("192.168.50.2", 443)]),
                set(SetKind::ClusterIp, Family::V6, &[entry("fd00:96::10", 80)]),
            ]
            .into_iter()
            .collect(),
            nft_sets: [set(SetKind::NodePortUdp, Family::V4, &[Entry::Port(30080)])].into_iter().collect(),
            nft_tables: PerFamily::new(NftTables { kube_proxy: true, kube_ipvs: true }, NftTables::default()),
            routes: ["10.112.0.0/16".parse().unwrap()].into(),
            rules: vec![(
                Family::V4,
                "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n-A OUTPUT -m comment --comment \"kubernetes \
                 service portals\" -j KUBE-SERVICES\n-A OUTPUT -d 192.0.2.1/32 -j MINE\nCOMMIT\n*filter\n\
                 :KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n-A CNI -j KUBE-FORWARD\nCOMMIT\n"
                    .to_owned(),
            )],
        }
    }

    fn lines(scope: &CleanupScope) -> String {
        let (steps, kept) = build_steps(&node(), scope);
        steps
            .iter()
            .map(|step| format!("{step}\n"))
            .chain(kept.iter().map(|k| format!("KEPT {k}\n")))
            .collect()
    }

    #[test]
    fn golden_cleanup_removes_only_our_objects_in_order() {
        let scope = CleanupScope { every_mode: false, exclude_cidrs: vec!["10.96.0.9/32".parse().unwrap()] };
        assert_eq!(
            lines(&scope),
            "IPv4 nftables: rules of KUBE-SERVICES\n\
             device kube-ipvs0 with 2 addresses\n\
             local route 10.112.0.0/16\n\
             virtual server TCP 10.96.0.10:80\n\
             virtual server TCP 192.168.50.2:443\n\
             virtual server TCP 192.168.50.2:30080\n\
             virtual server TCP [fd00:96::10]:80\n\
             virtual server UDP 10.96.0.10:9\n\
             virtual server UDP 192.168.50.2:30080\n\
             virtual server SCTP 192.168.50.2:30090\n\
             IPv4 nat: -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             IPv4 nat: chain KUBE-SERVICES\n\
             ipset KUBE-EXTERNAL-IP\n\
             ipset KUBE-NODE-PORT-TCP\n\
             ipset KUBE-NODE-PORT-SCTP-HASH\n\
             ipset KUBE-6-CLUSTER-IP\n\
             IPv4 nftables: table kube-ipvs\n\
             KEPT IPv4 chain KUBE-FORWARD of table filter: `-A CNI -j KUBE-FORWARD` jumps to it\n"
        );
    }

    #[test]
    fn every_mode_removes_more_rules_but_no_foreign_virtual_server() {
        let text = lines(&CleanupScope { every_mode: true, ..CleanupScope::default() });
        assert!(text.contains("IPv4 nat: chain KUBE-SVC-A\n"), "{text}");
        assert!(text.contains("IPv4 nftables: table kube-proxy\n"), "{text}");
        assert!(!text.contains("IPv6 nftables"), "{text}");
        for others in ["192.0.2.7", "192.0.2.1", "192.168.50.3", "KUBE-FIREWALL"] {
            assert!(!text.contains(others), "{others} is not ours:\n{text}");
        }
    }

    #[test]
    fn an_empty_node_needs_no_cleanup() {
        let (steps, kept) =
            build_steps(&Found::default(), &CleanupScope { every_mode: true, ..CleanupScope::default() });
        assert!(steps.is_empty() && kept.is_empty());
    }
}
