// SPDX-License-Identifier: Apache-2.0
//! The commands that look at a node, on a real kernel: what they print (`docs/examples`), that they find what differs,
//! and that they change nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use integration::lab::traffic::{Backend, Connection, ask_tcp};
use integration::lab::{Lab, Netns, Node, Setup, agent_binary, at};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

/// Limit for an agent to follow.
const LIMIT: Duration = Duration::from_secs(30);

struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs a command of the agent's program with lines of 100 columns.
fn run(ns: &Netns, args: &[&str]) -> Outcome {
    let binary = agent_binary().unwrap();
    let command: Vec<&str> =
        ["env", "COLUMNS=100", binary.to_str().unwrap()].into_iter().chain(args.iter().copied()).collect();
    let output = ns.try_exec(&command, None).unwrap();
    Outcome { code: output.status.code().unwrap_or(-1), stdout: output.stdout, stderr: output.stderr }
}

fn objects() -> Vec<Value> {
    let web = ServiceBuilder::new("web", &["10.96.0.10"], &[("http", "TCP", 80)])
        .node_ports(&[30080])
        .load_balancer(&["203.0.113.7"])
        .external_policy("Local")
        .build();
    let dns = ServiceBuilder::new("dns", &["10.96.0.11"], &[("dns", "UDP", 53)]).build();
    vec![
        web,
        slice("web", &["10.244.1.5@node-a", "10.244.2.6@node-b"], &[("http", "TCP", 8080)]),
        dns,
        slice("dns", &["10.244.2.9@node-b"], &[("dns", "UDP", 53)]),
    ]
}

fn start<'a>(node: &'a Node, more: &Value) -> Setup<'a> {
    let setup = Setup::start(node, more, objects()).unwrap();
    setup.wait("the first sync", || setup.agent.log().contains("ready: ")).unwrap();
    setup
}

/// The text of a sync in the examples.
const SYNC: &str = "42 ms ago, because of audit: 63 operations, in 42 ms";

/// The text with fixed times, versions, paths and syncs.
fn normalised(text: &str, setup: &Setup<'_>) -> String {
    let text = text.replace(&setup.objects().display().to_string(), "/etc/kube-ipvs/objects");
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        for i in 1..words.len() {
            let unit = words[i].trim_end_matches([',', ')', ';', ':']).to_owned();
            let is_number = words[i - 1].parse::<f64>().is_ok();
            if is_number && ["ms", "s", "µs", "min", "h"].contains(&&*unit) {
                words[i - 1] = "42".to_owned();
                words[i] = words[i].replacen(&unit, "ms", 1);
            }
        }
        let line = words.join(" ");
        lines.push(match line.split_once("kube-ipvs 0.") {
            Some((start, _)) if start.trim() == "version" => format!("{start}kube-ipvs 0.1.0, Linux 6.12.0"),
            // What the last sync was depends on how long programs took.
            _ if line.starts_with("  last ") => line[..18].to_owned() + SYNC,
            _ => line,
        });
    }
    lines.join("\n") + "\n"
}

/// Compares with a file in `docs/examples`, and leaves what was printed in a folder that outlives the guest.
fn compare(name: &str, text: &str) -> bool {
    let kept = examples().join(name);
    // Only a guest has this folder.
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest/out");
    if out.is_dir() {
        std::fs::create_dir_all(out.join("examples")).unwrap();
        std::fs::write(out.join("examples").join(name), text).unwrap();
    }
    std::fs::read_to_string(kept).is_ok_and(|kept| kept == text)
}

#[test]
fn examples_of_the_documentation_are_what_the_commands_print() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let setup = start(&node, &json!({}));
    let ns = node.ns();
    let other = setup.folder().join("other.yaml");
    let config = integration::objects::config("node-a", &json!({"ipvs": {"scheduler": "lc"}}));
    std::fs::write(&other, config.to_string()).unwrap();
    let with_other = format!("--config={}", other.display());
    let mut wrong = Vec::new();
    for (name, code, args) in [
        ("status.txt", 0, &["status"][..]),
        ("explain.txt", 0, &["explain", "test/web"]),
        ("explain-from.txt", 0, &["explain", "203.0.113.7:80", "--from", "198.51.100.9"]),
        ("plan.txt", 2, &["plan", &with_other]),
        ("verify.txt", 0, &["verify", "--timeout=20s"]),
        ("list.txt", 0, &["list", "-o", "wide"]),
        ("top.txt", 0, &["top", "--once", "--interval=1"]),
    ] {
        let outcome = run(ns, args);
        assert_eq!(outcome.code, code, "{args:?}: {}{}", outcome.stdout, outcome.stderr);
        let text = normalised(&outcome.stdout, &setup);
        if !compare(name, &text) {
            wrong.push(format!("docs/examples/{name}:\n{text}"));
        }
    }
    let dry = ["timeout", "-s", "INT", "15", binary(), "run", "--dry-run", &with_other];
    let dry = ns.try_exec(&dry, None).unwrap().stdout;
    let dry = dry.split_once(' ').map(|(_, rest)| format!("2026-11-28T04:00:00Z {rest}")).unwrap();
    let archive = setup.folder().join("bundle.tar").display().to_string();
    assert_eq!(run(ns, &["bundle", "--file", &archive]).code, 0);
    let listing = ns.exec(&["tar", "-tf", &archive]).unwrap().stdout;
    let config = run(ns, &["config", &with_other]).stdout;
    let config = config.replace(&other.display().to_string(), "other.yaml");
    let cleanup = run(ns, &["cleanup", "--dry-run"]).stdout;
    let traced = traced(&node, &setup);
    for (name, text) in [
        ("run.txt", dry),
        ("bundle.txt", listing),
        ("config.txt", config),
        ("cleanup.txt", cleanup),
        ("trace.txt", traced),
    ] {
        let text = normalised(&text, &setup);
        if !compare(name, &text) {
            wrong.push(format!("docs/examples/{name}:\n{text}"));
        }
    }
    // What a doctor finds depends on the machine: the example has to have the same checks.
    let doctor = run(ns, &["doctor"]);
    assert!(doctor.code <= 1, "{}", doctor.stderr);
    let example = std::fs::read_to_string(examples().join("doctor.txt")).unwrap_or_default();
    compare("doctor.txt", &normalised(&doctor.stdout, &setup));
    if checks(&example) != checks(&doctor.stdout) {
        wrong.push(format!("docs/examples/doctor.txt:\n{}", doctor.stdout));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn binary() -> &'static str {
    static BINARY: LazyLock<String> = LazyLock::new(|| agent_binary().unwrap().display().to_string());
    &BINARY
}

/// What `trace` tells of a connection from port 41000 of a pod. The numbers of rules are those of the kernel.
fn traced(node: &Node, setup: &Setup<'_>) -> String {
    let (pod, client) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let _backend = Backend::new(&pod.ns, "web").tcp(8080).unwrap();
    // Only this endpoint exists here.
    let mut objects = objects();
    objects[1] = slice("web", &["10.244.1.5@node-a"], &[("http", "TCP", 8080)]);
    setup.write(objects).unwrap();
    setup.wait_ipvs("-a -t 10.96.0.10:80 -r 10.244.2.6:8080", false).unwrap();
    let output = setup.folder().join("trace.txt");
    let mut trace = Command::new(agent_binary().unwrap());
    trace.args(["trace", "test/web", "--packets=1", "--seconds=50"]).env("COLUMNS", "100");
    trace.stdout(std::fs::File::create(&output).unwrap());
    let mut trace = node.ns().spawn(trace).unwrap();
    setup.wait("the trace", || nft_tables(node.ns()).contains("kube-ipvs-trace")).unwrap();
    let mut connection = Connection::open_from(&client.ns, 41_000, at("10.96.0.10", 80), LIMIT).unwrap();
    assert_eq!(connection.ask().unwrap().name, "web");
    assert_eq!(trace.wait(LIMIT).unwrap().code(), Some(0));
    let text = std::fs::read_to_string(&output).unwrap();
    let lines = text.lines().map(|line| match line.split_once("  rule ") {
        Some((start, rest)) => {
            format!("{start}  rule 12{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn nft_tables(ns: &Netns) -> String {
    ns.exec(&["nft", "list", "tables"]).unwrap().stdout
}

/// The names of the checks of a doctor.
fn checks(text: &str) -> BTreeSet<&str> {
    let is_name = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    text.lines().filter(is_name).filter_map(|line| line.split_whitespace().next()).collect()
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples")
}

/// All that the agent manages, as the tools of the kernel show it.
fn kernel_state(ns: &Netns) -> String {
    let show = |command: &[&str]| ns.try_exec(command, None).map(|output| output.stdout).unwrap_or_default();
    let mut state = String::new();
    for command in [
        &["ipvsadm", "-Sn"][..],
        &["ip", "-o", "addr"],
        &["ip", "route", "show", "table", "all"],
        &["ipset", "save"],
        &["iptables-save"],
        &["ip6tables-save"],
        &["nft", "list", "ruleset"],
    ] {
        // Counters and comments with times are no state.
        let lines = show(command);
        let lines = lines.lines().filter(|line| !line.starts_with(['#', ':']));
        lines.for_each(|line| state.push_str(&format!("{line}\n")));
    }
    state
}

#[test]
fn questions_change_nothing_and_every_format_is_a_document() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let setup = start(&node, &json!({}));
    let ns = node.ns();
    let before = kernel_state(ns);
    let bundle = setup.folder().join("bundle.tar");
    let file = format!("--file={}", bundle.display());
    for args in [
        &["status"][..],
        &["explain", "web"],
        &["explain", "10.244.2.6", "--steps"],
        &["plan"],
        &["verify"],
        &["list", "-c"],
        &["bundle", &file],
    ] {
        let outcome = run(ns, args);
        assert_eq!(outcome.code, 0, "{args:?}: {}{}", outcome.stdout, outcome.stderr);
    }
    for args in [&["status"][..], &["explain", "test/web"], &["plan"], &["verify"]] {
        let json = run(ns, &[args, &["-o", "json"]].concat()).stdout;
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["schemaVersion"], 1, "{args:?}");
        let yaml = run(ns, &[args, &["-o", "yaml"]].concat()).stdout;
        assert!(yaml.contains("schemaVersion: 1"), "{yaml}");
    }
    assert_eq!(kernel_state(ns), before);
    let listing = ns.exec(&["tar", "-tf", bundle.to_str().unwrap()]).unwrap().stdout;
    for name in
        ["README.txt", "config.yaml", "status.txt", "log.txt", "plan.txt", "ipvs.txt", "kernel/sets.txt"]
    {
        assert!(listing.contains(&format!("kube-ipvs-bundle/{name}")), "{name} is missing in {listing}");
    }
    let readme = ["tar", "-xOf", bundle.to_str().unwrap(), "kube-ipvs-bundle/README.txt"];
    let readme = ns.exec(&readme).unwrap().stdout;
    assert!(!readme.contains("missing:"), "{readme}");
}

#[test]
fn plan_and_verify_name_what_another_program_changed_while_no_agent_runs() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let mut setup = start(&node, &json!({}));
    let ns = node.ns();
    let arguments = setup.arguments();
    let look = |command: &str, more: &[&str]| {
        let args: Vec<&str> = std::iter::once(command)
            .chain(arguments.iter().map(String::as_str))
            .chain(more.iter().copied())
            .collect();
        run(ns, &args)
    };
    setup.agent.stop().unwrap();
    let status = run(ns, &["status"]);
    assert_eq!(status.code, 3, "{}", status.stderr);
    assert_eq!(run(ns, &["explain", "web"]).code, 3);
    let verified = look("verify", &[]);
    assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
    assert_eq!(look("plan", &[]).code, 0);
    ns.exec(&["ipvsadm", "-D", "-t", "10.96.0.10:80"]).unwrap();
    ns.exec(&["ip", "addr", "del", "10.96.0.11/32", "dev", "kube-ipvs0"]).unwrap();
    ns.exec(&["ipvsadm", "-A", "-t", "192.0.2.77:7", "-s", "rr"]).unwrap();
    let verified = look("verify", &["--timeout=3s"]);
    assert_eq!(verified.code, 1, "{}", verified.stderr);
    for difference in
        ["+ virtual server TCP 10.96.0.10:80", "+ address 10.96.0.11", "- virtual server TCP 192.0.2.77:7"]
    {
        assert!(verified.stdout.contains(difference), "{difference} is missing in {}", verified.stdout);
    }
    let explained = look("explain", &["test/web", "--from", "pod"]);
    assert_eq!(explained.code, 0, "{}", explained.stderr);
    assert!(explained.stdout.contains("the kernel has no virtual server here yet"), "{}", explained.stdout);
    let binary = agent_binary().unwrap();
    let dry = [
        &["timeout", "15", binary.to_str().unwrap(), "run", "--dry-run"],
        &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..],
    ]
    .concat();
    let dry = ns.try_exec(&dry, None).unwrap().stdout;
    assert!(dry.contains("192.0.2.77:7") && dry.matches("a start would make").count() == 1, "{dry}");
    let plan = look("plan", &[]);
    assert_eq!(plan.code, 2);
    assert!(
        plan.stdout.contains("ipvs.excludeCIDRs") && plan.stdout.contains("192.0.2.77:7"),
        "{}",
        plan.stdout
    );
    let setup = setup.restart().unwrap();
    let verified = run(ns, &["verify", "--timeout=20s"]);
    assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
    assert!(!setup.agent.log().is_empty());
}

#[test]
fn status_tells_what_cannot_be_programmed_and_explain_why() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let setup = start(&node, &json!({}));
    let ns = node.ns();
    let [a, b, c, _] = node.host.v4.octets();
    // IPVS rejects broadcast addresses of local routes.
    let broadcast = Ipv4Addr::new(a, b, c, 255);
    let mut more = objects();
    more.push(ServiceBuilder::new("bad", &["10.96.0.12"], &[("p", "TCP", 80)]).build());
    more.push(slice("bad", &[&format!("{broadcast}@node-b")], &[("p", "TCP", 80)]));
    setup.write(more).unwrap();
    let began = Instant::now();
    let status = loop {
        let status = run(ns, &["status"]);
        if status.code == 1 || began.elapsed() > LIMIT {
            break status;
        }
    };
    assert_eq!(status.code, 1, "{}", status.stdout);
    let object = format!("real server TCP 10.96.0.12:80 -> {broadcast}:80 of Service test/bad");
    assert!(status.stdout.replace("\n    ", " ").contains(&object), "{}", status.stdout);
    let explained = run(ns, &["explain", "test/bad"]);
    assert!(explained.stdout.contains("cannot program it:"), "{}", explained.stdout);
}

#[test]
fn top_shows_the_traffic_of_a_service_and_ends_with_q() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let (pod, client) = (node.pod(5).unwrap(), node.pod(9).unwrap());
    let _backend = Backend::new(&pod.ns, "web").tcp(8080).unwrap();
    let mut objects = objects();
    objects[1] = slice("web", &["10.244.1.5@node-a"], &[("http", "TCP", 8080)]);
    let setup = Setup::start(&node, &json!({}), objects).unwrap();
    setup.wait("the first sync", || setup.agent.log().contains("ready: ")).unwrap();
    let ns = node.ns();

    // One table, with rates between two readings.
    let output = setup.folder().join("top.txt");
    let mut top = Command::new(agent_binary().unwrap());
    top.args(["top", "--once", "--interval=5"]).stdout(std::fs::File::create(&output).unwrap());
    let mut top = ns.spawn(top).unwrap();
    while top.ended().unwrap().is_none() {
        assert_eq!(ask_tcp(&client.ns, at("10.96.0.10", 80), LIMIT).unwrap().name, "web");
    }
    let table = std::fs::read_to_string(&output).unwrap();
    let row = table.lines().find(|line| line.starts_with("test/web ")).unwrap_or_default();
    let columns: Vec<u64> = row.split_whitespace().skip(1).map(|n| n.parse().unwrap_or(1)).collect();
    assert!(columns.len() == 6 && columns[1..4].iter().all(|rate| *rate > 0), "{table}");

    // Live, on a terminal of script(1): the Service, after Enter its real server, and the end.
    let screen = setup.folder().join("screen").display().to_string();
    let shows = |text| format!("until grep -q {text} {screen}; do sleep 0.2; done");
    let keys = format!("({}; printf '\\r'; {}; printf q)", shows("test/web"), shows("10.244.1.5:8080"));
    let live =
        format!("{keys} | script -qefc 'stty cols 100 rows 30; {} top --interval=1' {screen}", binary());
    let live = ns.try_exec(&["env", "TERM=xterm", "timeout", "60", "sh", "-c", &live], None).unwrap();
    assert_eq!(live.status.code(), Some(0), "{}{}", live.stdout, live.stderr);
    for shown in ["test/web", "10.244.1.5:8080", "\u{1b}[?1049l"] {
        assert!(live.stdout.contains(shown), "{shown:?} is missing in {:?}", live.stdout);
    }
}
