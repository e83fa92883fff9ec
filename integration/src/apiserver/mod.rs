// SPDX-License-Identifier: Apache-2.0
//! A small Kubernetes API server: list (paged or whole), watch with bookmarks, streaming lists,
//! selectors, 410, Events, and injected faults. It uses plain HTTP without authentication.

mod events;
mod http;
mod objects;
mod request;
mod selector;
mod watch;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use events::Events;
use objects::Objects;

/// Default time between the bookmarks of a watch.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(1);

/// Behaviour of streaming lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streaming {
    /// They work.
    #[default]
    Works,
    /// They are rejected with 422, as by a server without the feature.
    Refused,
    /// `sendInitialEvents` is ignored, as by an older server.
    Unknown,
    /// They are answered with 200 and then an ERROR event, as by a server whose store has no progress
    /// requests (etcd 3.4).
    NoProgress,
    /// After half of the objects comes an ERROR event.
    BreaksOff,
    /// Objects are sent over and over, and the end of the list never comes.
    Endless,
}

/// Injected faults, until the next [`ApiServer::set_faults`]. A fault that happens once is a
/// method of [`ApiServer`]: `compact`, `cut_watches`, `inject_watch_line`.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Requests for this resource (`services`, `events`, …; empty: every request) are answered with this
    /// status, this number of times.
    pub status: Option<(String, u16, usize)>,
    /// Seconds in the `Retry-After` header of those answers; without it a 429 says 1 and others nothing.
    pub retry_after: Option<u64>,
    /// Delay of every answer.
    pub delay: Option<Duration>,
    /// Lists and watches of this resource in all namespaces are not answered, as if they were very large.
    pub held: Option<String>,
    /// Requests are read and never answered, and open watches fall silent, without a close.
    pub half_open: bool,
    /// Behaviour of streaming lists (`sendInitialEvents`).
    pub streaming: Streaming,
    /// Fields of `spec` select no Services, as before Kubernetes 1.31.
    pub no_service_fields: bool,
    /// A watch from a version that is too old gets 410 as its HTTP status instead of an ERROR event.
    pub gone_as_status: bool,
    /// Lists break off in the middle, and their connections with them.
    pub truncate_list_body: bool,
}

/// A request as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// `GET`, …
    pub method: String,
    /// The path.
    pub path: String,
    /// The query, still encoded; empty when there is none.
    pub query: String,
    /// The status of the answer; 0 without an answer.
    pub status: u16,
}

impl RequestRecord {
    /// Whether it is a watch.
    pub fn is_watch(&self) -> bool {
        self.query.split('&').any(|option| option == "watch=true" || option == "watch=1")
    }
}

/// What all connections share.
struct Shared {
    state: Mutex<State>,
    /// Counts changes; connections with a watch wait for it.
    changed: tokio::sync::watch::Sender<u64>,
}

/// A line for open watches.
struct Injected {
    kind: String,
    line: String,
    /// The version of the last change before it.
    after: u64,
}

struct State {
    objects: Objects,
    faults: Faults,
    requests: Vec<RequestRecord>,
    events: Events,
    /// Watches of an older generation are cut off.
    generation: u64,
    /// The cut leaves half a line.
    torn: bool,
    watches: usize,
    injected: Vec<Injected>,
    bookmark_interval: Duration,
}

impl Default for State {
    fn default() -> Self {
        Self {
            objects: Objects::default(),
            faults: Faults::default(),
            requests: Vec::new(),
            events: Events::default(),
            generation: 0,
            torn: false,
            watches: 0,
            injected: Vec::new(),
            bookmark_interval: BOOKMARK_INTERVAL,
        }
    }
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

/// The server, on its own thread; stopped when dropped.
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
        let shared =
            Arc::new(Shared { state: Mutex::default(), changed: tokio::sync::watch::Sender::new(0) });
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
            // Dropping the runtime closes all connections.
            runtime.shutdown_background();
        });
        let thread = thread.context("cannot start the API server")?;
        Ok(Self { shared, address, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://ADDRESS:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for this server, as JSON (which is YAML).
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

    /// Replaces all objects. Differences become watch events.
    pub fn replace_all(&self, objects: Vec<Value>) {
        self.shared.change(|state| state.objects.replace_all(objects));
    }

    /// Adds an object or replaces its earlier version.
    pub fn apply(&self, object: Value) {
        self.shared.change(|state| state.objects.apply(object));
    }

    /// Removes an object, if it exists.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.shared.change(|state| state.objects.delete(kind, namespace, name));
    }

    /// Sets the injected faults.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.change(|state| state.faults = faults);
    }

    /// Deletes the history: a watch or a continued list from an earlier version is then too old. Open
    /// watches get an ERROR event with 410, as one that is too slow does.
    pub fn compact(&self) {
        self.shared.change(|state| state.objects.compact());
    }

    /// Goes back to an older state, as a store that was restored from a backup: these objects, at this
    /// version, without history. Open watches are cut, for the server behind them was stopped for it.
    pub fn restore(&self, objects: Vec<Value>, version: u64) {
        self.shared.change(|state| {
            state.objects.restore(objects, version);
            state.generation += 1;
            state.torn = false;
        });
    }

    /// Closes every open watch without its proper end; `torn`: in the middle of a line.
    pub fn cut_watches(&self, torn: bool) {
        self.shared.change(|state| {
            state.generation += 1;
            state.torn = torn;
        });
    }

    /// Sends a line of any content to the open watches of a kind (`Service`, …).
    pub fn inject_watch_line(&self, kind: &str, line: &str) {
        self.shared.change(|state| {
            let after = state.objects.version();
            state.injected.push(Injected { kind: kind.to_owned(), line: line.to_owned(), after });
        });
    }

    /// Sets the time between bookmarks; an open watch takes it up with its next one.
    pub fn set_bookmark_interval(&self, interval: Duration) {
        self.shared.change(|state| state.bookmark_interval = interval);
    }

    /// Sets the length of the history; requests for older changes get 410.
    pub fn set_history(&self, changes: usize) {
        self.shared.change(|state| state.objects.set_limit(changes));
    }

    /// The version of the last change, as lists and bookmarks say it.
    pub fn version(&self) -> u64 {
        self.shared.state().objects.version()
    }

    /// The requests so far, in the order they came in.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.shared.state().requests.clone()
    }

    /// The posted Events with all patches.
    pub fn events(&self) -> Vec<Value> {
        self.shared.state().events.all().to_vec()
    }

    /// Deletes all Events, as a server does when they are an hour old.
    pub fn forget_events(&self) {
        self.shared.state().events.clear();
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
