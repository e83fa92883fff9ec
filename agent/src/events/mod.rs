// SPDX-License-Identifier: Apache-2.0
//! Events of the Kubernetes API about Services and this node, for operators.
//!
//! The reconcile loop only queues a request, so a slow or failing API server never blocks the loop. A task of its own
//! creates the Events, at a limited rate and without repeats.

mod post;
mod request;
pub mod throttle;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::lock::lock;
pub use request::{About, EventRequest, Reason};
use throttle::{Admission, Limits, Recent};

/// Takes requests for Events. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct EventSink(Arc<SinkState>);

#[derive(Debug)]
struct SinkState {
    start: Instant,
    recent: Mutex<Recent>,
    /// `None`: requests are only logged.
    queue: Option<mpsc::Sender<EventRequest>>,
    dropped: AtomicU64,
}

impl EventSink {
    fn new(limits: Limits, queue: Option<mpsc::Sender<EventRequest>>) -> Self {
        let recent = Mutex::new(Recent::new(limits));
        Self(Arc::new(SinkState { start: Instant::now(), recent, queue, dropped: AtomicU64::new(0) }))
    }

    /// A sink that only logs, for an agent without an API server.
    pub fn log_only() -> Self {
        Self::new(Limits::default(), None)
    }

    /// A sink that logs requests and creates the Events, in a task of `runtime`, as the agent of `node`.
    pub fn to_api(
        client: kube::Client,
        node: &str,
        runtime: &tokio::runtime::Handle,
        limits: Limits,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(limits.queue.max(1));
        runtime.spawn(post::run(client, node.to_owned(), limits, waiting));
        Self::new(limits, Some(queue))
    }

    /// A sink whose requests a test reads.
    #[cfg(test)]
    pub(crate) fn kept() -> (Self, mpsc::Receiver<EventRequest>) {
        let (queue, waiting) = mpsc::channel(Limits::default().queue);
        (Self::new(Limits::default(), Some(queue)), waiting)
    }

    /// Queues requests. Repeats of a recent request are ignored; new requests are dropped when too many are waiting.
    pub fn send(&self, requests: impl IntoIterator<Item = EventRequest>) {
        for request in requests {
            let admission = lock(&self.0.recent).admit(&request, self.0.start.elapsed());
            let is_dropped = match (admission, &self.0.queue) {
                (Admission::Repeat, _) => false,
                (Admission::Full, _) => true,
                (Admission::New, Some(queue)) => {
                    let refused = queue.try_send(request).err().map(TrySendError::into_inner);
                    // It was not sent, so the next one is no repeat.
                    refused.is_some_and(|request| lock(&self.0.recent).forget(&request))
                }
                (Admission::New, None) => {
                    request.log();
                    false
                }
            };
            if is_dropped && self.0.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!(
                    "too many different problems of Services: some get no Event; first fix those that have an Event"
                );
            }
        }
    }

    /// The number of dropped requests.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::ObjectName;

    fn request(name: &str) -> EventRequest {
        let about = About::Service(ObjectName::new("default", name));
        EventRequest { about, reason: Reason::AddressConflict, message: String::new() }
    }

    #[test]
    fn a_full_queue_drops_and_never_waits() {
        let (queue, mut waiting) = mpsc::channel(2);
        let sink = EventSink::new(Limits::default(), Some(queue));
        sink.send(["a", "a", "b", "c", "d", "a"].map(request));
        assert_eq!(sink.clone().dropped(), 2, "c and d");
        assert_eq!(waiting.try_recv().ok(), Some(request("a")));
        assert_eq!(waiting.try_recv().ok(), Some(request("b")));
        assert!(waiting.try_recv().is_err());
        sink.send([request("e"), request("c")]);
        assert_eq!(waiting.try_recv().ok(), Some(request("e")));
        assert_eq!(waiting.try_recv().ok(), Some(request("c")), "what was dropped is no repeat");
    }

    #[test]
    fn a_closed_queue_drops_requests() {
        let (queue, _) = mpsc::channel(1);
        let sink = EventSink::new(Limits::default(), Some(queue));
        sink.send([request("a")]);
        assert_eq!(sink.dropped(), 1);
        EventSink::log_only().send([request("a"), request("a")]);
    }

    #[test]
    fn names_are_those_of_events() {
        assert_eq!(request("a").about.to_string(), "Service default/a");
        assert_eq!(About::Node.to_string(), "Node");
        assert_eq!(Reason::ExternalIPRefused.to_string(), "ExternalIPRefused");
    }
}
