// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::core::model::PerFamily;

fn chain<'a>(chains: &'a Chains, table: Table, name: &str) -> &'a [String] {
    &chains[&(table, name.to_owned())]
}

#[test]
fn an_empty_cluster_has_only_the_fixed_rules() {
    let chains = build_chains(Family::V6, &Settings::default(), &RulesInput::new(&|_| false));
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
        let chains = build_chains(Family::V4, settings, &RulesInput::new(&|kind| kind == SetKind::ClusterIp));
        chain(&chains, Table::Nat, "KUBE-SERVICES")[1].clone()
    };
    let comment = "-m comment --comment \"Kubernetes service cluster ip + port for masquerade purpose\"";
    let tail = |dir| format!("{comment} -m set --match-set KUBE-CLUSTER-IP {dir} -j KUBE-MARK-MASQ");
    assert_eq!(rule(&Settings::default()), tail("src,dst"));
    let cidr = PerFamily::new(Some("10.244.0.0/16".parse().unwrap()), None);
    let with_cidr = Settings { local: LocalTraffic::Cidrs(cidr), ..Settings::default() };
    assert_eq!(rule(&with_cidr), format!("! -s 10.244.0.0/16 {}", tail("dst,dst")));
    assert_eq!(rule(&Settings { masquerade_all: true, ..with_cidr }), tail("dst,dst"));
    let by_interface = Settings { local: LocalTraffic::Interface("veth+".into()), ..Settings::default() };
    assert_eq!(rule(&by_interface), format!("! -i veth+ {}", tail("dst,dst")));
}

/// Over a route the node's own source need not be the ClusterIP, and addresses without a Service must be refused.
#[test]
fn a_route_has_its_own_filter_and_its_own_way_to_find_the_traffic_of_the_node() {
    let routes = ["10.96.0.0/12", "10.120.0.0/16"].iter().map(|net| net.parse().unwrap()).collect();
    let is_cluster_ip = |kind| kind == SetKind::ClusterIp;
    let chains = build_chains(
        Family::V4,
        &Settings::default(),
        &RulesInput { routes: &routes, ..RulesInput::new(&is_cluster_ip) },
    );
    let reject = "-m conntrack --ctstate NEW -j REJECT --reject-with icmp-port-unreachable";
    let filter = chain(&chains, Table::Filter, "KUBE-IPVS-FILTER");
    let last: Vec<&str> = filter.iter().rev().take(2).rev().map(String::as_str).collect();
    assert_eq!(last, [format!("-d 10.96.0.0/12 {reject}"), format!("-d 10.120.0.0/16 {reject}")]);
    let cluster_ips = &chain(&chains, Table::Nat, "KUBE-SERVICES")[1];
    let end = "--match-set KUBE-CLUSTER-IP dst,dst -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ";
    assert!(cluster_ips.ends_with(end), "{cluster_ips}");
}

#[test]
fn the_mark_is_the_configured_bit() {
    let settings = Settings { masquerade_mark: 1 << 20, ..Settings::default() };
    let chains = build_chains(Family::V4, &settings, &RulesInput::new(&|_| false));
    assert_eq!(chain(&chains, Table::Nat, "KUBE-MARK-MASQ"), ["-j MARK --set-xmark 0x100000/0x100000"]);
    assert!(chain(&chains, Table::Filter, "KUBE-FORWARD")[0].contains("--mark 0x100000/0x100000"));
}

#[test]
fn restore_declares_chains_then_jumps_then_rules() {
    let chains = build_chains(Family::V4, &Settings::default(), &RulesInput::new(&|_| false));
    let fix = |table, from, present| JumpFix { table, from, present };
    let fixes = [fix(Table::Nat, "PREROUTING", vec![]), fix(Table::Filter, "INPUT", vec![4, 4])];
    let text = render_restore(&chains, &fixes);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "*nat");
    assert_eq!(lines[1], ":KUBE-SERVICES - [0:0]");
    assert_eq!(
        lines[6],
        "-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"
    );
    assert_eq!(lines.iter().filter(|l| **l == "COMMIT").count(), 2);
    let of = |start: &str| lines.iter().filter(|l| l.starts_with(start)).count();
    assert_eq!((of("-D INPUT "), of("-I INPUT "), of("-I PREROUTING ")), (2, 3, 1));
    assert_eq!(of("-I "), 4, "correct chains are not changed");
}

/// Every rule of kube-proxy in its order, without the rules that other tests check.
#[test]
fn every_set_has_its_rules_in_the_order_of_kube_proxy() {
    let chains = build_chains(Family::V4, &Settings::default(), &RulesInput::new(&|_| true));
    let short = |table, name| -> Vec<String> {
        let shorten = |rule: &String| {
            let mut words: Vec<&str> = Vec::new();
            let mut comment = false;
            for word in rule.split(' ') {
                comment |= word.starts_with('"');
                if !comment && !["-m", "comment", "--comment", "set", "--match-set", "-j"].contains(&word) {
                    words.push(word.strip_prefix("KUBE-").unwrap_or(word));
                }
                comment &= !word.ends_with('"');
            }
            words.join(" ")
        };
        chain(&chains, table, name).iter().map(shorten).collect()
    };
    assert_eq!(
        short(Table::Nat, "KUBE-SERVICES"),
        [
            "-s 127.0.0.0/8 RETURN",
            "LOAD-BALANCER dst,dst LOAD-BALANCER",
            "CLUSTER-IP src,dst MARK-MASQ",
            "EXTERNAL-IP dst,dst MARK-MASQ",
            "EXTERNAL-IP dst,dst physdev ! --physdev-is-in addrtype ! --src-type LOCAL ACCEPT",
            "EXTERNAL-IP dst,dst addrtype --dst-type LOCAL ACCEPT",
            "EXTERNAL-IP-LOCAL dst,dst physdev ! --physdev-is-in addrtype ! --src-type LOCAL ACCEPT",
            "EXTERNAL-IP-LOCAL dst,dst addrtype --dst-type LOCAL ACCEPT",
            "addrtype --dst-type LOCAL NODE-PORT",
            "CLUSTER-IP dst,dst ACCEPT",
            "LOAD-BALANCER dst,dst ACCEPT",
        ]
    );
    assert_eq!(short(Table::Nat, "KUBE-LOAD-BALANCER"), ["LOAD-BALANCER-LOCAL dst,dst RETURN", "MARK-MASQ"]);
    assert_eq!(
        short(Table::Nat, "KUBE-NODE-PORT"),
        [
            "-p tcp NODE-PORT-LOCAL-TCP dst RETURN",
            "-p tcp NODE-PORT-TCP dst MARK-MASQ",
            "-p udp NODE-PORT-LOCAL-UDP dst RETURN",
            "-p udp NODE-PORT-UDP dst MARK-MASQ",
            "-p sctp NODE-PORT-LOCAL-SCTP-HASH dst,dst RETURN",
            "-p sctp NODE-PORT-SCTP-HASH dst,dst MARK-MASQ",
        ]
    );
    assert_eq!(
        short(Table::Filter, "KUBE-SOURCE-RANGES-FIREWALL"),
        [
            "LOAD-BALANCER-SOURCE-CIDR dst,dst,src RETURN",
            "LOAD-BALANCER-SOURCE-IP dst,dst,src RETURN",
            "DROP"
        ]
    );
    assert_eq!(
        short(Table::Filter, "KUBE-PROXY-FIREWALL"),
        ["LOAD-BALANCER-FW dst,dst SOURCE-RANGES-FIREWALL"]
    );
}

#[test]
fn restricted_servers_are_closed_to_the_node_by_vip() {
    let closed = |vip: &str, protocol| VsKey { protocol, addr: vip.parse().unwrap(), port: 443 };
    let rules = |family, server| {
        let chains = build_chains(
            family,
            &Settings::default(),
            &RulesInput { closed: &[server], ..RulesInput::new(&|_| false) },
        );
        chain(&chains, Table::Filter, "KUBE-IPVS-OUT-FILTER").to_vec()
    };
    assert_eq!(
        rules(Family::V4, closed("203.0.113.13", Protocol::Tcp)),
        ["-s 203.0.113.13/32 -m ipvs --vproto 6 --vaddr 203.0.113.13 --vport 443 -j DROP"]
    );
    assert_eq!(
        rules(Family::V6, closed("fd00::13", Protocol::Udp)),
        ["-s fd00::13/128 -m ipvs --vproto 17 --vaddr fd00::13 --vport 443 -j DROP"]
    );
}

#[test]
fn established_connections_can_survive_a_change_of_source_ranges() {
    let settings = Settings { keep_established: true, ..Settings::default() };
    let chains = build_chains(Family::V4, &settings, &RulesInput::new(&|_| true));
    assert_eq!(
        chain(&chains, Table::Filter, "KUBE-SOURCE-RANGES-FIREWALL")[0],
        "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"
    );
}

#[test]
fn rules_reference_sets_with_members_and_a_few_empty_ones() {
    let settings = Settings::default();
    for set in Family::ALL.into_iter().flat_map(SetId::all) {
        let empty = build_chains(set.family, &settings, &RulesInput::new(&|_| false));
        assert_eq!(references_set(&empty, set), is_always_referenced(set.kind, RulesMode::Iptables), "{set}");
        let full = build_chains(set.family, &settings, &RulesInput::new(&|kind| kind == set.kind));
        assert!(references_set(&full, set), "{set}");
    }
}
