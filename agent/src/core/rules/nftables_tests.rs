// SPDX-License-Identifier: Apache-2.0

use super::*;

fn text(family: Family, settings: &Settings, input: &RulesInput<'_>) -> String {
    let mut text = String::new();
    for ((_, chain), rules) in build_text(family, settings, input) {
        text += &format!("{chain}\n");
        rules.iter().for_each(|rule| text += &format!("  {rule}\n"));
    }
    text
}

fn chain(settings: &Settings, by_route: bool, name: &str) -> Vec<String> {
    let rules = build_rules(Family::V4, settings, by_route, []);
    rules[name].iter().map(|rule| rule.text(Family::V4)).collect()
}

#[test]
fn golden_rules() {
    let closed = [VsKey { protocol: Protocol::Udp, addr: "203.0.113.1".parse().unwrap(), port: 53 }];
    let routes = ["10.96.0.0/12", "10.96.0.0/16"].iter().map(|net| net.parse().unwrap()).collect();
    let prefixes = [8, 24].into();
    let node_addresses: Vec<IpAddr> =
        ["192.168.50.2", "10.0.0.1", "fd00::2", "fe80::1"].iter().map(|addr| addr.parse().unwrap()).collect();
    let input = RulesInput {
        closed: &closed,
        routes: &routes,
        node_addresses: &node_addresses,
        prefixes: &prefixes,
        ..RulesInput::new(&|_| false)
    };
    assert_eq!(
        text(Family::V4, &Settings::default(), &input),
        "\
@closed-to-node
  203.0.113.1 . udp . 53
@node-addresses
  10.0.0.1
  192.168.50.2
@service-ranges
  10.96.0.0/12
KUBE-IPVS-FILTER
  ip daddr . meta l4proto . th dport @KUBE-LOAD-BALANCER return
  ip daddr . meta l4proto . th dport @KUBE-CLUSTER-IP return
  ip daddr . meta l4proto . th dport @KUBE-EXTERNAL-IP return
  ip daddr . meta l4proto . th dport @KUBE-EXTERNAL-IP-LOCAL return
  meta l4proto tcp th dport @KUBE-HEALTH-CHECK-NODE-PORT return
  ct state new ip daddr @KUBE-IPVS-IPS reject
  ct state new ip daddr @service-ranges reject
KUBE-IPVS-OUT-FILTER
  ip daddr . meta l4proto . th dport . ip saddr @closed-to-node drop
KUBE-LOAD-BALANCER
  ip daddr . meta l4proto . th dport @KUBE-LOAD-BALANCER-LOCAL return
  jump KUBE-MARK-MASQ
KUBE-MARK-MASQ
  meta mark set meta mark | 0x4000
KUBE-NODE-PORT
  meta l4proto tcp th dport @KUBE-NODE-PORT-LOCAL-TCP return
  meta l4proto tcp th dport @KUBE-NODE-PORT-TCP jump KUBE-MARK-MASQ
  meta l4proto udp th dport @KUBE-NODE-PORT-LOCAL-UDP return
  meta l4proto udp th dport @KUBE-NODE-PORT-UDP jump KUBE-MARK-MASQ
  meta l4proto sctp ip daddr . meta l4proto . th dport @KUBE-NODE-PORT-LOCAL-SCTP-HASH return
  meta l4proto sctp ip daddr . meta l4proto . th dport @KUBE-NODE-PORT-SCTP-HASH jump KUBE-MARK-MASQ
KUBE-POSTROUTING
  ip daddr . meta l4proto . th dport . ip saddr @KUBE-LOOP-BACK masquerade
  meta mark & 0x4000 != 0x4000 return
  meta mark set meta mark ^ 0x4000
  masquerade fully-random
KUBE-PROXY-FIREWALL
  ip daddr . meta l4proto . th dport @KUBE-LOAD-BALANCER-FW jump KUBE-SOURCE-RANGES-FIREWALL
KUBE-SERVICES
  ip saddr 127.0.0.0/8 return
  ip daddr . meta l4proto . th dport @KUBE-LOAD-BALANCER jump KUBE-LOAD-BALANCER
  ip daddr . meta l4proto . th dport @KUBE-EXTERNAL-IP jump KUBE-MARK-MASQ
  ip daddr . meta l4proto . th dport @KUBE-EXTERNAL-IP dnat to ip daddr
  ip daddr . meta l4proto . th dport @KUBE-EXTERNAL-IP-LOCAL dnat to ip daddr
  ip daddr @node-addresses jump KUBE-NODE-PORT
  ip daddr @service-ranges jump KUBE-NODE-PORT
  ip daddr @KUBE-IPVS-IPS jump KUBE-NODE-PORT
  ip daddr . meta l4proto . th dport @KUBE-CLUSTER-IP dnat to ip daddr
  ip daddr . meta l4proto . th dport @KUBE-LOAD-BALANCER dnat to ip daddr
KUBE-SOURCE-RANGES-FIREWALL
  ip daddr . meta l4proto . th dport . ip saddr/8 . 8 @KUBE-LOAD-BALANCER-SOURCE-CIDR return
  ip daddr . meta l4proto . th dport . ip saddr/24 . 24 @KUBE-LOAD-BALANCER-SOURCE-CIDR return
  ip daddr . meta l4proto . th dport . ip saddr @KUBE-LOAD-BALANCER-SOURCE-IP return
  drop
filter-forward
  type filter hook forward priority -1
  jump KUBE-PROXY-FIREWALL
filter-input
  type filter hook input priority -1
  jump KUBE-IPVS-FILTER
  jump KUBE-PROXY-FIREWALL
filter-output
  type filter hook output priority -101
  jump KUBE-IPVS-OUT-FILTER
nat-output
  type nat hook output priority -101
  ip saddr != 127.0.0.0/8 ip daddr . meta l4proto . th dport @KUBE-CLUSTER-IP jump KUBE-MARK-MASQ
  jump KUBE-SERVICES
nat-postrouting
  type nat hook postrouting priority 99
  jump KUBE-POSTROUTING
nat-prerouting
  type nat hook prerouting priority -101
  jump KUBE-SERVICES
"
    );
}

#[test]
fn the_cluster_ip_rule_follows_the_configuration() {
    let to = "ip daddr . meta l4proto . th dport @KUBE-CLUSTER-IP jump KUBE-MARK-MASQ";
    let services = |settings: &Settings| chain(settings, false, SERVICES)[2].clone();
    let from = "ip saddr . meta l4proto . th dport @KUBE-CLUSTER-IP jump KUBE-MARK-MASQ";
    assert_eq!(services(&Settings::default()), from);
    let cidr = crate::core::model::PerFamily::new(Some("10.244.0.0/16".parse().unwrap()), None);
    let with_cidr = Settings { local: LocalTraffic::Cidrs(cidr), ..Settings::default() };
    assert_eq!(services(&with_cidr), format!("ip saddr != 10.244.0.0/16 {to}"));
    assert_eq!(services(&Settings { masquerade_all: true, ..with_cidr }), to);
    let by_interface = Settings { local: LocalTraffic::Interface("veth+".into()), ..Settings::default() };
    let not_loopback = "ip saddr != 127.0.0.0/8";
    let pre = format!("{not_loopback} iifname != veth* {to}");
    assert_eq!(chain(&by_interface, false, "nat-prerouting")[0], pre);
    assert_eq!(chain(&by_interface, false, "nat-output")[0], format!("{not_loopback} {to}"));
}

/// A plan in between has what both the old and the new rules protect.
#[test]
fn what_is_protected_stays_protected_until_the_tidy_phase() {
    let build = |routes: &[&str], closed: &[&str], prefixes: &[u8]| {
        let routes = routes.iter().map(|net| net.parse().unwrap()).collect();
        let vs = |addr: &&str| VsKey { protocol: Protocol::Tcp, addr: addr.parse().unwrap(), port: 443 };
        let closed: Vec<VsKey> = closed.iter().map(vs).collect();
        let prefixes = prefixes.iter().copied().collect();
        let sets = |_| false;
        let input =
            RulesInput { closed: &closed, routes: &routes, prefixes: &prefixes, ..RulesInput::new(&sets) };
        build_text(Family::V4, &Settings::default(), &input)
    };
    let has = build(&["10.96.0.0/16"], &["203.0.113.1"], &[8]);
    let mut meanwhile = build(&["10.96.0.0/12", "10.200.0.0/16"], &["203.0.113.2"], &[24]);
    keep_protected(&has, &mut meanwhile);
    let both = build(&["10.96.0.0/12", "10.200.0.0/16"], &["203.0.113.1", "203.0.113.2"], &[8, 24]);
    let sort = |mut chains: Chains| {
        chains.values_mut().for_each(|rules| rules.sort());
        chains
    };
    assert_eq!(meanwhile[&key(SOURCE_RANGES)].last().map(String::as_str), Some("drop"));
    assert_eq!(sort(meanwhile), sort(both));
}
