// SPDX-License-Identifier: Apache-2.0
//! Access to the kernel: the only module that opens netlink sockets or starts processes.
//!
//! [`Kernel`] has two implementations: [`linux`], and `fake` (feature `testing`), which returns the same errnos and can
//! fail the next op. [`apply`] runs a plan on either.

mod apply;
mod errors;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
#[cfg(any(test, feature = "testing"))]
mod fake_reading;
pub mod host;
pub mod iptables;
pub mod ipvs;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod kernel_inputs;
pub mod linux;
pub mod netfilter;
mod nftables;
mod packet_filter;
pub mod read_only;
mod reading;
pub mod rules_mode;
pub mod teardown;

use crate::core::plan::outcome::{Finished, ObserveError, OpError, Progress};
pub use apply::{Applied, RunContext, Runner, apply};

use std::time::{Duration, Instant};

use crate::core::mirror::comparison::{Audit, Piece, ReadStep};
use crate::core::mirror::{Observed, ObservedServer, ObservedSet};
use crate::core::model::map::Set;
use crate::core::model::sets::ProbedSet;
use crate::core::model::{Family, RsKey, VsKey};
use crate::core::plan::op::Op;
use crate::core::plan::subject::Part;

/// How long the first reading ignores sets that cannot be read.
const SETS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the first reading waits for `iptables-save` after everything else is read.
const RULES_TIMEOUT: Duration = Duration::from_secs(2);

/// Results of a probe, one for each object: a failed read does not affect the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeResult {
    /// Whether the virtual server exists.
    pub servers: Vec<Result<bool, ObserveError>>,
    /// Whether the set exists and has the member.
    pub sets: Vec<Result<bool, ObserveError>>,
}

/// A kernel that can be read and that executes ops.
pub trait Kernel {
    /// Reads the next piece of the state that plans depend on; `None`: the reading is complete. A piece is small,
    /// so changes of objects wait only for one piece.
    ///
    /// # Errors
    /// When a part cannot be read; the next call continues after that part.
    fn read(&mut self, step: ReadStep) -> Result<Option<Piece>, ObserveError>;

    /// Reads one part in full: a set, the addresses, or [`Part::Node`].
    ///
    /// # Errors
    /// When the part cannot be read, and for IPVS and rules, which are not one piece.
    fn read_part(&mut self, part: Part) -> Result<Piece, ObserveError>;

    /// Whether the kernel can tell that no other program has changed a set since all were read.
    fn sets_are_known(&mut self) -> bool {
        false
    }

    /// Starts reading the rules of these families on other threads. Each reading ends in a [`Finished::Rules`].
    /// Rules that have not changed are read again only if `afresh`.
    fn read_rules(&mut self, families: &[Family], afresh: bool);

    /// Results of work on other threads. Waits up to `limit` for the first one if any work is running.
    fn finished(&mut self, limit: Duration) -> Vec<Finished>;

    /// Reads whether virtual servers exist, and sets with a member: cheap, and sufficient to detect a flush. Returns one
    /// result for each.
    fn probe(&mut self, servers: &[VsKey], sets: &[ProbedSet]) -> ProbeResult;

    /// Whether the kernel has a scheduler, as far as that can be found out. It may load a module.
    fn has_scheduler(&mut self, _name: &str) -> bool {
        true
    }

    /// Reads these virtual servers; `None`: it does not exist.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read_servers(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError>;

    /// The real servers of these virtual servers that have connections, active or not.
    ///
    /// # Errors
    /// When they cannot be read.
    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError>;

    /// Runs ops of one phase and one subsystem, in order, and returns one result per op. A failed op
    /// does not stop the others. Ops that need a program are only started.
    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>>;

    /// Calls `work` with a runner of IPVS ops and a runner of address ops. Two threads may use them at the same
    /// time.
    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>));

    /// Reads everything at once, into an empty mirror. Other results that arrive meanwhile are added to `other`.
    /// Rules that arrive later than `RULES_TIMEOUT` are marked as unread; [`Self::finished`] returns them later.
    /// A set that cannot be read is assumed to be as the agent creates it: adding a member twice is harmless.
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
                // After the timeout the cause is not one set but a subsystem that does not answer.
                Err(ObserveError { part: Part::Set(set), error }) if began.elapsed() < SETS_TIMEOUT => {
                    observed.sets.insert(set, ObservedSet::fresh(set));
                    other.push(Finished::Unread(set, error));
                }
                Err(error) => return Err(error),
            }
        }
        let suspects = audit.take_suspects(&observed);
        for (key, server) in suspects.iter().zip(self.read_servers(&suspects)?) {
            audit.confirm(*key, server, &mut observed);
        }
        families.iter().for_each(|family| observed.unread_rules[family] = true);
        let mut missing = families.to_vec();
        let deadline = Instant::now() + RULES_TIMEOUT;
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
