// SPDX-License-Identifier: Apache-2.0
//! Other programs: flushes without a notification, foreign virtual servers, and a foreign socket of the agent's name.

use integration::lab::oracle;

use super::*;

/// Limit for the repair of a flush: the probe detects it within 2 s, and then everything is read. Without the probe, only the
/// audit after an hour would.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_flush_without_a_notification_is_repaired_within_seconds() {
    let ns = Netns::new("node-a").unwrap();
    let files = Files::new(&no_audits(), one_service());
    let agent = files.start(&ns);
    let serves = || {
        run(&ns, &["ipvsadm", "-Sn"]).contains("-r 10.244.1.5:8080")
            && run(&ns, &["ipset", "list", "KUBE-CLUSTER-IP"]).contains("10.96.0.10,tcp:80")
    };
    wait_for("the start", &agent, || is_bound(&ns, "10.96.0.10/32") && serves());
    let commands: [&[&str]; 3] =
        [&["ipvsadm", "-C"], &["ipset", "flush"], &["ipset", "flush", "KUBE-CLUSTER-IP"]];
    for command in commands {
        // Wait: the probes read one kind of object after the other.
        std::thread::sleep(Duration::from_secs(2));
        ns.exec(command).unwrap();
        let start = Instant::now();
        wait_for(&command.join(" "), &agent, serves);
        assert!(start.elapsed() < SOON, "{command:?}: {:?}; log:\n{}", start.elapsed(), agent.log());
    }
    let log = agent.log();
    assert!(log.contains("that another program changed"), "{log}");
    assert!(log.matches("reading everything").count() <= 3, "{log}");
}

#[test]
fn foreign_virtual_servers_are_logged_when_the_first_start_removes_them() {
    let ns = Netns::new("node-a").unwrap();
    ns.exec(&["ipvsadm", "-A", "-t", "192.0.2.7:80", "-s", "wlc"]).unwrap();
    ns.exec(&["ipvsadm", "-A", "-u", "198.51.100.7:53", "-s", "rr"]).unwrap();
    let kept = json!({"ipvs": {"excludeCIDRs": ["198.51.100.0/24"]}});
    let files = Files::new(&kept, one_service());
    let agent = files.start(&ns);
    wait_for("the start", &agent, || is_bound(&ns, "10.96.0.10/32"));
    let named = "removed virtual servers of another program: TCP 192.0.2.7:80; to keep such servers, list their \
                 networks in ipvs.excludeCIDRs";
    wait_for("the notice", &agent, || agent.log().contains(named));
    let saved = run(&ns, &["ipvsadm", "-Sn"]);
    assert!(!saved.contains("192.0.2.7") && saved.contains("-A -u 198.51.100.7:53"), "{saved}");
}

/// A command of an unprivileged user.
fn as_nobody(command: &[&str]) -> std::process::Command {
    let mut nobody = std::process::Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(command);
    nobody
}

#[test]
fn an_unprivileged_user_on_the_socket_of_the_agent_blocks_no_start() {
    let ns = Netns::new("node-a").unwrap();
    let files = Files::new(&no_audits(), one_service());
    let take = r#"use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0) or die $!;
                  bind(S, pack("S a*", AF_UNIX, "\0kube-ipvs/agent")) or die $!; listen(S, 1); sleep 600"#;
    let mut squatter = ns.spawn(as_nobody(&["perl", "-e", take])).unwrap();
    let taken = || run(&ns, &["ss", "-xl"]).contains("@kube-ipvs/agent");
    let start = Instant::now();
    while !taken() {
        assert!(start.elapsed() < LIMIT, "the socket is not taken");
        std::thread::sleep(Duration::from_millis(100));
    }
    let agent = files.start(&ns);
    wait_for("the start", &agent, || is_bound(&ns, "10.96.0.10/32"));
    let log = agent.log();
    assert!(log.contains("of user 65534 has the socket @kube-ipvs/agent and is no kube-ipvs"), "{log}");
    // A client does not trust the foreign socket.
    let asked = run_agent(&ns, &["list", "-o", "wide"]);
    assert!(asked.contains("is no kube-ipvs") && asked.contains("10.96.0.10:80"), "{asked}");
    squatter.kill();
    wait_for("the socket", &agent, || agent.log().contains("the socket @kube-ipvs/agent is free again"));
    assert!(run_agent(&ns, &["list", "-o", "wide"]).contains("test/web"));
    // The agent does not answer unprivileged users.
    let binary = agent_binary().unwrap();
    let mut nobody = as_nobody(&[binary.to_str().unwrap(), "list", "-o", "wide"]);
    let asked = ns.enter(|| nobody.output()).unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&asked.stdout).contains("test/web"));
}

/// The output of the agent with these arguments.
fn run_agent(ns: &Netns, args: &[&str]) -> String {
    let mut command = std::process::Command::new(agent_binary().unwrap());
    let output = ns.enter(|| command.args(args).output()).unwrap().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn only_root_can_change_the_log_level() {
    let ns = Netns::new("node-a").unwrap();
    let files = Files::new(&no_audits(), one_service());
    let agent = files.start(&ns);
    wait_for("the start", &agent, || is_bound(&ns, "10.96.0.10/32"));
    let put = r#"exec 3<>/dev/tcp/127.0.0.1/10249
        printf 'PUT /debug/flags/v HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\n1' >&3
        cat <&3"#;
    let mut nobody = as_nobody(&["bash", "-c", put]);
    let answer = ns.enter(|| nobody.output()).unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.contains("403"), "{answer}");
    let at = ([127, 0, 0, 1], 10249).into();
    let answer = ns.enter(|| oracle::http(at, "PUT", "debug/flags/v", "1")).unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
