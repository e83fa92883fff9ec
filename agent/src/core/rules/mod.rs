// SPDX-License-Identifier: Apache-2.0
//! The iptables rules as data and as text.
//!
//! The text has the form of `iptables-save`, so that it can be compared with the rules in the kernel. Names, order and
//! conditions of rules are those of kube-proxy.

pub mod chains;
pub mod removal;
pub mod save;
pub mod save_text;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use self::chains::{CHAINS, JUMPS, JumpFix, Table};
use crate::core::model::sets::{SetId, SetKind};
use crate::core::model::settings::{LocalTraffic, Settings};
use crate::core::model::{Family, Protocol, VsKey};

/// The fields of a packet that a set matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dir {
    Dst,
    DstDst,
    SrcDst,
    DstDstSrc,
}

impl Dir {
    fn text(self) -> &'static str {
        match self {
            Dir::Dst => "dst",
            Dir::DstDst => "dst,dst",
            Dir::SrcDst => "src,dst",
            Dir::DstDstSrc => "dst,dst,src",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Match {
    Source(String),
    NotSource(String),
    NotInterface(String),
    Comment(&'static str),
    Set(SetKind, Dir),
    Mark,
    NotMark,
    DstLocal,
    NotBridgedNotFromLocal,
    ConntrackState(&'static str),
    Protocol(Protocol),
    /// Traffic of this virtual server.
    Ipvs(VsKey),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum RuleTarget {
    Accept,
    Return,
    Drop,
    Reject,
    Masquerade { random: bool },
    SetMark,
    ClearMark,
    Chain(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    table: Table,
    chain: &'static str,
    matches: Vec<Match>,
    target: RuleTarget,
}

/// Our chains of one family with the text of their rules, in order, without the leading `-A CHAIN `.
pub type Chains = BTreeMap<(Table, String), Vec<String>>;

/// The chain that drops traffic of the node itself to restricted virtual servers.
pub const OUT_FILTER: (Table, &str) = (Table::Filter, "KUBE-IPVS-OUT-FILTER");

/// The wanted chains of `family`. `has`: whether a set has members. As in kube-proxy, most rules that match an empty set
/// are left out. `closed`: the restricted virtual servers that the node itself may not use.
pub fn build_chains(
    family: Family,
    settings: &Settings,
    has: &dyn Fn(SetKind) -> bool,
    closed: &[VsKey],
) -> Chains {
    let mut chains: Chains =
        CHAINS.iter().map(|(table, chain)| ((*table, (*chain).to_owned()), Vec::new())).collect();
    for rule in nat_rules(family, settings, has).into_iter().chain(filter_rules(settings, has, closed)) {
        let text = render_rule(&rule, family, settings.masquerade_mark);
        chains.entry((rule.table, rule.chain.to_owned())).or_default().push(text);
    }
    chains
}

/// Whether a rule of these chains matches the set. iptables rejects rules that match a missing set.
pub fn references_set(chains: &Chains, set: SetId) -> bool {
    let name = format!("--match-set {} ", set.name());
    chains.values().flatten().any(|rule| rule.contains(&name))
}

/// Whether rules match the set even while it is empty.
pub fn is_always_referenced(kind: SetKind) -> bool {
    use SetKind as K;
    matches!(
        kind,
        K::ClusterIp
            | K::ExternalIp
            | K::ExternalIpLocal
            | K::LoadBalancer
            | K::HealthCheckNodePort
            | K::IpvsIps
    )
}

/// Matches a set, with the comment of kube-proxy.
fn match_set(kind: SetKind, dir: Dir) -> Vec<Match> {
    vec![Match::Comment(kind.comment()), Match::Set(kind, dir)]
}

const TO_MARK: RuleTarget = RuleTarget::Chain("KUBE-MARK-MASQ");

fn nat_rules(family: Family, settings: &Settings, has: &dyn Fn(SetKind) -> bool) -> Vec<Rule> {
    use Match::{Comment, DstLocal, NotMark, Set, Source};
    let mut rules = Vec::new();
    let mut add = |chain, matches, target| rules.push(Rule { table: Table::Nat, chain, matches, target });
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    add("KUBE-SERVICES", vec![Source(loopback.to_owned())], RuleTarget::Return);
    if has(SetKind::LoopBack) {
        let target = RuleTarget::Masquerade { random: false };
        add("KUBE-POSTROUTING", match_set(SetKind::LoopBack, Dir::DstDstSrc), target);
    }
    if has(SetKind::LoadBalancer) {
        let target = RuleTarget::Chain("KUBE-LOAD-BALANCER");
        add("KUBE-SERVICES", match_set(SetKind::LoadBalancer, Dir::DstDst), target);
    }
    if has(SetKind::LoadBalancerLocal) {
        add("KUBE-LOAD-BALANCER", match_set(SetKind::LoadBalancerLocal, Dir::DstDst), RuleTarget::Return);
    }
    node_port_rules(has, &mut add);
    if has(SetKind::ClusterIp) {
        add("KUBE-SERVICES", cluster_ip_matches(family, settings), TO_MARK);
    }
    external_ip_rules(has, &mut add);
    add("KUBE-SERVICES", vec![DstLocal], RuleTarget::Chain("KUBE-NODE-PORT"));
    add("KUBE-LOAD-BALANCER", vec![], TO_MARK);
    for kind in [SetKind::ClusterIp, SetKind::LoadBalancer] {
        if has(kind) {
            add("KUBE-SERVICES", vec![Set(kind, Dir::DstDst)], RuleTarget::Accept);
        }
    }
    add("KUBE-POSTROUTING", vec![NotMark], RuleTarget::Return);
    add("KUBE-POSTROUTING", vec![], RuleTarget::ClearMark);
    let snat = vec![Comment("kubernetes service traffic requiring SNAT")];
    add("KUBE-POSTROUTING", snat, RuleTarget::Masquerade { random: true });
    add("KUBE-MARK-MASQ", vec![], RuleTarget::SetMark);
    rules
}

/// Traffic to node ports is masqueraded unless the policy is Local.
fn node_port_rules(
    has: &dyn Fn(SetKind) -> bool,
    add: &mut impl FnMut(&'static str, Vec<Match>, RuleTarget),
) {
    use SetKind as K;
    let protocols = [
        (Protocol::Tcp, K::NodePortLocalTcp, K::NodePortTcp, Dir::Dst),
        (Protocol::Udp, K::NodePortLocalUdp, K::NodePortUdp, Dir::Dst),
        (Protocol::Sctp, K::NodePortLocalSctp, K::NodePortSctp, Dir::DstDst),
    ];
    for (protocol, local, all, dir) in protocols {
        for (kind, target) in [(local, RuleTarget::Return), (all, TO_MARK)] {
            if has(kind) {
                let matches = std::iter::once(Match::Protocol(protocol)).chain(match_set(kind, dir));
                add("KUBE-NODE-PORT", matches.collect(), target);
            }
        }
    }
}

/// Traffic to external IPs is masqueraded unless the policy is Local. It is accepted if it comes from outside or the
/// address is local.
fn external_ip_rules(
    has: &dyn Fn(SetKind) -> bool,
    add: &mut impl FnMut(&'static str, Vec<Match>, RuleTarget),
) {
    for kind in [SetKind::ExternalIp, SetKind::ExternalIpLocal] {
        if !has(kind) {
            continue;
        }
        if kind == SetKind::ExternalIp {
            add("KUBE-SERVICES", match_set(kind, Dir::DstDst), TO_MARK);
        }
        for extra in [Match::NotBridgedNotFromLocal, Match::DstLocal] {
            let matches = match_set(kind, Dir::DstDst).into_iter().chain([extra]).collect();
            add("KUBE-SERVICES", matches, RuleTarget::Accept);
        }
    }
}

/// Matches the traffic to ClusterIPs that is masqueraded. If the settings do not identify local traffic, only traffic of
/// the node itself is masqueraded: its source is the ClusterIP, which is an address of the node.
fn cluster_ip_matches(family: Family, settings: &Settings) -> Vec<Match> {
    let kind = SetKind::ClusterIp;
    let not_local = match &settings.local {
        _ if settings.masquerade_all => None,
        LocalTraffic::Cidrs(cidrs) => cidrs[family].map(|cidr| Match::NotSource(cidr.to_string())),
        LocalTraffic::Interface(name) => Some(Match::NotInterface(name.clone())),
    };
    let dir = if settings.masquerade_all || not_local.is_some() { Dir::DstDst } else { Dir::SrcDst };
    let matches = vec![Match::Comment(kind.comment()), Match::Set(kind, dir)];
    matches.into_iter().chain(not_local).collect()
}

fn filter_rules(settings: &Settings, has: &dyn Fn(SetKind) -> bool, closed: &[VsKey]) -> Vec<Rule> {
    use Match::{Comment, ConntrackState, Mark, Set};
    let mut rules = Vec::new();
    let mut add = |chain, matches, target| rules.push(Rule { table: Table::Filter, chain, matches, target });
    if has(SetKind::LoadBalancerFw) {
        let target = RuleTarget::Chain("KUBE-SOURCE-RANGES-FIREWALL");
        add("KUBE-PROXY-FIREWALL", match_set(SetKind::LoadBalancerFw, Dir::DstDst), target);
    }
    if settings.keep_established {
        let established = vec![ConntrackState("RELATED,ESTABLISHED")];
        add("KUBE-SOURCE-RANGES-FIREWALL", established, RuleTarget::Return);
    }
    for kind in [SetKind::LoadBalancerSourceCidr, SetKind::LoadBalancerSourceIp] {
        if has(kind) {
            add("KUBE-SOURCE-RANGES-FIREWALL", match_set(kind, Dir::DstDstSrc), RuleTarget::Return);
        }
    }
    add("KUBE-SOURCE-RANGES-FIREWALL", vec![], RuleTarget::Drop);
    for server in closed {
        // Traffic of the node itself to a VIP has the VIP as its source.
        let source = Match::Source(ipnet::IpNet::from(server.addr).to_string());
        add(OUT_FILTER.1, vec![source, Match::Ipvs(*server)], RuleTarget::Drop);
    }
    add("KUBE-FORWARD", vec![Comment("kubernetes forwarding rules"), Mark], RuleTarget::Accept);
    add(
        "KUBE-FORWARD",
        vec![Comment("kubernetes forwarding conntrack rule"), ConntrackState("RELATED,ESTABLISHED")],
        RuleTarget::Accept,
    );
    let health = SetKind::HealthCheckNodePort;
    add("KUBE-NODE-PORT", match_set(health, Dir::Dst), RuleTarget::Accept);
    let allowed = [SetKind::LoadBalancer, SetKind::ClusterIp, SetKind::ExternalIp, SetKind::ExternalIpLocal];
    for kind in allowed {
        add("KUBE-IPVS-FILTER", vec![Set(kind, Dir::DstDst)], RuleTarget::Return);
    }
    add("KUBE-IPVS-FILTER", vec![Set(health, Dir::Dst)], RuleTarget::Return);
    add("KUBE-IPVS-FILTER", vec![ConntrackState("NEW"), Set(SetKind::IpvsIps, Dir::Dst)], RuleTarget::Reject);
    rules
}

fn render_rule(rule: &Rule, family: Family, mark: u32) -> String {
    let mut words: Vec<String> = Vec::new();
    // iptables-save prints source, interface and protocol before any extension.
    let is_priority = |m: &&Match| {
        matches!(m, Match::Source(_) | Match::NotSource(_) | Match::NotInterface(_) | Match::Protocol(_))
    };
    let first = rule.matches.iter().filter(is_priority);
    let rest = rule.matches.iter().filter(|m| !is_priority(m));
    words.extend(first.chain(rest).map(|m| render_match(m, family, mark)));
    words.push(render_target(&rule.target, family, mark));
    words.join(" ")
}

fn render_match(m: &Match, family: Family, mark: u32) -> String {
    match m {
        Match::Source(net) => format!("-s {net}"),
        Match::NotSource(net) => format!("! -s {net}"),
        Match::NotInterface(name) => format!("! -i {name}"),
        Match::Comment(text) => format!("-m comment --comment \"{}\"", text.replace('\'', "\\'")),
        Match::Set(kind, dir) => {
            format!("-m set --match-set {} {}", SetId { kind: *kind, family }.name(), dir.text())
        }
        Match::Mark => format!("-m mark --mark {mark:#x}/{mark:#x}"),
        Match::NotMark => format!("-m mark ! --mark {mark:#x}/{mark:#x}"),
        Match::DstLocal => "-m addrtype --dst-type LOCAL".to_owned(),
        Match::NotBridgedNotFromLocal => {
            "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL".to_owned()
        }
        Match::ConntrackState(states) => format!("-m conntrack --ctstate {states}"),
        Match::Protocol(protocol) => format!("-p {}", protocol.lower()),
        Match::Ipvs(vs) => {
            format!("-m ipvs --vproto {} --vaddr {} --vport {}", vs.protocol.number(), vs.addr, vs.port)
        }
    }
}

fn render_target(target: &RuleTarget, family: Family, mark: u32) -> String {
    match target {
        RuleTarget::Accept => "-j ACCEPT".to_owned(),
        RuleTarget::Return => "-j RETURN".to_owned(),
        RuleTarget::Drop => "-j DROP".to_owned(),
        RuleTarget::Reject => match family {
            Family::V4 => "-j REJECT --reject-with icmp-port-unreachable".to_owned(),
            Family::V6 => "-j REJECT --reject-with icmp6-port-unreachable".to_owned(),
        },
        RuleTarget::Masquerade { random: true } => "-j MASQUERADE --random-fully".to_owned(),
        RuleTarget::Masquerade { random: false } => "-j MASQUERADE".to_owned(),
        RuleTarget::SetMark => format!("-j MARK --set-xmark {mark:#x}/{mark:#x}"),
        RuleTarget::ClearMark => format!("-j MARK --set-xmark {mark:#x}/0x0"),
        RuleTarget::Chain(chain) => format!("-j {chain}"),
    }
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
