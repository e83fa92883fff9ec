// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeSet;

use super::*;
use crate::core::model::sets::SetKind;
use crate::core::model::settings::{LocalTraffic, Settings};
use crate::core::model::{PerFamily, VsKey};
use crate::core::rules::{RulesInput, build_chains};

/// A node with these set entries, at 192.168.50.2, with every VIP local.
struct Node(Vec<(SetId, Entry)>);

impl RuleFacts for Node {
    fn has_entry(&self, set: SetId, entry: &Entry) -> bool {
        self.0.contains(&(set, *entry))
    }

    fn is_local(&self, addr: IpAddr) -> bool {
        ["192.168.50.2", "10.96.0.1", "203.0.113.1", "198.51.100.1"].contains(&&*addr.to_string())
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn set(kind: SetKind) -> SetId {
    SetId { kind, family: Family::V4 }
}

fn vip(kind: SetKind, addr: &str) -> (SetId, Entry) {
    (set(kind), Entry::IpPort(ip(addr), Protocol::Tcp, 80))
}

/// What each hook does to a packet from `source` that came in by an interface, or that the node sends.
fn fates(mode: RulesMode, node: &Node, source: &str, to: &str, port: u16, sent: bool) -> String {
    let cidrs = PerFamily::new(Some("10.244.0.0/16".parse().unwrap()), None);
    let settings = Settings { rules: mode, local: LocalTraffic::Cidrs(cidrs), ..Settings::default() };
    let has = |kind: SetKind| node.0.iter().any(|(id, _)| id.kind == kind);
    let closed = [VsKey { protocol: Protocol::Tcp, addr: ip("203.0.113.1"), port: 80 }];
    let prefixes = BTreeSet::from([24]);
    let input = RulesInput {
        closed: &closed,
        node_addresses: &[ip("192.168.50.2")],
        prefixes: &prefixes,
        ..RulesInput::new(&has)
    };
    let mut rules =
        ObservedRules { chains: build_chains(Family::V4, &settings, &input), ..ObservedRules::default() };
    rules.fix_jumps(&ObservedRules::default().broken_jumps());
    let known = nftables::build_rules(Family::V4, &settings, false, prefixes.clone());
    let mut walk = RuleWalk::new(Family::V4, mode, &rules, known, node);
    let mut packet = Packet {
        protocol: Protocol::Tcp,
        source: ip(source),
        destination: ip(to),
        port,
        input: (!sent).then(|| "eth0".to_owned()),
        mark: 0,
    };
    let hooks = match sent {
        true => [Hook::Output, Hook::OutputFilter],
        false => [Hook::Prerouting, Hook::Input],
    };
    let mut text = Vec::new();
    for hook in hooks {
        if let Some(fate @ (Fate::Dropped | Fate::Rejected)) = walk.run(hook, &mut packet) {
            text.push(format!("{fate:?}"));
        }
    }
    let mut forwarded = Packet { destination: ip("10.244.1.5"), port: 8080, ..packet };
    if walk.run(Hook::Postrouting, &mut forwarded) == Some(Fate::Masqueraded) {
        text.push("Masqueraded".to_owned());
    }
    assert!(walk.matched.iter().all(|matched| matched.effect != RuleEffect::Unknown), "{:?}", walk.matched);
    text.join(" ")
}

#[test]
fn both_rules_modes_decide_alike() {
    let node = Node(vec![
        vip(SetKind::ClusterIp, "10.96.0.1"),
        (set(SetKind::IpvsIps), Entry::Ip(ip("10.96.0.1"))),
        (set(SetKind::IpvsIps), Entry::Ip(ip("203.0.113.1"))),
        (set(SetKind::IpvsIps), Entry::Ip(ip("198.51.100.1"))),
        vip(SetKind::ExternalIp, "198.51.100.1"),
        vip(SetKind::LoadBalancer, "203.0.113.1"),
        vip(SetKind::LoadBalancerLocal, "203.0.113.1"),
        vip(SetKind::LoadBalancerFw, "203.0.113.1"),
        (
            set(SetKind::LoadBalancerSourceCidr),
            Entry::IpPortNet(ip("203.0.113.1"), Protocol::Tcp, 80, "198.18.7.0/24".parse().unwrap()),
        ),
        (set(SetKind::NodePortTcp), Entry::Port(30080)),
        (set(SetKind::LoopBack), Entry::IpPortIp(ip("10.244.1.5"), Protocol::Tcp, 8080, ip("10.244.1.5"))),
    ]);
    for (source, to, port, sent, expected) in [
        ("10.244.3.3", "10.96.0.1", 80, false, ""),
        ("192.0.2.1", "10.96.0.1", 80, false, "Masqueraded"),
        ("10.244.3.3", "10.96.0.1", 81, false, "Rejected"),
        ("10.96.0.1", "10.96.0.1", 80, true, "Masqueraded"),
        ("10.244.1.5", "10.96.0.1", 80, false, "Masqueraded"),
        ("10.244.3.3", "198.51.100.1", 80, false, "Masqueraded"),
        ("198.18.7.9", "203.0.113.1", 80, false, ""),
        ("198.18.8.9", "203.0.113.1", 80, false, "Dropped"),
        ("203.0.113.1", "203.0.113.1", 80, true, "Dropped"),
        ("192.0.2.1", "192.168.50.2", 30080, false, "Masqueraded"),
        ("192.0.2.1", "192.168.50.2", 22, false, ""),
    ] {
        for mode in [RulesMode::Iptables, RulesMode::Nftables] {
            let found = fates(mode, &node, source, to, port, sent);
            // The node's own packet to a closed virtual server leaves no hook: what follows does not matter.
            let found = found.split(' ').next().unwrap_or_default();
            assert_eq!(found, expected, "{mode}: {source} to {to}:{port}, sent by the node: {sent}");
        }
    }
}
