// SPDX-License-Identifier: Apache-2.0
//! A small Kubernetes API server: list (paged or whole), watch with bookmarks, streaming lists,
//! selectors, 410, and faults on demand. It speaks plain HTTP and trusts everybody.

mod http;
mod objects;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::sync::watch;

use objects::Objects;

/// What goes wrong on purpose.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Requests for this resource (`services`, …; empty: all) are answered with this status, so many times.
    pub status: Option<(String, u16, usize)>,
    /// Every answer comes so much later.
    pub delay: Option<Duration>,
    /// Requests are read and never answered, and open watches fall silent, without a close.
    pub half_open: bool,
    /// Streaming lists (`sendInitialEvents`) are refused with 422, as by a server without the feature.
    pub no_streaming_lists: bool,
    /// A watch from a version that is too old gets 410 as its HTTP status instead of an ERROR event.
    pub gone_as_status: bool,
}

/// A request as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Path and query.
    pub uri: String,
    /// The status it was answered with; 0 when it was not.
    pub status: u16,
}

/// What all connections share.
struct Shared {
    state: Mutex<State>,
    /// Counts changes; connections with a watch wait for it.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: Objects,
    faults: Faults,
    requests: Vec<Request>,
    events: Vec<Value>,
    /// Watches of an older generation are cut off.
    generation: u64,
    /// The cut leaves half a line.
    torn: bool,
    watches: usize,
    /// Lines for open watches that are no objects: resource, line.
    injected: Vec<(String, String)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state());
        self.changed.send_modify(|n| *n += 1);
        result
    }
}

/// The server, on a thread of its own until this goes away.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ApiServer {
    /// Serves on a listener, in the network namespace that it was made in.
    ///
    /// # Errors
    /// When there is no runtime for it.
    pub fn start(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: watch::Sender::new(0) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let serving = shared.clone();
        let thread = std::thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = http::serve(listener, serving) => {}
                    _ = stopped => {}
                }
            });
            // Connections go with the runtime.
            runtime.shutdown_background();
        });
        let thread = thread.context("cannot start the API server")?;
        Ok(Self { shared, address, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://ADDRESS:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> String {
        let server = self.url();
        serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
        .to_string()
    }

    /// Makes the stored objects exactly these; what differs becomes watch events.
    pub fn replace_all(&self, objects: Vec<Value>) {
        self.shared.change(|state| state.objects.replace_all(objects));
    }

    /// Adds an object or replaces its earlier version.
    pub fn apply(&self, object: Value) {
        self.shared.change(|state| state.objects.apply(object));
    }

    /// Removes an object; one that is not there is fine.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.shared.change(|state| state.objects.delete(kind, namespace, name));
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.change(|state| state.faults = faults);
    }

    /// Forgets all history: a watch from an earlier version is too old now.
    pub fn compact(&self) {
        self.shared.change(|state| state.objects.compact());
    }

    /// Closes every open watch without its proper end; `torn`: in the middle of a line.
    pub fn cut_watches(&self, torn: bool) {
        self.shared.change(|state| {
            state.generation += 1;
            state.torn = torn;
        });
    }

    /// Sends a line of any content to the open watches of a resource (`services`, …).
    pub fn inject(&self, resource: &str, line: &str) {
        self.shared.change(|state| state.injected.push((resource.to_owned(), line.to_owned())));
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// The Event objects that were posted.
    pub fn events(&self) -> Vec<Value> {
        self.shared.state().events.clone()
    }

    /// Open watches.
    pub fn open_watches(&self) -> usize {
        self.shared.state().watches
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
