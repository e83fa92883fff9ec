// SPDX-License-Identifier: Apache-2.0
//! The task that creates Events.
//!
//! kube's `Recorder` is not used: it counts all Events with the same reason and object as one, keeps only the first
//! message, and fails when that Event was deleted. Here every request has its own Event, and the count of the Event is
//! how often the same request came.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

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
        if let Err(error) = poster.publish(&request).await {
            poster.report(&request, &error);
        }
    }
}

/// An Event in the API server.
struct Published {
    name: String,
    count: i32,
    last: Duration,
}

enum EventCall<'a> {
    Create(&'a Event),
    /// Sets the count of the Event with this name.
    Count(&'a str, i32),
}

impl EventCall<'_> {
    async fn send(&self, api: &Api<Event>) -> Result<Event, kube::Error> {
        match self {
            EventCall::Create(event) => api.create(&PostParams::default(), event).await,
            EventCall::Count(name, count) => {
                let last = MicroTime(Timestamp::now());
                let series = json!({"series": {"count": count, "lastObservedTime": last}});
                api.patch(name, &PatchParams::default(), &Patch::Merge(&series)).await
            }
        }
    }
}

/// A failed API request.
struct PostError {
    /// The HTTP status; 0 without an answer.
    code: u16,
    /// The namespace is being removed.
    terminating: bool,
    message: String,
}

impl PostError {
    fn of_status(status: &Status) -> Self {
        let causes = status.details.as_ref().map_or(&[][..], |details| &details.causes);
        let terminating = causes.iter().any(|cause| cause.reason == NAMESPACE_TERMINATING);
        Self { code: status.code, terminating, message: status.message.clone() }
    }

    fn no_answer(message: String) -> Self {
        Self { code: 0, terminating: false, message }
    }

    fn remedy(&self) -> &'static str {
        match self.code {
            403 if self.terminating => "its namespace is being deleted, no action is needed",
            403 => {
                "the agent's ClusterRole needs create and patch on events in the API group events.k8s.io; \
                 until then the messages are only in this log"
            }
            404 => "its namespace was deleted",
            _ => "the message is in this log",
        }
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
    async fn publish(&mut self, request: &EventRequest) -> Result<(), PostError> {
        let now = self.start.elapsed();
        self.published.retain(|_, published| now < published.last.saturating_add(EVENT_LIFE));
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace(&request.about));
        if let Some(Published { name, count, .. }) = self.published.remove(request) {
            let count = count.saturating_add(1);
            match self.send_with_retries(&api, &EventCall::Count(&name, count)).await {
                Ok(()) => return self.remember(request, name, count),
                // The Event was deleted.
                Err(PostError { code: 404, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let event = new_event(request, &self.node, self.regarding(&request.about).await);
        match self.send_with_retries(&api, &EventCall::Create(&event)).await {
            // The Event exists: an earlier try succeeded, but its answer was lost.
            Ok(()) | Err(PostError { code: 409, .. }) => {
                self.remember(request, event.metadata.name.unwrap_or_default(), 1)
            }
            Err(error) => Err(error),
        }
    }

    fn remember(&mut self, request: &EventRequest, name: String, count: i32) -> Result<(), PostError> {
        self.published.insert(request.clone(), Published { name, count, last: self.start.elapsed() });
        Ok(())
    }

    /// Sends an API request in its turn, and retries errors that may be temporary.
    async fn send_with_retries(
        &mut self,
        api: &Api<Event>,
        request: &EventCall<'_>,
    ) -> Result<(), PostError> {
        let mut pauses = Backoff::new(self.limits.retry, Duration::MAX);
        for _ in 1..TRIES {
            match self.send(api, request).await {
                Err(PostError { code: 0 | 429 | 500.., .. }) => tokio::time::sleep(pauses.next_pause()).await,
                done => return done,
            }
        }
        self.send(api, request).await
    }

    async fn send(&mut self, api: &Api<Event>, request: &EventCall<'_>) -> Result<(), PostError> {
        tokio::time::sleep(self.pacer.turn(self.start.elapsed())).await;
        match tokio::time::timeout(REQUEST_LIMIT, request.send(api)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) => Err(PostError::of_status(&status)),
            Ok(Err(error)) => Err(PostError::no_answer(words::chain(&error.into()))),
            Err(_) => Err(PostError::no_answer(format!("no answer within {}", words::time(REQUEST_LIMIT)))),
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
    fn report(&mut self, request: &EventRequest, error: &PostError) {
        let (about, message) = (&request.about, &error.message);
        if self.reported.insert(error.code) {
            tracing::warn!("no Event about {about}: {message}; {}", error.remedy());
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
    let end = (0..=bytes.saturating_sub(dots.len())).rev().find(|at| text.is_char_boundary(*at));
    format!("{}{dots}", &text[..end.unwrap_or(0)])
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
            PostError::of_status(&serde_json::from_value(status).unwrap())
        };
        assert!(forbidden(json!({})).remedy().contains("create and patch on events"));
        let causes = json!({"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                                        "message": "namespace d is being terminated"}]});
        assert!(forbidden(causes).remedy().contains("being deleted"));
    }
}
