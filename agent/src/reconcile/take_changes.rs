// SPDX-License-Identifier: Apache-2.0
//! Moves changes from the store to the wanted state.

use crate::core::model::PerFamily;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::{PassScope, Reconciler};
use crate::core::model::changes::Changes;
use crate::core::model::settings::LocalTraffic;
use crate::core::service::fragment::{Fragment, build_fragment};
use crate::core::service::node_facts::NodeFacts;
use crate::kernel::Kernel;
use crate::lock::join;
use crate::store::Dirty;

/// Number of changed Services from which a second thread helps.
const MANY: usize = 1000;

impl<K: Kernel> Reconciler<K> {
    /// Takes the changed Services, or the priority Services. If a fact about the node changed, all fragments are built
    /// again.
    pub(super) fn take_changes(&mut self, scope: &PassScope, now: Duration) -> Changes {
        let mut changes = std::mem::take(&mut self.pending);
        changes.everything = matches!(scope, PassScope::Everything);
        let early = matches!(scope, PassScope::Priority);
        let dirty = if early { self.take_priority() } else { self.take_changed(now) };
        dirty.iter().for_each(|dirty| self.touched.add(&dirty.name));
        self.update_desired(&dirty, &mut changes, now);
        let inherited = self.endpoint_checks.send();
        self.store.touch(&inherited);
        self.health_checks_changed |= std::mem::take(&mut changes.health_checks);
        changes
    }

    /// Updates the wanted state. A second thread builds half of the fragments if there are many.
    fn update_desired(&mut self, dirty: &[Dirty], changes: &mut Changes, now: Duration) {
        let Self { desired, node, settings, slow_starts, endpoint_checks, mirror, .. } = self;
        let found = mirror.observed().filter(|_| changes.everything);
        let build = |dirty: &Dirty| {
            let slices = dirty.slices.iter().map(|slice| &**slice);
            let service = dirty.service.as_ref()?;
            Some(build_fragment(service, slices, &dirty.of_endpoints, node, settings))
        };
        let (here, there) = dirty.split_at(if dirty.len() < MANY { dirty.len() } else { dirty.len() / 2 });
        let mut update = |dirty: &Dirty, mut fragment: Option<Fragment>| {
            endpoint_checks.take_over(&dirty.name, fragment.as_mut(), found);
            match &mut fragment {
                Some(next) => slow_starts.lower(&dirty.name, desired.fragment(&dirty.name), next, now),
                None => slow_starts.forget(&dirty.name),
            }
            desired.update(&dirty.name, fragment, changes);
        };
        if there.is_empty() {
            return here.iter().for_each(|dirty| update(dirty, build(dirty)));
        }
        thread::scope(|scope| {
            let built = scope.spawn(|| there.iter().map(build).collect::<Vec<_>>());
            here.iter().for_each(|dirty| update(dirty, build(dirty)));
            let built = join(built);
            there.iter().zip(built).for_each(|(dirty, fragment)| update(dirty, fragment));
        });
    }

    fn take_priority(&mut self) -> Vec<Dirty> {
        let priority = self.store.priority();
        self.learn_node();
        priority
    }

    fn take_changed(&mut self, now: Duration) -> Vec<Dirty> {
        self.store.touch(self.slow_starts.due(now));
        let since = self.store.waiting_since();
        self.reporting.metrics.work.working_on(since);
        if since.is_some() {
            // A change that arrived during the reading of the kernel is not counted yet.
            self.reporting.health.with(|health| health.changed(SystemTime::now()));
        }
        let mut dirty = self.store.clone().take_dirty(|| self.learn_node());
        for dirty in &mut dirty {
            self.reporting.metrics.programming.add(&dirty.name, std::mem::take(&mut dirty.triggers));
        }
        dirty
    }

    /// Adds the gateways of new routes to the protected addresses. If one is local, all fragments are built again.
    pub(super) fn learn_gateways(&mut self, gateways: &[IpAddr]) {
        let new: Vec<IpAddr> =
            gateways.iter().copied().filter(|gateway| !self.protected.gateways.contains(gateway)).collect();
        if new.is_empty() {
            return;
        }
        let is_local = |addr: IpAddr| self.desired.wants_address(addr) || self.node.is_routed(addr);
        let any_local = new.iter().any(|gateway| is_local(*gateway));
        Arc::make_mut(&mut self.protected).gateways.extend(new);
        if any_local {
            self.pending.common = true;
        } else {
            self.node.protected = self.protected.clone();
        }
    }

    /// Updates the facts about the node; true: the wanted state depends on the change.
    fn learn_node(&mut self) -> bool {
        self.node_object = self.store.node().or(self.node_object.take());
        let node = &self.node_object;
        if self.local_from_node
            && let Some(cidrs) = node.as_ref().map(|n| n.pod_cidrs)
        {
            let before = std::mem::replace(&mut self.settings.local, LocalTraffic::Cidrs(cidrs));
            if before != self.settings.local {
                self.rules = PerFamily::default();
            }
        }
        if self.store.is_synced() {
            self.reporter.node(&self.node.name, self.store.node().is_some());
        }
        // As in kube-proxy, the last version of a deleted Node stays in force.
        let eligible = node.as_ref().is_some_and(|n| !n.leaving);
        self.reporting.health.with(|health| health.eligible = eligible);
        let Some(observed) = self.mirror.observed() else { return false };
        if let Some(ranges) = self.store.service_cidrs() {
            // Routes of an earlier run stay while the ranges are unknown.
            let existing = || observed.node.routes.iter().copied().collect();
            self.settings.routed = ranges.map_or_else(existing, |ranges| ranges.to_vec());
        }
        let peers = self.store.peers();
        if !self.protected.knows(observed, &peers) {
            let protected = Arc::make_mut(&mut self.protected);
            protected.learn(observed);
            protected.peers = peers;
        }
        let around = (observed, &self.protected);
        if self.awaits_nodes() {
            let bound = || Arc::new(observed.addresses.iter().map(IpNet::addr).collect());
            self.kept.get_or_insert_with(bound);
        } else {
            self.kept = None;
        }
        let bound = self.store.awaits_nodes().then(|| self.kept.clone().unwrap_or_default());
        let facts = NodeFacts {
            missing_schedulers: self.missing_schedulers.names.clone(),
            ..NodeFacts::build(&self.node.name, node.as_ref(), around, &self.settings, bound)
        };
        if facts == self.node {
            return false;
        }
        self.health_checks_changed = true;
        if facts.unroutable != self.node.unroutable {
            self.reporter.unroutable(&facts.unroutable);
        }
        self.desired.routes = facts.routed.iter().copied().collect();
        self.node = facts;
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::core::plan::pass::Due;
    use std::sync::Arc;
    use std::time::Duration;

    use super::MANY;
    use crate::core::model::settings::Settings;
    use crate::core::model::*;
    use crate::inbox::Inbox;
    use crate::kernel::fake::FakeKernel;
    use crate::reconcile::Reconciler;
    use crate::store::{Kind, Object, Store};
    use crate::testing::reporting;

    fn put(store: &Store, numbers: std::ops::Range<usize>) {
        store.update(|update| {
            for number in numbers {
                // Every third Service has the VIP of the one before it.
                let [.., high, low] = (number - usize::from(number % 3 == 1)).to_be_bytes();
                update.put(Object::Service(Service {
                    name: ObjectName::new("d", &number.to_string()),
                    cluster_ips: PerFamily::new(Some([10, 96, high, low].into()), None),
                    ports: vec![ServicePort {
                        name: "".into(),
                        protocol: Protocol::Tcp,
                        port: 80,
                        node_port: 0,
                    }],
                    ..Service::default()
                }));
            }
        });
    }

    #[test]
    fn one_large_change_gives_the_same_state_as_many_small_ones() {
        let most = MANY + MANY / 2 + 1;
        let kernels = [most, MANY / 3].map(|group| {
            let store = Arc::new(Store::new(Arc::new(Inbox::default())));
            let settings = Settings::default();
            let mut agent =
                Reconciler::new(FakeKernel::default(), store.clone(), settings, "n1", false, reporting());
            store.update(|update| Kind::ALL.into_iter().for_each(|kind| update.finish_list(kind)));
            for start in (0..most).step_by(group) {
                put(&store, start..most.min(start + group));
                assert!(agent.sync(Due::Changes, Duration::ZERO).is_clean());
            }
            assert_eq!(agent.desired().service_count(), most);
            agent.kernel().state.clone()
        });
        assert_eq!(kernels[0].virtual_servers, kernels[1].virtual_servers);
        assert_eq!(kernels[0], kernels[1]);
    }
}
