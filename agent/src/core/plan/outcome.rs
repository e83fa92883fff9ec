// SPDX-License-Identifier: Apache-2.0
//! Results of ops and of reads.

use strum::IntoStaticStr;

use super::subject::{Part, Subject};
use crate::core::model::Family;
use crate::core::model::sets::SetId;
use crate::core::rules::save::ObservedRules;

/// Why the kernel or a program rejected an operation. The value of a metric's label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Cause {
    /// `EPERM`: a capability is missing.
    NotPermitted,
    /// `EACCES`, `EROFS`: the file or file system may not be written.
    ReadOnly,
    /// `EINVAL`.
    InvalidArgument,
    /// `EEXIST`.
    Exists,
    /// `ENOENT`, `ESRCH`, `ENODEV`: the object does not exist.
    Missing,
    /// `EBUSY`.
    InUse,
    /// An ipset is full.
    Full,
    /// `EOPNOTSUPP`, or a kernel module is missing.
    NotSupported,
    /// The kernel does not have the scheduler.
    NoScheduler,
    /// The IP family is disabled on the node.
    FamilyDisabled,
    /// An object of another kind has the name.
    WrongKind,
    /// A program failed.
    ProgramFailed,
    /// A program is not installed.
    ProgramMissing,
    /// The kernel did not answer, or the program did not end, in time.
    TimedOut,
    /// Another op that it depends on failed.
    Blocked,
    Other,
}

impl Cause {
    /// The value of a metric's label `reason`.
    pub fn label(self) -> &'static str {
        self.into()
    }

    /// The cause of an errno of `<asm-generic/errno.h>`.
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            1 => Cause::NotPermitted,
            2 | 3 | 19 | 99 => Cause::Missing,
            13 | 30 => Cause::ReadOnly,
            16 => Cause::InUse,
            17 => Cause::Exists,
            22 => Cause::InvalidArgument,
            95 | 97 => Cause::NotSupported,
            11 | 110 => Cause::TimedOut,
            _ => Cause::Other,
        }
    }
}

/// Why an op or a read failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OpError {
    pub cause: Cause,
    /// The error of the kernel or the program, with a remedy if there is one. It does not name the object, so that
    /// the log has one line for the same failure of many objects.
    pub message: String,
    /// The mirror may be wrong (the object exists, is missing, or the answer was lost): the object must be read again
    /// before the retry.
    pub uncertain: bool,
    /// The op succeeded in part: ops that depend on it are not blocked, and it is retried.
    pub degraded: bool,
}

impl OpError {
    /// A failure after which the mirror is still right.
    pub fn plain(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), uncertain: false, degraded: false }
    }

    /// A failure after which the object's state is unknown.
    pub fn uncertain(cause: Cause, message: impl Into<String>) -> Self {
        Self { uncertain: true, ..Self::plain(cause, message) }
    }

    /// A failure of a part that other ops do not depend on.
    pub fn degraded(cause: Cause, message: impl Into<String>) -> Self {
        Self { degraded: true, ..Self::uncertain(cause, message) }
    }

    /// The kernel did not answer a request.
    pub fn no_answer() -> Self {
        Self::uncertain(Cause::TimedOut, "the kernel did not answer")
    }
}

/// A failed read of a part of the kernel. The mirror keeps its old state of that part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {part}: {error}")]
pub struct ObserveError {
    pub part: Part,
    pub error: OpError,
}

/// The result of an op that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The kernel acknowledged it.
    Done,
    /// A program still works on it. The result comes later as [`Finished::Op`].
    Started,
}

/// The outcome of one op of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel acknowledged it.
    Done,
    /// A program still works on it.
    Started,
    Failed(OpError),
    /// It did not run: this subject, which it depends on, failed or has not finished.
    Blocked(Subject),
    /// It did not run: it failed before, and its retry is not due.
    Waiting,
}

impl From<Result<Progress, OpError>> for Outcome {
    fn from(result: Result<Progress, OpError>) -> Self {
        match result {
            Ok(Progress::Done) => Outcome::Done,
            Ok(Progress::Started) => Outcome::Started,
            Err(error) => Outcome::Failed(error),
        }
    }
}

/// A result of a program that ran beside the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// The rules of a family were read. `None`: unchanged since the last read.
    Rules(Family, Result<Option<Box<ObservedRules>>, OpError>),
    /// An op that was [`Progress::Started`] has ended.
    Op(Subject, Result<(), OpError>),
    /// A set could not be read: its members are unknown.
    Unread(SetId, OpError),
}

/// The outcomes of the ops of a plan, in the order of the plan.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Number of ops that the kernel acknowledged.
    pub fn done(&self) -> usize {
        self.outcomes.iter().filter(|outcome| **outcome == Outcome::Done).count()
    }

    /// True when every op was acknowledged.
    pub fn is_clean(&self) -> bool {
        self.done() == self.outcomes.len()
    }

    /// True when the state of some object is unknown after a failure.
    pub fn is_uncertain(&self) -> bool {
        self.outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(error) if error.uncertain))
    }
}
