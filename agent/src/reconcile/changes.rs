// SPDX-License-Identifier: Apache-2.0
//! Moves changes from the store to the wanted state.

use std::time::SystemTime;

use super::{Look, Reconciler};
use crate::core::desired::Changes;
use crate::core::fragment::build_fragment;
use crate::core::node::NodeFacts;
use crate::core::settings::LocalTraffic;
use crate::kernel::Kernel;
use crate::store::Dirty;

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
        for Dirty { name, service, slices, .. } in dirty {
            let slices = slices.iter().map(|slice| &**slice);
            let fragment = service.map(|s| build_fragment(&s, slices, &self.node, &self.settings));
            self.desired.update(&name, fragment, &mut changes);
        }
        self.health_checks_changed |= std::mem::take(&mut changes.health_checks);
        changes
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
