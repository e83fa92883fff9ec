// SPDX-License-Identifier: Apache-2.0
//! Settings of single Services, by annotation.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::core::model::sets::{SetId, SetKind};
use crate::core::model::settings::Settings;
use crate::core::model::{Family, RsKey, VsSpec};
use crate::core::plan::op::{Op, OpKind};
use crate::core::plan::pass::Due;
use crate::reconcile::Reconciler;
use crate::testing::cluster::Cluster;
use crate::testing::scenarios::tcp_server;
use crate::testing::{Agent, DEADLINE, kernel, reporting, settings};

const BACKENDS: [&str; 2] = ["10.244.1.5@n1", "10.244.2.6@n2"];

fn cluster(annotations: Value, backends: &[&str]) -> Cluster {
    let spec = |ip: &str| json!({"clusterIP": ip, "ports": [{"name": "p", "port": 80}]});
    Cluster::default()
        .annotated("web", annotations, spec("10.96.0.10"))
        .slice("web", backends, &["p/TCP/8080"])
        .annotated("plain", json!({}), spec("10.96.0.11"))
}

fn specs(agent: &mut Agent) -> BTreeMap<String, VsSpec> {
    let servers = &agent.kernel().state.virtual_servers;
    servers.iter().map(|(key, server)| (key.to_string(), server.spec.clone())).collect()
}

fn spec(scheduler: &str, flags: u32) -> VsSpec {
    VsSpec { scheduler: scheduler.into(), flags, timeout: 0 }
}

#[test]
fn a_change_of_the_scheduler_edits_the_virtual_server_of_its_service_alone() {
    let mut agent = Agent::start(kernel(), &cluster(json!({}), &BACKENDS));
    agent.converge(Due::Changes, 3);
    let before = specs(&mut agent);
    let chosen = json!({"kube-ipvs.io/scheduler": "mh", "kube-ipvs.io/scheduler-flags": "mh-fallback"});
    cluster(chosen, &BACKENDS).put(&agent.store);
    let pass = agent.sync(Due::Changes);
    let edit = Op::EditVirtualServer(tcp_server("10.96.0.10", 80), spec("mh", 0x8));
    assert_eq!(pass.plan.ops, [edit]);
    // The annotations go, and the configuration holds again.
    cluster(json!({}), &BACKENDS).put(&agent.store);
    agent.converge(Due::Changes, 3);
    assert_eq!(specs(&mut agent), before);
}

#[test]
fn many_changes_of_schedulers_leave_room_for_changes_of_others() {
    let many = |scheduler: &str| {
        let ports: Vec<Value> =
            (1..=100).map(|n| json!({"name": format!("p{n}"), "port": 1000 + n})).collect();
        let annotations = json!({"kube-ipvs.io/scheduler": scheduler});
        cluster(json!({}), &BACKENDS).annotated(
            "many",
            annotations,
            json!({"clusterIP": "10.96.0.20", "ports": ports}),
        )
    };
    let mut agent = Agent::start(kernel(), &many("rr"));
    agent.converge(Due::Changes, 3);
    many("lc").put(&agent.store);
    let edits = |agent: &mut Agent| agent.kernel().count(OpKind::EditVirtualServer);
    for pass in 1..=3 {
        let _ = agent.sync(Due::Changes);
        assert_eq!(edits(&mut agent), 16 * pass);
    }
    // Another Service changes meanwhile, and need not wait for all of them.
    many("lc")
        .annotated("new", json!({}), json!({"clusterIP": "10.96.0.21", "ports": [{"port": 80}]}))
        .put(&agent.store);
    let _ = agent.sync(Due::Changes);
    assert!(specs(&mut agent).contains_key("TCP 10.96.0.21:80"));
    agent.converge(Due::Changes, 3);
    assert_eq!(edits(&mut agent), 100);
    assert!(agent.sync(Due::Audit).plan.is_empty());
    assert_eq!(specs(&mut agent).values().filter(|spec| &*spec.scheduler == "lc").count(), 100);
}

#[test]
fn a_scheduler_that_the_kernel_lacks_is_replaced_by_the_configured_one_and_tried_again() {
    let mut fake = kernel();
    fake.missing_schedulers = vec!["twos"];
    let mut agent = Agent::start(fake, &cluster(json!({"kube-ipvs.io/scheduler": "twos"}), &BACKENDS));
    agent.converge(Due::Changes, 4);
    assert_eq!(specs(&mut agent)["TCP 10.96.0.10:80"], spec("rr", 0));
    assert_eq!(agent.kernel().state.virtual_servers[&tcp_server("10.96.0.10", 80)].real_servers.len(), 2);
    // Nothing is tried for ten minutes.
    let tries = agent.kernel().count(OpKind::EditVirtualServer);
    for _ in 0..10 {
        assert!(agent.sync(Due::Audit).is_clean());
    }
    assert_eq!(agent.kernel().count(OpKind::EditVirtualServer), tries);
    agent.kernel().missing_schedulers.clear();
    for _ in 0..15 {
        let _ = agent.sync(Due::Audit);
    }
    assert_eq!(specs(&mut agent)["TCP 10.96.0.10:80"], spec("twos", 0));
}

/// Drains one of two real servers that keeps its connections, and tells whether it is there after `time`.
fn is_there_after(deadline: &str, time: Duration) -> bool {
    let annotations = || json!({"kube-ipvs.io/drain-deadline": deadline});
    let mut agent = Agent::start(kernel(), &cluster(annotations(), &BACKENDS));
    agent.converge(Due::Changes, 3);
    let server = tcp_server("10.96.0.10", 80);
    let leaving = RsKey { addr: [10, 244, 2, 6].into(), port: 8080 };
    cluster(annotations(), &BACKENDS[..1]).put(&agent.store);
    agent.kernel().state.busy.insert((server, leaving));
    let _ = agent.sync(Due::Changes);
    agent.now += time;
    agent.kernel().state.busy.insert((server, leaving));
    let _ = agent.sync(Due::Drains);
    agent.kernel().state.virtual_servers[&server].real_servers.get(&leaving).is_some()
}

#[test]
fn a_drain_ends_by_the_deadline_of_its_service_or_else_of_the_configuration() {
    let short = Duration::from_secs(60);
    assert!(!is_there_after("50s", short));
    assert!(is_there_after("1h", DEADLINE));
    assert!(is_there_after("0s", DEADLINE), "no deadline");
    assert!(is_there_after("not a duration", short));
    assert!(!is_there_after("not a duration", DEADLINE));
}

#[test]
fn without_hairpin_no_pod_of_the_service_is_in_the_set() {
    let set = SetId { kind: SetKind::LoopBack, family: Family::V4 };
    for (hairpin, entries) in [("true", 1), ("false", 0)] {
        let annotations = json!({"kube-ipvs.io/hairpin": hairpin});
        let mut agent = Agent::start(kernel(), &cluster(annotations, &BACKENDS));
        agent.converge(Due::Changes, 3);
        assert_eq!(agent.kernel().state.sets[&set].members.len(), entries, "{hairpin}");
    }
}

#[test]
fn nodes_add_real_servers_in_different_orders_if_they_should() {
    let backends: Vec<String> = (1..=20).map(|n| format!("10.244.1.{n}@n1")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let order = |node: &str, order_seed: Option<u64>, scheduler: &str| {
        let settings = Settings { order_seed, scheduler: scheduler.into(), ..settings() };
        let objects = cluster(json!({}), &backends);
        let mut agent = Agent::with_settings(kernel(), &objects, settings.clone());
        agent.reconciler = Reconciler::new(kernel(), agent.store.clone(), settings, node, false, reporting());
        let pass = agent.sync(Due::Changes);
        let added = pass.plan.ops.iter().filter_map(|op| match op {
            Op::AddRealServer(_, rs, _) => Some(*rs),
            _ => None,
        });
        added.collect::<Vec<_>>()
    };
    let usual = order("n1", None, "rr");
    assert!(usual.is_sorted());
    let mut own = order("n1", Some(0), "rr");
    assert_ne!(own, usual);
    assert_eq!(own, order("n1", Some(0), "rr"), "the same at each start");
    assert_ne!(own, order("n2", Some(0), "rr"), "another one on another node");
    own.sort_unstable();
    assert_eq!(own, usual);
    for scheduler in ["sh", "mh", "dh"] {
        assert_eq!(order("n2", Some(0), scheduler), usual, "{scheduler} chooses by a hash");
    }
}

#[test]
fn what_has_no_effect_is_an_event() {
    let annotations = json!({"kube-ipvs.io/scheduler": "fastest"});
    let lines = crate::testing::lines(|| {
        let mut agent = Agent::start(kernel(), &cluster(annotations, &BACKENDS));
        agent.converge(Due::Changes, 3);
        agent.converge(Due::Audit, 3);
    });
    let told: Vec<&String> = lines.iter().filter(|line| line.contains("AnnotationIgnored")).collect();
    assert_eq!(told.len(), 1, "{lines:#?}");
    for part in ["Service d/web", "kube-ipvs.io/scheduler", "\"fastest\" is not a scheduler of IPVS"] {
        assert!(told[0].contains(part), "{told:?}");
    }
}
