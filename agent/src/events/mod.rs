// SPDX-License-Identifier: Apache-2.0
//! What an operator should know about a Service or this node, as Events of the Kubernetes API.
//!
//! The reconcile loop only puts notices into a queue: an API server that is slow, away or says no
//! never holds it up. A task of its own sends them, few and never the same one often.

mod post;
pub mod throttle;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::core::model::ObjectName;
use throttle::{Admission, Limits, Recent};

/// Something an operator should act on, about one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Notice {
    /// The object.
    pub about: About,
    /// What is wrong, for machines.
    pub reason: Reason,
    /// What is wrong and the remedy, for people.
    pub message: String,
}

/// What a notice is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum About {
    /// A Service.
    Service(ObjectName),
    /// The node that this agent runs on.
    Node,
}

/// `Service NAMESPACE/NAME`, `Node`.
impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            About::Service(name) => write!(f, "Service {name}"),
            About::Node => f.write_str("Node"),
        }
    }
}

/// Why there is a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Two Services claim the same address and port.
    AddressConflict,
    /// An external IP is not served.
    ExternalIPRefused,
    /// An address of the node is an address of a Service.
    NodeAddressAsVIP,
    /// An address of a Service is not bound, for somebody else has it whom the node needs.
    AddressNotBound,
    /// A program of the node listens where a Service takes the traffic.
    ListenerShadowed,
    /// The kernel refuses something that the Service, or all Services of the node, need.
    NotProgrammed,
    /// Virtual servers that another program made were removed.
    RemovedForeignServers,
    /// A health-check node port cannot be opened.
    FailedToStartServiceHealthcheck,
    /// The health server cannot be opened.
    FailedToStartProxierHealthcheck,
    /// The metrics server cannot be opened.
    FailedToStartMetricServer,
    /// The kernel cannot be used: a module or a privilege is missing.
    KernelNotUsable,
}

/// The reason as the Event has it.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::AddressConflict => "AddressConflict",
            Reason::ExternalIPRefused => "ExternalIPRefused",
            Reason::NodeAddressAsVIP => "NodeAddressAsVIP",
            Reason::AddressNotBound => "AddressNotBound",
            Reason::ListenerShadowed => "ListenerShadowed",
            Reason::NotProgrammed => "NotProgrammed",
            Reason::RemovedForeignServers => "RemovedForeignServers",
            Reason::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
            Reason::FailedToStartProxierHealthcheck => "FailedToStartProxierHealthcheck",
            Reason::FailedToStartMetricServer => "FailedToStartMetricServer",
            Reason::KernelNotUsable => "KernelNotUsable",
        })
    }
}

/// Where notices go. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct EventSink(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    recent: Mutex<Recent>,
    /// Without it notices are only logged.
    queue: Option<mpsc::Sender<Notice>>,
    dropped: AtomicU64,
}

impl EventSink {
    fn new(limits: Limits, queue: Option<mpsc::Sender<Notice>>) -> Self {
        let recent = Mutex::new(Recent::new(limits));
        Self(Arc::new(Inner { start: Instant::now(), recent, queue, dropped: AtomicU64::new(0) }))
    }

    /// A sink for an agent without an API server: notices are logged.
    pub fn log_only() -> Self {
        Self::new(Limits::default(), None)
    }

    /// A sink that logs notices and makes them Events of the API server, on `runtime`, as the agent of
    /// `node`.
    pub fn to_api(client: kube::Client, node: &str, runtime: &tokio::runtime::Handle) -> Self {
        Self::with_limits(client, node, runtime, Limits::default())
    }

    /// As [`EventSink::to_api`], with other limits.
    pub fn with_limits(
        client: kube::Client,
        node: &str,
        runtime: &tokio::runtime::Handle,
        limits: Limits,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(limits.queue.max(1));
        runtime.spawn(post::run(client, node.to_owned(), limits, waiting));
        Self::new(limits, Some(queue))
    }

    /// A sink whose notices a test reads.
    #[cfg(test)]
    pub(crate) fn kept() -> (Self, mpsc::Receiver<Notice>) {
        let (queue, waiting) = mpsc::channel(Limits::default().queue);
        (Self::new(Limits::default(), Some(queue)), waiting)
    }

    /// Takes notices. One that was taken lately is passed over; so are new ones when too many wait.
    pub fn send(&self, notices: impl IntoIterator<Item = Notice>) {
        for notice in notices {
            match self.admit(&notice) {
                Admission::Repeat => {}
                Admission::Full => self.drop_one(),
                Admission::New => match &self.0.queue {
                    None => log(&notice),
                    Some(queue) => {
                        if queue.try_send(notice).is_err() {
                            self.drop_one();
                        }
                    }
                },
            }
        }
    }

    /// Notices that were neither sent nor repeats.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    fn admit(&self, notice: &Notice) -> Admission {
        let now = self.0.start.elapsed();
        self.0.recent.lock().unwrap_or_else(PoisonError::into_inner).admit(notice, now)
    }

    fn drop_one(&self) {
        if self.0.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "too many different notices about Services: some get no Event; first remove the causes of \
                 those that are shown"
            );
        }
    }
}

fn log(notice: &Notice) {
    let Notice { about, reason, message } = notice;
    // What the node's Services share has a line when it begins to fail, with the same words.
    if (about, reason) == (&About::Node, &Reason::NotProgrammed) {
        return;
    }
    // Most messages name the Service themselves.
    if message.contains(&about.to_string()) {
        tracing::warn!("{reason}: {message}");
    } else {
        tracing::warn!("{about}: {reason}: {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(name: &str) -> Notice {
        let about = About::Service(ObjectName::new("default", name));
        Notice { about, reason: Reason::AddressConflict, message: String::new() }
    }

    #[test]
    fn a_full_queue_drops_and_never_waits() {
        let (queue, mut waiting) = mpsc::channel(2);
        let sink = EventSink::new(Limits::default(), Some(queue));
        sink.send(["a", "a", "b", "c", "d", "a"].map(notice));
        assert_eq!(sink.clone().dropped(), 2, "c and d");
        assert_eq!(waiting.try_recv().ok(), Some(notice("a")));
        assert_eq!(waiting.try_recv().ok(), Some(notice("b")));
        assert!(waiting.try_recv().is_err());
        sink.send([notice("e")]);
        assert_eq!(waiting.try_recv().ok(), Some(notice("e")));
    }

    #[test]
    fn a_queue_that_nobody_reads_is_no_trouble() {
        let (queue, _) = mpsc::channel(1);
        let sink = EventSink::new(Limits::default(), Some(queue));
        sink.send([notice("a")]);
        assert_eq!(sink.dropped(), 1);
        EventSink::log_only().send([notice("a"), notice("a")]);
    }

    #[test]
    fn names_are_those_of_events() {
        assert_eq!(notice("a").about.to_string(), "Service default/a");
        assert_eq!(About::Node.to_string(), "Node");
        assert_eq!(Reason::ExternalIPRefused.to_string(), "ExternalIPRefused");
    }
}
