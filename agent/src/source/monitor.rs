// SPDX-License-Identifier: Apache-2.0
//! What the API source reports about its own work, for metrics.

use std::time::Duration;

use hyper::{Method, StatusCode};

use crate::store::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchState {
    /// A list is being read.
    Listing,
    /// A watch delivers changes.
    Following,
    /// The API server cannot be reached, or refuses.
    Failing,
}

/// Receives reports of the API source. `()` ignores them.
pub trait Monitor: Send + Sync {
    /// A request to `host` (`HOST:PORT`) ended after `time`; `code` is `None` when no answer came.
    fn request_done(&self, _host: &str, _method: &Method, _code: Option<StatusCode>, _time: Duration) {}

    /// Watching a kind entered a state. Each list and each failure is reported, repeated ones too.
    fn watch_state(&self, _kind: Kind, _state: WatchState) {}
}

impl Monitor for () {}
