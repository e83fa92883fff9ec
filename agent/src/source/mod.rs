// SPDX-License-Identifier: Apache-2.0
//! Where objects come from: the Kubernetes API or files. Both feed the store through the same
//! decoder, so the code after it cannot tell them apart.

pub mod api;
mod api_servers;
pub mod client;
pub mod decode;
pub mod files;
mod follow;
mod list;
mod node_list;
mod nodes;
mod outage;
mod pauses;
mod priority;
mod route;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod source_inputs;
mod trouble;
mod version;

pub use pauses::Limits;

/// What is wrong when the API client says so, and the remedy.
pub fn describe(error: &kube::Error, route: &client::Route) -> String {
    trouble::Trouble::of(error, route).text()
}

use std::sync::Arc;

use crate::store::Store;

/// A place that objects come from.
pub trait Source: Send {
    /// Starts following: fills `store`, marks each kind as listed, and keeps it current until the
    /// process ends. What can heal (an unreachable server, an unreadable file) is logged in one
    /// line and tried again with backoff.
    ///
    /// # Errors
    /// What cannot heal by waiting, e.g. a missing kernel facility.
    fn start(self: Box<Self>, store: Arc<Store>) -> anyhow::Result<()>;
}
