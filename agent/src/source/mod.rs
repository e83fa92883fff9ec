// SPDX-License-Identifier: Apache-2.0
//! Where objects come from: the Kubernetes API or files. Both fill the store through one decoder.

pub mod access_review;
pub mod api;
mod api_servers;
pub mod client;
pub mod decode;
mod failure;
pub mod files;
mod listing;
pub mod monitor;
mod node_addresses;
mod node_list;
mod outage_log;
mod priority;
mod reflector;
mod request_layer;
mod resource;
mod route;
mod service_cidrs;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod source_inputs;
mod timing;
mod version;
mod watch_events;

use std::sync::Arc;

use crate::store::Store;
pub use timing::Timing;

/// What failed in a request to the API server, and the remedy.
pub fn describe(error: &kube::Error, route: &client::Route) -> String {
    failure::ApiFailure::of(error, route).text()
}

pub trait Source: Send {
    /// Starts to fill `store`, marks each kind as listed, and keeps the store up to date until the process ends. A
    /// failure that can pass (an unreachable server, an unreadable file) is logged and retried with backoff.
    ///
    /// # Errors
    /// A failure that does not pass, e.g. no thread can be started.
    fn start(self: Box<Self>, store: Arc<Store>) -> anyhow::Result<()>;
}
