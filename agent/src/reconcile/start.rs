// SPDX-License-Identifier: Apache-2.0
//! What can be done before every list is complete: the kernel is read, and where it holds nothing yet the
//! Services that every pod needs are programmed.
//!
//! Only there: rules and sets over some of the Services must not replace any over all of them.

use crate::core::plan::pass::{Due, Pass};
use std::time::Duration;

use super::{PassScope, Reconciler};
use crate::kernel::Kernel;

impl<K: Kernel> Reconciler<K> {
    /// Whether a whole pass was made.
    pub(super) fn is_whole(&self) -> bool {
        self.mirror.is_synced()
    }

    /// Does what can be done at the time `now` although lists are missing. The pass, if there was one.
    pub fn sync_early(&mut self, now: Duration) -> Option<Pass> {
        // What keeps the lists from coming may be found in the kernel.
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

    /// Reads the kernel. A failed reading is retried, and reported, when it is needed.
    fn read_early(&mut self, now: Duration) {
        if let Err(error) = self.read_everything(now) {
            tracing::debug!("{error}; retried when all objects are known");
        }
    }
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
