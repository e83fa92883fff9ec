// SPDX-License-Identifier: Apache-2.0
//! The agent is killed during a sync. The next agent must reach the same state as an undisturbed one.

use integration::lab::oracle;

use super::*;

const SERVICES: usize = 1000;

/// Services with a ClusterIP and two endpoints; every third is a load balancer too.
fn objects() -> Vec<Value> {
    let mut all = Vec::new();
    for n in 0..SERVICES {
        let (high, low) = (n / 250, n % 250);
        let mut svc = service(&format!("s{n}"), &[&format!("10.96.{high}.{low}")], &[], &PORT);
        if n % 3 == 0 {
            svc["spec"]["type"] = json!("LoadBalancer");
            svc["spec"]["ports"][0]["nodePort"] = json!(30000 + n);
            svc["status"] = json!({"loadBalancer": {"ingress": [{"ip": format!("203.0.{high}.{low}")}]}});
        }
        all.push(svc);
        let endpoints = [format!("10.244.1.{low}@node-a"), format!("10.244.2.{low}")];
        all.push(slice(&format!("s{n}"), &[&endpoints[0], &endpoints[1]], &PORT));
    }
    all
}

/// Everything, without counters, sorted. A dump of virtual servers may name one twice.
fn state(ns: &Netns) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for text in [run(ns, &["ipvsadm", "-Sn"]), oracle::sets(ns).unwrap()] {
        let kept = text.lines().filter(|l| l.starts_with('-') || l.starts_with("add "));
        lines.extend(kept.map(|l| l.trim_end().to_owned()));
    }
    lines.extend(oracle::rules(ns).unwrap());
    let addresses = run(ns, &["ip", "-o", "addr", "show", "dev", "kube-ipvs0"]);
    lines.extend(addresses.lines().filter_map(|l| l.split_whitespace().nth(3)).map(str::to_owned));
    lines.sort();
    lines.dedup();
    lines
}

fn settle(files: &Files, ns: &Netns) -> Vec<String> {
    let agent = files.start(ns);
    wait_for("the first sync", &agent, || agent.log().contains("ready: "));
    let last = format!("10.96.{}.{}/32", (SERVICES - 1) / 250, (SERVICES - 1) % 250);
    wait_for("the last address", &agent, || is_bound(ns, &last));
    state(ns)
}

/// The progress of a sync, read as fast as possible.
#[derive(Clone, Copy, Debug)]
enum Progress {
    /// Lines of the table of virtual servers.
    Servers,
    /// Local addresses.
    Addresses,
}

impl Progress {
    fn read(self) -> usize {
        let file = match self {
            Progress::Servers => "/proc/thread-self/net/ip_vs",
            Progress::Addresses => "/proc/thread-self/net/fib_trie",
        };
        std::fs::read_to_string(file).unwrap_or_default().lines().count()
    }
}

/// Starts an agent and kills it after its first writes. Returns its progress.
fn kill_in_the_middle(files: &Files, ns: &Netns, progress: Progress) -> usize {
    let before = ns.enter(|| progress.read()).unwrap();
    let mut agent = files.start(ns);
    let start = Instant::now();
    ns.enter(|| {
        while progress.read() == before {
            assert!(start.elapsed() < LIMIT, "nothing happens:\n{}", agent.log());
        }
    })
    .unwrap();
    agent.kill9();
    ns.enter(|| progress.read()).unwrap() - before
}

#[test]
fn an_agent_converges_after_its_predecessor_was_killed() {
    let undisturbed = Netns::new("node-b").unwrap();
    let files = Files::new(&no_audits(), objects());
    let empty = undisturbed.enter(|| Progress::Servers.read()).unwrap();
    let expected = settle(&files, &undisturbed);
    let full = undisturbed.enter(|| Progress::Servers.read()).unwrap();
    for progress in [Progress::Servers, Progress::Addresses] {
        let ns = Netns::new("node-a").unwrap();
        let came = kill_in_the_middle(&files, &ns, progress);
        // One send has this number of addresses. The kernel finishes a send before it kills the process.
        let in_the_middle = matches!(progress, Progress::Addresses) || came < full - empty;
        assert!(in_the_middle, "{progress:?}: {came} is everything, not the middle");
        assert_eq!(settle(&files, &ns), expected, "killed at {came} lines of {progress:?}");
    }
}
