// SPDX-License-Identifier: Apache-2.0
//! The I/O edge: the only room that opens sockets or starts processes.
//!
//! [`Kernel`] has two implementations: [`linux`], and `fake` (feature `testing`) with the same errnos and a switch
//! that makes the next op fail. [`apply`] runs a plan on either.

mod apply;
mod errors;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod host;
pub mod iptables;
pub mod ipvs;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod kernel_inputs;
pub mod linux;
pub mod netfilter;
mod reading;
pub mod teardown;

use crate::core::plan::outcome::{Finished, ObserveError, OpError, Progress};
pub use apply::{Applied, Runner, Terms, apply};

use std::time::{Duration, Instant};

use crate::core::mirror::comparison::{Audit, Piece, ReadStep};
use crate::core::mirror::{Observed, ObservedServer, ObservedSet};
use crate::core::model::map::Set;
use crate::core::model::sets::SetId;
use crate::core::model::{Family, RsKey, VsKey};
use crate::core::plan::op::Op;
use crate::core::plan::subject::Part;

/// Sets that cannot be read are passed over in the first reading for so long.
const SETS_PATIENCE: Duration = Duration::from_secs(10);
/// How long the first reading waits for the programs that print rules, after everything else is read.
const RULES_PATIENCE: Duration = Duration::from_secs(2);

/// What a look at a few objects showed, of each by itself: what cannot be read says nothing about the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// Whether each virtual server exists.
    pub servers: Vec<Result<bool, ObserveError>>,
    /// How many members each set has; `None`: it does not exist.
    pub sets: Vec<Result<Option<u32>, ObserveError>>,
}

/// A kernel: something that can be read whole and changed by ops.
pub trait Kernel {
    /// Reads a piece of everything that the plan looks at; `None`: that was all. A piece is small enough for
    /// changes to wait for it.
    ///
    /// # Errors
    /// When a part cannot be read; the next call goes on after it.
    fn read(&mut self, step: ReadStep) -> Result<Option<Piece>, ObserveError>;

    /// Reads one piece by itself: a set, the addresses, or the rest.
    ///
    /// # Errors
    /// When it cannot be read, and for parts that are no single piece.
    fn read_part(&mut self, part: Part) -> Result<Piece, ObserveError>;

    /// Begins to read the rules of these families beside the caller. Each ends in a [`Finished::Rules`].
    /// Unless `afresh`, one whose rules nobody has changed is not read again.
    fn read_rules(&mut self, families: &[Family], afresh: bool);

    /// What has ended beside the caller. Waits up to `limit` for the first of it, if anything is under way.
    fn finished(&mut self, limit: Duration) -> Vec<Finished>;

    /// Looks whether virtual servers exist and how many members sets have: cheap, and enough to notice that
    /// somebody flushed them. One answer for each.
    fn probe(&mut self, servers: &[VsKey], sets: &[SetId]) -> Probed;

    /// What each of these virtual servers is like now; `None`: it does not exist.
    ///
    /// # Errors
    /// When they cannot be read.
    fn look_up(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError>;

    /// The real servers of these virtual servers that have connections, active or not.
    ///
    /// # Errors
    /// When they cannot be read.
    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError>;

    /// Runs ops of one phase and one subsystem, in order, and returns one result per op. A failed op
    /// does not stop the others. Ops that need a program are only started.
    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>>;

    /// Calls `work` with two runners, of IPVS ops and of addresses, that may be used at the same time by
    /// two threads.
    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>));

    /// Reads everything in one go, into an empty mirror. What ended meanwhile and is no part of it is added
    /// to `other`. Rules that take longer than everything else are left unread; they are told later. A set that
    /// cannot be read is taken to be as the agent creates it, for adding a member twice does no harm.
    ///
    /// # Errors
    /// When any other part cannot be read completely.
    fn observe(&mut self, families: &[Family], other: &mut Vec<Finished>) -> Result<Observed, ObserveError> {
        let (mut audit, mut observed) = (Audit::fill(), Observed::default());
        self.read_rules(families, true);
        let (mut step, began) = (ReadStep::Fill, Instant::now());
        loop {
            match self.read(std::mem::replace(&mut step, ReadStep::Next)) {
                Ok(Some(piece)) => audit.add(piece, &mut observed),
                Ok(None) => break,
                // A subsystem that does not answer at all is no matter of one set.
                Err(ObserveError { part: Part::Set(set), error }) if began.elapsed() < SETS_PATIENCE => {
                    observed.sets.insert(set, ObservedSet::fresh(set));
                    other.push(Finished::Unread(set, error));
                }
                Err(error) => return Err(error),
            }
        }
        let suspects = audit.take_suspects(&observed);
        for (key, server) in suspects.iter().zip(self.look_up(&suspects)?) {
            audit.confirm(*key, server, &mut observed);
        }
        families.iter().for_each(|family| observed.unread_rules[family] = true);
        let mut missing = families.to_vec();
        let deadline = Instant::now() + RULES_PATIENCE;
        while !missing.is_empty() {
            let ended = self.finished(deadline.saturating_duration_since(Instant::now()));
            if ended.is_empty() {
                break;
            }
            for finished in ended {
                match finished {
                    Finished::Rules(family, Ok(Some(rules))) => {
                        observed.rules[family] = *rules;
                        observed.unread_rules[family] = false;
                        missing.retain(|missing| *missing != family);
                    }
                    finished => {
                        if let Finished::Rules(family, _) = &finished {
                            missing.retain(|missing| missing != family);
                        }
                        other.push(finished);
                    }
                }
            }
        }
        Ok(observed)
    }
}
