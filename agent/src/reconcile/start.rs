// SPDX-License-Identifier: Apache-2.0
//! What can be done before every list is complete: the kernel is read, and where it holds nothing yet the
//! Services that every pod needs are programmed.
//!
//! Only there: rules and sets over some of the Services must not replace any over all of them.

use std::time::Duration;

use super::{Look, Pass, Reconciler};
use crate::kernel::Kernel;
use crate::reconcile::schedule::Due;

/// A reading older than this is made anew before the first whole pass.
const FRESH: Duration = Duration::from_secs(10);

/// How far a start is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing was done.
    #[default]
    Begun,
    /// The kernel was looked at.
    Looked,
    /// The first Services had their turn.
    Ahead,
    /// A whole pass was made: from now on changes are followed.
    Whole,
}

impl<K: Kernel> Reconciler<K> {
    /// Whether a whole pass was made.
    pub(super) fn is_whole(&self) -> bool {
        self.stage == Stage::Whole
    }

    /// Does what can be done at the time `now` although lists are missing. The pass, if there was one.
    pub fn prepare(&mut self, now: Duration) -> Option<Pass> {
        if self.stage == Stage::Begun {
            self.stage = Stage::Looked;
            self.look(now);
        }
        // What keeps the lists from coming may be found in the kernel.
        if self.observed.is_none() && now.saturating_sub(self.looked_at) > FRESH {
            self.look(now);
        }
        if self.stage != Stage::Looked || !self.store.has_priority() || !self.knows_local_traffic() {
            return None;
        }
        self.stage = Stage::Ahead;
        if self.observed.is_none() {
            self.look(now);
        }
        let is_blank = self.observed.as_ref().is_some_and(|observed| observed.is_blank());
        if !is_blank || self.store.priority().is_empty() {
            return None;
        }
        let pass = self.pass(Due::Changes, Look::Ahead, now);
        if pass.report.is_uncertain() {
            self.observed = None;
        }
        Some(pass)
    }

    /// Reads the kernel. What fails is tried again, and told, when it is needed.
    fn look(&mut self, now: Duration) {
        self.looked_at = now;
        match self.read_everything(now) {
            Ok(()) => {}
            Err(error) => tracing::debug!("{error}; retried when all objects are known"),
        }
    }

    /// Another program changed the kernel: before the first whole pass it is simply read again.
    pub(super) fn kernel_changed(&mut self) {
        if !self.is_whole() {
            self.observed = None;
        }
    }

    /// The mirror that the first whole pass at the time `now` may begin with.
    pub(super) fn has_fresh_mirror(&self, now: Duration) -> bool {
        self.observed.is_some() && now.saturating_sub(self.looked_at) <= FRESH
    }
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
