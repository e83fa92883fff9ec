// SPDX-License-Identifier: Apache-2.0
use crate::core::model::Family;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::core::model::VsKey;
use crate::core::plan::op::OpKind;
use crate::inbox::Inbox;
use crate::kernel::fake::FakeKernel;
use crate::reconcile::mirror::FRESH;
use crate::store::{Kind, Object, Store};
use crate::testing::cluster::Cluster;
use crate::testing::{Agent, kernel, reporting, settings};

const NOW: Duration = Duration::from_secs(100);

/// The API server's Service and another one.
fn cluster() -> Cluster {
    let spec = |ip: &str| json!({"clusterIP": ip, "ports": [{"name": "p", "port": 443}]});
    let api = json!({"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": spec("10.96.0.1")});
    let slice = json!({
        "metadata": {"name": "kubernetes", "namespace": "default",
                     "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "ports": [{"name": "p", "port": 6443}],
        "endpoints": [{"addresses": ["192.168.50.1"], "conditions": {"ready": true}}],
    });
    Cluster::default()
        .with(Kind::Service, &api)
        .with(Kind::EndpointSlice, &slice)
        .service("web", spec("10.96.0.2"), &[])
        .slice("web", &["10.244.1.5@n1"], &["p/TCP/8080"])
}

/// An agent with incomplete lists, but with the Node and the objects of the cluster.
fn starting(kernel: FakeKernel, first: bool) -> Agent {
    let store = Arc::new(Store::new(Arc::new(Inbox::default())));
    store.update(|update| {
        update.begin_list(Kind::Node);
        update.put(Object::Node(cluster().node));
        update.finish_list(Kind::Node);
        cluster().objects.into_values().for_each(|object| update.put(object));
        if first {
            update.set_priority_known();
        }
    });
    let reconciler = Reconciler::new(kernel, store.clone(), settings(), "n1", false, reporting());
    Agent { store, reconciler, now: NOW }
}

fn servers(agent: &mut Agent) -> Vec<String> {
    let mut keys: Vec<VsKey> = agent.kernel().state.virtual_servers.keys().copied().collect();
    keys.sort_unstable();
    keys.iter().map(ToString::to_string).collect()
}

/// The kernel with the whole cluster programmed.
fn programmed() -> FakeKernel {
    let mut agent = Agent::start(kernel(), &cluster());
    agent.converge(Due::Audit, 1);
    agent.kill()
}

#[test]
fn on_a_node_without_state_priority_services_are_programmed_before_the_lists_are_complete() {
    let mut agent = starting(kernel(), true);
    let pass = agent.reconciler.sync_early(NOW).unwrap();
    assert!(pass.is_clean());
    assert_eq!(servers(&mut agent), ["TCP 10.96.0.1:443"]);
    assert!(agent.kernel().exposed().is_empty(), "its address has a filter");
    assert_eq!(agent.kernel().state.virtual_servers.values().next().unwrap().real_servers.len(), 1);
    assert!(!agent.reconciler.is_ready(), "all others still wait for the lists");
    assert_eq!(agent.reconciler.sync_early(NOW), None, "once");
    cluster().put(&agent.store);
    assert!(agent.reconciler.sync(Due::Audit, NOW + FRESH).is_clean());
    assert_eq!(agent.kernel().counts.observations, 1, "the early reading was enough");
    assert_eq!(agent.kernel().count(OpKind::Bind), 2, "each address once");
    assert_eq!(agent.kill().state, programmed().state);
}

#[test]
fn on_a_node_with_state_nothing_is_written_before_the_lists_are_complete() {
    let changes: [fn(&mut FakeKernel); 5] = [
        |kernel| kernel.state.addresses.clear(),
        |kernel| kernel.state.virtual_servers.clear(),
        |kernel| kernel.state.rules = Default::default(),
        |kernel| kernel.state.sets.clear(),
        |kernel| {
            kernel.state = self::kernel().state;
            kernel.state.node.nft_tables[Family::V4].kube_proxy = true;
        },
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut node = programmed();
        change(&mut node);
        let before = node.state.clone();
        let mut agent = starting(node, true);
        assert_eq!(agent.reconciler.sync_early(NOW), None, "{n}");
        assert_eq!(agent.kernel().state, before, "{n}");
    }
}

#[test]
fn without_priority_services_the_kernel_is_only_read() {
    let mut agent = starting(kernel(), false);
    for _ in 0..3 {
        assert_eq!(agent.reconciler.sync_early(NOW), None);
    }
    assert_eq!(agent.kernel().counts.observations, 1);
    assert!(agent.kernel().counts.ops.is_empty());
}

#[test]
fn an_early_reading_is_repeated_if_it_is_old_outdated_or_failed() {
    let whole_pass = |agent: &mut Agent, now: Duration| {
        cluster().put(&agent.store);
        assert!(agent.reconciler.sync(Due::Audit, now).is_clean());
        (agent.kernel().counts.observations, agent.kernel().state.virtual_servers.len())
    };
    let mut agent = starting(programmed(), true);
    agent.reconciler.sync_early(NOW);
    let before = agent.kernel().counts.observations;
    assert_eq!(whole_pass(&mut agent, NOW + FRESH), (before, 2), "young enough");
    for changed in [false, true] {
        let mut agent = starting(programmed(), true);
        agent.reconciler.sync_early(NOW);
        agent.kernel().state.virtual_servers.clear();
        if changed {
            agent.reconciler.mirror.outdated();
        }
        let later = if changed { NOW } else { NOW + FRESH * 2 };
        assert_eq!(whole_pass(&mut agent, later), (before + 1, 2), "changed: {changed}");
    }
    let mut agent = starting(kernel(), false);
    agent.kernel().fail_next_observe();
    assert_eq!(agent.reconciler.sync_early(NOW), None);
    assert_eq!(whole_pass(&mut agent, NOW).1, 2);
}

#[test]
fn early_failures_are_retried_with_the_first_whole_pass() {
    for uncertain in [false, true] {
        let mut agent = starting(kernel(), true);
        agent.kernel().fail_at(20, uncertain);
        assert!(!agent.reconciler.sync_early(NOW).unwrap().is_clean());
        cluster().put(&agent.store);
        agent.converge(Due::Audit, 1);
        assert_eq!(agent.kill().state, programmed().state, "{uncertain}");
    }
}
