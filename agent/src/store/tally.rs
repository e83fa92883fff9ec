// SPDX-License-Identifier: Apache-2.0
//! Counts of the changes in the store, for metrics: how many came, how many are pending, since when.

use std::time::{Instant, SystemTime};

use super::object::Kind;
use crate::core::model::map::Set;
use crate::core::model::trigger::Trigger;
use crate::core::model::{Family, ObjectName, PerFamily};

/// Counts of changes. An object that equals its earlier version is no change.
#[derive(Clone, Debug)]
pub struct Tally {
    pub services: u64,
    /// Changes of EndpointSlices of each family.
    pub slices: PerFamily<u64>,
    pub pending_services: Set<ObjectName>,
    pub pending_slices: u64,
    /// Objects that could not be decoded, by [`Kind`].
    pub malformed: [u64; Kind::ALL.len()],
    /// When the newest change was put; before the first change, when the store was made.
    pub changed_at: SystemTime,
    /// When the oldest pending change was put.
    pub waiting_since: Option<Instant>,
    /// Triggers from before this time are not measured.
    started: SystemTime,
    /// A change was put since the last [`Tally::stamp`].
    fresh: bool,
}

impl Default for Tally {
    fn default() -> Self {
        let now = SystemTime::now();
        Self {
            services: 0,
            slices: PerFamily::default(),
            pending_services: Set::default(),
            pending_slices: 0,
            malformed: [0; Kind::ALL.len()],
            changed_at: now,
            waiting_since: None,
            started: now,
            fresh: false,
        }
    }
}

impl Tally {
    /// Counts a Service that was added, changed or removed.
    pub fn service(&mut self, name: &ObjectName) {
        self.services += 1;
        self.pending_services.insert(name.clone());
        self.changed();
    }

    /// Counts an EndpointSlice that was added, changed or removed.
    pub fn slice(&mut self, family: Family) {
        self.slices[family] += 1;
        self.pending_slices += 1;
        self.changed();
    }

    /// Notes any other change that the loop must take.
    pub fn changed(&mut self) {
        self.fresh = true;
    }

    /// Sets the time of the changes just put, once for a group.
    pub fn stamp(&mut self) {
        if std::mem::take(&mut self.fresh) {
            self.changed_at = SystemTime::now();
            self.waiting_since.get_or_insert_with(Instant::now);
        }
    }

    /// The loop took all pending changes.
    pub fn taken(&mut self) {
        self.pending_services = Set::default();
        self.pending_slices = 0;
        self.waiting_since = None;
    }

    /// Whether to measure a trigger. As in kube-proxy, changes from before the start are not measured.
    pub fn counts(&self, trigger: &Trigger) -> bool {
        trigger.at > self.started
    }
}
