// SPDX-License-Identifier: Apache-2.0
//! The iptables rules, as data, and their text.
//!
//! Text is in the form that `iptables-save` prints, so that what the kernel has can be compared
//! with what is wanted without another process. Names, order and conditions are kube-proxy's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::model::{Family, LocalTraffic, Settings};
use super::sets::{SetId, SetKind};

/// An iptables table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `nat`
    Nat,
    /// `filter`
    Filter,
}

impl Table {
    /// Both tables, in the order in which they are written.
    pub const ALL: [Table; 2] = [Table::Nat, Table::Filter];

    /// The name that iptables knows.
    pub fn name(self) -> &'static str {
        match self {
            Table::Nat => "nat",
            Table::Filter => "filter",
        }
    }
}

/// The chains that are ours, in the order in which kube-proxy declares them.
pub const CHAINS: [(Table, &str); 11] = [
    (Table::Nat, "KUBE-SERVICES"),
    (Table::Nat, "KUBE-POSTROUTING"),
    (Table::Nat, "KUBE-NODE-PORT"),
    (Table::Nat, "KUBE-LOAD-BALANCER"),
    (Table::Nat, "KUBE-MARK-MASQ"),
    (Table::Filter, "KUBE-FORWARD"),
    (Table::Filter, "KUBE-NODE-PORT"),
    (Table::Filter, "KUBE-PROXY-FIREWALL"),
    (Table::Filter, "KUBE-SOURCE-RANGES-FIREWALL"),
    (Table::Filter, "KUBE-IPVS-FILTER"),
    (Table::Filter, "KUBE-IPVS-OUT-FILTER"),
];

/// A jump from a built-in chain to one of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Jump {
    /// Table of both chains.
    pub table: Table,
    /// Built-in chain.
    pub from: &'static str,
    /// Our chain.
    pub to: &'static str,
    /// Comment of the rule.
    pub comment: &'static str,
}

const fn jump(table: Table, from: &'static str, to: &'static str, comment: &'static str) -> Jump {
    Jump { table, from, to, comment }
}

/// The jumps. A missing one is inserted at the top of its chain, in this order.
pub const JUMPS: [Jump; 9] = [
    jump(Table::Nat, "OUTPUT", "KUBE-SERVICES", "kubernetes service portals"),
    jump(Table::Nat, "PREROUTING", "KUBE-SERVICES", "kubernetes service portals"),
    jump(Table::Nat, "POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
    jump(Table::Filter, "FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules"),
    jump(Table::Filter, "INPUT", "KUBE-NODE-PORT", "kubernetes health check rules"),
    jump(Table::Filter, "INPUT", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    jump(Table::Filter, "FORWARD", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    jump(Table::Filter, "INPUT", "KUBE-IPVS-FILTER", "kubernetes ipvs access filter"),
    jump(Table::Filter, "OUTPUT", "KUBE-IPVS-OUT-FILTER", "kubernetes ipvs access filter"),
];

impl Jump {
    /// The rule as `iptables-save` prints it, after `-A FROM `.
    pub fn spec(&self) -> String {
        format!("-m comment --comment \"{}\" -j {}", self.comment, self.to)
    }
}

/// The addresses of a packet that a set is asked about.
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
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
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
    target: Target,
}

/// The text of all our chains of one family: each chain with its rules, in order, without the
/// leading `-A CHAIN `.
pub type Chains = BTreeMap<(Table, String), Vec<String>>;

/// The wanted chains of `family`. `has` tells which sets are to hold anything: a rule over an
/// empty set is left out, as kube-proxy does.
pub fn build_chains(family: Family, settings: &Settings, has: &dyn Fn(SetKind) -> bool) -> Chains {
    let mut chains: Chains =
        CHAINS.iter().map(|(table, chain)| ((*table, (*chain).to_owned()), Vec::new())).collect();
    for rule in nat_rules(family, settings, has).into_iter().chain(filter_rules()) {
        let text = render_rule(&rule, family, settings.masquerade_mark);
        chains.entry((rule.table, rule.chain.to_owned())).or_default().push(text);
    }
    chains
}

fn nat_rules(family: Family, settings: &Settings, has: &dyn Fn(SetKind) -> bool) -> Vec<Rule> {
    use Match::{Comment, DstLocal, NotBridgedNotFromLocal, NotMark, Set, Source};
    let mut rules = Vec::new();
    let mut add = |chain, matches, target| rules.push(Rule { table: Table::Nat, chain, matches, target });
    let over = |kind: SetKind, dir| vec![Comment(kind.comment()), Set(kind, dir)];
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    add("KUBE-SERVICES", vec![Source(loopback.to_owned())], Target::Return);
    if has(SetKind::LoopBack) {
        let target = Target::Masquerade { random: false };
        add("KUBE-POSTROUTING", over(SetKind::LoopBack, Dir::DstDstSrc), target);
    }
    if has(SetKind::ClusterIp) {
        add("KUBE-SERVICES", cluster_ip_matches(family, settings), Target::Chain("KUBE-MARK-MASQ"));
    }
    if has(SetKind::ExternalIp) {
        let base = || over(SetKind::ExternalIp, Dir::DstDst);
        let with = |extra| base().into_iter().chain([extra]).collect();
        add("KUBE-SERVICES", base(), Target::Chain("KUBE-MARK-MASQ"));
        add("KUBE-SERVICES", with(NotBridgedNotFromLocal), Target::Accept);
        add("KUBE-SERVICES", with(DstLocal), Target::Accept);
    }
    add("KUBE-SERVICES", vec![DstLocal], Target::Chain("KUBE-NODE-PORT"));
    add("KUBE-LOAD-BALANCER", vec![], Target::Chain("KUBE-MARK-MASQ"));
    if has(SetKind::ClusterIp) {
        add("KUBE-SERVICES", vec![Set(SetKind::ClusterIp, Dir::DstDst)], Target::Accept);
    }
    add("KUBE-POSTROUTING", vec![NotMark], Target::Return);
    add("KUBE-POSTROUTING", vec![], Target::ClearMark);
    let snat = vec![Comment("kubernetes service traffic requiring SNAT")];
    add("KUBE-POSTROUTING", snat, Target::Masquerade { random: true });
    add("KUBE-MARK-MASQ", vec![], Target::SetMark);
    rules
}

/// Which traffic to ClusterIPs is masqueraded. Without a way to tell local traffic apart only
/// what the node itself sends is: its source is then the ClusterIP, because that is a local address.
fn cluster_ip_matches(family: Family, settings: &Settings) -> Vec<Match> {
    let kind = SetKind::ClusterIp;
    let not_local = match &settings.local {
        _ if settings.masquerade_all => None,
        LocalTraffic::Cidrs(cidrs) => cidrs[family.index()].map(|cidr| Match::NotSource(cidr.to_string())),
        LocalTraffic::Interface(name) => Some(Match::NotInterface(name.clone())),
    };
    let dir = if settings.masquerade_all || not_local.is_some() { Dir::DstDst } else { Dir::SrcDst };
    let matches = vec![Match::Comment(kind.comment()), Match::Set(kind, dir)];
    matches.into_iter().chain(not_local).collect()
}

fn filter_rules() -> Vec<Rule> {
    use Match::{Comment, ConntrackState, Mark, Set};
    let mut rules = Vec::new();
    let mut add = |chain, matches, target| rules.push(Rule { table: Table::Filter, chain, matches, target });
    add("KUBE-SOURCE-RANGES-FIREWALL", vec![], Target::Drop);
    add("KUBE-FORWARD", vec![Comment("kubernetes forwarding rules"), Mark], Target::Accept);
    add(
        "KUBE-FORWARD",
        vec![Comment("kubernetes forwarding conntrack rule"), ConntrackState("RELATED,ESTABLISHED")],
        Target::Accept,
    );
    let health = SetKind::HealthCheckNodePort;
    add("KUBE-NODE-PORT", vec![Comment(health.comment()), Set(health, Dir::Dst)], Target::Accept);
    let passed = [SetKind::LoadBalancer, SetKind::ClusterIp, SetKind::ExternalIp, SetKind::ExternalIpLocal];
    for kind in passed {
        add("KUBE-IPVS-FILTER", vec![Set(kind, Dir::DstDst)], Target::Return);
    }
    add("KUBE-IPVS-FILTER", vec![Set(health, Dir::Dst)], Target::Return);
    add("KUBE-IPVS-FILTER", vec![ConntrackState("NEW"), Set(SetKind::IpvsIps, Dir::Dst)], Target::Reject);
    rules
}

fn render_rule(rule: &Rule, family: Family, mark: u32) -> String {
    let mut words: Vec<String> = Vec::new();
    // iptables-save prints source and interface before any extension.
    let is_first = |m: &&Match| matches!(m, Match::Source(_) | Match::NotSource(_) | Match::NotInterface(_));
    let first = rule.matches.iter().filter(is_first);
    let rest = rule.matches.iter().filter(|m| !is_first(m));
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
    }
}

fn render_target(target: &Target, family: Family, mark: u32) -> String {
    match target {
        Target::Accept => "-j ACCEPT".to_owned(),
        Target::Return => "-j RETURN".to_owned(),
        Target::Drop => "-j DROP".to_owned(),
        Target::Reject => match family {
            Family::V4 => "-j REJECT --reject-with icmp-port-unreachable".to_owned(),
            Family::V6 => "-j REJECT --reject-with icmp6-port-unreachable".to_owned(),
        },
        Target::Masquerade { random: true } => "-j MASQUERADE --random-fully".to_owned(),
        Target::Masquerade { random: false } => "-j MASQUERADE".to_owned(),
        Target::SetMark => format!("-j MARK --set-xmark {mark:#x}/{mark:#x}"),
        Target::ClearMark => format!("-j MARK --set-xmark {mark:#x}/0x0"),
        Target::Chain(chain) => format!("-j {chain}"),
    }
}

/// The input for `iptables-restore --noflush` that makes our chains exactly `chains` and inserts
/// the jumps of `missing` (indexes into [`JUMPS`]). Each table changes atomically.
pub fn render_restore(chains: &Chains, missing: &[usize]) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let _ = writeln!(text, "*{}", table.name());
        // Declaring a chain creates it, or empties it.
        for (_, chain) in CHAINS.iter().filter(|(t, _)| *t == table) {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for jump in missing.iter().map(|i| &JUMPS[*i]).filter(|j| j.table == table) {
            let _ = writeln!(text, "-I {} {}", jump.from, jump.spec());
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
mod tests {
    use super::*;

    fn chain<'a>(chains: &'a Chains, table: Table, name: &str) -> &'a [String] {
        &chains[&(table, name.to_owned())]
    }

    #[test]
    fn an_empty_cluster_has_the_standing_rules_only() {
        let chains = build_chains(Family::V6, &Settings::default(), &|_| false);
        assert_eq!(
            chain(&chains, Table::Nat, "KUBE-SERVICES"),
            ["-s ::1/128 -j RETURN", "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT"]
        );
        assert_eq!(chain(&chains, Table::Nat, "KUBE-POSTROUTING").len(), 3);
        assert_eq!(chain(&chains, Table::Filter, "KUBE-IPVS-FILTER").len(), 6);
        assert!(chain(&chains, Table::Filter, "KUBE-IPVS-FILTER")[5].ends_with("icmp6-port-unreachable"));
        assert!(chain(&chains, Table::Filter, "KUBE-IPVS-OUT-FILTER").is_empty());
    }

    #[test]
    fn the_cluster_ip_rule_follows_the_configuration() {
        let rule = |settings: &Settings| {
            let chains = build_chains(Family::V4, settings, &|kind| kind == SetKind::ClusterIp);
            chain(&chains, Table::Nat, "KUBE-SERVICES")[1].clone()
        };
        let comment = "-m comment --comment \"Kubernetes service cluster ip + port for masquerade purpose\"";
        let tail = |dir| format!("{comment} -m set --match-set KUBE-CLUSTER-IP {dir} -j KUBE-MARK-MASQ");
        assert_eq!(rule(&Settings::default()), tail("src,dst"));
        let cidr = [Some("10.244.0.0/16".parse().unwrap()), None];
        let with_cidr = Settings { local: LocalTraffic::Cidrs(cidr), ..Settings::default() };
        assert_eq!(rule(&with_cidr), format!("! -s 10.244.0.0/16 {}", tail("dst,dst")));
        assert_eq!(rule(&Settings { masquerade_all: true, ..with_cidr }), tail("dst,dst"));
        let by_interface = Settings { local: LocalTraffic::Interface("veth+".into()), ..Settings::default() };
        assert_eq!(rule(&by_interface), format!("! -i veth+ {}", tail("dst,dst")));
    }

    #[test]
    fn the_mark_is_the_configured_bit() {
        let settings = Settings { masquerade_mark: 1 << 20, ..Settings::default() };
        let chains = build_chains(Family::V4, &settings, &|_| false);
        assert_eq!(chain(&chains, Table::Nat, "KUBE-MARK-MASQ"), ["-j MARK --set-xmark 0x100000/0x100000"]);
        assert!(chain(&chains, Table::Filter, "KUBE-FORWARD")[0].contains("--mark 0x100000/0x100000"));
    }

    #[test]
    fn restore_declares_chains_then_jumps_then_rules() {
        let chains = build_chains(Family::V4, &Settings::default(), &|_| false);
        let text = render_restore(&chains, &[1, 4]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "*nat");
        assert_eq!(lines[1], ":KUBE-SERVICES - [0:0]");
        assert_eq!(
            lines[6],
            "-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"
        );
        assert_eq!(lines.iter().filter(|l| **l == "COMMIT").count(), 2);
        assert_eq!(lines.iter().filter(|l| l.starts_with("-I ")).count(), 2);
    }
}
