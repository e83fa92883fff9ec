// SPDX-License-Identifier: Apache-2.0
//! Before every list is complete, the kernel is read, and on a node without Service state the priority Services are
//! programmed, which every pod needs.
//!
//! Only there: rules and sets of some Services must not replace those of all Services.

use crate::core::plan::pass::{Due, Pass};
use std::time::Duration;

use super::{PassScope, Reconciler};
use crate::kernel::Kernel;

impl<K: Kernel> Reconciler<K> {
    /// Whether a whole pass has run.
    pub(super) fn is_whole(&self) -> bool {
        self.mirror.is_synced()
    }

    /// Does what is possible although lists are incomplete. Returns the pass, if one ran.
    pub fn sync_early(&mut self, now: Duration) -> Option<Pass> {
        // The mirror shows addresses that block the way to the API server.
        if self.mirror.wants_reading(now) {
            self.read_early(now);
        }
        if self.priority_done || !self.store.has_priority() || !self.knows_local_traffic() {
            return None;
        }
        self.priority_done = true;
        if self.mirror.observed().is_none() {
            self.read_early(now);
        }
        if !self.mirror.observed()?.is_blank() || self.store.priority().is_empty() {
            return None;
        }
        let pass = self.pass(Due::Changes, PassScope::Priority, now);
        if pass.report.is_uncertain() {
            self.mirror.outdated();
        }
        Some(pass)
    }

    /// Reads the kernel. A failure is not reported here: the first whole pass reads again.
    fn read_early(&mut self, now: Duration) {
        if let Err(error) = self.read_everything(now) {
            tracing::debug!("{error}; retried when every list is complete");
        }
    }
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
