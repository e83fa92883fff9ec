// SPDX-License-Identifier: Apache-2.0
//! One sync: why it runs, and how it ended.

use super::op::{Op, Plan};
use super::outcome::{ObserveError, Report};
use crate::core::model::{Family, ObjectName};

/// Why a pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Objects changed.
    Changes,
    /// What failed is to be tried again.
    Retry,
    /// Real servers drain: those without connections, or past the deadline, are to go.
    Drains,
    /// Parts of the kernel that may have changed are to be read again.
    Recheck,
    /// Everything is to be compared with a fresh reading of the kernel.
    Audit,
}

/// The Services that a pass is about: the first few names, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Names, at most [`Touched::NAMED`].
    pub names: Vec<ObjectName>,
    /// How many.
    pub count: usize,
}

impl Touched {
    /// So many are named.
    pub const NAMED: usize = 5;

    /// Notes one more.
    pub fn add(&mut self, name: &ObjectName) {
        self.count += 1;
        if self.names.len() < Self::NAMED {
            self.names.push(name.clone());
        }
    }
}

/// How one pass ended.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// What was planned.
    pub plan: Plan,
    /// How it went.
    pub report: Report,
    /// Ops that repaired what another program changed, by their places in the plan.
    pub drift: Vec<usize>,
    /// Services that changed.
    pub services: Touched,
    /// Families of which everything that every Service needs is in place.
    pub synced: Vec<Family>,
    /// Some family that this node can have is not among them.
    pub incomplete: bool,
    /// Why the kernel could not be read, if so. Nothing was written then.
    pub unreadable: Option<ObserveError>,
}

impl Pass {
    /// True when the node is now as wanted.
    pub fn is_clean(&self) -> bool {
        self.unreadable.is_none() && self.report.is_clean()
    }

    /// The ops that repaired what another program changed.
    pub fn repairs(&self) -> impl Iterator<Item = &Op> {
        self.drift.iter().filter_map(|i| self.plan.ops.get(*i))
    }
}
