// SPDX-License-Identifier: Apache-2.0
//! An audit compares the mirror with the kernel in pieces, so that changes wait only for one piece. If a part cannot be
//! read, its mirror is unchanged, and the other parts are compared.

use crate::core::plan::outcome::ObserveError;
use crate::core::plan::pass::{Due, Pass};
use std::time::Duration;

use super::{PassScope, Reconciler};
use crate::core::mirror::Observed;
use crate::core::mirror::comparison::{Audit, Piece, ReadStep};
use crate::core::model::changes::Changes;
use crate::core::model::sets::SetId;
use crate::core::model::{Family, VsKey};
use crate::core::plan::subject::Part;
use crate::kernel::Kernel;

impl<K: Kernel> Reconciler<K> {
    /// One step of an audit, the first one if none is in progress: reads and compares a piece. After the last piece,
    /// runs the pass that repairs the differences.
    pub fn audit_step(&mut self, now: Duration) -> Option<Pass> {
        let found = self.read_audit(now)?;
        Some(self.finish_audit(PassScope::Found(found), now))
    }

    /// Reads and compares the next piece. Returns the differences after the last one.
    fn read_audit(&mut self, now: Duration) -> Option<Changes> {
        let Some(mut observed) = self.mirror.lend() else { return Some(Changes::default()) };
        let (mut audit, step) = match self.mirror.take_audit() {
            Some(audit) => (audit, ReadStep::Next),
            None => {
                self.kernel.read_rules(&self.settings.families, false);
                (Audit::compare(&observed), ReadStep::Compare)
            }
        };
        let more = self.read_piece(&mut audit, step, &mut observed, now);
        if !more {
            let mut suspects = audit.take_suspects(&observed);
            suspects.extend(self.next_limits(&observed));
            if self.confirm(&suspects, &mut audit, &mut observed, now) && !audit.skipped_servers() {
                self.retries.read(Part::Ipvs, &mut self.pending);
            }
        }
        self.mirror.put_back(observed);
        if more {
            self.mirror.set_audit(audit);
            return None;
        }
        Some(audit.finish())
    }

    /// Whether there was a piece.
    fn read_piece(
        &mut self,
        audit: &mut Audit,
        step: ReadStep,
        observed: &mut Observed,
        now: Duration,
    ) -> bool {
        match self.kernel.read(step) {
            Ok(Some(piece)) => {
                if let Some(part) = part_of(&piece) {
                    self.retries.read(part, &mut self.pending);
                }
                audit.add(piece, observed);
            }
            Ok(None) => return false,
            Err(error) => {
                if error.part == Part::Ipvs {
                    audit.skip_servers();
                }
                self.retries.fail_reading(error.part, &error.error, now);
            }
        }
        true
    }

    /// Reads virtual servers by themselves and compares them. False: they cannot be read.
    pub(super) fn confirm(
        &mut self,
        keys: &[VsKey],
        audit: &mut Audit,
        observed: &mut Observed,
        now: Duration,
    ) -> bool {
        match self.kernel.read_servers(keys) {
            Ok(read) => keys.iter().zip(read).for_each(|(key, server)| audit.confirm(*key, server, observed)),
            Err(error) => {
                self.retries.fail_reading(error.part, &error.error, now);
                return false;
            }
        }
        true
    }

    /// Runs an audit to its end. The first one fills the mirror, unless the mirror is fresh.
    pub(super) fn audit_at_once(&mut self, now: Duration) -> Result<PassScope, ObserveError> {
        if !self.is_whole() {
            if !self.mirror.is_fresh(now) {
                self.read_everything(now)?;
            }
            return Ok(PassScope::Everything);
        }
        // An audit in progress starts again, to compare the current state. Its differences are in the mirror already:
        // the pass must repair them, too.
        if let Some(audit) = self.mirror.take_audit() {
            self.pending.append(audit.finish());
        }
        loop {
            if let Some(found) = self.read_audit(now) {
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
            let sets = Family::ALL.into_iter().flat_map(SetId::all).map(Part::Set);
            let parts = [Part::Ipvs, Part::Addresses, Part::Node].into_iter().chain(sets);
            parts.for_each(|part| self.retries.read(part, &mut self.pending));
        }
        self.take_finished(other, now);
        result
    }

    /// Runs the pass after an audit.
    pub(super) fn finish_audit(&mut self, scope: PassScope, now: Duration) -> Pass {
        if let Some(observed) = self.mirror.observed_mut() {
            self.takeover.review(observed, self.settings.shares_node);
        }
        if let Some(observed) = self.mirror.observed() {
            self.reporting.metrics.proxy.set_families(&self.settings.families);
            self.reporting.metrics.objects.count_servers(observed);
        }
        self.pass(Due::Audit, scope, now)
    }
}

/// The part that a piece contains completely.
fn part_of(piece: &Piece) -> Option<Part> {
    match piece {
        Piece::Listed(_) | Piece::Shown(_) => None,
        Piece::Set(id, _) => Some(Part::Set(*id)),
        Piece::Addresses(_) => Some(Part::Addresses),
        Piece::Rest(_) => Some(Part::Node),
    }
}
