// SPDX-License-Identifier: Apache-2.0
//! The agent changes its rules mode.

use super::*;

fn rules(ns: &Netns) -> (String, String, String) {
    // A program fails if a set goes while it prints.
    let run = |command: &[&str]| ns.try_exec(command, None).unwrap().stdout;
    let saved = ["iptables-save", "ip6tables-save"].map(|program| run(&[program])).concat();
    (saved, run(&["ipset", "list", "-n"]), run(&["nft", "list", "tables"]))
}

/// Whether only the sets and rules of the mode are there.
fn is_alone(ns: &Netns, mode: &str) -> bool {
    let (rules, sets, tables) = rules(ns);
    let iptables =
        [rules.contains("KUBE-IPVS-FILTER"), rules.contains(":KUBE-SERVICES"), sets.contains("KUBE-")];
    let nft = [tables.contains("table ip kube-ipvs"), tables.contains("table ip6 kube-ipvs")];
    match mode {
        "iptables" => iptables == [true; 3] && nft == [false; 2],
        _ => iptables == [false; 3] && nft == [true; 2],
    }
}

/// Standing connections stay, and no new one fails, through iptables, nftables and iptables again.
#[test]
fn from_one_rules_mode_to_the_other_and_back() {
    let cluster = Cluster::new();
    let _backends = cluster.backends();
    let ns = cluster.node.ns();
    let foreign = saved(ns);
    let start = |mode: &str| {
        let mut more = more();
        more["kubeIPVS"] = json!({"rules": mode});
        let setup = Setup::start(&cluster.node, &more, objects()).unwrap();
        setup.wait_bound(&VIP).unwrap();
        setup.wait_bound(&EXTERNAL).unwrap();
        setup.wait_within(LIMIT, "the end of the other mode", || is_alone(ns, mode)).unwrap();
        setup
    };
    let mut setup = start("iptables");
    let mut standing = Standing::open(&cluster.askers());
    Stream::during(ns, cluster.askers(), |stream| {
        for mode in ["nftables", "iptables", "nftables"] {
            assert!(setup.agent.stop().unwrap().success());
            setup = start(mode);
            stream.more();
            standing.check(mode);
        }
    });
    standing.check("at the end");
    assert_eq!(cluster.leaked(), ["[0:0]", "[0:0]"], "packets left the node unbalanced");
    let kept = |text: &str| -> Vec<String> {
        let rules = text.lines().filter(|line| line.starts_with("-A"));
        rules.map(str::to_owned).collect()
    };
    assert_eq!(kept(&saved(ns)), kept(&foreign), "rules of other programs stay");
    assert!(setup.agent.stop().unwrap().success());
    let (code, text) = kube_ipvs(ns, &["cleanup"]);
    assert_eq!(code, 0, "{text}");
    assert!(!rules(ns).2.contains("kube-ipvs") && text.contains("nftables: table kube-ipvs"), "{text}");
}
