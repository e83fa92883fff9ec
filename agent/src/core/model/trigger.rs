// SPDX-License-Identifier: Apache-2.0
//! Times of changes in the cluster that changed endpoints, for programming latency.

use std::time::SystemTime;

use super::Family;

/// Most triggers kept for one Service until its next sync; later ones are dropped.
pub const MAX_TRIGGERS: usize = 16;

/// The time of a change of a pod or Service, from the annotation of its EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The family of the slice.
    pub family: Family,
    pub at: SystemTime,
}
