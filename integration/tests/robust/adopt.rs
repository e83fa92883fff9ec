// SPDX-License-Identifier: Apache-2.0
//! State of other programs: adopted, replaced or restored.

use super::*;

#[test]
fn flushed_rules_are_restored_before_the_next_audit() {
    let ns = Netns::new("node-a").unwrap();
    let files = Files::new(&no_audits(), one_service());
    let agent = files.start(&ns);
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    let rules = || run(&ns, &["iptables-save"]);
    ns.exec(&["iptables", "-t", "nat", "-F", "KUBE-SERVICES"]).unwrap();
    wait_for("the chain again", &agent, || rules().contains("--match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT"));
    // One jump is deleted: it is restored at the right position.
    let jump = ["-m", "comment", "--comment", "kubernetes health check rules", "-j", "KUBE-NODE-PORT"];
    let delete: Vec<&str> = ["iptables", "-D", "INPUT"].into_iter().chain(jump).collect();
    ns.exec(&delete).unwrap();
    let order = || -> Vec<String> {
        let rules = rules();
        let input = rules.lines().filter(|l| l.starts_with("-A INPUT "));
        input.filter_map(|l| l.split(" -j ").nth(1)).map(str::to_owned).collect()
    };
    let right = ["KUBE-IPVS-FILTER", "KUBE-PROXY-FIREWALL", "KUBE-NODE-PORT"];
    wait_for("the jump again", &agent, || order() == right);
    // Rules of other programs in foreign chains stay.
    wait_until_quiet(&agent);
    let before = agent.log().len();
    ns.exec(&["iptables", "-I", "INPUT", "-s", "192.0.2.1", "-j", "DROP"]).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    // A summary of the repairs may come.
    assert!(!agent.log()[before..].contains(" sync: "), "nothing to do: {}", agent.log());
    assert_eq!(order().last().map(String::as_str), Some("KUBE-NODE-PORT"));
}

#[test]
fn sets_that_are_too_small_or_of_another_type_are_replaced() {
    let ns = Netns::new("node-a").unwrap();
    let sets = "create KUBE-CLUSTER-IP hash:ip,port maxelem 64\ncreate KUBE-LOOP-BACK hash:ip\nadd KUBE-LOOP-BACK 1.2.3.4\n";
    ns.exec_with(&["ipset", "restore"], Some(sets)).unwrap();
    let mut objects = one_service();
    objects.extend((0..200).map(|n| service(&format!("s{n}"), &[&format!("10.96.1.{n}")], &[], &PORT)));
    let files = Files::new(&no_audits(), objects);
    let agent = files.start(&ns);
    wait_for("the last address", &agent, || is_bound(&ns, "10.96.1.199/32"));
    let saved = run(&ns, &["ipset", "save"]);
    assert_eq!(saved.matches("add KUBE-CLUSTER-IP ").count(), 201);
    assert!(saved.contains("create KUBE-LOOP-BACK hash:ip,port,ip "), "{saved}");
    assert!(saved.contains("add KUBE-LOOP-BACK 10.244.1.5,tcp:8080,10.244.1.5"), "{saved}");
    assert!(!saved.contains("GROWING"), "nothing temporary is left: {saved}");
}

#[test]
fn an_ipv6_address_with_a_wider_prefix_is_replaced_by_ours() {
    let ns = Netns::new("node-a").unwrap();
    ns.ip("link add kube-ipvs0 type dummy\naddr add fd00:96::10/64 dev kube-ipvs0 nodad").unwrap();
    let files = Files::new(&no_audits(), vec![service("web", &["fd00:96::10"], &[], &PORT)]);
    let agent = files.start(&ns);
    wait_for("the address", &agent, || is_bound(&ns, "fd00:96::10/128"));
    assert!(!is_bound(&ns, "fd00:96::10/64"));
}

#[test]
fn an_ipset_of_another_type_that_our_rules_hold_is_replaced() {
    let ns = Netns::new("node-a").unwrap();
    let often = json!({"ipvs": {"syncPeriod": "2s"}, "conntrack": {"maxPerCore": 0}});
    let files = Files::new(&often, one_service());
    let agent = files.start(&ns);
    let saved = || run(&ns, &["ipset", "save"]);
    let is_whole = || saved().contains("add KUBE-LOOP-BACK 10.244.1.5,tcp:8080,10.244.1.5");
    let is_matched = || run(&ns, &["iptables-save"]).contains("--match-set KUBE-LOOP-BACK ");
    wait_for("the start", &agent, || is_bound(&ns, "10.96.0.10/32") && is_whole() && is_matched());
    // The agent restores its rules: the other program may need several tries.
    let replace = "for i in $(seq 50); do iptables -t nat -F KUBE-POSTROUTING; \
                   ipset destroy KUBE-LOOP-BACK && ipset create KUBE-LOOP-BACK hash:ip && exit 0; done; exit 1";
    ns.exec(&["sh", "-c", replace]).unwrap();
    // Only an audit finds the wrong type, and audits use at most 1/250 of the time: on a slow node a minute passes.
    let start = Instant::now();
    while !(is_whole() && is_matched()) {
        assert!(start.elapsed() < LIMIT * 5, "the set and its rule are not restored:\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(saved().contains("create KUBE-LOOP-BACK hash:ip,port,ip "), "{}", saved());
}
