// SPDX-License-Identifier: Apache-2.0
//! The task that makes Events of notices.
//!
//! kube's `Recorder` is not used: it counts everything with the same reason about the same object as
//! one Event and keeps the first message only, and it does not know what to do with an Event that is
//! gone. Here an Event is one notice, and its count is how often that very notice came.

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

use super::throttle::{Limits, Pace};
use super::{About, Notice, log};
use crate::core::model::backoff::Backoff;
use crate::words;

/// The reason of a cause when a namespace is being removed (`NamespaceTerminatingCause` of Kubernetes).
const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";
const CONTROLLER: &str = "kube-ipvs";
/// Where Events about objects without a namespace are.
const NO_NAMESPACE: &str = "default";
/// The API server's limits of the two fields, in bytes.
const NOTE_BYTES: usize = 1024;
const INSTANCE_BYTES: usize = 128;
const TRIES: u32 = 3;
/// How long a request may take: the client itself waits for ever, and tries again for hours.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);
/// API servers forget Events after an hour: an older one is not counted up but made anew.
const EVENT_LIFE: Duration = Duration::from_secs(3600);

/// Sends what comes until nobody is left who could send.
pub async fn run(client: Client, node: String, limits: Limits, mut waiting: mpsc::Receiver<Notice>) {
    let mut poster = Poster {
        client,
        node,
        limits,
        start: Instant::now(),
        pace: Pace::new(limits),
        published: HashMap::new(),
        troubles: HashSet::new(),
    };
    while let Some(notice) = waiting.recv().await {
        log(&notice);
        if let Err(trouble) = poster.publish(&notice).await {
            poster.report(&notice, &trouble);
        }
    }
}

/// An Event that the API server has.
struct Published {
    name: String,
    count: i32,
    last: Duration,
}

enum Request<'a> {
    Create(&'a Event),
    /// Sets how often the Event of this name happened.
    Count(&'a str, i32),
}

impl Request<'_> {
    async fn send(&self, api: &Api<Event>) -> Result<Event, kube::Error> {
        match self {
            Request::Create(event) => api.create(&PostParams::default(), event).await,
            Request::Count(name, count) => {
                let last = MicroTime(Timestamp::now());
                let series = json!({"series": {"count": count, "lastObservedTime": last}});
                api.patch(name, &PatchParams::default(), &Patch::Merge(&series)).await
            }
        }
    }
}

/// Why there is no Event.
struct Trouble {
    /// The HTTP status; 0 when there was no answer.
    code: u16,
    /// The namespace is being removed.
    terminating: bool,
    message: String,
}

impl Trouble {
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
            403 if self.terminating => "its namespace is being removed, nothing is to be done",
            403 => {
                "the agent's ClusterRole needs create and patch on events in the API group events.k8s.io; \
                 until then notices are only in this log"
            }
            404 => "its namespace is gone",
            _ => "notices are in this log all the same",
        }
    }
}

struct Poster {
    client: Client,
    node: String,
    limits: Limits,
    start: Instant,
    pace: Pace,
    published: HashMap<Notice, Published>,
    /// What was reported already, by status.
    troubles: HashSet<u16>,
}

impl Poster {
    async fn publish(&mut self, notice: &Notice) -> Result<(), Trouble> {
        let now = self.start.elapsed();
        self.published.retain(|_, published| now < published.last.saturating_add(EVENT_LIFE));
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace(&notice.about));
        if let Some(Published { name, count, .. }) = self.published.remove(notice) {
            let count = count.saturating_add(1);
            match self.insist(&api, &Request::Count(&name, count)).await {
                Ok(()) => return self.remember(notice, name, count),
                // Somebody removed it.
                Err(Trouble { code: 404, .. }) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        let event = new_event(notice, &self.node, self.regarding(&notice.about).await);
        match self.insist(&api, &Request::Create(&event)).await {
            // There already: an earlier try got through, only its answer did not.
            Ok(()) | Err(Trouble { code: 409, .. }) => {
                self.remember(notice, event.metadata.name.unwrap_or_default(), 1)
            }
            Err(trouble) => Err(trouble),
        }
    }

    fn remember(&mut self, notice: &Notice, name: String, count: i32) -> Result<(), Trouble> {
        self.published.insert(notice.clone(), Published { name, count, last: self.start.elapsed() });
        Ok(())
    }

    /// Sends a request in its turn, and again if it may go better then.
    async fn insist(&mut self, api: &Api<Event>, request: &Request<'_>) -> Result<(), Trouble> {
        let mut pauses = Backoff::new(self.limits.retry, Duration::MAX);
        for _ in 1..TRIES {
            match self.send(api, request).await {
                Err(Trouble { code: 0 | 429 | 500.., .. }) => tokio::time::sleep(pauses.next_pause()).await,
                done => return done,
            }
        }
        self.send(api, request).await
    }

    async fn send(&mut self, api: &Api<Event>, request: &Request<'_>) -> Result<(), Trouble> {
        tokio::time::sleep(self.pace.turn(self.start.elapsed())).await;
        match tokio::time::timeout(REQUEST_LIMIT, request.send(api)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) => Err(Trouble::of_status(&status)),
            Ok(Err(error)) => Err(Trouble::no_answer(words::chain(&error.into()))),
            Err(_) => Err(Trouble::no_answer(format!("no answer within {}", words::time(REQUEST_LIMIT)))),
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
            // kubectl looks for a node's Events by its name in the place of the uid, as kubelet writes it.
            About::Node => ObjectReference { uid: Some(self.node.clone()), ..reference("Node", &self.node) },
            About::Service(name) => {
                let api: Api<Service> = Api::namespaced(self.client.clone(), &name.namespace);
                // A list, because agents may list Services but not always get one.
                let params =
                    ListParams::default().match_any().fields(&format!("metadata.name={}", name.name));
                let answer = tokio::time::timeout(REQUEST_LIMIT, api.list(&params)).await;
                // Without it the Event is still worth something.
                let found = answer.ok().and_then(Result::ok).and_then(|list| list.items.into_iter().next());
                ObjectReference {
                    namespace: Some(name.namespace.to_string()),
                    uid: found.and_then(|service| service.metadata.uid),
                    ..reference("Service", &name.name)
                }
            }
        }
    }

    /// One line per kind of trouble for the life of the agent: Events are not worth a storm.
    fn report(&mut self, notice: &Notice, trouble: &Trouble) {
        let (about, message) = (&notice.about, &trouble.message);
        if self.troubles.insert(trouble.code) {
            tracing::warn!("no Event about {about}: {message}; {}", trouble.remedy());
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

fn new_event(notice: &Notice, node: &str, regarding: ObjectReference) -> Event {
    let now = Timestamp::now();
    let object = regarding.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // As client libraries name Events: unique by its time.
            name: Some(format!("{object}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace(&notice.about).to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some("Warning".to_owned()),
        reason: Some(notice.reason.to_string()),
        action: Some("Sync".to_owned()),
        note: Some(shorten(&notice.message, NOTE_BYTES)),
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
        let notice = Notice { about, reason: Reason::AddressConflict, message: "x".repeat(2000) };
        let regarding = ObjectReference { name: Some("front".to_owned()), ..ObjectReference::default() };
        let event = new_event(&notice, &"n".repeat(253), regarding);
        assert_eq!(event.metadata.namespace.as_deref(), Some("web"));
        assert!(event.metadata.name.unwrap().starts_with("front."));
        assert_eq!(event.note.unwrap().len(), 1024);
        assert_eq!(event.reporting_instance.unwrap().len(), 128);
        assert!(event.event_time.is_some() && event.series.is_none());
    }

    #[test]
    fn what_is_missing_is_said() {
        let forbidden = |details| {
            let status = json!({"code": 403, "message": "forbidden", "details": details});
            Trouble::of_status(&serde_json::from_value(status).unwrap())
        };
        assert!(forbidden(json!({})).remedy().contains("create and patch on events"));
        let causes = json!({"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                                        "message": "namespace d is being terminated"}]});
        assert!(forbidden(causes).remedy().contains("being removed"));
    }
}
