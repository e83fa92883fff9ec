// SPDX-License-Identifier: Apache-2.0
//! What has come into the store, for metrics: how many changes, how many wait, since when.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use crate::core::model::trigger::Trigger;
use crate::core::model::{Family, ObjectName};
use crate::store::Kind;

/// Changes that came in and that the loop has or has not taken. An object that is equal to the one
/// before is none.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Changes of Services.
    pub services: u64,
    /// Changes of EndpointSlices of each family, by [`Family::index`].
    pub slices: [u64; 2],
    /// Services whose change waits.
    pub pending_services: BTreeSet<ObjectName>,
    /// Changes of EndpointSlices that wait.
    pub pending_slices: u64,
    /// Objects that could not be decoded, by [`Kind`].
    pub malformed: [u64; Kind::ALL.len()],
    /// When the newest change came in; before the first, when the store was made.
    pub changed_at: SystemTime,
    /// When the oldest change that waits came in.
    pub waiting_since: Option<Instant>,
    /// Nothing that happened before is measured.
    started: SystemTime,
    /// Changes came in since the clock was last asked.
    fresh: bool,
}

impl Default for Tally {
    fn default() -> Self {
        let now = SystemTime::now();
        Self {
            services: 0,
            slices: [0; 2],
            pending_services: BTreeSet::new(),
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
    /// A Service came, changed or went.
    pub fn service(&mut self, name: &ObjectName) {
        self.services += 1;
        self.pending_services.insert(name.clone());
        self.changed();
    }

    /// An EndpointSlice came, changed or went.
    pub fn slice(&mut self, family: Family) {
        self.slices[family.index()] += 1;
        self.pending_slices += 1;
        self.changed();
    }

    /// Something else that the loop has to look at changed.
    pub fn changed(&mut self) {
        self.fresh = true;
    }

    /// Notes the time of the changes that have just come in, once for all of a group.
    pub fn stamp(&mut self) {
        if std::mem::take(&mut self.fresh) {
            self.changed_at = SystemTime::now();
            self.waiting_since.get_or_insert_with(Instant::now);
        }
    }

    /// An object could not be decoded.
    pub fn malformed(&mut self, kind: Kind) {
        self.malformed[kind as usize] += 1;
    }

    /// The loop took everything that waited.
    pub fn taken(&mut self) {
        self.pending_services.clear();
        self.pending_slices = 0;
        self.waiting_since = None;
    }

    /// As kube-proxy, changes from before the start are not measured: nobody waited for this agent.
    pub fn counts(&self, trigger: &Trigger) -> bool {
        trigger.at > self.started
    }
}
