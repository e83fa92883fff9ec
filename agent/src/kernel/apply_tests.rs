// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::core::plan::outcome::ObserveError;
use std::sync::Mutex;

use super::*;
use crate::core::mirror::ObservedServer;
use crate::core::mirror::comparison::{Piece, ReadStep};
use crate::core::model::map::Set;
use crate::core::model::real_servers::RsState;
use crate::core::model::sets::ProbedSet;
use crate::core::model::{Protocol, RsKey, VsKey, VsSpec};
use crate::core::plan::op::OpKind;
use crate::core::plan::subject::Part;
use crate::kernel::ProbeResult;
use crate::kernel::fake::FakeKernel;
use crate::testing::run_plan;

/// Records the ops in the order of their execution.
struct Noting {
    kernel: FakeKernel,
    done: Mutex<Vec<Op>>,
}

impl Kernel for Noting {
    fn read(&mut self, step: ReadStep) -> Result<Option<Piece>, ObserveError> {
        self.kernel.read(step)
    }

    fn read_servers(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError> {
        self.kernel.read_servers(servers)
    }

    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError> {
        self.kernel.busy(servers)
    }

    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>)) {
        let done = &self.done;
        self.kernel.beside(&mut |ipvs, addresses| {
            // Recorded before an address is bound and after a server is acknowledged: the worst order.
            let mut servers = |ops: &[&Op]| {
                let results = ipvs(ops);
                done.lock().unwrap().extend(ops.iter().copied().cloned());
                results
            };
            let mut opened = |ops: &[&Op]| {
                done.lock().unwrap().extend(ops.iter().copied().cloned());
                addresses(ops)
            };
            work(&mut servers, &mut opened);
        });
    }

    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        self.done.lock().unwrap().extend(ops.iter().copied().cloned());
        self.kernel.execute(ops)
    }

    fn read_part(&mut self, part: Part) -> Result<Piece, ObserveError> {
        self.kernel.read_part(part)
    }

    fn read_rules(&mut self, families: &[Family], afresh: bool) {
        self.kernel.read_rules(families, afresh);
    }

    fn finished(&mut self, limit: Duration) -> Vec<Finished> {
        self.kernel.finished(limit)
    }

    fn probe(&mut self, servers: &[VsKey], sets: &[ProbedSet]) -> ProbeResult {
        self.kernel.probe(servers, sets)
    }
}

fn vs(n: u16, protocol: Protocol) -> VsKey {
    let [a, b] = n.to_be_bytes();
    VsKey { protocol, addr: [10, 96, a, b].into(), port: 53 }
}

/// `count` addresses with a TCP and a UDP server each, in plan order, and one server without a new address.
fn plan(count: u16) -> Plan {
    let spec = VsSpec { scheduler: "rr".into(), flags: 0, timeout: 0 };
    let rs = RsKey { addr: [10, 244, 0, 1].into(), port: 53 };
    let mut ops = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for n in 0..count {
            ops.push(Op::AddVirtualServer(vs(n, protocol), spec.clone()));
            ops.push(Op::AddRealServer(vs(n, protocol), rs, RsState::USUAL));
        }
    }
    let node_port = VsKey { addr: [192, 168, 50, 2].into(), ..vs(0, Protocol::Tcp) };
    ops.push(Op::AddVirtualServer(node_port, spec));
    ops.extend((0..count).map(|n| Op::Bind(vs(n, Protocol::Tcp).addr)));
    Plan { ops, priority: 0 }
}

fn run(plan: &Plan, fail: Option<OpKind>) -> (Report, Noting) {
    let mut kernel = Noting { kernel: FakeKernel::default(), done: Mutex::default() };
    kernel.kernel.state.device = true;
    fail.into_iter().for_each(|kind| kernel.kernel.fail_next(kind));
    (run_plan(&mut kernel, plan), kernel)
}

#[test]
fn an_address_is_bound_after_its_servers_and_before_all_servers_are_added() {
    let plan = plan(5000);
    let (report, kernel) = run(&plan, None);
    assert!(report.is_clean());
    let done = kernel.done.into_inner().unwrap();
    assert_eq!(done.len(), plan.ops.len(), "each op once");
    let mut standing: Map<IpAddr, usize> = Map::default();
    for op in &done {
        match op {
            Op::Bind(addr) => assert_eq!(standing[addr], 4, "{addr} is bound too early"),
            op => *standing.entry(op.subject().virtual_server().unwrap().addr).or_default() += 1,
        }
    }
    let first_bind = done.iter().position(|op| matches!(op, Op::Bind(_))).unwrap();
    assert!(first_bind < 4 * 5000, "addresses are bound meanwhile");
}

#[test]
fn a_failed_server_leaves_only_its_address_unbound() {
    let plan = plan(4000);
    let (report, kernel) = run(&plan, Some(OpKind::AddVirtualServer));
    let failed: Vec<(String, &Outcome)> = (plan.ops.iter().zip(&report.outcomes))
        .filter(|(_, outcome)| **outcome != Outcome::Done)
        .map(|(op, outcome)| (op.to_string(), outcome))
        .collect();
    assert_eq!(failed.len(), 3, "{failed:?}");
    assert!(matches!(failed[0].1, Outcome::Failed(_)), "{failed:?}");
    assert!(failed[1..].iter().all(|(_, outcome)| matches!(outcome, Outcome::Blocked(_))), "{failed:?}");
    assert_eq!(kernel.kernel.state.addresses.len(), 3999);
}

#[test]
fn few_addresses_are_one_batch() {
    let plan = plan(BATCH_SIZE as u16);
    let (report, kernel) = run(&plan, None);
    assert!(report.is_clean());
    assert_eq!(kernel.done.into_inner().unwrap(), plan.ops);
}
