// SPDX-License-Identifier: Apache-2.0
//! When a change in the cluster happened that led to a change of endpoints.

use std::time::SystemTime;

use super::Family;

/// At most so many triggers are kept for one Service until it is programmed; the oldest ones count.
pub const MAX_TRIGGERS: usize = 16;

/// The time at which a pod or Service changed, as its EndpointSlice gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The family of the slice.
    pub family: Family,
    /// The time of the change.
    pub at: SystemTime,
}
