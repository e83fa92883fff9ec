// SPDX-License-Identifier: Apache-2.0
//! Rules mode `nftables`: changes of its table by other programs, a table of another version, the choice by `auto`, and a
//! start without programs and with one capability.

use integration::lab::{nft_table, oracle};

use super::*;

fn mode(mode: &str) -> Value {
    json!({"ipvs": {"syncPeriod": "1h"}, "kubeIPVS": {"rules": mode}})
}

/// Sets and rules, seen by nft(8).
fn table(ns: &Netns) -> (String, Vec<String>) {
    let mut sets: Vec<String> = nft_table::sets(ns).unwrap().lines().map(str::to_owned).collect();
    sets.sort();
    (sets.join("\n"), nft_table::rules(ns).unwrap())
}

#[test]
fn every_change_of_the_table_is_repaired_at_once() {
    let ns = Netns::new("node-a").unwrap();
    ns.exec_with(
        &["nft", "-f", "-"],
        Some("table ip mine {\n set s { type ipv4_addr;\n elements = { 1.2.3.4 }\n }\n}"),
    )
    .unwrap();
    let files = Files::new(&mode("nftables"), one_service());
    let agent = files.start(&ns);
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    wait_for("the end of the start", &agent, || agent.log().contains("ready: "));
    let wanted = table(&ns);
    assert!(wanted.0.contains("add KUBE-CLUSTER-IP 10.96.0.10,tcp:80"), "{}", wanted.0);
    let at = "ip kube-ipvs";
    for command in [
        format!("nft delete table {at}"),
        "nft flush ruleset".to_owned(),
        format!("nft flush table {at}"),
        format!("nft flush set {at} KUBE-CLUSTER-IP"),
        format!("nft delete element {at} KUBE-IPVS-IPS {{ 10.96.0.10 }}"),
        format!("nft add element {at} KUBE-NODE-PORT-TCP {{ 30080 }}"),
        format!("nft add element {at} node-addresses {{ 192.0.2.99 }}"),
        format!("nft flush chain {at} KUBE-IPVS-FILTER"),
        format!("nft insert rule {at} KUBE-SERVICES accept"),
        "nft delete table ip6 kube-ipvs".to_owned(),
    ] {
        // Notifications are read once a second.
        std::thread::sleep(Duration::from_millis(1200));
        let start = Instant::now();
        ns.exec(&["sh", "-c", &command]).unwrap();
        wait_for(&format!("repair after `{command}`"), &agent, || table(&ns) == wanted);
        assert!(start.elapsed() < Duration::from_secs(10), "{command}: {:?}", start.elapsed());
    }
    assert!(is_bound(&ns, "10.96.0.10/32"));
    let log = agent.log();
    assert!(log.contains("that another program changed"), "{log}");
    // Another program's table is no business of the agent.
    wait_until_quiet(&agent);
    let before = agent.log().len();
    ns.exec(&["nft", "add", "table", "ip", "mine"]).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    // A regular audit may end meanwhile, and a summary of the repairs may come.
    let log = agent.log();
    let more =
        log[before..].lines().filter(|line| line.contains(" sync: ") && !line.ends_with("due=Audit")).count();
    assert_eq!(more, 0, "{log}");
}

#[test]
fn chains_of_another_version_are_replaced() {
    let ns = Netns::new("node-a").unwrap();
    let old = "table ip kube-ipvs { chain filter-input { type filter hook input priority 7; policy drop; }
               chain KUBE-SERVICES { counter drop; }
               }";
    ns.exec_with(&["nft", "-f", "-"], Some(old)).unwrap();
    let files = Files::new(&mode("nftables"), one_service());
    let agent = files.start(&ns);
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    let chain = run(&ns, &["nft", "list", "chain", "ip", "kube-ipvs", "filter-input"]);
    assert!(chain.contains("priority filter - 1; policy accept"), "{chain}");
    assert!(!run(&ns, &["nft", "list", "ruleset"]).contains("counter"), "the old rule is gone");
}

#[test]
fn no_program_and_one_capability_are_sufficient() {
    let ns = Netns::new("node-a").unwrap();
    let mut files = Files::new(&mode("nftables"), one_service());
    files.wrap(
        "export PATH=/nowhere\nexec /usr/bin/setpriv --bounding-set=-all,+net_admin --inh-caps=-all,+net_admin \
         \"$AGENT\" \"$@\"",
    );
    let agent = files.start(&ns);
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    assert!(table(&ns).0.contains("add KUBE-CLUSTER-IP 10.96.0.10,tcp:80"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    // CAP_NET_ADMIN is bit 12.
    assert!(status.contains("CapEff:\t0000000000001000"), "{status}");
    // Page faults of ended children: no child has been waited for.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    assert_eq!(after_name.split(' ').nth(8), Some("0"), "a child was started: {stat}");
}

/// The log line and the metrics of an agent in rules mode `auto`.
fn chosen(ns: &Netns, commands: &str) -> (String, String) {
    let mut files = Files::new(&mode("auto"), one_service());
    files.wrap(commands);
    let agent = files.start(ns);
    wait_for("the address", &agent, || is_bound(ns, "10.96.0.10/32"));
    let metrics = ns.enter(|| oracle::http_get(10249, "metrics")).unwrap().unwrap();
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("sets and rules: ")).unwrap_or_default();
    (line.to_owned(), metrics)
}

#[test]
fn auto_uses_iptables_where_it_works() {
    let ns = Netns::new("node-a").unwrap();
    let (line, metrics) = chosen(&ns, "exec \"$AGENT\" \"$@\"");
    assert!(
        line.contains("sets and rules: iptables (kubeIPVS.rules: auto: ipset and iptables work)"),
        "{line}"
    );
    assert!(metrics.contains("kube_ipvs_rules_mode{mode=\"iptables\"} 1"), "{metrics}");
    assert!(!run(&ns, &["nft", "list", "tables"]).contains("kube-ipvs"));
    assert!(!run(&ns, &["ipset", "list", "-n"]).contains("GROWING"));
    assert!(!run(&ns, &["iptables-save"]).contains("TRIED"), "nothing is left of the trial");
}

#[test]
fn auto_uses_nftables_where_ipset_or_a_program_is_missing() {
    let ns = Netns::new("node-a").unwrap();
    let (line, metrics) = chosen(&ns, "export PATH=/nowhere\nexec \"$AGENT\" \"$@\"");
    let why = line.split("sets and rules: nftables (kubeIPVS.rules: auto: ").nth(1).unwrap_or_default();
    assert!(why.starts_with("IPv4 rules cannot be made") || why.starts_with("ipset is not usable"), "{line}");
    assert!(metrics.contains("kube_ipvs_rules_mode{mode=\"nftables\"} 1"), "{metrics}");
    assert!(table(&ns).0.contains("add KUBE-CLUSTER-IP 10.96.0.10,tcp:80"));
}
