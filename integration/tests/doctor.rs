// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs doctor` on a node: it writes nothing, finds what other programs made, and knows the agent's own objects.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use integration::lab::{Lab, Netns, Setup, agent_binary, oracle};
use integration::objects::{service, slice};
use serde_json::{Value, json};

/// The findings of a run with these arguments, and its exit code.
fn doctor(ns: &Netns, args: &[&str]) -> (Vec<Value>, Option<i32>) {
    let binary = agent_binary().unwrap();
    let command: Vec<&str> =
        [binary.to_str().unwrap(), "doctor", "-o", "json"].into_iter().chain(args.iter().copied()).collect();
    let output = ns.try_exec(&command, None).unwrap();
    let report: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(report["schemaVersion"], 1);
    (report["findings"].as_array().unwrap().clone(), output.status.code())
}

/// The findings that are not in order, as `LEVEL CHECK: WHAT`.
fn problems(findings: &[Value]) -> Vec<String> {
    let bad = findings.iter().filter(|finding| finding["level"] != "ok");
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    bad.map(|f| format!("{} {}: {}", text(f, "level"), text(f, "check"), text(f, "what"))).collect()
}

/// Everything that the agent programs, and the settings of the namespace.
fn state(ns: &Netns) -> Vec<String> {
    let run = |command: &[&str]| ns.exec(command).unwrap().stdout;
    let without_comments = |text: String| text.lines().filter(|l| !l.starts_with('#')).collect::<String>();
    let sysctls = run(&["sysctl", "-a", "--pattern", r"^net\.(ipv4\.(vs|ip_forward|conf)|netfilter)"]);
    let steady = |line: &&str| !["conntrack_count", "hash_stat"].iter().any(|word| line.contains(word));
    vec![
        run(&["ipvsadm", "-Sn"]),
        run(&["ip", "-o", "link"]),
        run(&["ip", "route", "show", "table", "all"]),
        without_comments(run(&["iptables-save"])),
        without_comments(run(&["ip6tables-save"])),
        oracle::sets(ns).unwrap(),
        run(&["nft", "list", "tables"]),
        sysctls.lines().filter(steady).collect(),
    ]
}

#[test]
fn doctor_writes_nothing_and_knows_what_the_agent_made() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let ns = node.ns();
    let foreign = "-A -t 192.0.2.9:80 -s rr\n-A -t 198.51.100.9:80 -s rr\n";
    ns.exec_with(&["ipvsadm", "-R"], Some(foreign)).unwrap();
    let before = state(ns);
    let args = ["--objects=/", "--hostname-override=node-a", "--ipvs-exclude-cidrs=198.51.100.0/24"];
    let (findings, code) = doctor(ns, &args);
    assert_eq!(state(ns), before);
    let found = problems(&findings);
    assert_eq!(code, Some(1), "{found:#?}");
    let removed =
        "error virtualServers: the agent removes 1 virtual server that no Service made: TCP 192.0.2.9:80";
    assert!(found.iter().any(|problem| problem == removed), "{found:#?}");
    assert!(found.iter().any(|problem| problem.starts_with("warning timeouts: IPVS forgets")), "{found:#?}");

    let ports = [("http", "TCP", 80)];
    let objects = vec![
        service("web", &["10.96.0.10"], &["203.0.113.7"], &ports),
        slice("web", &["10.244.1.2"], &[("http", "TCP", 8080)]),
    ];
    let more = json!({"ipvs": {"excludeCIDRs": ["198.51.100.0/24"], "tcpTimeout": "3h"}});
    let setup = Setup::start(&node, &more, objects).unwrap();
    setup.wait_bound(&["10.96.0.10", "203.0.113.7"]).unwrap();
    setup.wait("the end of the start", || setup.agent.log().contains("ready: ")).unwrap();
    let before = state(ns);
    let (findings, code) = doctor(ns, &[]);
    assert_eq!(state(ns), before);
    let found = problems(&findings);
    assert!(found.iter().all(|problem| !problem.starts_with("error")), "{found:#?}");
    assert_eq!(code, Some(0));
    for check in ["virtualServers", "ports", "leftovers", "localVIPs", "otherProxies", "sysctls", "timeouts"]
    {
        assert!(!found.iter().any(|problem| problem.contains(&format!(" {check}: "))), "{found:#?}");
    }
}
