// SPDX-License-Identifier: Apache-2.0
//! The I/O edge: the only room that opens sockets or starts processes.
//!
//! [`Kernel`] has two implementations: [`linux`], and [`fake`] with the same errnos and a switch
//! that makes the next op fail. [`apply`] runs a plan on either.

mod apply;
pub mod conntrack;
pub mod fake;
pub mod flavour;
pub mod ipset;
mod ipset_codec;
pub mod iptables;
pub mod linux;
pub mod modules;
pub mod nfnetlink;
pub mod nft_tables;
pub mod nft_watch;
mod reading;
mod rules_reader;
pub mod sysctl;
pub mod table;
pub mod teardown;
pub mod traffic;

pub use apply::{Runner, apply};

use crate::core::audit::{Audit, Piece, Step};
use crate::core::map::Set;
use crate::core::model::{RsKey, VsKey};
use crate::core::observed::{Observed, ObservedServer};
use crate::core::op::Op;

/// Why an op failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OpError {
    /// What the kernel or the program said, and the remedy where there is one.
    pub message: String,
    /// The kernel's state is not what the mirror says (it exists, it is missing, the answer was
    /// lost): read it again before the next try.
    pub doubt: bool,
    /// The most important part was done: what depends on it goes on, and it is tried again.
    pub degraded: bool,
}

impl OpError {
    /// A failure that says nothing about the mirror.
    pub fn plain(message: impl Into<String>) -> Self {
        Self { message: message.into(), doubt: false, degraded: false }
    }

    /// A failure that puts the mirror in doubt.
    pub fn doubt(message: impl Into<String>) -> Self {
        Self { message: message.into(), doubt: true, degraded: false }
    }

    /// A failure that leaves out the least important part only.
    pub fn degraded(message: impl Into<String>) -> Self {
        Self { message: message.into(), doubt: true, degraded: true }
    }
}

/// A failure to read the kernel. Nothing is known then, so nothing is written.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}: {message}")]
pub struct ObserveError {
    /// What was being read, e.g. `ipsets`.
    pub what: &'static str,
    /// What went wrong, and the remedy where there is one.
    pub message: String,
}

/// How an op ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel acknowledged it.
    Done,
    /// It failed.
    Failed(OpError),
    /// It did not run, because something that it depends on failed.
    Skipped(String),
}

/// How every op of a plan ended, in the plan's order.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One outcome per op.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Number of ops that the kernel acknowledged.
    pub fn done(&self) -> usize {
        self.outcomes.iter().filter(|o| **o == Outcome::Done).count()
    }

    /// True when every op was acknowledged.
    pub fn is_clean(&self) -> bool {
        self.done() == self.outcomes.len()
    }

    /// True when a failure puts the mirror in doubt.
    pub fn in_doubt(&self) -> bool {
        self.outcomes.iter().any(|o| matches!(o, Outcome::Failed(e) if e.doubt))
    }
}

/// A kernel: something that can be read whole and changed by ops.
pub trait Kernel {
    /// Reads a piece of everything that the plan looks at; `None`: that was all. A piece is small enough for
    /// changes to wait for it.
    ///
    /// # Errors
    /// When a piece cannot be read; the reading is over then.
    fn read(&mut self, step: Step) -> Result<Option<Piece>, ObserveError>;

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

    /// Runs ops of one phase and one lane, in order, and returns one result per op. A failed op
    /// does not stop the others.
    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<(), OpError>>;

    /// Calls `work` with two runners, of IPVS ops and of addresses, that may be used at the same time by
    /// two threads.
    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>));

    /// Reads everything in one go.
    ///
    /// # Errors
    /// When any part cannot be read completely; there is no partial observation.
    fn observe(&mut self) -> Result<Observed, ObserveError> {
        let (mut audit, mut observed) = (Audit::fill(), Observed::default());
        let mut piece = self.read(Step::Fill)?;
        while let Some(read) = piece {
            audit.take(read, &mut observed);
            piece = self.read(Step::Next)?;
        }
        let suspects = audit.suspects(&observed);
        for (key, server) in suspects.iter().zip(self.look_up(&suspects)?) {
            audit.settle(*key, server, &mut observed);
        }
        Ok(observed)
    }
}
