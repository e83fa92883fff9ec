// SPDX-License-Identifier: Apache-2.0
//! The log lines about a start, about changes and about the Node object.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use serde_json::json;
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::core::model::ObjectName;
use crate::core::plan::outcome::{Cause, OpError};
use crate::core::plan::subject::Subject;
use crate::kernel::fake::FakeKernel;
use crate::store::Kind;
use crate::testing::cluster::Cluster;
use crate::testing::{Agent, Clocked, SYSCTL, kernel, lines, lines_at, lines_of};

fn cluster() -> Cluster {
    Cluster::default()
        .service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]}), &[])
        .slice("web", &["10.244.1.5@n1", "10.244.1.6"], &["p/TCP/8080"])
}

/// A loop that has just started.
fn start(kernel: FakeKernel) -> Clocked {
    Clocked::new(Agent::start(kernel, &cluster()))
}

fn run(node: &mut Clocked, seconds: u64) {
    node.pass_time(Duration::from_secs(seconds));
}

/// Adds another Service.
fn add(node: &Clocked, name: &str, n: u8) {
    let spec = json!({"clusterIP": format!("10.96.9.{n}"), "ports": [{"name": "p", "port": 80}]});
    let more = Cluster::default().service(name, spec, &[]);
    node.agent.store.update(|update| more.objects.into_values().for_each(|object| update.put(object)));
}

fn has(lines: &[String], start: &str) -> bool {
    lines.iter().any(|line| line.starts_with(start))
}

#[test]
fn a_start_ends_with_one_line_about_what_is_served() {
    let log = lines(|| run(&mut start(kernel()), 2));
    let ready: Vec<&String> = log.iter().filter(|line| line.contains("ready: ")).collect();
    assert_eq!(ready.len(), 1, "{log:#?}");
    assert!(
        ready[0].starts_with("INFO ready: 1 Service, 1 virtual server, 2 real servers, IPv4 and IPv6, in "),
        "{ready:?}"
    );
}

#[test]
fn a_start_with_failures_is_reported() {
    let log = lines(|| {
        let mut kernel = kernel();
        kernel.refuse(Subject::Device, OpError::plain(Cause::WrongKind, "kube-ipvs0 is a bridge"));
        run(&mut start(kernel), 2);
    });
    assert!(has(&log, "WARN started, but not everything works: 1 Service, "), "{log:#?}");
    assert!(has(&log, "ERROR cannot program device kube-ipvs0: kube-ipvs0 is a bridge"), "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("ready: ")), "{log:#?}");
}

/// As on k3s, where load balancers have the addresses of the nodes.
#[test]
fn all_services_at_the_nodes_own_addresses_are_one_line() {
    let cluster = (1..=12).fold(Cluster::default(), |cluster, n| {
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": format!("10.96.0.{n}"),
            "ports": [{"name": "p", "port": 8000 + n}],
        });
        cluster.service(&format!("lb-{n:02}"), spec, &["192.168.50.2"])
    });
    let log = lines(|| run(&mut Clocked::new(Agent::start(kernel(), &cluster)), 2));
    let own: Vec<&String> = log.iter().filter(|line| line.contains("of this node")).collect();
    assert_eq!(own.len(), 1, "{log:#?}");
    let start = "INFO 12 VIPs are addresses on links of this node: 192.168.50.2 of Service d/lb-01, \
                 192.168.50.2 of Service d/lb-02, 192.168.50.2 of Service d/lb-03 and 9 more; they are served there";
    assert!(own[0].starts_with(start), "{own:?}");
    let one = Cluster { objects: cluster.objects.into_iter().take(1).collect(), ..Cluster::default() };
    let log = lines(|| run(&mut Clocked::new(Agent::start(kernel(), &one)), 2));
    let start =
        "INFO 192.168.50.2 of Service d/lb-01 is an address on a link of this node: it is served there";
    assert!(has(&log, start), "{log:#?}");
}

#[test]
fn the_line_at_the_end_of_the_start_has_a_separate_target() {
    let ready = || Targets::new().with_target(super::READY, LevelFilter::INFO);
    let log = lines_of(ready(), || run(&mut start(kernel()), 2));
    assert!(log.len() == 1 && log[0].contains("ready: "), "{log:#?}");
    let log = lines_of(ready(), || {
        let mut kernel = kernel();
        kernel.refuse(Subject::Device, OpError::plain(Cause::WrongKind, "kube-ipvs0 is a bridge"));
        run(&mut start(kernel), 2);
    });
    assert!(log.len() == 1 && log[0].contains("not everything works"), "{log:#?}");
}

#[test]
fn a_failure_is_reported_when_it_begins_and_when_it_ends() {
    let log = lines(|| {
        let mut kernel = kernel();
        kernel.state.node.sysctls.insert(SYSCTL, 0);
        kernel.refuse(Subject::Sysctl(SYSCTL), OpError::plain(Cause::ReadOnly, "it is 0 and must be 1"));
        let mut node = start(kernel);
        run(&mut node, 300);
        node.agent.kernel().accept(&Subject::Sysctl(SYSCTL));
        run(&mut node, 60);
    });
    let about: Vec<&String> = log.iter().filter(|line| line.contains(SYSCTL)).collect();
    assert!(about[0].starts_with("ERROR cannot program sysctl"), "{log:#?}");
    assert!(about.last().unwrap().starts_with("INFO no longer failing: sysctl"), "{log:#?}");
    let still = about.iter().filter(|line| line.starts_with("ERROR still failing: 1 sysctl")).count();
    assert!((2..=8).contains(&still), "{still} summaries in five minutes: {log:#?}");
    assert_eq!(about.len(), still + 2, "{log:#?}");
}

#[test]
fn changes_are_reported_with_their_services_at_level_two_and_once_a_minute() {
    let changes = |level| {
        lines_at(level, || {
            let mut node = start(kernel());
            run(&mut node, 2);
            for n in 1..=7 {
                add(&node, &format!("more-{n}"), n);
            }
            run(&mut node, 150);
        })
    };
    let log = changes(2);
    let sync = log.iter().find(|line| line.contains("sync: ") && line.contains("more-1"));
    let sync = sync.unwrap_or_else(|| panic!("{log:#?}"));
    assert!(sync.contains("d/more-1, d/more-2") && sync.contains(" and 2 more"), "{sync}");
    let log = changes(0);
    assert!(!log.iter().any(|line| line.contains("sync: ")), "{log:#?}");
    let minute: Vec<&String> = log.iter().filter(|line| line.contains("in the last minute: ")).collect();
    assert_eq!(minute.len(), 1, "{log:#?}");
    assert!(
        minute[0].contains("7 virtual servers added") && minute[0].contains("7 changed Services: "),
        "{minute:?}"
    );
}

#[test]
fn a_missing_or_deleted_node_object_is_reported_once() {
    let remove = |node: &Clocked| {
        node.agent.store.update(|update| update.remove(Kind::Node, &ObjectName::new("", "n1")));
    };
    let log = lines(|| {
        let mut node = start(kernel());
        remove(&node);
        run(&mut node, 100);
    });
    let missing = log.iter().filter(|line| line.starts_with("WARN there is no Node n1: ")).count();
    assert_eq!(missing, 1, "{log:#?}");
    assert!(log.iter().any(|line| line.contains("set hostnameOverride")), "{log:#?}");
    let log = lines(|| {
        let mut node = start(kernel());
        run(&mut node, 2);
        remove(&node);
        run(&mut node, 100);
    });
    assert_eq!(log.iter().filter(|line| line.contains("Node n1")).count(), 1, "{log:#?}");
    assert!(has(&log, "WARN the Node n1 was deleted: "), "{log:#?}");
}
