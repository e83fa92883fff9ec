// SPDX-License-Identifier: Apache-2.0
//! Removed real servers: when they drain, and when they are removed.

use super::*;

/// An agent that has just set the weight of an endpoint to 0.
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
fn endpoints_whose_connections_cannot_be_read_are_not_removed() {
    let mut r = drained();
    assert_eq!(r.kernel().count(OpKind::DrainRealServer), 2, "ClusterIP and external IP");
    r.kernel().fail_next_busy();
    assert!(r.sync(Due::Changes, now()).is_clean());
    assert_eq!(r.kernel().count(OpKind::RemoveRealServer), 0);
    let busy_reads = r.kernel().counts.busy_reads;
    assert!(r.sync(Due::Drains, now()).is_clean());
    assert_eq!(r.kernel().counts.busy_reads, busy_reads + 1, "one read for all draining endpoints");
    assert_eq!(r.kernel().count(OpKind::RemoveRealServer), 2, "they have no connections");
}

/// A connection can begin between the reading of connections and a removal, which would break it.
#[test]
fn a_connection_that_begins_during_the_removal_of_its_endpoint_is_kept() {
    let mut r = drained();
    let busy_reads = r.kernel().counts.busy_reads;
    assert_eq!(busy_reads, 0, "connections are read only after the weight is 0");
    let leaving = RsKey { addr: [10, 244, 1, 1].into(), port: 8080 };
    let vs = VsKey { protocol: Protocol::Tcp, addr: [10, 96, 0, 1].into(), port: 80 };
    r.kernel().state.busy = [(vs, leaving)].into_iter().collect();
    assert!(r.sync(Due::Changes, now()).is_clean(), "without a retry");
    assert!(
        r.kernel().state.virtual_servers[&vs].real_servers.get(&leaving).is_some_and(|rs| rs.weight == 0)
    );
    assert_eq!(r.kernel().count(OpKind::RemoveRealServer), 1, "that of the external IP");
    r.kernel().state.busy.clear();
    assert!(r.sync(Due::Drains, now()).is_clean());
    assert_eq!(r.kernel().count(OpKind::RemoveRealServer), 2);
}

#[test]
fn an_endpoint_that_is_ready_again_only_gets_its_weight() {
    let store = new_store();
    before(&store);
    let mut r = reconciler(&store, FakeKernel::new(&[SYSCTL]));
    assert!(r.sync(Due::Audit, now()).is_clean());
    let servers = r.kernel().state.virtual_servers.clone();
    let all = servers.iter().flat_map(|(vs, s)| s.real_servers.keys().map(|rs| (*vs, rs)));
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
