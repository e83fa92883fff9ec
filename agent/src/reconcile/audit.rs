// SPDX-License-Identifier: Apache-2.0
//! Comparing the mirror with the kernel, a piece at a time, so that changes need not wait for the end. A part
//! that cannot be read leaves the mirror of that part as it is; the others are compared.

use crate::core::plan::outcome::ObserveError;
use crate::core::plan::pass::{Due, Pass};
use std::time::Duration;

use super::{PassScope, Reconciler};
use crate::core::mirror::Observed;
use crate::core::mirror::comparison::{Audit, Piece, ReadStep};
use crate::core::model::Family;
use crate::core::model::changes::Changes;
use crate::core::model::sets::SetId;
use crate::core::plan::subject::Part;
use crate::kernel::Kernel;

impl<K: Kernel> Reconciler<K> {
    /// Whether an audit goes on.
    pub(super) fn audit_in_progress(&self) -> bool {
        self.mirror.audit().is_some()
    }

    /// One step of an audit at the time `now`, the first one if none goes on: reads and compares a piece, or
    /// is the pass after the last piece.
    pub fn audit_step(&mut self, now: Duration) -> Option<Pass> {
        let found = self.audit_piece(now)?;
        Some(self.finish_audit(PassScope::Found(found), now))
    }

    /// Reads and compares one more piece. What differed, once that was the last one.
    fn audit_piece(&mut self, now: Duration) -> Option<Changes> {
        let Some(mut observed) = self.mirror.lend() else { return Some(Changes::default()) };
        let (mut comparison, step) = match self.mirror.take_audit() {
            Some(comparison) => (comparison, ReadStep::Next),
            None => {
                self.kernel.read_rules(&self.settings.families, false);
                (Audit::compare(&observed), ReadStep::Compare)
            }
        };
        let more = self.compare_piece(&mut comparison, step, &mut observed, now);
        self.mirror.put_back(observed);
        if more {
            self.mirror.set_audit(comparison);
            return None;
        }
        Some(comparison.finish())
    }

    /// True when there are more pieces.
    fn compare_piece(
        &mut self,
        comparison: &mut Audit,
        step: ReadStep,
        observed: &mut Observed,
        now: Duration,
    ) -> bool {
        match self.kernel.read(step) {
            Ok(Some(piece)) => {
                if let Some(part) = part_of(&piece) {
                    self.retries.read(part, &mut self.pending);
                }
                comparison.take(piece, observed);
                return true;
            }
            Ok(None) => {}
            Err(error) => {
                if error.part == Part::Ipvs {
                    comparison.skip_servers();
                }
                self.retries.fail_reading(error.part, &error.error, now);
                return true;
            }
        }
        let suspects = comparison.suspects(observed);
        match self.kernel.read_servers(&suspects) {
            Ok(servers) => {
                for (key, server) in suspects.iter().zip(servers) {
                    comparison.settle(*key, server, observed);
                }
                if !comparison.skipped_servers() {
                    self.retries.read(Part::Ipvs, &mut self.pending);
                }
            }
            Err(error) => self.retries.fail_reading(error.part, &error.error, now),
        }
        false
    }

    /// A whole audit in one go; the first one fills the mirror, if that was not done just before.
    pub(super) fn audit_at_once(&mut self, now: Duration) -> Result<PassScope, ObserveError> {
        if !self.is_whole() {
            if !self.mirror.is_fresh(now) {
                self.read_everything(now)?;
            }
            return Ok(PassScope::Everything);
        }
        // From the beginning: somebody wants to know how things are now. What was found is in the mirror
        // already and must not be forgotten.
        if let Some(comparison) = self.mirror.take_audit() {
            self.pending.append(comparison.finish());
        }
        loop {
            if let Some(found) = self.audit_piece(now) {
                self.poll_finished(now);
                return Ok(PassScope::Found(found));
            }
        }
    }

    /// Fills the mirror.
    pub(super) fn read_everything(&mut self, now: Duration) -> Result<(), ObserveError> {
        let mut other = Vec::new();
        let observed = self.kernel.observe(&self.settings.families, &mut other);
        let result = observed.map(|observed| self.mirror.fill(observed, now));
        if result.is_err() {
            self.mirror.failed(now);
        } else {
            for part in [Part::Ipvs, Part::Addresses, Part::Node] {
                self.retries.read(part, &mut self.pending);
            }
            let sets = Family::ALL.into_iter().flat_map(SetId::all);
            sets.for_each(|set| self.retries.read(Part::Set(set), &mut self.pending));
        }
        self.take_finished(other, now);
        result
    }

    /// The pass after an audit.
    pub(super) fn finish_audit(&mut self, scope: PassScope, now: Duration) -> Pass {
        if let Some(observed) = self.mirror.observed_mut() {
            self.takeover.review(observed, self.settings.shares_node);
        }
        if let Some(observed) = self.mirror.observed() {
            self.reporting.metrics.set_families(&self.settings.families);
            self.reporting.metrics.audited(observed);
        }
        self.pass(Due::Audit, scope, now)
    }
}

/// The part that a piece is all of.
fn part_of(piece: &Piece) -> Option<Part> {
    match piece {
        Piece::Listed(_) | Piece::Shown(_) => None,
        Piece::Set(id, _) => Some(Part::Set(*id)),
        Piece::Addresses(_) => Some(Part::Addresses),
        Piece::Rest(_) => Some(Part::Node),
    }
}
