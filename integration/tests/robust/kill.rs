// SPDX-License-Identifier: Apache-2.0
//! The agent is killed at any moment; the next one ends where an undisturbed one does.

use super::*;

const SERVICES: usize = 150;

fn objects(generation: usize) -> Vec<Value> {
    let mut all = Vec::new();
    for n in 0..SERVICES {
        let mut svc = service(&format!("s{n}"), &[&format!("10.96.1.{n}")], &[], &PORT);
        if (n + generation) % 3 == 0 {
            svc["spec"]["type"] = json!("LoadBalancer");
            svc["spec"]["ports"][0]["nodePort"] = json!(30000 + n);
            svc["status"] = json!({"loadBalancer": {"ingress": [{"ip": format!("203.0.113.{n}")}]}});
        }
        all.push(svc);
        let endpoints = [format!("10.244.1.{}@node-a", (n + generation) % 200), format!("10.244.2.{n}")];
        all.push(slice(&format!("s{n}"), &[&endpoints[0], &endpoints[1]], &PORT));
    }
    all
}

/// Everything, without counters, sorted.
fn state(ns: &Netns) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for command in [&["ipvsadm", "-Sn"][..], &["ipset", "save"], &["iptables-save"], &["ip6tables-save"]] {
        let text = run(ns, command);
        let kept = text.lines().filter(|l| l.starts_with('-') || l.starts_with("add "));
        lines.extend(kept.map(|l| l.trim_end().to_owned()));
    }
    let addresses = run(ns, &["ip", "-o", "addr", "show", "dev", "kube-ipvs0"]);
    lines.extend(addresses.lines().filter_map(|l| l.split_whitespace().nth(3)).map(str::to_owned));
    lines.sort();
    lines
}

fn settle(files: &Files, ns: &Netns) -> Vec<String> {
    let agent = files.start(ns);
    wait_for("the first sync", &agent, || {
        agent.log().contains("due=Audit") || agent.log().contains("nothing to do")
    });
    let last = format!("10.96.1.{}/32", SERVICES - 1);
    wait_for("the last address", &agent, || is_bound(ns, &last));
    state(ns)
}

#[test]
fn killed_at_any_moment_the_next_one_converges() {
    let undisturbed = Netns::new("node-b").unwrap();
    let files = Files::new(&no_audits(), objects(1));
    let expected = settle(&files, &undisturbed);
    assert!(expected.len() > SERVICES * 4);
    let ns = Netns::new("node-a").unwrap();
    let mut kills_while_writing = 0;
    for (round, pause) in [300, 900, 1200, 1500, 1800, 2100, 2500, 3000].into_iter().enumerate() {
        files.write(objects(round));
        let mut agent = files.start(&ns);
        std::thread::sleep(Duration::from_millis(pause));
        agent.kill9();
        let now = state(&ns).len();
        kills_while_writing += usize::from(now > 0 && now < expected.len());
    }
    assert!(kills_while_writing > 0, "no kill came in the middle: choose other pauses");
    files.write(objects(1));
    assert_eq!(settle(&files, &ns), expected);
}
