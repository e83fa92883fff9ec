// SPDX-License-Identifier: Apache-2.0
//! How the endpoints of a Service are checked, if its annotation asks for it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How an endpoint is checked. Its text is read in `probe/spec.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProbeSpec {
    /// From the start of a check to the start of the next one.
    pub interval: Duration,
    /// How long a connect may take.
    pub timeout: Duration,
    /// Consecutive failures after which an endpoint counts as dead.
    pub threshold: u32,
}

impl Default for ProbeSpec {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), timeout: Duration::from_secs(1), threshold: 3 }
    }
}
