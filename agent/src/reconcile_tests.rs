// SPDX-License-Identifier: Apache-2.0
//! The loop with the fake kernel: every kind of op fails once, the process is killed between any two ops, other programs
//! interfere; the next pass converges.

mod drain_tests;

use crate::core::model::PerFamily;
use crate::core::plan::outcome::{ObserveError, OpError, Outcome, Progress};
use crate::core::plan::pass::{Due, Pass};
use std::sync::Arc;
use std::time::Duration;

use crate::core::mirror::ObservedServer;
use crate::core::mirror::comparison::{Piece, ReadStep};
use crate::core::model::map::Set;
use crate::core::model::sets::{Entry, ProbedSet, SetId, SetKind};
use crate::core::model::settings::{Settings, Sysctl};
use crate::core::model::*;
use crate::core::plan::op::{Op, OpKind};
use crate::core::plan::outcome::Cause;
use crate::core::plan::outcome::Finished;
use crate::core::plan::subject::{Part, Subject};
use crate::inbox::Inbox;
use crate::inspect::owners::{OwnersOf, OwnersPage};
use crate::kernel::fake::FakeKernel;
use crate::kernel::{Kernel, ProbeResult, Runner};
use crate::reconcile::schedule::Schedule;
use crate::reconcile::{Reconciler, Reporting};
use crate::serve::health::{Health, LoopLag, SharedHealth};
use crate::store::{Kind, Object, Store};
use crate::testing::reporting;

const SYSCTL: &str = "/proc/sys/net/ipv4/vs/conntrack";

/// Half a minute after the last call: every retry is due.
fn now() -> Duration {
    thread_local!(static NOW: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
    NOW.with(|now| {
        now.set(now.get() + 31);
        Duration::from_secs(now.get())
    })
}

fn settings() -> Settings {
    Settings { sysctls: vec![Sysctl::exactly(SYSCTL, 1)], ..Settings::default() }
}

fn new_store() -> Arc<Store> {
    Arc::new(Store::new(Arc::new(Inbox::default())))
}

fn reconciler(store: &Arc<Store>, kernel: FakeKernel) -> Reconciler<FakeKernel> {
    Reconciler::new(kernel, store.clone(), settings(), "n1", false, reporting())
}

fn service(name: &str, number: u8, external: Option<u8>) -> Object {
    Object::Service(Service {
        name: ObjectName::new("d", name),
        created: 0,
        cluster_ips: PerFamily::new(
            Some([10, 96, 0, number].into()),
            Some(format!("fd00:96::{number}").parse().unwrap()),
        ),
        external_ips: external.map(|e| [198, 51, 100, e].into()).into_iter().collect(),
        ports: vec![ServicePort { name: "p".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        ..Service::default()
    })
}

fn slice(service: &str, endpoints: &[u8]) -> Object {
    Object::EndpointSlice(EndpointSlice {
        wrong_weights: None,
        name: ObjectName::new("d", service),
        service: ObjectName::new("d", service),
        family: Family::V4,
        ports: [SlicePort { name: "p".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints
            .iter()
            .map(|n| Endpoint {
                addr: [10, 244, 1, *n].into(),
                ready: true,
                serving: true,
                terminating: false,
                weight: 1,
                place: Some(Place::on("n1")),
            })
            .collect(),
    })
}

/// The objects before and after a change that needs every kind of op.
fn before(store: &Store) {
    store.update(|u| {
        u.put(service("a", 1, Some(1)));
        u.put(slice("a", &[1, 2]));
        u.put(service("b", 2, None));
        u.put(slice("b", &[5]));
    });
}

fn after(store: &Store) {
    store.update(|u| {
        u.put(service("a", 1, None));
        u.put(slice("a", &[2, 3]));
        u.remove(Kind::Service, &ObjectName::new("d", "b"));
        u.put(service("c", 3, Some(2)));
        u.put(slice("c", &[6]));
    });
}

/// Changes of another program, so that edits are needed, too.
fn interfere(kernel: &mut FakeKernel) {
    for server in kernel.state.virtual_servers.values_mut() {
        server.spec.scheduler = "wrr".into();
        server.real_servers.values_mut().for_each(|rs| rs.weight = 9);
    }
}

fn target() -> FakeKernel {
    let store = new_store();
    before(&store);
    after(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    std::mem::take(r.kernel())
}

/// Runs passes until one is clean, at most `limit`.
fn converge(r: &mut Reconciler<FakeKernel>, due: Due, limit: usize) -> Pass {
    let mut pass = r.sync(due, now());
    for _ in 1..limit {
        if pass.is_clean() {
            break;
        }
        let retry =
            if pass.report.is_uncertain() || pass.unreadable.is_some() { Due::Audit } else { Due::Changes };
        pass = r.sync(retry, now());
    }
    assert!(pass.is_clean(), "{:?}", pass.report);
    pass
}

#[test]
fn a_failed_guard_keeps_the_addresses_closed() {
    for kind in [OpKind::CreateSet, OpKind::WriteRules] {
        let store = new_store();
        before(&store);
        let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
        r.kernel().fail_next(kind);
        let pass = r.sync(Due::Audit, now());
        let skipped = pass.plan.ops.iter().zip(&pass.report.outcomes).any(
            |(op, outcome)| matches!((op, outcome), (Op::Bind(addr), Outcome::Blocked(_)) if addr.is_ipv4()),
        );
        assert!(skipped, "{kind:?}");
        assert!(
            r.kernel().state.addresses.iter().all(|net| net.addr().is_ipv6()),
            "the other family is bound"
        );
        assert!(!r.kernel().state.virtual_servers.is_empty(), "independent objects are programmed");
    }
}

#[test]
fn a_restart_on_a_correct_kernel_writes_nothing() {
    let store = new_store();
    before(&store);
    after(&store);
    let mut r = reconciler(&store, target());
    let pass = r.sync(Due::Audit, now());
    assert!(pass.plan.is_empty(), "{}", pass.plan);
}

#[test]
fn one_endpoint_is_one_command_and_no_reading() {
    let store = new_store();
    before(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    let observations = r.kernel().counts.observations;
    store.update(|u| u.put(slice("a", &[1, 2, 9])));
    let pass = r.sync(Due::Changes, now());
    // `a` has a ClusterIP and an external IP: one real server each, one hairpin entry.
    let ops: Vec<OpKind> = pass.plan.ops.iter().map(Op::kind).collect();
    assert_eq!(ops, [OpKind::AddEntry, OpKind::AddRealServer, OpKind::AddRealServer]);
    assert_eq!(r.kernel().counts.observations, observations);
}

#[test]
fn an_unreadable_kernel_is_not_written() {
    let store = new_store();
    before(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    r.kernel().fail_next_observe();
    let pass = r.sync(Due::Audit, now());
    assert!(pass.unreadable.is_some() && !pass.is_clean());
    assert!(r.kernel().counts.ops.is_empty());
    let _ = converge(&mut r, Due::Audit, 1);
}

#[test]
fn changes_of_other_programs_are_repaired_and_counted_as_drift() {
    let store = new_store();
    before(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert_eq!(r.sync(Due::Audit, now()).drift.len(), 0, "the first pass repairs no drift");
    let state = r.kernel().state.clone();
    let foreign = Entry::Ip("9.9.9.9".parse().unwrap());
    let k = r.kernel();
    k.state.record(&Op::AddEntry(SetId { kind: SetKind::IpvsIps, family: Family::V4 }, foreign));
    k.state.addresses.clear();
    k.state.rules[Family::V4].chains.clear();
    interfere(k);
    let pass = converge(&mut r, Due::Audit, 1);
    assert!(pass.drift.len() >= 8, "{}", pass.plan);
    assert_eq!(r.kernel().state, state);
}

#[test]
fn a_stale_mirror_is_detected_by_a_refused_op() {
    let store = new_store();
    before(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    let state = r.kernel().state.clone();
    r.kernel().state.virtual_servers.clear();
    store.update(|u| u.put(slice("a", &[1, 2, 9])));
    let pass = r.sync(Due::Changes, now());
    assert!(pass.report.is_uncertain(), "the virtual server is gone: ESRCH");
    let _ = converge(&mut r, Due::Audit, 1);
    assert_eq!(r.kernel().state.virtual_servers.len(), state.virtual_servers.len());
}

#[test]
fn an_address_that_the_node_gets_leaves_the_device() {
    let store = new_store();
    before(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    let external = "198.51.100.1".parse().unwrap();
    r.kernel().state.node_addresses.push(external);
    assert!(r.sync(Due::Audit, now()).is_clean());
    assert!(!r.kernel().state.addresses.iter().any(|net| net.addr() == external));
    r.kernel().state.node_addresses.clear();
    assert!(r.sync(Due::Audit, now()).is_clean());
    assert!(r.kernel().state.addresses.iter().any(|net| net.addr() == external));
}

/// A kernel that another thread can read while the loop owns it.
struct SharedKernel(Arc<std::sync::Mutex<FakeKernel>>);

impl Kernel for SharedKernel {
    fn read(&mut self, step: ReadStep) -> Result<Option<Piece>, ObserveError> {
        self.0.lock().unwrap().read(step)
    }

    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>)) {
        self.0.lock().unwrap().beside(work);
    }

    fn read_servers(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError> {
        self.0.lock().unwrap().read_servers(servers)
    }

    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError> {
        self.0.lock().unwrap().busy(servers)
    }

    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        self.0.lock().unwrap().execute(ops)
    }

    fn read_part(&mut self, part: Part) -> Result<Piece, ObserveError> {
        self.0.lock().unwrap().read_part(part)
    }

    fn read_rules(&mut self, families: &[Family], afresh: bool) {
        self.0.lock().unwrap().read_rules(families, afresh);
    }

    fn finished(&mut self, limit: Duration) -> Vec<Finished> {
        self.0.lock().unwrap().finished(limit)
    }

    fn probe(&mut self, servers: &[VsKey], sets: &[ProbedSet]) -> ProbeResult {
        self.0.lock().unwrap().probe(servers, sets)
    }
}

#[test]
fn the_loop_waits_for_every_list_answers_requests_and_stops() {
    let inbox = Arc::new(Inbox::default());
    let store = Arc::new(Store::new(inbox.clone()));
    let kernel = Arc::new(std::sync::Mutex::new(FakeKernel::new(&[SYSCTL])));
    let mut r =
        Reconciler::new(SharedKernel(kernel.clone()), store.clone(), settings(), "n1", false, reporting());
    let loop_inbox = inbox.clone();
    let schedule = Schedule::new(Duration::ZERO, Duration::from_secs(3600));
    let thread = std::thread::spawn(move || r.run(&loop_inbox, schedule));
    let owners = || {
        let (sender, receiver) = std::sync::mpsc::channel();
        inbox.ask(Box::new(move |state| {
            sender
                .send(OwnersPage::build(state.desired, None, &OwnersOf::default()).lines.join("\n"))
                .unwrap();
        }));
        receiver.recv_timeout(Duration::from_secs(20)).unwrap()
    };
    before(&store);
    for kind in [Kind::Service, Kind::EndpointSlice] {
        store.update(|u| u.finish_list(kind));
    }
    assert_eq!(owners(), "", "a request is answered before the lists are complete");
    assert!(kernel.lock().unwrap().counts.ops.is_empty(), "nothing was written");
    store.update(|u| u.finish_list(Kind::Node));
    let wait_for = |text: &str| {
        (0..2000).any(|_| {
            owners().contains(text) || {
                std::thread::sleep(Duration::from_millis(5));
                false
            }
        })
    };
    assert!(wait_for("TCP 10.96.0.1:80 d/a:p"));
    assert!(kernel.lock().unwrap().count(OpKind::Bind) > 0);
    inbox.stop();
    thread.join().unwrap();
    assert!(!kernel.lock().unwrap().state.addresses.is_empty(), "stopping leaves the data plane");
}

#[test]
fn the_loop_waits_for_pod_cidrs_of_the_node_and_follows_their_changes() {
    let store = new_store();
    before(&store);
    for kind in Kind::ALL {
        store.update(|u| u.finish_list(kind));
    }
    let node = |cidr: Option<&str>| {
        let pod_cidrs = PerFamily::new(cidr.map(|c| c.parse().unwrap()), None);
        store.update(|u| u.put(Object::Node(Node { name: "n1".into(), pod_cidrs, ..Node::default() })));
    };
    let kernel = FakeKernel::new(&[SYSCTL]);
    let mut r = Reconciler::new(kernel, store.clone(), settings(), "n1", true, reporting());
    assert!(!r.is_ready(), "without them all traffic would count as not local");
    node(Some("10.244.1.0/24"));
    assert!(r.is_ready());
    assert!(r.sync(Due::Audit, now()).is_clean());
    let rules = |r: &mut Reconciler<FakeKernel>| format!("{:?}", r.kernel().state.rules[Family::V4].chains);
    assert!(rules(&mut r).contains("! -s 10.244.1.0/24"));
    node(Some("10.244.7.0/24"));
    assert!(store.is_dirty(), "the loop must run a pass");
    assert!(r.sync(Due::Changes, now()).is_clean());
    assert!(rules(&mut r).contains("! -s 10.244.7.0/24"));
}

#[test]
fn another_zone_moves_traffic_at_once() {
    let store = new_store();
    before(&store);
    let mut slice = slice("a", &[1, 2]);
    if let Object::EndpointSlice(slice) = &mut slice {
        for (endpoint, zone) in slice.endpoints.iter_mut().zip(["za", "zb"]) {
            let hints = Hints { zones: [zone.into()].into(), nodes: [].into() };
            endpoint.place = Some(Arc::new(Place { node: Some("n1".into()), hints }));
        }
    }
    store.update(|u| u.put(slice));
    let node = |zone: Option<&str>| {
        let zone = zone.map(Into::into);
        store.update(|u| u.put(Object::Node(Node { name: "n1".into(), zone, ..Node::default() })));
    };
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    let vs = VsKey { protocol: Protocol::Tcp, addr: [10, 96, 0, 1].into(), port: 80 };
    for (zone, expected) in [(Some("za"), vec![1]), (Some("zb"), vec![2]), (None, vec![1, 2])] {
        node(zone);
        assert!(r.sync(Due::Changes, now()).is_clean());
        // The endpoint of the other zone drains until this pass.
        assert!(r.sync(Due::Changes, now()).is_clean());
        let real_servers = r.kernel().state.virtual_servers[&vs].real_servers.keys();
        let expected: Vec<RsKey> =
            expected.iter().map(|n: &u8| RsKey { addr: [10, 244, 1, *n].into(), port: 8080 }).collect();
        assert_eq!(real_servers.collect::<Vec<_>>(), expected, "{zone:?}");
    }
    assert_eq!(r.kernel().counts.observations, 1);
}

#[test]
fn a_deleted_node_object_changes_nothing() {
    let store = new_store();
    before(&store);
    let node = Node { name: "n1".into(), addresses: vec![[192, 168, 50, 2].into()], ..Node::default() };
    store.update(|u| u.put(Object::Node(node)));
    let mut lb = service("lb", 9, None);
    if let Object::Service(lb) = &mut lb {
        lb.load_balancer_ips = vec![[203, 0, 113, 1].into()];
        lb.source_ranges = vec!["192.168.0.0/16".parse().unwrap()];
    }
    store.update(|u| u.put(lb));
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    store.update(|u| u.remove(Kind::Node, &ObjectName::new("", "n1")));
    let pass = r.sync(Due::Audit, now());
    assert!(pass.plan.is_empty(), "the node is still in the source ranges:\n{}", pass.plan);
}

#[test]
fn a_change_that_arrives_during_a_pass_counts_for_health() {
    let store = new_store();
    let health = SharedHealth::new(Health::new(&Family::ALL, Duration::from_secs(60)));
    let reporting = Reporting { health: health.clone(), ..reporting() };
    let mut r =
        Reconciler::new(FakeKernel::new(&[SYSCTL]), store.clone(), settings(), "n1", false, reporting);
    let later = || {
        let later = std::time::SystemTime::now() + Duration::from_secs(3600);
        health.with(|h| h.is_family_healthy(Family::V4, later, LoopLag::default()))
    };
    assert!(r.sync(Due::Audit, now()).is_clean() && later());
    before(&store);
    r.kernel().fail_next(OpKind::AddVirtualServer);
    assert!(!r.sync(Due::Audit, now()).is_clean());
    assert!(later(), "a refused object is no failed sync");
    after(&store);
    r.kernel().refuse(Subject::Device, OpError::plain(Cause::WrongKind, "a bridge"));
    r.kernel().state.device = false;
    assert!(!r.sync(Due::Audit, now()).is_clean());
    assert!(!later(), "the change was not known before the pass");
    r.kernel().accept(&Subject::Device);
    assert!(r.sync(Due::Changes, now()).is_clean() && later());
}

fn put_udp_service(store: &Store) {
    let mut dns = service("dns", 1, None);
    let mut endpoints = slice("dns", &[5]);
    if let (Object::Service(dns), Object::EndpointSlice(slice)) = (&mut dns, &mut endpoints) {
        dns.ports[0].protocol = Protocol::Udp;
        slice.ports[0].protocol = Protocol::Udp;
    }
    store.update(|u| {
        u.put(dns);
        u.put(endpoints);
    });
}

#[test]
fn the_first_pass_deletes_stale_flows_too() {
    let store = new_store();
    put_udp_service(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    assert_eq!(r.kernel().count(OpKind::ForgetFlows), 1);
}

/// Datagrams between the deletion of flows and the late binding are routed elsewhere, and their flow stays in conntrack
/// as long as the client sends.
#[test]
fn flows_are_deleted_again_after_their_address_is_bound_late() {
    let store = new_store();
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    put_udp_service(&store);
    r.kernel().fail_next(OpKind::Bind);
    assert!(!r.sync(Due::Changes, now()).is_clean());
    assert_eq!(r.kernel().count(OpKind::ForgetFlows), 1);
    assert!(r.sync(Due::Retry, now() + Duration::from_secs(60)).is_clean());
    assert_eq!(r.kernel().count(OpKind::Bind), 3, "IPv4 twice, IPv6 once");
    assert!(r.sync(Due::Changes, now() + Duration::from_secs(60)).is_clean());
    assert_eq!(r.kernel().count(OpKind::ForgetFlows), 2);
    assert!(r.sync(Due::Changes, now() + Duration::from_secs(60)).plan.is_empty());
}
