// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs list` beside `ipvsadm -Ln`, byte for byte.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use integration::lab::{Netns, agent_binary};

/// Limit for a counter.
const LIMIT: Duration = Duration::from_secs(20);

fn restore(ns: &Netns, lines: &str) {
    ns.exec_with(&["ipvsadm", "-R"], Some(lines)).unwrap();
}

fn ours(ns: &Netns, args: &[&str]) -> String {
    let binary = agent_binary().unwrap();
    let command: Vec<&str> = std::iter::once(binary.to_str().unwrap()).chain(args.iter().copied()).collect();
    ns.exec(&command).unwrap().stdout
}

fn same(ns: &Netns) {
    let theirs = ns.exec(&["ipvsadm", "-Ln"]).unwrap().stdout;
    for args in [&["list"][..], &["-Ln"], &["-L", "-n"]] {
        assert_eq!(ours(ns, args), theirs, "{args:?}");
    }
}

/// Compares the other lists of ipvsadm. Rates and expiry change by themselves, so a pair may differ for a moment.
fn all_lists_are_the_same(ns: &Netns) {
    for flags in [
        &["--stats"][..],
        &["--stats", "--exact"],
        &["--rate"],
        &["--rate", "--exact"],
        &["--thresholds"],
        &["--persistent-conn"],
        &["--nosort"],
        &["--timeout"],
        &["-c"],
    ] {
        let pair = || {
            let theirs: Vec<&str> = ["ipvsadm", "-Ln"].into_iter().chain(flags.iter().copied()).collect();
            let mine: Vec<&str> = std::iter::once("-Ln").chain(flags.iter().copied()).collect();
            (ours(ns, &mine), ns.exec(&theirs).unwrap().stdout)
        };
        let (mine, theirs) =
            (0..20).map(|_| pair()).find(|(mine, theirs)| mine == theirs).unwrap_or_else(pair);
        assert_eq!(mine, theirs, "{flags:?}");
    }
}

#[test]
fn every_kind_of_line_equals_ipvsadm() {
    let ns = Netns::new("list").unwrap();
    same(&ns);
    restore(
        &ns,
        "-A -t 10.96.0.1:443 -s rr\n\
         -a -t 10.96.0.1:443 -r 10.0.0.100:6443 -m\n\
         -A -t 10.96.0.10:53 -s wlc -p 600\n\
         -a -t 10.96.0.10:53 -r 10.244.0.7:53 -m -w 3\n\
         -a -t 10.96.0.10:53 -r 10.244.0.6:53 -g -w 0\n\
         -A -u 10.96.0.10:53 -s rr -p 300 -M 255.255.255.0\n\
         -A -u 10.96.0.11:53 -s sh -b sh-fallback,sh-port\n\
         -A -u 10.96.0.12:53 -s mh -b mh-port\n\
         -A -u 10.96.0.13:53 -s rr -o\n\
         -A --sctp-service 10.96.0.14:9 -s rr\n\
         -a --sctp-service 10.96.0.14:9 -r 10.244.0.9:9 -i\n\
         -A -f 7 -s lc -p 10\n\
         -A -f 8 -6 -s rr\n\
         -A -t [fd00:96::1:1]:80 -s rr -p 50 -M 64\n\
         -a -t [fd00:96::1:1]:80 -r [fd00:244:1::11]:8080 -m\n\
         -a -t [fd00:96::1:1]:80 -r [fd00:244:1:1111:2222:3333:4444:5555]:65535 -m -w 65535\n",
    );
    same(&ns);
}

/// Virtual servers of a namespace with itself as the real server, and an open and a closed connection of each family.
#[test]
fn counters_connections_and_thresholds_equal_ipvsadm() {
    let ns = Netns::new("counters").unwrap();
    all_lists_are_the_same(&ns);
    for addr in ["10.0.0.1/32", "10.0.0.9/32", "fd00::1/128", "fd00::9/128"] {
        let family = if addr.contains(':') { "-6" } else { "-4" };
        ns.exec(&["ip", family, "addr", "add", addr, "dev", "lo", "nodad"]).unwrap();
    }
    restore(
        &ns,
        "-A -t 10.0.0.1:80 -s rr -p 600\n\
         -a -t 10.0.0.1:80 -r 10.0.0.9:8080 -m -x 1000 -y 500\n\
         -a -t 10.0.0.1:80 -r 10.244.0.7:8080 -m -w 0\n\
         -A -t [fd00::1]:80 -s rr\n\
         -a -t [fd00::1]:80 -r [fd00::9]:8080 -m\n\
         -A -u 10.0.0.1:53 -s rr\n\
         -A -f 7 -s rr\n\
         -a -f 7 -r 10.0.0.9:8080 -m\n",
    );
    let open = ns.enter(|| {
        let listeners = ["10.0.0.9:8080", "[fd00::9]:8080"].map(|addr| TcpListener::bind(addr).unwrap());
        let connect = |_| ["10.0.0.1:80", "[fd00::1]:80"].map(|addr| TcpStream::connect(addr).unwrap());
        drop(connect(()));
        let open = connect(());
        (listeners, open)
    });
    all_lists_are_the_same(&ns);
    assert_eq!(ours(&ns, &["list", "-c"]).lines().count(), 2 + 5, "4 connections, 1 template");
    let list = |args: &[&str]| ours(&ns, &[&["list"], args].concat());
    let lines = |args: &[&str]| list(args).lines().skip(3).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&["fd00::1"]).len(), 2);
    assert_eq!(lines(&["10.0.0.1", "--protocol=udp"]), ["UDP  10.0.0.1:53 rr"]);
    assert_eq!(lines(&["--empty"]), ["UDP  10.0.0.1:53 rr"]);
    let draining = lines(&["--draining"]);
    assert!(draining.len() == 2 && draining[1].contains("10.244.0.7:8080"), "{draining:?}");
    assert_eq!(list(&["-c", "fd00::1"]).lines().count(), 2 + 2);
    let json = || serde_json::from_str::<serde_json::Value>(&list(&["10.0.0.1:80", "-o", "json"])).unwrap();
    // The kernel adds up the counters of its CPUs every two seconds.
    let start = Instant::now();
    while json()["virtualServers"][0]["counters"]["connections"] != 2 && start.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(100));
    }
    let json = json();
    let server = &json["virtualServers"][0];
    assert_eq!((&json["schemaVersion"], &server["counters"]["connections"]), (&1.into(), &2.into()));
    assert_eq!(server["realServers"][0]["upperThreshold"], 1000);
    assert_eq!(server["realServers"][1]["draining"], true);
    drop(open);
}

/// The comparison of ipvsadm is not a total order: its output depends on its sorting algorithm.
#[test]
fn addresses_are_sorted_as_by_ipvsadm() {
    let ns = Netns::new("order").unwrap();
    let lines: String = (0..200u32)
        .map(|n| {
            let [a, b, c, d] = n.wrapping_mul(2_654_435_761).to_be_bytes();
            format!("-A -t {}.{b}.{c}.{}:{} -s rr\n", a % 223 + 1, d % 250 + 1, 80 + n)
        })
        .collect();
    restore(&ns, &lines);
    let dests: String =
        (0..60u32).map(|n| format!("-a -t 9.9.9.9:9 -r {}.1.2.3:80 -m\n", n * 37 % 220 + 1)).collect();
    restore(&ns, &format!("-A -t 9.9.9.9:9 -s rr\n{dests}"));
    same(&ns);
}
