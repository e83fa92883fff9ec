// SPDX-License-Identifier: Apache-2.0
//! Moves changes from the store to the wanted state.

use std::panic::resume_unwind;
use std::thread;
use std::time::SystemTime;

use super::{Look, Reconciler};
use crate::core::desired::Changes;
use crate::core::fragment::build_fragment;
use crate::core::node::NodeFacts;
use crate::core::settings::LocalTraffic;
use crate::kernel::Kernel;
use crate::store::Dirty;

/// So many changed Services are worth a second thread.
const MANY: usize = 1000;

impl<K: Kernel> Reconciler<K> {
    /// Takes what changed, or ahead of all others the first Services. When a fact about the node changed,
    /// every fragment is built again.
    pub(super) fn take_changes(&mut self, look: &Look) -> Changes {
        let mut changes = std::mem::take(&mut self.pending);
        changes.everything = matches!(look, Look::Everything);
        let ahead = matches!(look, Look::Ahead);
        let mut dirty = if ahead { self.store.first() } else { self.take_dirty() };
        if self.learn_node() && !ahead {
            let gone: Vec<Dirty> = dirty.into_iter().filter(|d| d.service.is_none()).collect();
            dirty = self.store.all();
            dirty.extend(gone);
        }
        self.update_desired(&dirty, &mut changes);
        self.health_checks_changed |= std::mem::take(&mut changes.health_checks);
        changes
    }

    /// A second thread builds half of the fragments where there are many.
    fn update_desired(&mut self, dirty: &[Dirty], changes: &mut Changes) {
        let Self { desired, node, settings, .. } = self;
        let build = |dirty: &Dirty| {
            let slices = dirty.slices.iter().map(|slice| &**slice);
            dirty.service.as_ref().map(|service| build_fragment(service, slices, node, settings))
        };
        let (here, there) = dirty.split_at(if dirty.len() < MANY { dirty.len() } else { dirty.len() / 2 });
        let mut update = |dirty: &Dirty, fragment| desired.update(&dirty.name, fragment, changes);
        if there.is_empty() {
            return here.iter().for_each(|dirty| update(dirty, build(dirty)));
        }
        thread::scope(|scope| {
            let built = scope.spawn(|| there.iter().map(build).collect::<Vec<_>>());
            here.iter().for_each(|dirty| update(dirty, build(dirty)));
            let built = built.join().unwrap_or_else(|panic| resume_unwind(panic));
            there.iter().zip(built).for_each(|(dirty, fragment)| update(dirty, fragment));
        });
    }

    fn take_dirty(&self) -> Vec<Dirty> {
        let since = self.store.waiting_since();
        self.outlets.metrics.working_on(since);
        if since.is_some() {
            // One that came in while this pass was reading the kernel was not noticed before.
            self.outlets.health.with(|health| health.changed(SystemTime::now()));
        }
        let mut dirty = self.store.take_dirty();
        for dirty in &mut dirty {
            self.outlets.metrics.triggered(&dirty.name, std::mem::take(&mut dirty.triggers));
        }
        dirty
    }

    /// Takes up what is new about the node; true when it changes what Services want.
    fn learn_node(&mut self) -> bool {
        self.node_object = self.store.node().or(self.node_object.take());
        let node = &self.node_object;
        if self.local_from_node
            && let Some(cidrs) = node.as_ref().map(|n| n.pod_cidrs)
        {
            let before = std::mem::replace(&mut self.settings.local, LocalTraffic::Cidrs(cidrs));
            if before != self.settings.local {
                self.rules = None;
            }
        }
        // A Node that is gone is none for load balancers, although its last facts stay in force.
        let eligible = self.store.node().is_some_and(|n| !n.leaving);
        self.outlets.health.with(|health| health.set_eligible(eligible));
        let Some(observed) = &self.observed else { return false };
        let facts = NodeFacts::build(&self.node.name, node.as_ref(), observed, &self.settings);
        if facts == self.node {
            return false;
        }
        self.health_checks_changed = true;
        self.node = facts;
        true
    }
}
