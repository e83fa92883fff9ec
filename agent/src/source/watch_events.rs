// SPDX-License-Identifier: Apache-2.0
//! Events of a watch: read in groups, sorted by what they mean, and put into the store.

use std::ops::ControlFlow;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, Stream, StreamExt};
use kube::core::WatchEvent;

use super::failure::ApiFailure;
use super::resource::{ApiObject, ApiResource};
use super::version;
use crate::store::Update;

/// Events that are put into the store at once.
const GROUP: usize = 256;

pub(super) type Events<K> = BoxStream<'static, kube::Result<WatchEvent<ApiObject<K>>>>;

/// Returns the next event with those that have already arrived, and how the stream continues: with more events, with
/// an error, or not at all. It does not wait, so no event is delayed.
pub(super) fn gather<T, E>(
    first: Option<Result<T, E>>,
    events: &mut (impl Stream<Item = Result<T, E>> + Unpin),
) -> (Vec<T>, ControlFlow<Option<E>>) {
    let mut group = Vec::new();
    let mut next = first;
    loop {
        match next {
            Some(Ok(event)) => group.push(event),
            // Events after an error are not to be trusted: the stream is read no further.
            Some(Err(error)) => return (group, ControlFlow::Break(Some(error))),
            None => return (group, ControlFlow::Break(None)),
        }
        if group.len() == GROUP {
            return (group, ControlFlow::Continue(()));
        }
        match events.next().now_or_never() {
            Some(ready) => next = ready,
            None => return (group, ControlFlow::Continue(())),
        }
    }
}

pub(super) enum WatchEnd {
    /// The server ended it.
    Closed,
    Expired,
    /// The server is at an older version than the one that the watch began with.
    WentBack,
    /// No event arrived within the timeout.
    Silent,
    Failed(ApiFailure),
}

impl From<ApiFailure> for WatchEnd {
    fn from(failure: ApiFailure) -> Self {
        if failure.is_expired() { Self::Expired } else { Self::Failed(failure) }
    }
}

/// Returns the events that change an object, and why the watch ends, if it does. `version` becomes that of the last
/// event.
pub(super) fn sort<K: ApiResource>(
    group: Vec<WatchEvent<ApiObject<K>>>,
    version: &mut String,
) -> (Vec<WatchEvent<ApiObject<K>>>, Option<WatchEnd>) {
    let mut events = Vec::with_capacity(group.len());
    for event in group {
        let of_event = match &event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                object.version.as_deref().unwrap_or_default()
            }
            WatchEvent::Bookmark(bookmark) => &bookmark.metadata.resource_version,
            WatchEvent::Error(status) => return (events, Some(ApiFailure::of_status(status).into())),
        };
        // A deleted object may carry the version that it had before.
        let is_deleted = matches!(event, WatchEvent::Deleted(_));
        if version::is_older(of_event, version) {
            if !is_deleted {
                return (events, Some(WatchEnd::WentBack));
            }
        } else if !of_event.is_empty() {
            version.clear();
            version.push_str(of_event);
        }
        if !matches!(event, WatchEvent::Bookmark(_)) {
            events.push(event);
        }
    }
    (events, None)
}

/// Puts the object of an event into the store.
pub(super) fn put<K: ApiResource>(update: &mut Update<'_>, event: WatchEvent<ApiObject<K>>) {
    match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => object.put(update),
        WatchEvent::Deleted(object) => update.remove(K::KIND, &object.name),
        WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::resource::Services;

    #[test]
    fn events_that_have_arrived_are_one_group_that_ends_at_an_error() {
        use futures_util::stream;
        let mut polled = 0;
        let mut events = stream::iter((1..600).map(Ok).chain([Err("no"), Ok(600)])).inspect(|_| polled += 1);
        assert_eq!(gather(Some(Ok(0)), &mut events), ((0..256).collect(), ControlFlow::Continue(())));
        assert_eq!(gather(Some(Ok(255)), &mut events).0.len(), GROUP);
        let (group, then) = gather(Some(Ok(510)), &mut events);
        assert_eq!((group.last(), then), (Some(&599), ControlFlow::Break(Some("no"))));
        assert_eq!(polled, 600, "events after the error are not read");
        let mut quiet = stream::pending::<Result<i32, ()>>();
        assert_eq!(gather(Some(Ok(1)), &mut quiet), (vec![1], ControlFlow::Continue(())));
        assert_eq!(gather(None, &mut quiet), (vec![], ControlFlow::Break(None)));
    }

    fn event(kind: &str, version: &str) -> WatchEvent<ApiObject<Services>> {
        let object = match kind {
            "ERROR" => r#"{"code":410,"reason":"Expired","message":"x","status":"Failure"}"#.to_owned(),
            _ => {
                format!(
                    r#"{{"kind":"K","apiVersion":"v1","metadata":{{"name":"a","resourceVersion":"{version}"}}}}"#
                )
            }
        };
        serde_json::from_str(&format!(r#"{{"type":"{kind}","object":{object}}}"#)).unwrap()
    }

    #[test]
    fn the_version_follows_the_events_and_never_goes_back() {
        let sorted = |events: &[(&str, &str)]| {
            let mut version = "5".to_owned();
            let events = events.iter().map(|(kind, version)| event(kind, version)).collect();
            let (events, end) = sort(events, &mut version);
            (events.len(), version, end)
        };
        let (events, version, end) =
            sorted(&[("ADDED", "6"), ("BOOKMARK", "8"), ("DELETED", "7"), ("MODIFIED", "9")]);
        assert_eq!((events, version.as_str()), (3, "9"));
        assert!(end.is_none());
        let (events, version, end) = sorted(&[("ADDED", "6"), ("BOOKMARK", "4"), ("ADDED", "7")]);
        assert_eq!((events, version.as_str()), (1, "6"));
        assert!(matches!(end, Some(WatchEnd::WentBack)));
        assert!(matches!(sorted(&[("ADDED", "3")]).2, Some(WatchEnd::WentBack)));
        assert!(matches!(sorted(&[("ADDED", "6"), ("ERROR", "")]).2, Some(WatchEnd::Expired)));
    }
}
