// SPDX-License-Identifier: Apache-2.0
//! The task that creates Events.
//!
//! kube's `Recorder` is not used: it counts all Events with the same reason and object as one, keeps only the first
//! message, and fails when that Event was deleted. Here every request has its own Event, and the count of the Event is
//! how often the same request came.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use super::request::{About, EventRequest};
use super::throttle::{Limits, RequestPacer};
use crate::core::model::backoff::Backoff;
use crate::words;

/// The reason of a cause when a namespace is being removed (`NamespaceTerminatingCause` of Kubernetes).
const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";
const CONTROLLER: &str = "kube-ipvs";
/// The namespace of Events about objects without one.
const NO_NAMESPACE: &str = "default";
/// The API server's limits of the two fields, in bytes.
const NOTE_BYTES: usize = 1024;
const INSTANCE_BYTES: usize = 128;
const TRIES: u32 = 3;
/// The timeout of an API request: the client itself has none, and retries for hours.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);
/// API servers delete Events after an hour: an older one is created again.
const EVENT_LIFE: Duration = Duration::from_secs(3600);

/// Creates Events until every sender is dropped.
pub async fn run(client: Client, node: String, limits: Limits, mut waiting: mpsc::Receiver<EventRequest>) {
    let mut poster = Poster {
        client,
        node,
        limits,
        start: Instant::now(),
        pacer: RequestPacer::new(limits),
        published: HashMap::new(),
        reported: HashSet::new(),
    };
    while let Some(request) = waiting.recv().await {
        request.log();
        if let Err(failure) = poster.publish(&request).await {
            poster.report(&request, &failure);
        }
    }
}

/// An Event in the API server.
struct Published {
    name: String,
    count: i32,
    last: Duration,
}

/// A failed API request without an answer: its code is 0.
fn no_answer(message: String) -> Box<Status> {
    Box::new(Status { message, ..Status::default() })
}

fn remedy(failure: &Status) -> &'static str {
    let mut causes = failure.details.iter().flat_map(|details| &details.causes);
    match failure.code {
        403 if causes.any(|cause| cause.reason == NAMESPACE_TERMINATING) => {
            "its namespace is being deleted, no action is needed"
        }
        403 => {
            "the agent's ClusterRole needs create and patch on events in the API group events.k8s.io; \
             until then the messages are only in this log"
        }
        404 => "its namespace was deleted",
        _ => "the message is in this log",
    }
}

struct Poster {
    client: Client,
    node: String,
    limits: Limits,
    start: Instant,
    pacer: RequestPacer,
    published: HashMap<EventRequest, Published>,
    /// Statuses that have a warning in the log.
    reported: HashSet<u16>,
}

impl Poster {
    async fn publish(&mut self, request: &EventRequest) -> Result<(), Box<Status>> {
        let now = self.start.elapsed();
        self.published.retain(|_, published| now < published.last.saturating_add(EVENT_LIFE));
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace(&request.about));
        if let Some(Published { name, count, .. }) = self.published.remove(request) {
            let count = count.saturating_add(1);
            let patch = || {
                let last = MicroTime(Timestamp::now());
                let series = Patch::Merge(json!({"series": {"count": count, "lastObservedTime": last}}));
                let (api, name) = (&api, &name);
                async move { api.patch(name, &PatchParams::default(), &series).await }.boxed()
            };
            match self.send(patch).await {
                Ok(()) => return self.remember(request, name, count),
                // The Event was deleted.
                Err(failure) if failure.code == 404 => {}
                failed => return failed,
            }
        }
        let event = new_event(request, &self.node, self.regarding(&request.about).await);
        match self.send(|| async { api.create(&PostParams::default(), &event).await }.boxed()).await {
            // The Event exists: an earlier try succeeded, but its answer was lost.
            Err(failure) if failure.code != 409 => Err(failure),
            _ => self.remember(request, event.metadata.name.unwrap_or_default(), 1),
        }
    }

    fn remember(&mut self, request: &EventRequest, name: String, count: i32) -> Result<(), Box<Status>> {
        self.published.insert(request.clone(), Published { name, count, last: self.start.elapsed() });
        Ok(())
    }

    /// Sends an API request in its turn, and retries errors that may be temporary.
    async fn send<'a>(
        &mut self,
        call: impl Fn() -> BoxFuture<'a, kube::Result<Event>>,
    ) -> Result<(), Box<Status>> {
        let mut pauses = Backoff::new(self.limits.retry, Duration::MAX);
        let mut tries = 0;
        loop {
            tokio::time::sleep(self.pacer.turn(self.start.elapsed())).await;
            let failure = match tokio::time::timeout(REQUEST_LIMIT, call()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(kube::Error::Api(status))) => status,
                Ok(Err(error)) => no_answer(words::causes(&error)),
                Err(_) => no_answer(format!("no answer within {}", words::time(REQUEST_LIMIT))),
            };
            tries += 1;
            if tries == TRIES || !matches!(failure.code, 0 | 429 | 500..) {
                return Err(failure);
            }
            tokio::time::sleep(pauses.next_pause()).await;
        }
    }

    /// The object with its uid: `kubectl describe service` shows only Events that have it.
    async fn regarding(&self, about: &About) -> ObjectReference {
        let reference = |kind: &str, name: &str| ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        match about {
            // kubectl finds a node's Events by the node's name as uid, as kubelet writes them.
            About::Node => ObjectReference { uid: Some(self.node.clone()), ..reference("Node", &self.node) },
            About::Service(name) => {
                let api: Api<Service> = Api::namespaced(self.client.clone(), &name.namespace);
                // A list, because agents may list Services but not always get one.
                let params =
                    ListParams::default().match_any().fields(&format!("metadata.name={}", name.name));
                let answer = tokio::time::timeout(REQUEST_LIMIT, api.list(&params)).await;
                // An Event without uid is better than none.
                let found = answer.ok().and_then(Result::ok).and_then(|list| list.items.into_iter().next());
                ObjectReference {
                    namespace: Some(name.namespace.to_string()),
                    uid: found.and_then(|service| service.metadata.uid),
                    ..reference("Service", &name.name)
                }
            }
        }
    }

    /// Warns once per status.
    fn report(&mut self, request: &EventRequest, failure: &Status) {
        let (about, message) = (&request.about, &failure.message);
        if self.reported.insert(failure.code) {
            tracing::warn!("no Event about {about}: {message}; {}", remedy(failure));
        } else {
            tracing::debug!("no Event about {about}: {message}");
        }
    }
}

fn namespace(about: &About) -> &str {
    match about {
        About::Service(name) => &name.namespace,
        About::Node => NO_NAMESPACE,
    }
}

fn new_event(request: &EventRequest, node: &str, regarding: ObjectReference) -> Event {
    let now = Timestamp::now();
    let object = regarding.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // As client libraries name Events: unique by the time.
            name: Some(format!("{object}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace(&request.about).to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some("Warning".to_owned()),
        reason: Some(request.reason.to_string()),
        action: Some("Sync".to_owned()),
        note: Some(shorten(&request.message, NOTE_BYTES)),
        regarding: Some(regarding),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(shorten(node, INSTANCE_BYTES)),
        ..Event::default()
    }
}

/// The start of a text, cut between characters.
fn shorten(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let dots = "...";
    format!("{}{dots}", &text[..text.floor_char_boundary(bytes.saturating_sub(dots.len()))])
}

#[cfg(test)]
mod tests {
    use super::super::Reason;
    use super::*;
    use crate::core::model::ObjectName;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shorten("short", 5), "short");
        assert_eq!(shorten("longer", 5), "lo...");
        assert_eq!(shorten("ééé", 5), "é...");
        assert!(shorten(&"ü".repeat(2000), NOTE_BYTES).len() <= NOTE_BYTES);
    }

    #[test]
    fn an_event_fits_the_limits_of_the_api() {
        let about = About::Service(ObjectName::new("web", "front"));
        let request = EventRequest { about, reason: Reason::AddressConflict, message: "x".repeat(2000) };
        let regarding = ObjectReference { name: Some("front".to_owned()), ..ObjectReference::default() };
        let event = new_event(&request, &"n".repeat(253), regarding);
        assert_eq!(event.metadata.namespace.as_deref(), Some("web"));
        assert!(event.metadata.name.unwrap().starts_with("front."));
        assert_eq!(event.note.unwrap().len(), 1024);
        assert_eq!(event.reporting_instance.unwrap().len(), 128);
        assert!(event.event_time.is_some() && event.series.is_none());
    }

    #[test]
    fn the_remedy_depends_on_the_cause() {
        let forbidden = |details| {
            let status = json!({"code": 403, "message": "forbidden", "details": details});
            remedy(&serde_json::from_value(status).unwrap())
        };
        assert!(forbidden(json!({})).contains("create and patch on events"));
        let causes = json!({"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                                        "message": "namespace d is being terminated"}]});
        assert!(forbidden(causes).contains("being deleted"));
    }
}
