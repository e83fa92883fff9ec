// SPDX-License-Identifier: Apache-2.0
//! Migration away from the agent: `cleanup`.

use super::*;

#[test]
fn cleanup_removes_only_our_objects() {
    let cluster = Cluster::new();
    let ns = cluster.node.ns();
    let before = state(ns);
    let mut setup = cluster.start();
    setup.wait_bound(&VIP).unwrap();
    setup.wait_bound(&EXTERNAL).unwrap();
    let (code, text) = kube_ipvs(ns, &["cleanup"]);
    assert_eq!(code, 1, "an agent runs: {text}");
    assert!(text.contains("stop it first"), "{text}");
    assert!(setup.agent.stop().unwrap().success());
    let ours = state(ns);
    assert_ne!(ours, before, "stopping leaves everything");
    let (code, plan) = kube_ipvs(ns, &["cleanup", "--dry-run"]);
    assert_eq!(code, 0, "{plan}");
    assert_eq!(state(ns), ours, "a dry run changes nothing");
    let (code, text) = kube_ipvs(ns, &["cleanup"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text, plan.replace("would remove ", "removed "));
    assert_eq!(state(ns), before, "{text}");
    assert_eq!(kube_ipvs(ns, &["cleanup"]), (0, "nothing to remove\n".to_owned()));
}

#[test]
fn the_cleanup_flag_removes_the_rules_of_every_mode_at_once() {
    let cluster = Cluster::new();
    let ns = cluster.node.ns();
    let before = state(ns);
    fixture::iptables_mode(ns, true);
    fixture::nftables_mode(ns);
    // The ipvs mode comes last, as when a cluster changed its mode; its jumps are partly there.
    fixture::ipvs_mode(ns);
    let (code, text) = kube_ipvs(ns, &["--cleanup"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(state(ns), before, "{text}");
    let tables = ns.exec(&["nft", "list", "tables"]).unwrap().stdout;
    assert!(tables.contains("table ip mine") && !tables.contains("kube-proxy"), "{tables}");
    for line in
        ["removed virtual server TCP 10.96.0.10:80", "removed ipset KUBE-6-CLUSTER-IP", "IPv6 nftables"]
    {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(kube_ipvs(ns, &["--cleanup"]), (0, "nothing to remove\n".to_owned()));
}

#[test]
fn cleanup_works_whatever_mode_the_file_says() {
    let cluster = Cluster::new();
    let ns = cluster.node.ns();
    let before = state(ns);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    for (mode, command) in [("iptables", "cleanup"), ("nftables", "--cleanup")] {
        fixture::ipvs_mode(ns);
        let file = integration::objects::config("node-a", &serde_json::json!({"mode": mode}));
        std::fs::write(&path, file.to_string()).unwrap();
        let (code, text) = kube_ipvs(ns, &[command, &format!("--config={}", path.display())]);
        assert_eq!(code, 0, "{mode}: {text}");
        assert_eq!(state(ns), before, "{mode}: {text}");
    }
}

#[test]
fn chains_used_by_other_programs_stay_and_are_reported() {
    let cluster = Cluster::new();
    let ns = cluster.node.ns();
    fixture::ipvs_mode(ns);
    ns.exec(&["iptables", "-t", "nat", "-A", "MINE", "-j", "KUBE-MARK-MASQ"]).unwrap();
    let set = ["-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst", "-j", "ACCEPT"];
    let rule: Vec<&str> = ["iptables", "-A", "MINE"].into_iter().chain(set).collect();
    ns.exec(&rule).unwrap();
    let (code, text) = kube_ipvs(ns, &["cleanup"]);
    assert_eq!(code, 1, "{text}");
    let left: Vec<&str> = text.lines().filter(|line| line.starts_with("left: ")).collect();
    assert_eq!(left.len(), 2, "{text}");
    assert!(left[0].contains("chain KUBE-MARK-MASQ") && left[0].contains("-A MINE"), "{text}");
    assert!(left[1].contains("ipset KUBE-CLUSTER-IP") && left[1].contains("in use"), "{text}");
    assert!(saved(ns).contains("-A KUBE-MARK-MASQ -j MARK"), "what is used stays whole");
    ns.exec(&["iptables", "-t", "nat", "-F", "MINE"]).unwrap();
    ns.exec(&["iptables", "-F", "MINE"]).unwrap();
    let (code, text) = kube_ipvs(ns, &["cleanup"]);
    assert_eq!(code, 0, "{text}");
}

/// kube-proxy in iptables mode takes over the node, and then our objects are removed.
#[test]
fn back_to_the_iptables_mode_without_an_interruption() {
    let cluster = Cluster::new();
    let _backends = cluster.backends();
    let ns = cluster.node.ns();
    let mut setup = cluster.start();
    setup.wait_bound(&VIP).unwrap();
    setup.wait_bound(&EXTERNAL).unwrap();
    let mut standing = Standing::open(&cluster.askers());
    Stream::during(cluster.node.ns(), cluster.askers(), |stream| {
        assert!(setup.agent.stop().unwrap().success());
        stream.more();
        standing.check("the agent stopped");
        // Only the agent's rules of iptables have jumps that kube-proxy finds.
        fixture::iptables_mode(ns, in_nftables());
        stream.more();
        standing.check("the iptables mode took over");
    });
    drop(standing);
    // What the node itself asks comes from the VIP, because that is its own address: it ends with it.
    let others = cluster.askers().into_iter().filter(|(from, _)| from.name() != ns.name()).collect();
    Stream::during(cluster.node.ns(), others, |stream| {
        let (code, text) = kube_ipvs(ns, &["cleanup"]);
        assert_eq!(code, 0, "{text}");
        stream.more();
    });
    Stream::during(cluster.node.ns(), cluster.askers(), |_| {});
    assert_eq!(cluster.leaked(), ["[0:0]", "[0:0]"], "packets left the node unbalanced");
    let rules = saved(ns);
    for gone in ["KUBE-IPVS-FILTER", "KUBE-NODE-PORT ", "--match-set KUBE-", "kube-proxy firewall rules"] {
        assert!(!rules.contains(gone), "{gone} is left:\n{rules}");
    }
    assert!(integration::lab::bound(ns).is_empty());
}

/// kube-proxy in ipvs mode takes over the node: its first writes must succeed.
#[test]
fn back_to_the_ipvs_mode_of_kube_proxy() {
    let cluster = Cluster::new();
    let ns = cluster.node.ns();
    let mut setup = cluster.start();
    setup.wait_bound(&VIP).unwrap();
    assert!(setup.agent.stop().unwrap().success());
    let saved = ns.exec(&["ipset", "save"]).unwrap().stdout;
    let ours: Vec<&str> = saved.lines().filter(|line| line.starts_with("create KUBE-")).collect();
    assert_eq!(ours.len(), 34);
    let mut create = String::new();
    for line in ours {
        let mut words: Vec<&str> = line.split_whitespace().take(3).collect();
        let family = if line.contains("KUBE-6-") { "inet6" } else { "inet" };
        match words[2] {
            "bitmap:port" => words.extend(["range", "0-65535"]),
            _ => words.extend(["family", family, "hashsize", "1024", "maxelem", "65536"]),
        }
        create.push_str(&format!("{} -exist\n", words.join(" ")));
    }
    ns.exec_with(&["ipset", "restore"], Some(&create)).unwrap();
    assert_eq!(ns.exec(&["ipset", "save"]).unwrap().stdout, saved, "nothing was made anew");
}
