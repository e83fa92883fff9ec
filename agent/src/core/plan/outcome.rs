// SPDX-License-Identifier: Apache-2.0
//! How ops end.

use strum::IntoStaticStr;

use super::subject::{Part, Subject};
use crate::core::model::Family;
use crate::core::model::sets::SetId;
use crate::core::rules::save::ObservedRules;

/// Why the kernel, or a program, refuses something. A closed set: it is a label of metrics.
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
    /// `ENOENT`, `ESRCH`, `ENODEV`: what it is about does not exist.
    Missing,
    /// `EBUSY`.
    InUse,
    /// An ipset has no more room.
    Full,
    /// `EOPNOTSUPP`, a missing module.
    NotSupported,
    /// The IP family is switched off.
    FamilyDisabled,
    /// Something of another kind has the name.
    WrongKind,
    /// A program failed.
    ProgramFailed,
    /// A program is not installed.
    ProgramMissing,
    /// There was no answer, or no end, in time.
    TimedOut,
    /// Something that it depends on failed.
    Blocked,
    /// Anything else.
    Other,
}

impl Cause {
    /// The value of a metric's label `reason`.
    pub fn label(self) -> &'static str {
        self.into()
    }

    /// The cause behind an errno of `<asm-generic/errno.h>`.
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

/// Why an op, or a reading, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OpError {
    /// The kind of failure.
    pub cause: Cause,
    /// What the kernel or the program said, and the remedy where there is one. It does not name the object:
    /// the same failure of many objects is one line in the log.
    pub message: String,
    /// The kernel's state is not what the mirror says (it exists, it is missing, the answer was
    /// lost): read the object again before the next try.
    pub uncertain: bool,
    /// The most important part was done: what depends on it goes on, and it is retried.
    pub degraded: bool,
}

impl OpError {
    /// A failure that says nothing about the mirror.
    pub fn plain(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), uncertain: false, degraded: false }
    }

    /// A failure after which the object's state is unknown.
    pub fn uncertain(cause: Cause, message: impl Into<String>) -> Self {
        Self { uncertain: true, ..Self::plain(cause, message) }
    }

    /// A failure that leaves out the least important part only.
    pub fn degraded(cause: Cause, message: impl Into<String>) -> Self {
        Self { degraded: true, ..Self::uncertain(cause, message) }
    }

    /// No answer for an op that was sent.
    pub fn no_answer() -> Self {
        Self::uncertain(Cause::TimedOut, "the kernel did not answer")
    }
}

/// A part of the kernel could not be read. Nothing is known about it then, so the mirror keeps what it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {part}: {error}")]
pub struct ObserveError {
    /// What was being read.
    pub part: Part,
    /// What went wrong, and the remedy where there is one.
    pub error: OpError,
}

/// What the kernel did with an op that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Acknowledged.
    Done,
    /// A program works on it; the end is told later.
    Started,
}

/// How an op ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel acknowledged it.
    Done,
    /// A program works on it.
    Started,
    /// It failed.
    Failed(OpError),
    /// It did not run, because something that it depends on failed or is not done yet.
    Blocked(Subject),
    /// It did not run: it failed before, and its next try is later.
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

/// The end of something that a program did beside the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// The rules of a family were read; `None`: nobody changed them since the last reading.
    Rules(Family, Result<Option<Box<ObservedRules>>, OpError>),
    /// An op that was [`Progress::Started`] has ended.
    Op(Subject, Result<(), OpError>),
    /// A set could not be read: its members are not known.
    Unread(SetId, OpError),
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
