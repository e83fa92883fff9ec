// SPDX-License-Identifier: Apache-2.0
//! Failures of a program, a kernel module, a sysctl or a setting.

use super::*;

#[test]
fn a_failed_sync_is_retried_soon_and_no_address_is_bound_meanwhile() {
    let ns = Netns::new("node-a").unwrap();
    let mut files = Files::new(&no_audits(), one_service());
    let broken = files.path("broken");
    std::fs::write(&broken, "").unwrap();
    files.script(
        "iptables-restore",
        &format!(
            "[[ -e {0} ]] && {{ echo try >>{0}; echo no luck >&2; exit 1; }}\nexec /usr/sbin/iptables-restore \"$@\"",
            broken.display()
        ),
    );
    files.wrap("exec \"$AGENT\" \"$@\"");
    let agent = files.start(&ns);
    let tries = || std::fs::read_to_string(&broken).unwrap_or_default().lines().count();
    wait_for("three tries", &agent, || tries() >= 3);
    assert!(agent.log().contains("iptables-restore failed") && agent.log().contains("no luck"));
    assert!(run(&ns, &["ipvsadm", "-Sn"]).contains("-r 10.244.1.5:8080"), "virtual servers need no rules");
    assert!(!is_bound(&ns, "10.96.0.10/32"), "no address before its filter");
    std::fs::remove_file(&broken).unwrap();
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    let rules = run(&ns, &["iptables-save", "-t", "filter"]);
    assert!(rules.contains("-j KUBE-IPVS-FILTER"), "{rules}");
}

#[test]
fn without_the_ipvs_match_all_other_rules_are_written() {
    let ns = Netns::new("node-a").unwrap();
    let mut lb = service("lb", &["10.96.0.30"], &[], &PORT);
    lb["spec"]["type"] = json!("LoadBalancer");
    lb["spec"]["loadBalancerSourceRanges"] = json!(["198.18.0.0/15"]);
    lb["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
    let mut files = Files::new(&no_audits(), vec![lb]);
    let missing = files.path("missing");
    std::fs::write(&missing, "").unwrap();
    files.script(
        "iptables-restore",
        &format!(
            "input=$(cat)\nif [[ -e {} && $input == *'-m ipvs '* ]]; then echo no match ipvs >&2; exit 1; fi\n\
             exec /usr/sbin/iptables-restore \"$@\" <<<\"$input\"",
            missing.display()
        ),
    );
    files.wrap("exec \"$AGENT\" \"$@\"");
    let agent = files.start(&ns);
    wait_for("the address", &agent, || is_bound(&ns, "203.0.113.9/32"));
    wait_for("the error in the log", &agent, || agent.log().contains("load the module xt_ipvs"));
    let rules = run(&ns, &["iptables-save", "-t", "filter"]);
    assert!(
        rules.contains("-j KUBE-SOURCE-RANGES-FIREWALL") && rules.contains("-j KUBE-IPVS-FILTER"),
        "{rules}"
    );
    assert!(!rules.contains("--vaddr 203.0.113.9"), "{rules}");
    std::fs::remove_file(&missing).unwrap();
    wait_for("the rule", &agent, || {
        run(&ns, &["iptables-save", "-t", "filter"]).contains("-s 203.0.113.9/32 -m ipvs --vproto 6")
    });
}

const READ_ONLY: &str = "exec unshare -m bash -c 'mount --bind /proc/sys /proc/sys && \
    mount -o remount,ro,bind /proc/sys && exec \"$0\" \"$@\"' \"$AGENT\" \"$@\"";

#[test]
fn a_read_only_sysctl_is_reported_only_if_its_value_is_wrong() {
    let ns = Netns::new("node-a").unwrap();
    let mut files = Files::new(&no_audits(), one_service());
    files.wrap(READ_ONLY);
    ns.set_sysctls(&[
        ("net.ipv4.vs.conntrack", "1"),
        ("net.ipv4.vs.expire_nodest_conn", "1"),
        ("net.ipv4.vs.expire_quiescent_template", "1"),
        ("net.ipv4.ip_forward", "1"),
    ])
    .unwrap();
    let mut agent = files.start(&ns);
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    assert!(!agent.log().contains("ERROR"), "{}", agent.log());
    agent.stop().unwrap();
    ns.set_sysctls(&[("net.ipv4.vs.expire_nodest_conn", "0")]).unwrap();
    let mut objects = one_service();
    objects.push(service("new", &["10.96.0.11"], &[], &PORT));
    files.write(objects);
    let agent = files.start(&ns);
    wait_for("the new address", &agent, || is_bound(&ns, "10.96.0.11/32"));
    // The sync is logged when it ends, which is after the address is bound.
    let named = "/proc/sys/net/ipv4/vs/expire_nodest_conn: it is 0 and must be 1: Read-only file system";
    wait_for("the sysctl in the log", &agent, || agent.log().contains(named));
    let log = agent.log();
    assert!(log.contains("sysctl -w net.ipv4.vs.expire_nodest_conn=1"), "the remedy: {log}");
}

#[test]
fn an_unknown_scheduler_ends_the_agent_before_it_writes_anything() {
    let ns = Netns::new("node-a").unwrap();
    let files = Files::new(&json!({"ipvs": {"scheduler": "fair"}}), one_service());
    let mut agent = files.start(&ns);
    let start = Instant::now();
    while agent.ended().unwrap().is_none() {
        assert!(start.elapsed() < LIMIT, "still running:\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(agent.ended().unwrap().and_then(|status| status.code()), Some(1));
    assert!(agent.log().contains("ipvs.scheduler: the kernel does not know \"fair\""), "{}", agent.log());
    assert_eq!(run(&ns, &["ipvsadm", "-Sn"]).trim(), "", "nothing is left of the probe");
    assert!(run(&ns, &["ip", "link", "show", "dev", "kube-ipvs0"]).is_empty());
}

#[test]
fn every_scheduler_of_the_kernel_works() {
    let ns = Netns::new("node-a").unwrap();
    for (scheduler, shown) in
        [("wrr", "wrr"), ("lc", "lc"), ("wlc", "wlc"), ("sh", "sh"), ("mh", "mh -b mh-port")]
    {
        let files = Files::new(&json!({"ipvs": {"scheduler": scheduler}}), one_service());
        let mut agent = files.start(&ns);
        wait_for(scheduler, &agent, || {
            run(&ns, &["ipvsadm", "-Sn"]).contains(&format!("-A -t 10.96.0.10:80 -s {shown}\n"))
        });
        agent.stop().unwrap();
    }
}

#[test]
fn without_ip6tables_ipv4_is_programmed() {
    let ns = Netns::new("node-a").unwrap();
    let mut objects = one_service();
    objects.push(service("six", &["fd00:96::10"], &[], &PORT));
    let mut files = Files::new(&no_audits(), objects);
    files.script("ip6tables-save", "echo no such table >&2; exit 1");
    files.wrap("exec \"$AGENT\" \"$@\"");
    let agent = files.start(&ns);
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    wait_for("the error in the log", &agent, || agent.log().contains("failed: reading IPv6 rules"));
    assert!(!is_bound(&ns, "fd00:96::10/128"), "no address without its filter");
}

#[test]
fn a_device_of_another_kind_blocks_only_addresses() {
    let ns = Netns::new("node-a").unwrap();
    ns.ip("link add kube-ipvs0 type bridge").unwrap();
    let files = Files::new(&no_audits(), one_service());
    let agent = files.start(&ns);
    wait_for("the virtual server", &agent, || run(&ns, &["ipvsadm", "-Sn"]).contains("-r 10.244.1.5:8080"));
    wait_for("the error in the log", &agent, || agent.log().contains("bridge"));
    assert!(!is_bound(&ns, "10.96.0.10/32"));
    ns.ip("link del kube-ipvs0").unwrap();
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
}
