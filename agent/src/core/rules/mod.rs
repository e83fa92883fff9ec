// SPDX-License-Identifier: Apache-2.0
//! The rules as text.
//!
//! Names, order and conditions of rules are those of kube-proxy. In rules mode `iptables` the text has the form of
//! `iptables-save`, so that it can be compared with the rules in the kernel; for rules mode `nftables` see [`nftables`].

pub mod chains;
mod match_iptables;
mod match_nft;
pub mod nftables;
pub mod removal;
pub mod save;
pub mod save_text;
pub mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use self::chains::{CHAINS, JUMPS, JumpFix, Table};
use ipnet::IpNet;

use crate::core::model::sets::{SetId, SetKind};
use crate::core::model::settings::{LocalTraffic, RulesMode, Settings};
use crate::core::model::{Family, Protocol, VsKey};

/// Our chains of one family with the text of their rules, in order; that of iptables is without the leading `-A CHAIN `.
pub type Chains = BTreeMap<(Table, String), Vec<String>>;

/// The chain that drops traffic of the node itself to restricted virtual servers.
pub const OUT_FILTER: (Table, &str) = (Table::Filter, "KUBE-IPVS-OUT-FILTER");
/// The chain that marks packets for masquerading.
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// The chain that drops traffic from outside the source ranges.
const FIREWALL: &str = "KUBE-SOURCE-RANGES-FIREWALL";

const DST_LOCAL: &str = "-m addrtype --dst-type LOCAL";
const ESTABLISHED: &str = "-m conntrack --ctstate RELATED,ESTABLISHED";

/// What the rules of a family depend on, besides the settings.
#[derive(Clone, Copy)]
pub struct RulesInput<'a> {
    /// Whether a set has members. As in kube-proxy, most rules of iptables that match an empty set are left out.
    pub has: &'a dyn Fn(SetKind) -> bool,
    /// The restricted virtual servers that the node itself may not use.
    pub closed: &'a [VsKey],
    /// The networks of ClusterIPs that are local by a route.
    pub routes: &'a BTreeSet<IpNet>,
    /// Addresses on all links of the node but `kube-ipvs0`; only for nftables.
    pub node_addresses: &'a [IpAddr],
    /// The prefix lengths of source ranges; only for nftables.
    pub prefixes: &'a BTreeSet<u8>,
}

impl<'a> RulesInput<'a> {
    /// Without restricted virtual servers, routes, addresses and source ranges.
    pub fn new(has: &'a dyn Fn(SetKind) -> bool) -> Self {
        static NO_ROUTES: BTreeSet<IpNet> = BTreeSet::new();
        static NO_PREFIXES: BTreeSet<u8> = BTreeSet::new();
        Self { has, closed: &[], routes: &NO_ROUTES, node_addresses: &[], prefixes: &NO_PREFIXES }
    }
}

/// The wanted chains of `family`.
pub fn build_chains(family: Family, settings: &Settings, input: &RulesInput<'_>) -> Chains {
    if settings.rules == RulesMode::Nftables {
        return nftables::build_text(family, settings, input);
    }
    let chains = CHAINS.iter().map(|(table, chain)| ((*table, (*chain).to_owned()), Vec::new())).collect();
    let mut writer = Writer { family, settings, has: input.has, routes: input.routes, chains };
    writer.add_nat_rules();
    writer.add_filter_rules(input.closed);
    writer.chains
}

/// Whether a rule of these chains matches the set. The kernel rejects rules that match a missing set.
pub fn references_set(chains: &Chains, set: SetId) -> bool {
    chains.values().flatten().any(|rule| references(rule, set))
}

/// Whether the rule matches the set.
pub fn references(rule: &str, set: SetId) -> bool {
    let name = set.name();
    let (ipset, nft) = (format!("--match-set {name} "), format!(" @{name} "));
    rule.contains(&ipset) || rule.contains(&nft)
}

/// Whether rules match the set even while it is empty.
pub fn is_always_referenced(kind: SetKind, mode: RulesMode) -> bool {
    mode == RulesMode::Nftables
        || SetKind::VIPS.contains(&kind)
        || matches!(kind, SetKind::HealthCheckNodePort | SetKind::IpvsIps)
}

/// Writes the rules of one family for iptables.
struct Writer<'a> {
    family: Family,
    settings: &'a Settings,
    has: &'a dyn Fn(SetKind) -> bool,
    routes: &'a BTreeSet<IpNet>,
    chains: Chains,
}

impl Writer<'_> {
    /// Adds a rule. As in the output of iptables-save, a source, interface or protocol is the first match.
    fn add(&mut self, table: Table, chain: &str, matches: &[&str], target: &str) {
        let rule = [matches, &["-j", target]].concat().join(" ");
        self.chains.entry((table, chain.to_owned())).or_default().push(rule);
    }

    /// Adds a rule that matches a set, if the set has members.
    fn add_for_set(&mut self, table: Table, chain: &str, kind: SetKind, fields: &str, target: &str) {
        if (self.has)(kind) {
            self.add(table, chain, &[&self.commented_set(kind, fields)], target);
        }
    }

    /// Matches fields of a packet with a set.
    fn set(&self, kind: SetKind, fields: &str) -> String {
        format!("-m set --match-set {} {fields}", SetId { kind, family: self.family })
    }

    /// Matches a set, with the comment of kube-proxy.
    fn commented_set(&self, kind: SetKind, fields: &str) -> String {
        format!("{} {}", comment(kind.comment()), self.set(kind, fields))
    }

    fn add_nat_rules(&mut self) {
        const TABLE: Table = Table::Nat;
        let mark = self.settings.masquerade_mark;
        let loopback = match self.family {
            Family::V4 => "-s 127.0.0.0/8",
            Family::V6 => "-s ::1/128",
        };
        self.add(TABLE, "KUBE-SERVICES", &[loopback], "RETURN");
        self.add_for_set(TABLE, "KUBE-POSTROUTING", SetKind::LoopBack, "dst,dst,src", "MASQUERADE");
        self.add_for_set(TABLE, "KUBE-SERVICES", SetKind::LoadBalancer, "dst,dst", "KUBE-LOAD-BALANCER");
        self.add_for_set(TABLE, "KUBE-LOAD-BALANCER", SetKind::LoadBalancerLocal, "dst,dst", "RETURN");
        self.add_node_port_rules();
        if (self.has)(SetKind::ClusterIp) {
            self.add_cluster_ip_rule();
        }
        self.add_external_ip_rules();
        self.add(TABLE, "KUBE-SERVICES", &[DST_LOCAL], "KUBE-NODE-PORT");
        self.add(TABLE, "KUBE-LOAD-BALANCER", &[], MARK_MASQ);
        for kind in [SetKind::ClusterIp, SetKind::LoadBalancer] {
            if (self.has)(kind) {
                self.add(TABLE, "KUBE-SERVICES", &[&self.set(kind, "dst,dst")], "ACCEPT");
            }
        }
        let unmarked = format!("-m mark ! --mark {mark:#x}/{mark:#x}");
        self.add(TABLE, "KUBE-POSTROUTING", &[&unmarked], "RETURN");
        self.add(TABLE, "KUBE-POSTROUTING", &[], &format!("MARK --set-xmark {mark:#x}/0x0"));
        let snat = comment("kubernetes service traffic requiring SNAT");
        self.add(TABLE, "KUBE-POSTROUTING", &[&snat], "MASQUERADE --random-fully");
        self.add(TABLE, MARK_MASQ, &[], &format!("MARK --set-xmark {mark:#x}/{mark:#x}"));
    }

    /// Traffic to node ports is masqueraded unless the policy is Local.
    fn add_node_port_rules(&mut self) {
        for protocol in Protocol::ALL {
            let (all, local) = SetKind::of_node_ports(protocol);
            let fields = if protocol == Protocol::Sctp { "dst,dst" } else { "dst" };
            let protocol = format!("-p {}", protocol.lower());
            for (kind, target) in [(local, "RETURN"), (all, MARK_MASQ)] {
                if (self.has)(kind) {
                    let set = self.commented_set(kind, fields);
                    self.add(Table::Nat, "KUBE-NODE-PORT", &[&protocol, &set], target);
                }
            }
        }
    }

    /// Traffic to external IPs is masqueraded unless the policy is Local. It is accepted if it comes from outside or
    /// the address is local.
    fn add_external_ip_rules(&mut self) {
        const CHAIN: &str = "KUBE-SERVICES";
        const FROM_OUTSIDE: &str = "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL";
        self.add_for_set(Table::Nat, CHAIN, SetKind::ExternalIp, "dst,dst", MARK_MASQ);
        for kind in [SetKind::ExternalIp, SetKind::ExternalIpLocal] {
            if (self.has)(kind) {
                let set = self.commented_set(kind, "dst,dst");
                self.add(Table::Nat, CHAIN, &[&set, FROM_OUTSIDE], "ACCEPT");
                self.add(Table::Nat, CHAIN, &[&set, DST_LOCAL], "ACCEPT");
            }
        }
    }

    /// Marks the traffic to ClusterIPs that is masqueraded. If the settings do not identify local traffic, only traffic
    /// of the node itself is masqueraded: its source is the ClusterIP, which is an address of the node.
    fn add_cluster_ip_rule(&mut self) {
        let all = self.settings.masquerade_all;
        let not_local = match &self.settings.local {
            _ if all => None,
            LocalTraffic::Cidrs(cidrs) => cidrs[self.family].map(|cidr| format!("! -s {cidr}")),
            LocalTraffic::Interface(name) => Some(format!("! -i {name}")),
        };
        let from_node = !all && not_local.is_none();
        // Over an IPv6 route the node uses an address of its own, not the ClusterIP, as source.
        let by_route = from_node && !self.routes.is_empty();
        let set = self
            .commented_set(SetKind::ClusterIp, if from_node && !by_route { "src,dst" } else { "dst,dst" });
        let source = by_route.then_some("-m addrtype --src-type LOCAL");
        let matches: Vec<&str> = not_local.as_deref().into_iter().chain([&*set]).chain(source).collect();
        self.add(Table::Nat, "KUBE-SERVICES", &matches, MARK_MASQ);
    }

    fn add_filter_rules(&mut self, closed: &[VsKey]) {
        const TABLE: Table = Table::Filter;
        let mark = self.settings.masquerade_mark;
        self.add_for_set(TABLE, "KUBE-PROXY-FIREWALL", SetKind::LoadBalancerFw, "dst,dst", FIREWALL);
        if self.settings.keep_established {
            self.add(TABLE, FIREWALL, &[ESTABLISHED], "RETURN");
        }
        for kind in [SetKind::LoadBalancerSourceCidr, SetKind::LoadBalancerSourceIp] {
            self.add_for_set(TABLE, FIREWALL, kind, "dst,dst,src", "RETURN");
        }
        self.add(TABLE, FIREWALL, &[], "DROP");
        for VsKey { protocol, addr, port } in closed {
            // Traffic of the node itself to a VIP has the VIP as its source.
            let source = format!("-s {}", ipnet::IpNet::from(*addr));
            let server = format!("-m ipvs --vproto {} --vaddr {addr} --vport {port}", protocol.number());
            self.add(TABLE, OUT_FILTER.1, &[&source, &server], "DROP");
        }
        let marked = format!("-m mark --mark {mark:#x}/{mark:#x}");
        self.add(TABLE, "KUBE-FORWARD", &[&comment("kubernetes forwarding rules"), &marked], "ACCEPT");
        let forwarded = comment("kubernetes forwarding conntrack rule");
        self.add(TABLE, "KUBE-FORWARD", &[&forwarded, ESTABLISHED], "ACCEPT");
        let health = SetKind::HealthCheckNodePort;
        self.add(TABLE, "KUBE-NODE-PORT", &[&self.commented_set(health, "dst")], "ACCEPT");
        for kind in SetKind::VIPS {
            self.add(TABLE, "KUBE-IPVS-FILTER", &[&self.set(kind, "dst,dst")], "RETURN");
        }
        self.add(TABLE, "KUBE-IPVS-FILTER", &[&self.set(health, "dst")], "RETURN");
        let reject = match self.family {
            Family::V4 => "REJECT --reject-with icmp-port-unreachable",
            Family::V6 => "REJECT --reject-with icmp6-port-unreachable",
        };
        let vips = self.set(SetKind::IpvsIps, "dst");
        const NEW: &str = "-m conntrack --ctstate NEW";
        self.add(TABLE, "KUBE-IPVS-FILTER", &[NEW, &vips], reject);
        for net in self.routes {
            self.add(TABLE, "KUBE-IPVS-FILTER", &[&format!("-d {net}"), NEW], reject);
        }
    }
}

/// A comment, as iptables-save prints it.
fn comment(text: &str) -> String {
    format!("-m comment --comment \"{}\"", text.replace('\'', "\\'"))
}

/// The input for `iptables-restore --noflush` that replaces our chains by `chains` and repairs the jumps in `fixes`. Each
/// table changes atomically.
pub fn render_restore(chains: &Chains, fixes: &[JumpFix]) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let _ = writeln!(text, "*{}", table.name());
        // A declaration creates the chain or flushes it.
        for (_, chain) in CHAINS.iter().filter(|(t, _)| *t == table) {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for fix in fixes.iter().filter(|fix| fix.table == table) {
            for jump in fix.present.iter().map(|i| &JUMPS[*i]) {
                let _ = writeln!(text, "-D {} {}", fix.from, jump.spec());
            }
        }
        for jump in JUMPS.iter().filter(|jump| jump.table == table) {
            if fixes.iter().any(|fix| (fix.table, fix.from) == (jump.table, jump.from)) {
                let _ = writeln!(text, "-I {} {}", jump.from, jump.spec());
            }
        }
        for (_, chain) in CHAINS.iter().filter(|(t, _)| *t == table) {
            for rule in chains.get(&(table, (*chain).to_owned())).into_iter().flatten() {
                let _ = writeln!(text, "-A {chain} {rule}");
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
