// SPDX-License-Identifier: Apache-2.0
//! Tests of every [`Kernel`]: they run on the fake kernel and, under a kernel with IPVS, on the real one.
//! They show that the fake kernel behaves like the real one.

use kube_ipvs::core::model::PerFamily;
use kube_ipvs::core::plan::outcome::{OpError, Progress};
use std::net::IpAddr;
use std::time::Duration;

use kube_ipvs::core::mirror::Observed;
use kube_ipvs::core::model::flows::FlowFilter;
use kube_ipvs::core::model::real_servers::RsState;
use kube_ipvs::core::model::sets::{Entry, SetId, SetKind};
use kube_ipvs::core::model::settings::{Settings, Timeouts};
use kube_ipvs::core::model::{Family, Protocol, RsKey, VsKey, VsSpec};
use kube_ipvs::core::plan::op::{FlowsOp, GrowOp, Op, RulesOp};
use kube_ipvs::core::plan::outcome::Finished;
use kube_ipvs::core::rules::{RulesInput, build_chains};
use kube_ipvs::kernel::Kernel;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

fn server(vip: &str, port: u16) -> VsKey {
    VsKey { protocol: Protocol::Tcp, addr: ip(vip), port }
}

fn real(addr: &str) -> RsKey {
    RsKey { addr: ip(addr), port: 8080 }
}

fn spec(scheduler: &str) -> VsSpec {
    VsSpec { scheduler: scheduler.into(), flags: 0, timeout: 0 }
}

/// Limit for a program.
const PROGRAMS: Duration = Duration::from_secs(30);

/// Runs one op to its end.
fn one(kernel: &mut dyn Kernel, op: &Op) -> Result<(), OpError> {
    let mut results = kernel.execute(&[op]);
    assert_eq!(results.len(), 1, "one result per op: {op}");
    match results.remove(0)? {
        Progress::Done => Ok(()),
        Progress::Started => loop {
            let ended = kernel.finished(PROGRAMS);
            assert!(!ended.is_empty(), "{op} does not end");
            for finished in ended {
                if let Finished::Op(subject, result) = finished {
                    assert_eq!(subject, op.subject());
                    return result;
                }
            }
        },
    }
}

/// The whole kernel state.
fn observe(kernel: &mut dyn Kernel) -> Observed {
    let observed = kernel.observe(&Family::ALL, &mut Vec::new()).expect("the kernel can be read");
    assert_eq!(observed.unread_rules, PerFamily::default());
    observed
}

fn done(kernel: &mut dyn Kernel, op: &Op) {
    if let Err(error) = one(kernel, op) {
        panic!("{op}: {error}");
    }
}

/// The op must fail and leave the state of its object unknown.
fn uncertain(kernel: &mut dyn Kernel, op: &Op) {
    match one(kernel, op) {
        Err(error) if error.uncertain => {}
        other => panic!("{op}: an uncertain failure was expected, not {other:?}"),
    }
}

/// Runs every case. The kernel must be empty and have the default sysctls.
pub fn run(kernel: &mut dyn Kernel) {
    let empty = observe(kernel);
    assert!(empty.virtual_servers.is_empty() && empty.sets.is_empty() && !empty.device);
    timeouts(kernel);
    device_and_addresses(kernel);
    sets(kernel);
    a_set_grows(kernel);
    rules(kernel);
    virtual_servers(kernel);
    draining(kernel);
    one_failure_in_a_batch(kernel);
    stale_flows(kernel);
}

fn timeouts(kernel: &mut dyn Kernel) {
    let before = observe(kernel).node.timeouts;
    done(kernel, &Op::SetTimeouts(Timeouts { tcp: 0, tcp_fin: 20, udp: 0 }));
    let after = observe(kernel).node.timeouts;
    assert_eq!(after, Timeouts { tcp_fin: 20, ..before }, "0 leaves the kernel's value");
}

fn device_and_addresses(kernel: &mut dyn Kernel) {
    uncertain(kernel, &Op::Bind(ip("10.96.0.1")));
    done(kernel, &Op::CreateDevice);
    done(kernel, &Op::CreateDevice);
    for addr in ["10.96.0.1", "fd00:96::1", "10.96.0.1"] {
        done(kernel, &Op::Bind(ip(addr)));
    }
    let observed = observe(kernel);
    assert!(observed.device);
    let mut addresses: Vec<String> = observed.addresses.iter().map(ToString::to_string).collect();
    addresses.sort();
    assert_eq!(addresses, ["10.96.0.1/32", "fd00:96::1/128"]);
    for _ in 0..2 {
        done(kernel, &Op::Unbind(ip("10.96.0.1").into()));
    }
    assert_eq!(observe(kernel).addresses.len(), 1);
}

fn sets(kernel: &mut dyn Kernel) {
    let cluster = SetId { kind: SetKind::ClusterIp, family: Family::V4 };
    let entry = Entry::IpPort(ip("10.96.0.1"), Protocol::Udp, 53);
    uncertain(kernel, &Op::AddEntry(cluster, entry));
    for set in Family::ALL.into_iter().flat_map(SetId::all) {
        done(kernel, &Op::CreateSet(set));
    }
    uncertain(kernel, &Op::CreateSet(cluster));
    let net = "172.16.0.0/12".parse().expect("a CIDR");
    let host = "198.51.100.7/32".parse().expect("a CIDR");
    let (v4, v6) = (ip("10.0.0.1"), ip("fd00::1"));
    let entries = [
        (SetKind::ClusterIp, Family::V4, entry),
        (SetKind::ClusterIp, Family::V6, Entry::IpPort(v6, Protocol::Sctp, 9)),
        (SetKind::LoopBack, Family::V4, Entry::IpPortIp(v4, Protocol::Tcp, 80, v4)),
        (SetKind::LoadBalancerSourceCidr, Family::V4, Entry::IpPortNet(v4, Protocol::Tcp, 443, net)),
        (SetKind::LoadBalancerSourceCidr, Family::V4, Entry::IpPortNet(v4, Protocol::Tcp, 443, host)),
        (SetKind::NodePortTcp, Family::V6, Entry::Port(30080)),
        (SetKind::IpvsIps, Family::V6, Entry::Ip(v6)),
    ];
    for (kind, family, entry) in entries {
        let set = SetId { kind, family };
        for _ in 0..2 {
            done(kernel, &Op::AddEntry(set, entry));
        }
        assert!(observe(kernel).has_entry(set, &entry), "{set} {entry}");
    }
    for (kind, family, entry) in entries {
        let set = SetId { kind, family };
        for _ in 0..2 {
            done(kernel, &Op::RemoveEntry(set, entry));
        }
    }
    let observed = observe(kernel);
    assert_eq!(observed.sets.len(), 34);
    assert!(observed.sets.values().all(|set| set.members.is_empty() && !set.misfit));
}

/// A set that is too small is replaced while rules may use it. A set of another type is created again.
fn a_set_grows(kernel: &mut dyn Kernel) {
    let set = SetId { kind: SetKind::ClusterIp, family: Family::V6 };
    let entry = |n: u16| Entry::IpPort(ip("fd00:96::1"), Protocol::Tcp, n);
    done(kernel, &Op::AddEntry(set, entry(7)));
    let entries: Vec<Entry> = (1..=3000).map(entry).collect();
    let grow =
        |entries: &[Entry]| Op::GrowSet(Box::new(GrowOp { set, capacity: 1 << 21, entries: entries.into() }));
    for _ in 0..2 {
        done(kernel, &grow(&entries));
    }
    let empty = SetId { kind: SetKind::NodePortUdp, family: Family::V4 };
    let probed = |kernel: &mut dyn Kernel| {
        let sets = [(set, Some(entry(3000))), (set, Some(entry(3001))), (set, None), (empty, None)];
        let probed = kernel.probe(&[server("10.96.0.77", 1)], &sets);
        assert_eq!(probed.servers, [Ok(false)]);
        probed.sets
    };
    assert_eq!(probed(kernel), [Ok(true), Ok(false), Ok(true), Ok(true)]);
    let observed = &observe(kernel).sets[&set];
    assert_eq!((observed.members.len(), observed.capacity, observed.misfit), (3000, 1 << 21, false));
    for _ in 0..2 {
        done(kernel, &Op::DestroySet(set));
    }
    assert_eq!(probed(kernel), [Ok(false), Ok(false), Ok(false), Ok(true)]);
    done(kernel, &Op::CreateSet(set));
    assert_eq!(observe(kernel).sets.len(), 34, "nothing temporary is left");
}

fn rules(kernel: &mut dyn Kernel) {
    for family in Family::ALL {
        let vip = if family == Family::V4 { "203.0.113.13" } else { "fd00::13" };
        let closed = [server(vip, 443), VsKey { protocol: Protocol::Udp, ..server(vip, 53) }];
        let settings = Settings { keep_established: true, ..Settings::default() };
        let chains =
            build_chains(family, &settings, &RulesInput { closed: &closed, ..RulesInput::new(&|_| true) });
        let jumps = observe(kernel).rules[family].broken_jumps();
        assert_eq!(jumps.len(), 6, "every built-in chain lacks its jumps");
        let op = RulesOp { family, chains: chains.clone(), jumps, tidy: false, is_takeover: false };
        done(kernel, &Op::WriteRules(Box::new(op.clone())));
        // A second write replaces the chains and adds no jump.
        done(kernel, &Op::WriteRules(Box::new(RulesOp { jumps: Vec::new(), ..op })));
        let observed = &observe(kernel).rules[family];
        assert_eq!(observed.chains, chains, "what is read is what was written");
        assert!(observed.broken_jumps().is_empty());
    }
}

/// Weight 0 and back. A real server without connections is not busy, read one by one or all at once.
fn draining(kernel: &mut dyn Kernel) {
    let (vs, rs) = (server("10.96.0.3", 80), real("10.0.0.1"));
    done(kernel, &Op::AddVirtualServer(vs, spec("rr")));
    uncertain(kernel, &Op::DrainRealServer(vs, rs));
    done(kernel, &Op::AddRealServer(vs, rs, RsState::USUAL));
    let weight = |kernel: &mut dyn Kernel| {
        observe(kernel).virtual_servers[&vs].real_servers.get(&rs).expect("the real server").weight
    };
    for _ in 0..2 {
        done(kernel, &Op::DrainRealServer(vs, rs));
    }
    assert_eq!(weight(kernel), 0);
    assert!(kernel.busy(&[vs]).expect("readable").is_empty());
    assert!(kernel.busy(&[vs; 100]).expect("readable").is_empty());
    done(kernel, &Op::EditRealServer(vs, rs, RsState::USUAL));
    assert_eq!(weight(kernel), 1);
    done(kernel, &Op::RemoveVirtualServer(vs));
}

fn stale_flows(kernel: &mut dyn Kernel) {
    for family in Family::ALL {
        let vip = if family == Family::V4 { "10.96.0.10" } else { "fd00:96::10" };
        let frontends = [((ip(vip), 53), vec![])].into();
        let filter = FlowFilter { family, frontends, node_ports: [(30053, vec![])].into() };
        done(kernel, &Op::ForgetFlows(Box::new(FlowsOp { services: [].into(), filter })));
    }
}

fn virtual_servers(kernel: &mut dyn Kernel) {
    for (vs, rs) in [(server("10.96.0.1", 80), real("10.0.0.1")), (server("fd00:96::1", 80), real("fd00::1"))]
    {
        uncertain(kernel, &Op::EditVirtualServer(vs, spec("rr")));
        uncertain(kernel, &Op::RemoveVirtualServer(vs));
        uncertain(kernel, &Op::AddRealServer(vs, rs, RsState::USUAL));
        done(kernel, &Op::AddVirtualServer(vs, spec("rr")));
        uncertain(kernel, &Op::AddVirtualServer(vs, spec("rr")));
        uncertain(kernel, &Op::EditRealServer(vs, rs, RsState::USUAL));
        uncertain(kernel, &Op::RemoveRealServer(vs, rs));
        done(kernel, &Op::AddRealServer(vs, rs, RsState::USUAL));
        uncertain(kernel, &Op::AddRealServer(vs, rs, RsState::USUAL));
        done(kernel, &Op::EditRealServer(vs, rs, RsState::USUAL));
        done(kernel, &Op::EditVirtualServer(vs, VsSpec { flags: 1, timeout: 600, ..spec("wrr") }));
        let observed = observe(kernel);
        let server = &observed.virtual_servers[&vs];
        assert_eq!((&*server.spec.scheduler, server.spec.flags, server.spec.timeout), ("wrr", 1, 600));
        assert_eq!(server.real_servers.len(), 1, "an edit keeps the real servers");
        done(kernel, &Op::RemoveRealServer(vs, rs));
        done(kernel, &Op::AddRealServer(vs, rs, RsState::USUAL));
        done(kernel, &Op::RemoveVirtualServer(vs));
        assert!(!observe(kernel).virtual_servers.contains_key(&vs));
    }
}

fn one_failure_in_a_batch(kernel: &mut dyn Kernel) {
    let vs = server("10.96.0.2", 80);
    done(kernel, &Op::AddVirtualServer(vs, spec("rr")));
    let ops: Vec<Op> = (1..=2000u16)
        .map(|n| {
            let n = if n == 1500 { 7 } else { n };
            Op::AddRealServer(vs, RsKey { addr: ip("10.0.0.1"), port: n }, RsState::USUAL)
        })
        .collect();
    let refs: Vec<&Op> = ops.iter().collect();
    let results = kernel.execute(&refs);
    let failed: Vec<usize> = (0..results.len()).filter(|i| results[*i].is_err()).collect();
    assert_eq!(failed, [1499], "the duplicate fails, what comes after it runs");
    let observed = observe(kernel);
    assert_eq!(observed.virtual_servers[&vs].real_servers.len(), 1999);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_ipvs::kernel::fake::FakeKernel;

    #[test]
    fn the_fake_kernel_passes() {
        run(&mut FakeKernel::new(&[]));
    }
}
