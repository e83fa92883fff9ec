// SPDX-License-Identifier: Apache-2.0
//! One sync: its reason and its result.

use super::op::{Op, Plan};
use super::outcome::{ObserveError, Report};
use crate::core::model::{Family, ObjectName};

/// The reason of a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Due {
    /// Objects changed.
    Changes,
    /// Failed ops are due for a retry.
    Retry,
    /// Real servers drain: those without connections or past the deadline are removed.
    Drains,
    /// Parts of the kernel may have changed and are read again.
    Recheck,
    /// The whole mirror is compared with the kernel.
    Audit,
}

/// The Services that changed before a sync: their number and the first few names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Names, at most [`Touched::NAMED`].
    pub names: Vec<ObjectName>,
    pub count: usize,
}

impl Touched {
    pub const NAMED: usize = 5;

    pub fn add(&mut self, name: &ObjectName) {
        self.count += 1;
        if self.names.len() < Self::NAMED {
            self.names.push(name.clone());
        }
    }
}

/// The result of one sync.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    pub plan: Plan,
    pub report: Report,
    /// Indexes of ops in the plan that repaired drift.
    pub drift: Vec<usize>,
    pub services: Touched,
    /// Families whose Services are all programmed.
    pub synced: Vec<Family>,
    /// Some family of this node is not in `synced`.
    pub incomplete: bool,
    /// The kernel could not be read, and nothing was written.
    pub unreadable: Option<ObserveError>,
}

impl Pass {
    /// True when the node is in the wanted state.
    pub fn is_clean(&self) -> bool {
        self.unreadable.is_none() && self.report.is_clean()
    }

    /// The ops that repaired drift.
    pub fn repairs(&self) -> impl Iterator<Item = &Op> {
        self.drift.iter().filter_map(|i| self.plan.ops.get(*i))
    }
}
