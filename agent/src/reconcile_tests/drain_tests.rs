// SPDX-License-Identifier: Apache-2.0
//! Real servers that leave: when they drain, and when they go.

use super::*;

/// An agent that just set the weight of an endpoint to 0.
fn drained() -> Reconciler<FakeKernel> {
    let store = new_store();
    before(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    store.update(|u| u.put(slice("a", &[2])));
    assert!(r.sync(Due::Changes, now()).is_clean());
    r
}

#[test]
fn connections_that_cannot_be_asked_for_are_not_cut() {
    let mut r = drained();
    assert_eq!(r.kernel().count(OpKind::DrainRealServer), 2, "ClusterIP and external IP");
    r.kernel().fail_next_busy();
    assert!(r.sync(Due::Changes, now()).is_clean());
    assert_eq!(r.kernel().count(OpKind::RemoveRealServer), 0);
    let busy_reads = r.kernel().counts.busy_reads;
    assert!(r.sync(Due::Drains, now()).is_clean());
    assert_eq!(r.kernel().counts.busy_reads, busy_reads + 1, "one look, however many drain");
    assert_eq!(r.kernel().count(OpKind::RemoveRealServer), 2, "they were idle");
}

/// Between a look at the connections and a removal one may come, and the kernel would end it.
#[test]
fn a_connection_that_comes_while_its_endpoint_leaves_is_kept() {
    let mut r = drained();
    let busy_reads = r.kernel().counts.busy_reads;
    assert_eq!(busy_reads, 0, "what was seen before the weight is 0 says nothing");
    let leaving = RsKey { addr: [10, 244, 1, 1].into(), port: 8080 };
    let vs = VsKey { protocol: Protocol::Tcp, addr: [10, 96, 0, 1].into(), port: 80 };
    r.kernel().state.busy = [(vs, leaving)].into_iter().collect();
    assert!(r.sync(Due::Changes, now()).is_clean(), "by itself");
    assert!(
        r.kernel().state.virtual_servers[&vs].real_servers.get(&leaving).is_some_and(|rs| rs.weight == 0)
    );
    assert_eq!(r.kernel().count(OpKind::RemoveRealServer), 1, "the one of the external IP");
    r.kernel().state.busy.clear();
    assert!(r.sync(Due::Drains, now()).is_clean());
    assert_eq!(r.kernel().count(OpKind::RemoveRealServer), 2);
}

#[test]
fn readiness_that_returns_raises_the_weight_and_nothing_else() {
    let store = new_store();
    before(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    let servers = r.kernel().state.virtual_servers.clone();
    let all = servers.iter().flat_map(|(vs, s)| s.real_servers.keys().map(|rs| (*vs, *rs)));
    r.kernel().state.busy = all.collect();
    store.update(|u| u.put(slice("a", &[2])));
    assert!(r.sync(Due::Changes, now()).is_clean());
    store.update(|u| u.put(slice("a", &[1, 2])));
    let pass = r.sync(Due::Changes, now());
    let kinds: Vec<OpKind> = pass.plan.ops.iter().map(Op::kind).filter(|k| *k != OpKind::AddEntry).collect();
    assert_eq!(kinds, [OpKind::EditRealServer, OpKind::EditRealServer]);
}

#[test]
fn the_end_of_a_drain_that_an_audit_finds_is_no_drift() {
    let mut r = drained();
    r.kernel().fail_next_busy();
    assert!(r.sync(Due::Changes, now()).is_clean());
    let pass = r.sync(Due::Audit, now());
    assert_eq!((pass.plan.ops.len(), pass.drift.len()), (2, 0), "{}", pass.plan);
}
