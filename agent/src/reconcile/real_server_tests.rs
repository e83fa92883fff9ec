// SPDX-License-Identifier: Apache-2.0
//! Weights, slow start, limits and direct return: the states of real servers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::core::model::real_servers::{ConnectionLimits, DIRECT_ROUTE, RsState, TUNNEL};
use crate::core::model::settings::ACCEPT_LOCAL;
use crate::core::model::{ProbeSpec, RsKey, VsKey};
use crate::core::plan::op::OpKind;
use crate::core::plan::pass::{Due, Pass};
use crate::kernel::fake::FakeKernel;
use crate::probe::{ProbeCounters, TargetChanges};
use crate::reconcile::endpoint_checks::EndpointChecker;
use crate::store::Kind;
use crate::testing::cluster::Cluster;
use crate::testing::scenarios::tcp_server;
use crate::testing::{Agent, kernel};

const VIP: &str = "10.96.0.10";
const EXTERNAL: &str = "198.51.100.10";

/// A Service with its endpoints, and annotations of both.
pub(super) fn cluster(service: &Value, slice: &Value, endpoints: &[&str]) -> Cluster {
    external(service, slice, endpoints, "Cluster", 80)
}

pub(super) fn external(
    service: &Value,
    slice: &Value,
    endpoints: &[&str],
    policy: &str,
    target: u16,
) -> Cluster {
    let spec = json!({
        "clusterIP": VIP, "externalIPs": [EXTERNAL], "externalTrafficPolicy": policy,
        "ports": [{"name": "p", "port": 80}],
    });
    Cluster::default()
        .annotated("web", service.clone(), spec)
        .with(Kind::EndpointSlice, &slice_of("web", slice, endpoints, target))
}

fn slice_of(service: &str, annotations: &Value, endpoints: &[&str], target: u16) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|endpoint| {
            let (address, node) = endpoint.split_once('@').unwrap();
            json!({"addresses": [address], "nodeName": node})
        })
        .collect();
    json!({
        "metadata": {"name": format!("{service}-1"), "namespace": "d", "annotations": annotations,
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "p", "port": target}],
    })
}

fn states_at(agent: &mut Agent, server: VsKey) -> Vec<RsState> {
    let server = &agent.kernel().state.virtual_servers[&server];
    server.real_servers.iter().map(|(_, state)| state).collect()
}

fn weights(agent: &mut Agent) -> Vec<u32> {
    states_at(agent, tcp_server(VIP, 80)).iter().map(|state| state.weight).collect()
}

pub(super) fn scheduler(agent: &mut Agent) -> String {
    agent.kernel().state.virtual_servers[&tcp_server(VIP, 80)].spec.scheduler.to_string()
}

fn started(cluster: &Cluster) -> Agent {
    started_on(kernel(), cluster)
}

fn started_on(kernel: FakeKernel, cluster: &Cluster) -> Agent {
    let mut agent = Agent::start(kernel, cluster);
    agent.converge(Due::Changes, 3);
    agent
}

pub(super) const TWO: [&str; 2] = ["10.244.1.5@n1", "10.244.2.6@n2"];

#[test]
fn weights_of_a_slice_are_edited_in_place_with_a_scheduler_that_heeds_them() {
    let mut agent = started(&cluster(&json!({}), &json!({}), &TWO));
    let of = |value: &str| cluster(&json!({}), &json!({"kube-ipvs.io/weight": value}), &TWO);
    of("10.244.2.6=3").put(&agent.store);
    let ops: Vec<OpKind> = agent.sync(Due::Changes).plan.ops.iter().map(|op| op.kind()).collect();
    // ClusterIP and external IP.
    let edits = [OpKind::EditVirtualServer, OpKind::EditRealServer];
    assert_eq!(ops, [edits, edits].concat());
    assert_eq!((weights(&mut agent), scheduler(&mut agent)), (vec![1, 3], "wrr".to_owned()));
    // Maintenance needs no other scheduler.
    of("10.244.2.6=0").put(&agent.store);
    agent.converge(Due::Changes, 3);
    assert_eq!((weights(&mut agent), scheduler(&mut agent)), (vec![1, 0], "rr".to_owned()));
    agent.now += Duration::from_secs(3600);
    assert!(agent.sync(Due::Audit).is_clean(), "maintenance is no drain that ends");
    assert_eq!(weights(&mut agent), [1, 0]);
    of("1").put(&agent.store);
    agent.converge(Due::Changes, 3);
    assert_eq!(weights(&mut agent), [1, 1]);
}

#[test]
fn with_policy_local_a_node_in_maintenance_counts_as_one_without_endpoints() {
    let of = |slice: Value| external(&json!({}), &slice, &TWO, "Local", 80);
    let mut agent = started(&of(json!({})));
    let server = tcp_server(EXTERNAL, 80);
    assert_eq!(states_at(&mut agent, server), [RsState::USUAL], "the local one");
    of(json!({"kube-ipvs.io/weight": "10.244.1.5=0"})).put(&agent.store);
    agent.converge(Due::Changes, 3);
    let weights: Vec<u32> = states_at(&mut agent, server).iter().map(|state| state.weight).collect();
    assert_eq!(weights, [0, 1], "the remote one gets the connections, the local one keeps its own");
    of(json!({"kube-ipvs.io/weight": "0"})).put(&agent.store);
    agent.converge(Due::Changes, 3);
    let weights: Vec<u32> = states_at(&mut agent, server).iter().map(|state| state.weight).collect();
    assert_eq!(weights.first(), Some(&0), "all are in maintenance");
}

#[test]
fn a_chosen_scheduler_stays_with_weights_and_one_that_the_kernel_lacks_is_told() {
    let slice = json!({"kube-ipvs.io/weight": "10.244.2.6=3"});
    let mut chosen = started(&cluster(&json!({"kube-ipvs.io/scheduler": "rr"}), &slice, &TWO));
    assert_eq!(scheduler(&mut chosen), "rr");
    let mut fake = kernel();
    fake.missing_schedulers = vec!["wrr"];
    let mut agent = started_on(fake, &cluster(&json!({}), &slice, &TWO));
    agent.converge(Due::Changes, 3);
    assert_eq!((weights(&mut agent), scheduler(&mut agent)), (vec![1, 3], "rr".to_owned()));
}

#[test]
fn a_new_endpoint_gets_its_full_weight_in_steps() {
    let slow = json!({"kube-ipvs.io/slow-start": "100s"});
    let three = ["10.244.1.5@n1", "10.244.2.6@n2", "10.244.2.7@n2"];
    let mut agent = started(&cluster(&slow, &json!({}), &TWO));
    assert_eq!(weights(&mut agent), [100, 100], "endpoints that start together");
    cluster(&slow, &json!({}), &three).put(&agent.store);
    let began = agent.now;
    let _ = agent.sync(Due::Changes);
    assert_eq!((weights(&mut agent), scheduler(&mut agent)), (vec![100, 100, 10], "wrr".to_owned()));
    for (after, weight) in [(9, 10), (10, 20), (55, 60), (99, 100), (150, 100)] {
        agent.now = began + Duration::from_secs(after);
        let _ = agent.sync(Due::Changes);
        assert_eq!(weights(&mut agent), [100, 100, weight], "after {after} s");
    }
    let edits = agent.kernel().count(OpKind::EditRealServer);
    agent.now += Duration::from_secs(1000);
    assert!(agent.sync(Due::Audit).plan.is_empty());
    assert_eq!(agent.kernel().count(OpKind::EditRealServer), edits, "nothing more is written");
    // An endpoint that leaves and comes back starts again.
    cluster(&slow, &json!({}), &TWO).put(&agent.store);
    agent.converge(Due::Changes, 3);
    cluster(&slow, &json!({}), &three).put(&agent.store);
    let _ = agent.sync(Due::Changes);
    assert_eq!(weights(&mut agent), [100, 100, 10]);
    cluster(&json!({}), &json!({}), &three).put(&agent.store);
    agent.converge(Due::Changes, 3);
    assert_eq!((weights(&mut agent), scheduler(&mut agent)), (vec![1, 1, 1], "rr".to_owned()));
}

#[test]
fn limits_are_written_once_and_their_drift_is_repaired() {
    let limited = json!({"kube-ipvs.io/max-connections": "1000,800"});
    let limits = ConnectionLimits { upper: 1000, lower: 800 };
    let mut agent = started(&cluster(&limited, &json!({}), &TWO));
    let server = tcp_server(VIP, 80);
    let all = [RsState { limits, ..RsState::USUAL }; 2];
    assert_eq!(states_at(&mut agent, server), all);
    assert!(agent.sync(Due::Audit).plan.is_empty());
    // Another agent starts on this node, and writes nothing.
    let restarted = std::mem::take(agent.kernel());
    let mut agent = Agent::start(restarted, &cluster(&limited, &json!({}), &TWO));
    assert!(agent.sync(Due::Changes).plan.is_empty());
    let rs = RsKey { addr: [10, 244, 1, 5].into(), port: 80 };
    agent.kernel().state.virtual_servers.get_mut(&server).unwrap().real_servers.insert(rs, RsState::USUAL);
    let pass = agent.sync(Due::Audit);
    assert_eq!(pass.drift.len(), 1);
    assert_eq!(states_at(&mut agent, server), all);
    cluster(&json!({}), &json!({}), &TWO).put(&agent.store);
    agent.converge(Due::Changes, 3);
    assert_eq!(states_at(&mut agent, server), [RsState::USUAL; 2]);
}

/// The forwarding methods at the external IP, and the first line about an annotation that is ignored.
fn direct(how: &str, policy: &str, target: u16, accept_local: i64) -> (Vec<u32>, Option<String>) {
    let service = json!({"kube-ipvs.io/direct-return": how});
    let mut fake = kernel();
    fake.state.node.sysctls.insert(ACCEPT_LOCAL, accept_local);
    let mut methods = Vec::new();
    let lines = crate::testing::lines(|| {
        let mut agent = started_on(fake, &external(&service, &json!({}), &TWO, policy, target));
        let cluster_ip = states_at(&mut agent, tcp_server(VIP, 80));
        assert!(cluster_ip.iter().all(|state| *state == RsState::USUAL), "{cluster_ip:?}");
        methods = states_at(&mut agent, tcp_server(EXTERNAL, 80)).iter().map(|state| state.forward).collect();
    });
    (methods, lines.into_iter().find(|line| line.contains("AnnotationIgnored")))
}

#[test]
fn endpoints_answer_directly_where_that_works_and_else_the_reason_is_told() {
    assert_eq!(direct("tunnel", "Cluster", 80, 1), (vec![TUNNEL; 2], None));
    assert_eq!(direct("route", "Local", 80, 1), (vec![DIRECT_ROUTE], None));
    for (how, policy, target, accept_local, told) in [
        ("route", "Cluster", 80, 1, "set externalTrafficPolicy: Local, or tunnel"),
        ("tunnel", "Cluster", 8080, 1, "set targetPort to the port of the Service"),
        ("tunnel", "Cluster", 80, 0, "net.ipv4.conf.all.accept_local is 0: set it to 1"),
    ] {
        let (methods, line) = direct(how, policy, target, accept_local);
        assert_eq!(methods, [0, 0], "{told}");
        let line = line.unwrap();
        assert!(line.contains(told) && line.contains("Service d/web"), "{line}");
    }
}

/// Has the results of checks taken as the loop does.
fn checked(agent: &mut Agent, results: &[(u8, bool)]) {
    let changes: Vec<_> = results.iter().map(|(n, dead)| (pod(*n), *dead)).collect();
    agent.reconciler.take_checked(&changes, agent.now);
    let _ = agent.sync(Due::Changes);
}

/// What the checker was told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<TargetChanges>>>);

impl EndpointChecker for Told {
    fn check(&self, changes: TargetChanges) {
        self.0.lock().unwrap().push(changes);
    }

    fn counters(&self) -> ProbeCounters {
        ProbeCounters::default()
    }
}

impl Told {
    /// What it was told since the last call.
    fn take(&self) -> Vec<TargetChanges> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn pod(n: u8) -> RsKey {
    RsKey { addr: [10, 244, 2, n].into(), port: 80 }
}

#[test]
fn endpoints_that_do_not_answer_are_taken_out_but_never_more_than_half() {
    let probe = json!({"kube-ipvs.io/probe": "interval=5s"});
    let four = ["10.244.2.5@n2", "10.244.2.6@n2", "10.244.2.7@n2", "10.244.2.8@n2"];
    let mut agent = Agent::start(kernel(), &cluster(&probe, &json!({}), &four));
    let told = Told::default();
    agent.reconciler.check_endpoints(Box::new(told.clone()));
    agent.converge(Due::Changes, 3);
    assert_eq!(told.take()[0].len(), 4, "each endpoint once, at all VIPs");
    checked(&mut agent, &[(5, true)]);
    assert_eq!(weights(&mut agent), [0, 1, 1, 1]);
    checked(&mut agent, &[(6, true)]);
    assert_eq!(weights(&mut agent), [0, 0, 1, 1]);
    checked(&mut agent, &[(7, true)]);
    assert_eq!(weights(&mut agent), [1, 1, 1, 1], "a storm");
    checked(&mut agent, &[(5, false), (6, false)]);
    assert_eq!(weights(&mut agent), [1, 1, 0, 1]);
    assert!(agent.sync(Due::Audit).plan.is_empty(), "no drain, no drift");
    assert_eq!(agent.kernel().count(OpKind::RemoveRealServer), 0);
    assert!(told.take().is_empty(), "results change no targets");
    // A single endpoint always stays.
    cluster(&probe, &json!({}), &four[2..3]).put(&agent.store);
    agent.converge(Due::Changes, 3);
    assert_eq!(weights(&mut agent), [1]);
    assert_eq!(told.take(), [[5, 6, 8].map(|n| (pod(n), None))], "only what changed");
    // Without the annotation nothing is checked.
    cluster(&json!({}), &json!({}), &four).put(&agent.store);
    agent.converge(Due::Changes, 3);
    assert_eq!(weights(&mut agent), [1, 1, 1, 1]);
    assert_eq!(told.take(), [[(pod(7), None)]]);
}

#[test]
fn an_endpoint_of_two_services_is_checked_for_both_and_told_once() {
    let both = |probes: [Option<&str>; 2]| {
        [("one", "10.96.0.11"), ("two", "10.96.0.12")].into_iter().zip(probes).fold(
            Cluster::default(),
            |cluster, ((name, vip), probe)| {
                let annotations = probe.map_or(json!({}), |probe| json!({"kube-ipvs.io/probe": probe}));
                let spec = json!({"clusterIP": vip, "ports": [{"name": "p", "port": 80}]});
                let slice = slice_of(name, &json!({}), &TWO, 80);
                cluster.annotated(name, annotations, spec).with(Kind::EndpointSlice, &slice)
            },
        )
    };
    let told = Told::default();
    let mut agent = Agent::start(kernel(), &both([None, None]));
    agent.reconciler.check_endpoints(Box::new(told.clone()));
    let mut specs = |probes: [Option<&str>; 2]| {
        both(probes).put(&agent.store);
        agent.converge(Due::Changes, 3);
        let specs = |change: TargetChanges| change.into_iter().map(|(_, it)| it.map(|it| it.spec)).collect();
        told.take().into_iter().map(specs).collect::<Vec<Vec<_>>>()
    };
    let spec = |text: &str| Some(text.parse::<ProbeSpec>().unwrap());
    let (slow, fast) = ("interval=5s,timeout=1s,threshold=5", "interval=2s,timeout=500ms,threshold=1");
    assert_eq!(specs([Some(slow), None]), [[spec(slow); 2]]);
    assert_eq!(specs([Some(slow), Some(fast)]), [[spec("interval=2s,timeout=1s,threshold=5"); 2]]);
    let nothing: [Vec<Option<ProbeSpec>>; 0] = [];
    assert_eq!(specs([Some("interval=9s,timeout=1s,threshold=5"), Some(fast)]), nothing);
    assert_eq!(specs([None, Some(fast)]), [[spec(fast); 2]]);
    assert_eq!(specs([None, None]), [[None; 2]]);
}

#[test]
fn an_endpoint_that_an_earlier_agent_took_out_stays_out_until_it_answers() {
    let probe = json!({"kube-ipvs.io/probe": "true"});
    let four = ["10.244.2.5@n2", "10.244.2.6@n2", "10.244.2.7@n2", "10.244.2.8@n2"];
    let mut agent = started(&cluster(&probe, &json!({}), &four));
    checked(&mut agent, &[(6, true)]);
    assert_eq!(weights(&mut agent), [1, 0, 1, 1]);
    let restarted = std::mem::take(agent.kernel());
    let told = Told::default();
    let lines = crate::testing::lines(|| {
        let mut agent = Agent::start(restarted, &cluster(&probe, &json!({}), &four));
        agent.reconciler.check_endpoints(Box::new(told.clone()));
        agent.converge(Due::Changes, 3);
        assert_eq!(weights(&mut agent), [1, 0, 1, 1]);
        let dead =
            told.take()[0].iter().map(|(rs, target)| (*rs, target.unwrap().is_dead)).collect::<Vec<_>>();
        assert_eq!(dead, [5, 6, 7, 8].map(|n| (pod(n), n == 6)));
        checked(&mut agent, &[(6, false)]);
        assert_eq!(weights(&mut agent), [1; 4]);
        // Later a weight of 0 in the kernel is drift.
        let server = agent.kernel().state.virtual_servers.get_mut(&tcp_server(VIP, 80)).unwrap();
        server.real_servers.insert(pod(7), RsState { weight: 0, ..RsState::USUAL });
        assert_eq!(agent.sync(Due::Audit).drift.len(), 1);
        assert_eq!(weights(&mut agent), [1; 4]);
    });
    assert!(
        lines.iter().any(|line| line.contains("answer a TCP check") && line.contains("10.244.2.6:80")),
        "{lines:#?}"
    );
}

#[test]
fn endpoints_of_other_services_are_not_taken_out() {
    let mut agent = started(&cluster(&json!({}), &json!({}), &TWO));
    checked(&mut agent, &[(6, true)]);
    assert_eq!(weights(&mut agent), [1, 1]);
}

#[test]
fn a_service_that_was_built_before_the_endpoint_was_found_out_takes_it_out_too() {
    let four = ["10.244.2.5@n2", "10.244.2.6@n2", "10.244.2.7@n2", "10.244.2.8@n2"];
    let vips = [("a", "10.96.0.11"), ("b", "10.96.0.12")];
    let both = vips.into_iter().fold(Cluster::default(), |cluster, (name, vip)| {
        let spec = json!({"clusterIP": vip, "ports": [{"name": "p", "port": 80}]});
        cluster
            .annotated(name, json!({"kube-ipvs.io/probe": "true"}), spec)
            .with(Kind::EndpointSlice, &slice_of(name, &json!({}), &four, 80))
    });
    let mut fake = std::mem::take(started(&both).kernel());
    let closed = fake.state.virtual_servers.get_mut(&tcp_server(vips[1].1, 80)).unwrap();
    closed.real_servers.insert(pod(6), RsState { weight: 0, ..RsState::USUAL });
    let mut agent = Agent::start(fake, &both);
    agent.reconciler.check_endpoints(Box::new(Told::default()));
    // The second sync has the Services of such endpoints.
    let syncs = [agent.sync(Due::Changes), agent.sync(Due::Changes)];
    assert!(syncs.iter().all(Pass::is_clean));
    for (_, vip) in vips {
        let weights: Vec<u32> =
            states_at(&mut agent, tcp_server(vip, 80)).iter().map(|state| state.weight).collect();
        assert_eq!(weights, [1, 0, 1, 1], "{vip}");
    }
}

#[test]
fn flapping_endpoints_cause_few_lines() {
    let probe = json!({"kube-ipvs.io/probe": "interval=1s,threshold=1"});
    let lines = crate::testing::lines(|| {
        let mut agent = started(&cluster(&probe, &json!({}), &TWO));
        for second in 0..600 {
            agent.now = Duration::from_secs(1000 + second);
            let rs = RsKey { addr: [10, 244, 2, 6].into(), port: 80 };
            agent.reconciler.take_checked(&[(rs, second % 2 == 0)], agent.now);
            agent.reconciler.count_checks(agent.now);
        }
    });
    let about: Vec<&String> = lines.iter().filter(|line| line.contains("TCP checks")).collect();
    assert!((2..12).contains(&about.len()), "{about:#?}");
    let line =
        "no answer to TCP checks of this node: 10.244.2.6:80 of Service d/web; they get no new connections";
    assert!(about[0].contains(line), "{}", about[0]);
    // One that was removed while it was dead did not answer.
    let lines = crate::testing::lines(|| {
        let mut agent = started(&cluster(&probe, &json!({}), &TWO));
        let of = |last| RsKey { addr: [10, 244, 2, last].into(), port: 80 };
        agent.reconciler.take_checked(&[(of(6), true), (of(77), false)], agent.now);
    });
    let about: Vec<&String> = lines.iter().filter(|line| line.contains("TCP checks")).collect();
    assert!(about.len() == 1 && about[0].contains(line), "{about:#?}");
}
