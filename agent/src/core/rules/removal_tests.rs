// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::core::model::Family;
use crate::core::model::settings::Settings;
use crate::core::rules::RulesInput;
use crate::core::rules::chains::CHAINS;
use crate::core::rules::save::{ObservedRules, parse_save};
use crate::core::rules::{build_chains, render_restore};

/// A node that ran the iptables mode, with a kubelet and a network plugin.
const IPTABLES_MODE: &str = r#"*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-SERVICES -d 10.96.0.11/32 -p tcp -m comment --comment "test/none has no endpoints" -m tcp --dport 80 -j REJECT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-BBBBBBBBBBBBBBBB - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SEP-AAAAAAAAAAAAAAAA -s 10.244.1.5/32 -m comment --comment "test/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m comment --comment "test/web:http" -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "test/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-BBBBBBBBBBBBBBBB
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-BBBBBBBBBBBBBBBB ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "test/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-BBBBBBBBBBBBBBBB -m comment --comment "test/web:http -> 10.244.1.5:8080" -j KUBE-SEP-AAAAAAAAAAAAAAAA
COMMIT
"#;

/// The node with `rules` appended to a table.
fn with(table: &str, rules: &str) -> String {
    let (head, tail) = IPTABLES_MODE.split_once(&format!("*{table}\n")).unwrap();
    let (body, rest) = tail.split_once("COMMIT\n").unwrap();
    format!("{head}*{table}\n{body}{rules}COMMIT\n{rest}")
}

#[test]
fn golden_leftovers_of_the_iptables_mode() {
    let removal = find_removal(IPTABLES_MODE, Extent::OtherModes);
    assert_eq!(removal.kept, Vec::<String>::new());
    assert_eq!(
        removal.render(),
        r#"*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
-D INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-D INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-D INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-D FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-X KUBE-EXTERNAL-SERVICES
-X KUBE-NODEPORTS
-X KUBE-PROXY-CANARY
-X KUBE-SERVICES
COMMIT
*mangle
:KUBE-PROXY-CANARY - [0:0]
-X KUBE-PROXY-CANARY
COMMIT
*nat
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SVC-BBBBBBBBBBBBBBBB - [0:0]
-X KUBE-NODEPORTS
-X KUBE-PROXY-CANARY
-X KUBE-SEP-AAAAAAAAAAAAAAAA
-X KUBE-SVC-BBBBBBBBBBBBBBBB
COMMIT
"#
    );
    assert_eq!(removal.count(), (9, 5));
}

#[test]
fn every_mode_includes_shared_chains_but_not_those_of_the_kubelet() {
    let removal = find_removal(IPTABLES_MODE, Extent::EveryMode);
    let nat = &removal.tables["nat"];
    for chain in ["KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-NODEPORTS"] {
        assert!(nat.chains.iter().any(|c| c == chain), "{chain}");
    }
    assert_eq!(nat.rules.len(), 3, "all jumps from built-in chains");
    let text = removal.render();
    for others in ["KUBE-KUBELET-CANARY", "KUBE-MARK-DROP", "KUBE-FIREWALL", "KUBE-IPTABLES-HINT", "CNI-"] {
        assert!(!text.contains(others), "{others} is not of kube-proxy:\n{text}");
    }
}

#[test]
fn rules_of_the_userspace_mode_are_recognised() {
    let text = r#"*nat
:KUBE-PORTALS-HOST - [0:0]
:KUBE-NODEPORT-CONTAINER - [0:0]
-A OUTPUT -m comment --comment "handle ClusterIPs; NOTE: this must be before the NodePort rules" -j KUBE-PORTALS-HOST
-A PREROUTING -m addrtype --dst-type LOCAL -m comment --comment "handle service NodePorts; NOTE: this must be the last rule in the chain" -j KUBE-NODEPORT-CONTAINER
COMMIT
"#;
    assert_eq!(find_removal(text, Extent::OtherModes).count(), (2, 2));
}

#[test]
fn chains_used_by_other_rules_stay_and_are_reported() {
    let text = with("nat", "-A OUTPUT -d 192.0.2.1/32 -j KUBE-SVC-BBBBBBBBBBBBBBBB\n");
    let removal = find_removal(&text, Extent::OtherModes);
    assert_eq!(removal.tables["nat"].chains, ["KUBE-NODEPORTS", "KUBE-PROXY-CANARY"]);
    assert_eq!(
        removal.kept,
        ["chain KUBE-SVC-BBBBBBBBBBBBBBBB of table nat: `-A OUTPUT -d 192.0.2.1/32 -j \
          KUBE-SVC-BBBBBBBBBBBBBBBB` jumps to it"]
    );
    // A network plugin that uses a chain of kube-proxy to masquerade packets.
    let text = with("nat", "-A CNI-HOSTPORT-SETMARK -m comment --comment \"x\" -j KUBE-MARK-MASQ\n");
    let removal = find_removal(&text, Extent::EveryMode);
    assert!(!removal.render().contains("-X KUBE-MARK-MASQ"));
    assert!(removal.render().contains("-X KUBE-SERVICES"));
    assert_eq!(removal.kept.len(), 1);
}

#[test]
fn our_rules_are_found_exactly() {
    let chains = build_chains(Family::V4, &Settings::default(), &RulesInput::new(&|_| true));
    let fixes = ObservedRules::default().broken_jumps();
    let text = render_restore(&chains, &fixes).replace("\n-I ", "\n-A ");
    let foreign = "-A INPUT -s 192.0.2.1/32 -j DROP\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n";
    let text = text.replacen("COMMIT\n*filter", "COMMIT\n*filter\n:KUBE-FIREWALL - [0:0]", 1);
    let at = text.rfind("COMMIT\n").unwrap();
    let text = format!("{}{foreign}", &text[..at]);
    assert!(parse_save(&text).leftovers.is_empty(), "an ordinary restart finds none");
    let removal = find_removal(&text, Extent::Ours);
    assert_eq!(removal.count(), (CHAINS.len(), JUMPS.len()));
    assert_eq!(find_removal(&text, Extent::EveryMode), removal);
    assert!(!removal.render().contains("192.0.2.1") && !removal.render().contains("KUBE-FIREWALL"));
}

#[test]
fn an_active_iptables_mode_keeps_the_shared_chains() {
    assert!(iptables_mode_is_active(IPTABLES_MODE));
    let ours = "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN\n\
                -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT\nCOMMIT\n";
    assert!(!iptables_mode_is_active(ours));
    let filter = "-A INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER\n";
    let text = with("filter", filter).replacen(":INPUT", ":KUBE-IPVS-FILTER - [0:0]\n:INPUT", 1);
    let removal = find_removal(&text, Extent::OursAlone);
    assert_eq!(removal.count(), (1, 1), "{}", removal.render());
}

#[test]
fn targets_and_comments_are_parsed() {
    assert_eq!(target("-m comment --comment \"a -j b\" -j KUBE-X"), Some("KUBE-X"));
    assert_eq!(target("-s 10.0.0.0/8 -g OTHER"), Some("OTHER"));
    assert_eq!(target("-j LOG --log-prefix \"x -j y\""), None);
    assert_eq!(target("-s 10.0.0.0/8"), None);
    assert_eq!(comment("-m comment --comment word -j X"), Some("word"));
    assert_eq!(comment("-m comment --comment \"two words\" -j X"), Some("two words"));
    assert_eq!(find_removal("", Extent::EveryMode), Removal::default());
}
