// SPDX-License-Identifier: Apache-2.0
//! The loop with a test clock: while an object keeps failing, or another program keeps interfering, all other objects
//! are programmed without delay.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::core::model::sets::{SetId, SetKind};
use crate::core::model::{Family, VsKey};
use crate::core::plan::op::OpKind;
use crate::core::plan::outcome::{Cause, OpError};
use crate::core::plan::subject::Subject;
use crate::kernel::fake::FakeKernel;
use crate::serve::health::{LoopLag, Probe};
use crate::testing::cluster::Cluster;
use crate::testing::{Agent, Clocked, SYSCTL, kernel, lines};

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A loop with its objects and its clock.
struct Node {
    run: Clocked,
    /// Number of other Services that were added, and the longest time until one was served.
    others: u8,
    latest: Duration,
}

fn spec(ip: &str, ip6: &str) -> serde_json::Value {
    json!({
        "clusterIP": ip, "clusterIPs": [ip, ip6], "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"name": "p", "port": 80}],
    })
}

/// Two Services, one with a load balancer that has source ranges.
fn cluster() -> Cluster {
    let mut lb = spec("10.96.0.2", "fd00:96::2");
    lb["type"] = json!("LoadBalancer");
    lb["loadBalancerSourceRanges"] = json!(["198.18.0.0/15"]);
    Cluster::default()
        .service("web", spec("10.96.0.1", "fd00:96::1"), &[])
        .slice("web", &["10.244.1.5@n1"], &["p/TCP/8080"])
        .service("lb", lb, &["203.0.113.9"])
        .slice("lb", &["10.244.1.6"], &["p/TCP/8080"])
}

impl Node {
    fn begin(kernel: FakeKernel) -> Self {
        Self { run: Clocked::new(Agent::start(kernel, &cluster())), others: 0, latest: Duration::ZERO }
    }

    /// A node that has converged.
    fn converged() -> Self {
        let mut host = Self::begin(kernel());
        host.run.pass_time(s(1));
        assert!(host.run.agent.reconciler.retries().is_empty());
        host
    }

    fn kernel(&mut self) -> &mut FakeKernel {
        self.run.agent.kernel()
    }

    /// Adds another Service and records the time until it is served.
    fn add_other(&mut self) {
        self.others += 1;
        let n = self.others;
        let ip = format!("10.96.9.{n}");
        let name = format!("other{n}");
        let cluster = Cluster::default()
            .service(&name, json!({"clusterIP": ip, "ports": [{"name": "p", "port": 80}]}), &[])
            .slice(&name, &[&format!("10.244.9.{n}")], &["p/TCP/8080"]);
        self.run
            .agent
            .store
            .update(|update| cluster.objects.into_values().for_each(|object| update.put(object)));
        let key = VsKey { protocol: crate::core::model::Protocol::Tcp, addr: ip.parse().unwrap(), port: 80 };
        let start = self.run.now.get();
        let served = |host: &mut Self| {
            let server = host.kernel().state.virtual_servers.get(&key);
            server.is_some_and(|server| server.real_servers.len() == 1)
        };
        while !served(self) {
            let pause = self.run.turn();
            self.run.now.set(self.run.now.get() + pause);
            assert!(self.run.now.get() < start + s(60), "{name} is not served");
        }
        self.latest = self.latest.max(self.run.now.get() - start);
    }

    /// Runs five minutes, in which other Services are added.
    fn five_minutes(&mut self) {
        for n in 0..30u64 {
            self.run.pass_time(Duration::from_millis(9_000 + n * 63));
            self.add_other();
        }
    }
}

/// A failure of a subject or a reading, and its end.
struct TestFault {
    name: &'static str,
    begin: fn(&mut FakeKernel),
    end: fn(&mut FakeKernel),
    /// The family that cannot bind new addresses meanwhile.
    closed: Option<Family>,
}

fn refused(cause: Cause) -> OpError {
    OpError::plain(cause, "refused by the test")
}

const LOOP_BACK: SetId = SetId { kind: SetKind::LoopBack, family: Family::V4 };
const SIX: Family = Family::V6;

fn bad_endpoint() -> Subject {
    let vs = VsKey { protocol: crate::core::model::Protocol::Tcp, addr: [10, 96, 0, 1].into(), port: 80 };
    Subject::RealServer(vs, crate::core::model::RsKey { addr: [10, 244, 1, 5].into(), port: 8080 })
}

fn faults() -> Vec<TestFault> {
    vec![
        TestFault {
            name: "an unwritable sysctl",
            begin: |kernel| {
                kernel.state.node.sysctls.insert(SYSCTL, 0);
                kernel.refuse(Subject::Sysctl(SYSCTL), refused(Cause::ReadOnly));
            },
            end: |kernel| kernel.accept(&Subject::Sysctl(SYSCTL)),
            closed: None,
        },
        TestFault {
            name: "an endpoint that the kernel refuses",
            begin: |kernel| kernel.refuse(bad_endpoint(), refused(Cause::InvalidArgument)),
            end: |kernel| kernel.accept(&bad_endpoint()),
            closed: None,
        },
        TestFault {
            name: "addresses of a disabled family",
            begin: |kernel| {
                for n in 1..=2u16 {
                    let ip = std::net::Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n);
                    kernel.refuse(Subject::Address(ip.into()), refused(Cause::FamilyDisabled));
                    kernel.state.addresses.retain(|net| net.addr() != ip);
                }
            },
            end: |kernel| {
                for n in 1..=2u16 {
                    let ip = std::net::Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n);
                    kernel.accept(&Subject::Address(ip.into()));
                }
            },
            closed: None,
        },
        TestFault {
            name: "a device of another kind",
            begin: |kernel| {
                kernel.state.device = false;
                kernel.state.addresses.clear();
                kernel.refuse(Subject::Device, refused(Cause::WrongKind));
            },
            end: |kernel| kernel.accept(&Subject::Device),
            closed: Some(Family::V4),
        },
        TestFault {
            name: "an ipset of another type in use",
            begin: |kernel| {
                kernel.state.sets.get_mut(&LOOP_BACK).unwrap().misfit = true;
                kernel.refuse(Subject::Set(LOOP_BACK), refused(Cause::WrongKind));
            },
            end: |kernel| kernel.accept(&Subject::Set(LOOP_BACK)),
            // The rules that use it are in place.
            closed: None,
        },
        TestFault {
            name: "iptables-restore that fails",
            begin: |kernel| {
                kernel.state.rules[Family::V4].chains.clear();
                let error = OpError::uncertain(Cause::ProgramFailed, "iptables-restore failed");
                kernel.refuse(Subject::Rules(Family::V4), error);
            },
            end: |kernel| kernel.accept(&Subject::Rules(Family::V4)),
            closed: Some(Family::V4),
        },
        TestFault {
            name: "ip6tables-save that fails",
            begin: |kernel| {
                kernel.set_unreadable(Part::Rules(SIX), Some(refused(Cause::ProgramFailed)));
                kernel.state.rules[Family::V6].chains.clear();
            },
            end: |kernel| kernel.set_unreadable(Part::Rules(SIX), None),
            closed: None,
        },
        TestFault {
            name: "a set that cannot be read",
            begin: |kernel| kernel.set_unreadable(Part::Set(LOOP_BACK), Some(refused(Cause::Other))),
            end: |kernel| kernel.set_unreadable(Part::Set(LOOP_BACK), None),
            closed: None,
        },
        TestFault {
            name: "IPVS that cannot be read",
            begin: |kernel| kernel.set_unreadable(Part::Ipvs, Some(refused(Cause::TimedOut))),
            end: |kernel| kernel.set_unreadable(Part::Ipvs, None),
            closed: None,
        },
        TestFault {
            name: "iptables-restore that hangs",
            begin: |kernel| {
                kernel.state.rules[Family::V4].chains.clear();
                kernel.slow_rules();
            },
            end: FakeKernel::end_slow_rules,
            closed: Some(Family::V4),
        },
    ]
}

/// For each fault, from the start or later: other Services are served without delay, audits continue, there are few
/// retries and log lines, and everything converges after the fault ends.
#[test]
fn a_failing_object_does_not_affect_other_objects() {
    for from_start in [false, true] {
        // An agent that starts cannot do anything without reading IPVS.
        let applies = |fault: &TestFault| !from_start || fault.name != "IPVS that cannot be read";
        for fault in faults().into_iter().filter(applies) {
            let name = format!("{} ({})", fault.name, if from_start { "from the start" } else { "later" });
            // From the start: a new agent on a converged node.
            let mut host = Node::converged();
            if from_start {
                host = Node::begin(host.run.agent.kill());
            }
            (fault.begin)(host.kernel());
            if fault.name.starts_with("an endpoint") {
                let key = *bad_endpoint().virtual_server().unwrap();
                host.kernel().state.virtual_servers.remove(&key);
            }
            host.run.schedule.audit_soon();
            let (audits, turns) = (host.kernel().counts.observations, host.run.turns);
            let ops = |host: &mut Node| host.kernel().counts.ops.values().sum::<usize>();
            let (before, bound) = (ops(&mut host), host.kernel().state.addresses.len());
            let log = lines(|| host.five_minutes());
            assert_eq!(host.latest, Duration::ZERO, "{name}: a change of another Service waited");
            assert!(host.kernel().counts.observations - audits >= 9, "{name}: audits do not continue");
            let turns = host.run.turns - turns;
            assert!(turns < 60 * 30 + 1000, "{name}: {turns} turns in five minutes");
            // Each other Service needs five ops at most; the rest are retries.
            let tries = (ops(&mut host) - before).saturating_sub(30 * 5);
            assert!(tries < 300, "{name}: {tries} ops were tried in five minutes");
            assert!(log.len() < 60, "{name}: {} log lines:\n{}", log.len(), log.join("\n"));
            if fault.closed.is_some() {
                let new = host.kernel().state.addresses.len().saturating_sub(bound);
                assert_eq!(new, 0, "{name}: an address was bound without its filter");
            }
            (fault.end)(host.kernel());
            host.run.pass_time(s(95));
            let left: Vec<String> = host
                .run
                .agent
                .reconciler
                .retries()
                .failing()
                .map(|(subject, _)| subject.to_string())
                .collect();
            assert!(left.is_empty(), "{name}: {left:?} still fails");
            assert_eq!(
                host.kernel().state.addresses.len(),
                5 + 30,
                "{name}: all addresses are bound in the end"
            );
            assert!(host.kernel().exposed().is_empty(), "{name}");
        }
    }
}

#[test]
fn an_unused_object_that_fails_blocks_nothing_and_does_not_affect_health() {
    const UNUSED: SetId = SetId { kind: SetKind::NodePortLocalUdp, family: Family::V4 };
    let set: fn(&mut FakeKernel) = |kernel| {
        kernel.state.sets.entry(UNUSED).or_default().misfit = true;
        kernel.refuse(Subject::Set(UNUSED), refused(Cause::WrongKind));
    };
    let family: fn(&mut FakeKernel) =
        |kernel| kernel.refuse(Subject::Rules(SIX), OpError::uncertain(Cause::ProgramFailed, "no table"));
    let four = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]});
    for (name, begin, cluster, bound, healthy) in [
        ("a set", set, cluster(), 5, true),
        ("a family", family, Cluster::default().service("web", four, &[]), 1, true),
        ("a family that Services have", family, cluster(), 3, false),
    ] {
        let mut node = kernel();
        begin(&mut node);
        let agent = Agent::start(node, &cluster);
        let health = agent.health();
        let mut host = Node { run: Clocked::new(agent), others: 0, latest: Duration::ZERO };
        host.run.pass_time(s(180));
        let much_later = std::time::SystemTime::now() + s(3600);
        let is_healthy = health.with(|health| {
            health.is_ready() && health.answer(Probe::Healthz, much_later, LoopLag::default()).0 == 200
        });
        let readiness = health.with(|health| health.readiness());
        assert_eq!(is_healthy, healthy, "{name}: {readiness}");
        assert_eq!(host.kernel().state.addresses.len(), bound, "{name}");
        assert!(!host.run.agent.reconciler.retries().is_empty(), "{name}: it is reported and retried");
    }
}

#[test]
fn failing_reads_of_rules_back_off_and_drift_of_the_other_family_is_repaired() {
    let mut host = Node::converged();
    let error = OpError::plain(Cause::ProgramFailed, "ip6tables-save failed");
    host.kernel().set_unreadable(Part::Rules(SIX), Some(error));
    host.run.schedule.audit_soon();
    host.run.pass_time(s(30));
    let readings = host.kernel().counts.rule_readings;
    host.kernel().state.rules[Family::V4].chains.clear();
    host.run.pass_time(s(35));
    assert!(!host.kernel().state.rules[Family::V4].chains.is_empty(), "IPv4 drift is repaired");
    let readings = host.kernel().counts.rule_readings - readings;
    assert!(readings < 12, "{readings} readings in 35 s");
}

#[test]
fn a_family_binds_no_address_before_its_rules_are_read() {
    let mut node = kernel();
    node.set_unreadable(Part::Rules(SIX), Some(OpError::plain(Cause::ProgramFailed, "EAGAIN")));
    let mut host = Node::begin(node);
    let log = lines(|| host.run.pass_time(s(20)));
    assert!(host.kernel().state.addresses.iter().all(|net| net.addr().is_ipv4()));
    assert_eq!(host.kernel().state.addresses.len(), 3);
    assert!(log.iter().any(|line| line.contains("IPv6 rules") && line.contains("EAGAIN")), "{log:?}");
    assert!(log.iter().any(|line| line.contains("2 other objects wait for it")), "{log:?}");
    host.kernel().set_unreadable(Part::Rules(SIX), None);
    host.run.pass_time(s(30));
    assert_eq!(host.kernel().state.addresses.len(), 5, "the family is not disabled for good");
    assert!(host.kernel().exposed().is_empty());
}

/// Another program removes an address as soon as it is bound.
#[test]
fn an_address_that_another_program_keeps_removing_costs_one_reading_a_second() {
    let mut host = Node::converged();
    let inbox = Inbox::default();
    let victim: ipnet::IpNet = "10.96.0.1/32".parse().unwrap();
    let (binds, audits) = (host.kernel().count(OpKind::Bind), host.kernel().counts.observations);
    let log = lines(|| {
        let end = host.run.now.get() + s(60);
        while host.run.now.get() < end {
            if host.kernel().state.addresses.remove(&victim) {
                inbox.address(victim, false);
            }
            host.run.agent.reconciler.take_mail(&inbox.wait(Some(Duration::ZERO)));
            let pause = host.run.turn();
            host.run.now.set(host.run.now.get() + pause.min(Duration::from_millis(50)));
        }
    });
    let binds = host.kernel().count(OpKind::Bind) - binds;
    assert!((55..=62).contains(&binds), "{binds} repairs in a minute");
    assert!(host.kernel().counts.observations - audits <= 2, "only addresses are read");
    assert!(log.len() <= 6, "{log:?}");
    assert!(log[0].contains("10.96.0.1") && log[0].contains("another program"), "{log:?}");
}

#[test]
fn a_flush_without_notification_is_detected_within_two_seconds() {
    let flushes: [fn(&mut FakeKernel); 3] = [
        |kernel| kernel.state.virtual_servers.clear(),
        |kernel| kernel.state.sets.values_mut().for_each(|set| set.members = Default::default()),
        |kernel| kernel.state.sets.clear(),
    ];
    for (n, flush) in flushes.into_iter().enumerate() {
        let mut host = Node::converged();
        let good = host.kernel().state.clone();
        host.run.pass_time(Duration::from_millis(5_370));
        let probes = host.kernel().counts.probes;
        flush(host.kernel());
        host.run.pass_time(s(2));
        assert!(host.kernel().counts.probes - probes <= 3, "a probe a second");
        assert_eq!(host.kernel().state.virtual_servers, good.virtual_servers, "flush {n}");
        assert_eq!(host.kernel().state.sets, good.sets, "flush {n}");
    }
}

#[test]
fn a_flush_at_any_step_of_an_audit_is_repaired() {
    let flushes: [fn(&mut FakeKernel); 4] = [
        |kernel| kernel.state.rules = Default::default(),
        |kernel| kernel.state.virtual_servers.clear(),
        |kernel| kernel.state.sets.values_mut().for_each(|set| set.members = Default::default()),
        |kernel| kernel.state.addresses.clear(),
    ];
    for (n, flush) in flushes.into_iter().enumerate() {
        for step in 0..60 {
            let mut host = Node::converged();
            let good = host.kernel().state.clone();
            host.run.schedule.audit_soon();
            host.run.now.set(host.run.now.get() + s(2));
            for _ in 0..step {
                let _ = host.run.turn();
            }
            flush(host.kernel());
            let inbox = Inbox::default();
            match n {
                0 => Family::ALL.into_iter().for_each(|family| inbox.changed(Part::Rules(family))),
                3 => inbox.changed(Part::Addresses),
                _ => {}
            }
            host.run.agent.reconciler.take_mail(&inbox.wait(Some(Duration::ZERO)));
            host.run.pass_time(s(4));
            assert_eq!(host.kernel().state, good, "flush {n} at step {step}");
        }
    }
}

#[test]
fn health_check_ports_report_the_state_of_their_own_service() {
    let store = Arc::new(crate::store::Store::new(Arc::new(Inbox::default())));
    let lb = |ip: &str, port: u16| {
        json!({
            "type": "LoadBalancer", "clusterIP": ip, "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port, "ports": [{"name": "p", "port": 80}],
        })
    };
    let objects = |endpoints: &[&str]| {
        Cluster::default()
            .service("good", lb("10.96.0.1", 32001), &["203.0.113.1"])
            .slice("good", endpoints, &["p/TCP/8080"])
            .service("bad", lb("10.96.0.2", 32002), &["203.0.113.2"])
            .slice("bad", &["10.244.1.9@n1"], &["p/TCP/8080"])
    };
    objects(&["10.244.1.5@n1"]).put(&store);
    let reporting = crate::testing::reporting();
    let reported = reporting.health_checks.subscribe();
    let mut node = kernel();
    let vip: ipnet::IpNet = "203.0.113.2/32".parse().unwrap();
    node.refuse(Subject::Address(vip.addr()), refused(Cause::Other));
    let mut agent = Reconciler::new(node, store.clone(), crate::testing::settings(), "n1", false, reporting);
    let local = |name: &str| {
        let name = crate::core::model::ObjectName::new("d", name);
        reported.borrow().services.get(&name).and_then(|check| check.local[Family::V4])
    };
    let _ = agent.sync(Due::Audit, s(1));
    assert_eq!((local("good"), local("bad")), (Some(1), Some(0)), "an unbound VIP reports no endpoint");
    objects(&["10.244.1.5@n1", "10.244.1.6@n1"]).put(&store);
    let _ = agent.sync(Due::Changes, s(2));
    assert_eq!((local("good"), local("bad")), (Some(2), Some(0)));
    agent.kernel().accept(&Subject::Address(vip.addr()));
    let _ = agent.sync(Due::Retry, s(40));
    assert_eq!((local("good"), local("bad")), (Some(2), Some(1)));
}

#[test]
fn a_failed_read_at_the_start_is_retried_and_nothing_is_written() {
    let mut node = kernel();
    node.set_unreadable(Part::Addresses, Some(refused(Cause::TimedOut)));
    let mut host = Node::begin(node);
    let log = lines(|| host.run.pass_time(s(120)));
    assert!(host.kernel().counts.ops.is_empty());
    assert!((8..20).contains(&host.kernel().counts.observations), "{:?}", host.kernel().counts);
    assert!(log.len() < 8 && log[0].contains("failed: reading addresses"), "{log:?}");
    host.kernel().set_unreadable(Part::Addresses, None);
    host.run.pass_time(s(31));
    assert_eq!(host.kernel().state.addresses.len(), 5);
    assert!(host.run.agent.reconciler.retries().is_empty());
}

#[test]
fn leftovers_are_removed_although_the_rules_are_read_late() {
    let mut node = kernel();
    node.state.rules[Family::V4] = crate::core::rules::save::parse_save(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A\nCOMMIT\n",
    );
    node.set_unreadable(Part::Rules(Family::V4), Some(refused(Cause::TimedOut)));
    let mut host = Node::begin(node);
    host.run.pass_time(s(5));
    assert!(!host.kernel().state.rules[Family::V4].leftovers.is_empty(), "unread leftovers are not removed");
    host.kernel().set_unreadable(Part::Rules(Family::V4), None);
    let log = lines(|| host.run.pass_time(s(40)));
    assert!(host.kernel().state.rules[Family::V4].leftovers.is_empty(), "{log:?}");
    assert!(!log.iter().any(|line| line.contains("came back")), "{log:?}");
}
