// SPDX-License-Identifier: Apache-2.0
//! Comparing the mirror with the kernel, a piece at a time, so that changes need not wait for the end.

use std::time::Duration;

use super::{Look, Pass, Reconciler, unreadable};
use crate::core::audit::{Audit, Step};
use crate::core::desired::Changes;
use crate::core::observed::Observed;
use crate::kernel::{Kernel, ObserveError};
use crate::schedule::Due;

/// Up to so many virtual servers that seem to differ are asked one by one; more are read with everything.
const ASKED_ONE_BY_ONE: usize = 256;

impl<K: Kernel> Reconciler<K> {
    /// Whether an audit goes on.
    pub(super) fn is_auditing(&self) -> bool {
        self.comparison.is_some()
    }

    /// One step of an audit at the time `now`, the first one if none goes on: reads and compares a piece, or
    /// is the pass after the last piece.
    pub fn audit_step(&mut self, now: Duration) -> Option<Pass> {
        match self.audit_piece() {
            Ok(None) => None,
            Ok(Some(found)) => Some(self.audited(Look::Found(found), now)),
            Err(error) => Some(unreadable(&error)),
        }
    }

    /// Reads and compares one more piece. What differed, once that was the last one.
    fn audit_piece(&mut self) -> Result<Option<Changes>, ObserveError> {
        let Some(mut observed) = self.observed.take() else { return Ok(Some(Changes::default())) };
        let (mut comparison, step) = match self.comparison.take() {
            Some(comparison) => (comparison, Step::Next),
            None => (Audit::compare(&observed), Step::Compare),
        };
        let more = self.compare_piece(&mut comparison, step, &mut observed);
        self.observed = Some(observed);
        match more {
            Ok(true) => self.comparison = Some(comparison),
            Ok(false) => return Ok(Some(comparison.finish())),
            Err(error) => {
                self.abandon(comparison);
                return Err(error);
            }
        }
        Ok(None)
    }

    /// True when there are more pieces.
    fn compare_piece(
        &mut self,
        comparison: &mut Audit,
        step: Step,
        observed: &mut Observed,
    ) -> Result<bool, ObserveError> {
        if let Some(piece) = self.kernel.read(step)? {
            comparison.take(piece, observed);
            return Ok(true);
        }
        let suspects = comparison.suspects(observed);
        if suspects.len() > ASKED_ONE_BY_ONE {
            let mut now = self.kernel.observe()?.virtual_servers;
            suspects.iter().for_each(|key| comparison.settle(*key, now.remove(key), observed));
        } else {
            for (key, server) in suspects.iter().zip(self.kernel.look_up(&suspects)?) {
                comparison.settle(*key, server, observed);
            }
        }
        Ok(false)
    }

    /// An audit ends in the middle: what it found is in the mirror already and must not be forgotten.
    fn abandon(&mut self, comparison: Audit) {
        self.pending.append(comparison.finish());
    }

    /// A whole audit in one go; the first one fills the mirror, if that was not done just before.
    pub(super) fn audit(&mut self, now: Duration) -> Result<Look, ObserveError> {
        if !self.is_whole() {
            if !self.has_fresh_mirror(now) {
                self.observed = Some(self.kernel.observe()?);
            }
            return Ok(Look::Everything);
        }
        // From the beginning: somebody wants to know how things are now.
        if let Some(comparison) = self.comparison.take() {
            self.abandon(comparison);
        }
        loop {
            if let Some(found) = self.audit_piece()? {
                return Ok(Look::Found(found));
            }
        }
    }

    /// The pass after an audit.
    pub(super) fn audited(&mut self, look: Look, now: Duration) -> Pass {
        if let Some(observed) = &mut self.observed {
            self.handover.look(observed, self.settings.beside_another);
        }
        self.narrow_families();
        if let Some(observed) = &self.observed {
            self.outlets.metrics.set_families(&self.settings.families);
            self.outlets.metrics.audited(observed);
        }
        self.pass(Due::Audit, look, now)
    }

    /// Leaves out the families that this node cannot have.
    pub(super) fn narrow_families(&mut self) {
        if let Some(families) = self.observed.as_ref().and_then(|observed| observed.families.as_ref()) {
            self.settings.families.retain(|family| families.contains(family));
        }
    }
}
