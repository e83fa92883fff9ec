// SPDX-License-Identifier: Apache-2.0
//! Properties of every cluster and every sequence of events.

use crate::core::plan::pass::Due;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::cluster::Cluster;
use super::random::any_cluster;
use super::{Agent, DEADLINE, kernel};
use crate::core::mirror::Observed;
use crate::core::model::map::Set;
use crate::core::model::{RsKey, VsKey, VsSpec};
use crate::core::plan::op::{Op, OpKind, Phase};
use crate::inbox::Inbox;
use crate::kernel::Kernel;
use crate::store::Store;

/// The state of a new node after a sync of the cluster.
fn scratch(cluster: &Cluster) -> Observed {
    let mut agent = Agent::start(kernel(), cluster);
    agent.converge(Due::Audit, 1);
    agent.kill().state
}

/// An event during the life of an agent.
#[derive(Clone, Debug)]
enum Event {
    /// The objects change.
    Objects(Box<Cluster>),
    /// The next op of a kind fails.
    Fail(Index),
    /// The agent is killed after this number of ops of its next sync, and restarts.
    Restart(u8),
    /// Another program flushes a table or unbinds addresses.
    Interfere(u8),
    /// Connections of real servers begin and end.
    Connections(u64),
    /// A sync, with or without an audit, after a number of seconds.
    Sync(bool, u16),
    /// This number of steps of an audit.
    Audit(u8),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => any_cluster().prop_map(|c| Event::Objects(Box::new(c))),
        2 => any::<Index>().prop_map(Event::Fail),
        1 => any::<u8>().prop_map(Event::Restart),
        1 => any::<u8>().prop_map(Event::Interfere),
        1 => any::<u64>().prop_map(Event::Connections),
        2 => (0..30u8).prop_map(Event::Audit),
        4 => (any::<bool>(), 0..400u16).prop_map(|(audit, s)| Event::Sync(audit, s)),
    ]
}

/// An agent, its cluster and its clock.
struct World {
    agent: Agent,
    cluster: Cluster,
    now: Duration,
    /// The mirror may be wrong until the next audit.
    doubt: bool,
    /// Current and former addresses of the Node object: they are bound without the access filter.
    named: BTreeSet<IpAddr>,
}

impl World {
    fn apply_event(mut self, event: Event) -> Self {
        match event {
            Event::Objects(cluster) => {
                cluster.put(&self.agent.store);
                self.named.extend(&cluster.node.addresses);
                self.cluster = *cluster;
            }
            Event::Fail(kind) => self.agent.kernel().fail_next(*kind.get(OpKind::ALL)),
            Event::Restart(ops) => {
                self.agent.kernel().stop_after(Some(ops.into()));
                let _ = self.agent.reconciler.sync(Due::Audit, self.now);
                let mut kernel = self.agent.kill();
                kernel.stop_after(None);
                self.agent = Agent::start(kernel, &self.cluster);
            }
            Event::Interfere(what) => {
                interfere(&mut self.agent.kernel().state, what);
                self.doubt = true;
            }
            Event::Connections(seed) => connect(&mut self.agent.kernel().state, seed),
            Event::Sync(audit, seconds) => self.sync(audit, seconds),
            Event::Audit(pieces) => {
                let step = |_| self.agent.reconciler.audit_step(self.now);
                self.doubt |= (0..pieces).filter_map(step).any(|pass| pass.report.is_uncertain());
            }
        }
        self
    }

    fn sync(&mut self, audit: bool, seconds: u16) {
        self.now += Duration::from_secs(seconds.into());
        let due = if audit || self.doubt { Due::Audit } else { Due::Drains };
        let before = self.agent.kernel().exposed();
        let pass = self.agent.reconciler.sync(due, self.now);
        let newly: Vec<IpAddr> = self.agent.kernel().exposed().difference(&before).copied().collect();
        assert!(
            newly.iter().all(|ip| self.named.contains(ip)),
            "{newly:?} is bound without the access filter after\n{}",
            pass.plan
        );
        self.doubt = pass.report.is_uncertain() || pass.unreadable.is_some();
    }
}

fn interfere(state: &mut Observed, what: u8) {
    match what % 5 {
        0 => state.virtual_servers.clear(),
        1 => state.addresses.clear(),
        2 => state.rules = Default::default(),
        3 => state.sets.values_mut().for_each(|set| set.members = Default::default()),
        _ => {
            state.device = false;
            state.addresses.clear();
        }
    }
    state.busy.clear();
}

fn connect(state: &mut Observed, seed: u64) {
    let mut all: Vec<(VsKey, RsKey)> = state
        .virtual_servers
        .iter()
        .flat_map(|(vs, server)| server.real_servers.keys().map(|rs| (*vs, rs)))
        .collect();
    all.sort_unstable();
    let has = |i: usize| seed >> (i % 64) & 1 == 1;
    state.busy = all.into_iter().enumerate().filter(|(i, _)| has(*i)).map(|(_, key)| key).collect();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_converges_after_any_events(events in prop::collection::vec(any_event(), 1..14)) {
        let cluster = Cluster::default();
        let agent = Agent::start(kernel(), &cluster);
        let mut world = World { agent, cluster, now: Duration::ZERO, doubt: false, named: BTreeSet::new() };
        for event in events {
            world = world.apply_event(event);
        }
        // Every injected failure is used up. Then the deadline ends the drains.
        for _ in 0..OpKind::ALL.len() {
            world.now += Duration::from_secs(31);
            let _ = world.agent.reconciler.sync(Due::Audit, world.now);
        }
        let pass = world.agent.reconciler.sync(Due::Audit, world.now + DEADLINE);
        prop_assert!(pass.is_clean(), "{:?}", pass.report);
        let pass = world.agent.reconciler.sync(Due::Audit, world.now + DEADLINE);
        prop_assert!(pass.plan.is_empty(), "still to do:\n{}", pass.plan);
        let mut state = world.agent.kill().state;
        state.busy.clear();
        prop_assert_eq!(state, scratch(&world.cluster));
    }

    #[test]
    fn an_incremental_sync_equals_a_full_sync(a in any_cluster(), b in any_cluster()) {
        let mut agent = Agent::start(kernel(), &a);
        agent.converge(Due::Audit, 1);
        b.put(&agent.store);
        agent.converge(Due::Changes, 1);
        prop_assert_eq!(agent.kernel().counts.observations, 1, "no second read of the kernel");
        prop_assert_eq!(agent.kill().state, scratch(&b));
    }

    #[test]
    fn the_order_of_objects_does_not_matter(a in any_cluster(), seed in any::<u64>()) {
        let store = Arc::new(Store::new(Arc::new(Inbox::default())));
        Cluster { node: a.node.clone(), ..Cluster::default() }.put(&store);
        let mut objects: Vec<_> = a.objects.values().cloned().collect();
        let mut agent = Agent::start(kernel(), &Cluster::default());
        agent.store = store.clone();
        agent.reconciler = crate::reconcile::Reconciler::new(
            kernel(), store, super::settings(), "n1", false, super::reporting(),
        );
        let mut n = seed;
        while !objects.is_empty() {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let object = objects.swap_remove((n >> 33) as usize % objects.len());
            agent.store.update(|update| update.put(object));
            agent.converge(Due::Changes, 1);
        }
        agent.converge(Due::Changes, 1);
        prop_assert_eq!(agent.kill().state, scratch(&a));
    }

    #[test]
    fn foreign_virtual_servers_are_never_changed(a in any_cluster(), b in any_cluster()) {
        let excluded = VsKey { addr: "9.9.9.9".parse().unwrap(), ..super::scenarios::tcp_server("9.9.9.9", 80) };
        let spec = VsSpec { scheduler: "wrr".into(), flags: 0, timeout: 0 };
        let mut node = kernel();
        node.state.record(&Op::AddVirtualServer(excluded, spec));
        let store = Arc::new(Store::new(Arc::new(Inbox::default())));
        a.put(&store);
        let settings = crate::core::model::settings::Settings {
            exclude_cidrs: vec!["9.9.9.0/24".parse().unwrap()],
            ..super::settings()
        };
        let mut agent = crate::reconcile::Reconciler::new(node, store.clone(), settings, "n1", false, super::reporting());
        for cluster in [&a, &b] {
            cluster.put(&store);
            prop_assert!(agent.sync(Due::Audit, Duration::ZERO).is_clean());
            prop_assert!(agent.kernel().state.virtual_servers.contains_key(&excluded));
        }
    }

    #[test]
    fn phases_are_in_order_and_every_bound_address_is_filtered(a in any_cluster(), b in any_cluster()) {
        let named: BTreeSet<IpAddr> = a.node.addresses.iter().chain(&b.node.addresses).copied().collect();
        let mut probe = Agent::start(kernel(), &a);
        for cluster in [&a, &b] {
            let before = probe.kernel().state.clone();
            cluster.put(&probe.store);
            let pass = probe.sync(Due::Audit);
            for part in [&pass.plan.ops[..pass.plan.priority], &pass.plan.ops[pass.plan.priority..]] {
                let phases: Vec<Phase> = part.iter().map(Op::phase).collect();
                prop_assert!(phases.is_sorted());
            }
            let mut step = kernel();
            step.state = before;
            for op in &pass.plan.ops {
                prop_assert!(step.execute(&[op])[0].is_ok(), "{}", op);
                prop_assert!(step.exposed().is_subset(&named), "after {}", op);
            }
        }
    }

    #[test]
    fn an_open_connection_keeps_its_real_server(a in any_cluster(), b in any_cluster(), seed in any::<u64>()) {
        let mut agent = Agent::start(kernel(), &a);
        agent.converge(Due::Audit, 1);
        connect(&mut agent.kernel().state, seed);
        let busy: Set<(VsKey, RsKey)> = agent.kernel().state.busy.clone();
        b.put(&agent.store);
        agent.converge(Due::Changes, 1);
        let servers = &agent.kernel().state.virtual_servers;
        for (vs, rs) in busy {
            let Some(server) = servers.get(&vs) else { continue };
            let tcp = vs.protocol == crate::core::model::Protocol::Tcp;
            prop_assert!(!tcp || server.real_servers.get(&rs).is_some(), "{} -> {} was removed", vs, rs);
        }
    }
}
