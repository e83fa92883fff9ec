// SPDX-License-Identifier: Apache-2.0
//! One kind of object, followed for ever: a list, then a watch from its version, a new list when that
//! version is gone or the server went back to an older state, and pauses that spare a server in trouble.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, Stream, StreamExt};
use kube::Resource;
use kube::core::WatchEvent;

use super::api::{Followed, Guarded, Selectors, WATCH_SECONDS};
use super::client::{ApiClient, AskedPause};
use super::list::{Events, Listed, Lists};
use super::outage::Outage;
use super::pauses::{Limits, Pauses};
use super::trouble::Trouble;
use super::version;
use crate::metrics::input::{Watch, WatchState};
use crate::store::{Store, Update};

/// A watch that the server ends after so long ended as it was asked to.
const REGULAR: Duration = Duration::from_secs(WATCH_SECONDS as u64 - 10);

/// How many events are put into the store at once.
const GROUP: usize = 256;

/// The next event with those that are there already, and how it goes on: with more, with an error, or
/// not at all. Nothing is waited for, so no event comes later for it.
pub(super) fn gather<T, E>(
    first: Option<Result<T, E>>,
    events: &mut (impl Stream<Item = Result<T, E>> + Unpin),
) -> (Vec<T>, ControlFlow<Option<E>>) {
    let mut group = Vec::new();
    let mut next = first;
    loop {
        match next {
            Some(Ok(event)) => group.push(event),
            // The stream is not asked on: what follows an error is not to be trusted.
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

/// Why a watch is not read any further.
pub(super) enum End {
    /// The server ended it.
    Over,
    /// Its version is gone.
    Gone,
    /// The server is at an older version than the one that the watch began with.
    WentBack,
    /// Nothing came for as long as was waited.
    Silent,
    /// It failed.
    Failed(Trouble),
}

/// Follows the objects of one kind.
pub(super) struct Follower<K: Followed>
where
    Guarded<K>: Resource<DynamicType = ()>,
{
    lists: Lists<K>,
    asked: AskedPause,
    store: Arc<Store>,
    watch: Watch,
    limits: Limits,
    pauses: Pauses,
    outage: Outage,
    /// The last try failed.
    failing: bool,
}

impl<K: Followed> Follower<K>
where
    Guarded<K>: Resource<DynamicType = ()>,
{
    pub fn new(
        api: ApiClient,
        selectors: Selectors,
        store: Arc<Store>,
        (watch, outage): (Watch, Outage),
        limits: Limits,
    ) -> Self {
        Self {
            asked: api.asked.clone(),
            lists: Lists::new(api, selectors, limits),
            store,
            watch,
            limits,
            pauses: Pauses::new(limits),
            outage,
            failing: false,
        }
    }

    /// Follows until the task is dropped.
    pub async fn run(mut self) {
        loop {
            self.watch.set(WatchState::Listing);
            match self.lists.next(&self.store).await {
                Ok(listed) => {
                    self.answers();
                    self.follow(listed).await;
                    // Many nodes may need a new list at the same moment.
                    self.pause().await;
                }
                Err(trouble) => self.fail(&trouble).await,
            }
        }
    }

    /// Watches from the version of a list until a new one is needed.
    async fn follow(&mut self, listed: Listed<K>) {
        let Listed { mut version, mut events } = listed;
        // Whether the server may be at an older state than `version`: it may have gone back between the list
        // and the watch.
        let mut doubt = true;
        loop {
            let mut watch = match events.take() {
                Some(events) => events,
                None => match self.lists.watch(&version).await {
                    Ok(watch) => watch,
                    Err(trouble) if trouble.is_gone() => return self.lists_again("its version is gone"),
                    Err(trouble) => {
                        doubt = true;
                        self.fail(&trouble).await;
                        continue;
                    }
                },
            };
            let began = Instant::now();
            match self.read(&mut watch, &mut version, &mut doubt).await {
                End::Gone => return self.lists_again("its version is gone"),
                End::WentBack => {
                    tracing::warn!(
                        kind = %K::KIND,
                        "the API server went back to an older state, as after a restore from a backup: listing again"
                    );
                    return;
                }
                End::Silent => {}
                // Ended early: by a server that stopped, maybe to be restored from a backup.
                End::Over if began.elapsed() >= self.limits.min_pause => doubt = began.elapsed() < REGULAR,
                End::Over => {
                    doubt = true;
                    let what = "a watch ended as soon as it began";
                    self.fail(&Trouble::new(what, "see the API server's log")).await;
                }
                End::Failed(trouble) => {
                    doubt = true;
                    self.fail(&trouble).await;
                }
            }
        }
    }

    fn lists_again(&self, why: &str) {
        tracing::debug!(kind = %K::KIND, "listing again: {why}");
    }

    /// Puts the events of a watch into the store until it ends. `version` follows it.
    async fn read(&mut self, watch: &mut Events<K>, version: &mut String, doubt: &mut bool) -> End {
        loop {
            let patience = if *doubt { self.pauses.about(self.limits.doubt) } else { self.limits.silence };
            let Ok(next) = tokio::time::timeout(patience, watch.next()).await else {
                match self.lists.is_behind(version).await {
                    Ok(true) => return End::WentBack,
                    Ok(false) => self.answers(),
                    Err(trouble) => return End::Failed(trouble),
                }
                if std::mem::take(doubt) {
                    continue;
                }
                return End::Silent;
            };
            let (group, then) = gather(next, watch);
            let (events, end) = sort(group, version);
            if !events.is_empty() || end.is_none() && matches!(then, ControlFlow::Continue(())) {
                *doubt = false;
                self.answers();
            }
            if !events.is_empty() {
                self.store.update(|update| events.into_iter().for_each(|event| put(update, event)));
            }
            match (end, then) {
                (Some(end), _) => return end,
                (None, ControlFlow::Continue(())) => {}
                (None, ControlFlow::Break(None)) => return End::Over,
                // One event that is none is passed over, as by client-go.
                (None, ControlFlow::Break(Some(kube::Error::SerdeError(error)))) => {
                    tracing::warn!(kind = %K::KIND, "an event of the API server is ignored: it is not a Kubernetes object");
                    tracing::debug!(kind = %K::KIND, "{error}");
                }
                (None, ControlFlow::Break(Some(error))) => return End::Failed(self.lists.trouble(&error)),
            }
        }
    }

    fn answers(&mut self) {
        self.watch.set(WatchState::Following);
        if std::mem::take(&mut self.failing) {
            self.outage.answers(K::KIND);
        }
    }

    async fn fail(&mut self, trouble: &Trouble) {
        self.failing = true;
        self.watch.set(WatchState::Failing);
        self.outage.fails(K::KIND, &trouble.text());
        self.pause().await;
    }

    async fn pause(&mut self) {
        let now = Instant::now();
        tokio::time::sleep(self.pauses.next(now, self.asked.left(now))).await;
    }
}

/// The events that change an object, and why the watch ends, if it does. `version` becomes that of the last
/// event.
pub(super) fn sort<K: Followed>(
    group: Vec<WatchEvent<Guarded<K>>>,
    version: &mut String,
) -> (Vec<WatchEvent<Guarded<K>>>, Option<End>) {
    let mut events = Vec::with_capacity(group.len());
    for event in group {
        let of_event = match &event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                object.version().unwrap_or_default()
            }
            WatchEvent::Bookmark(bookmark) => &bookmark.metadata.resource_version,
            WatchEvent::Error(status) => {
                let trouble = Trouble::of_status(status);
                let end = if trouble.is_gone() { End::Gone } else { End::Failed(trouble) };
                return (events, Some(end));
            }
        };
        // What is deleted may carry the version that it had before.
        let deleted = matches!(event, WatchEvent::Deleted(_));
        if version::is_older(of_event, version) {
            if !deleted {
                return (events, Some(End::WentBack));
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
pub(super) fn put<K: Followed>(update: &mut Update<'_>, event: WatchEvent<Guarded<K>>) {
    match event {
        WatchEvent::Added(guarded) | WatchEvent::Modified(guarded) => put_object(update, guarded),
        WatchEvent::Deleted(guarded) => update.remove(K::KIND, &guarded.name),
        WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
    }
}

/// Puts a listed object into the store, or notes that it is malformed.
pub(super) fn put_object<K: Followed>(update: &mut Update<'_>, guarded: Guarded<K>) {
    update.put_decoded(K::KIND, &guarded.name, guarded.decoded);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::api::Service;

    #[test]
    fn what_is_there_comes_as_one_group_and_no_further_than_an_error() {
        use futures_util::stream;
        let mut polled = 0;
        let mut events = stream::iter((1..600).map(Ok).chain([Err("no"), Ok(600)])).inspect(|_| polled += 1);
        assert_eq!(gather(Some(Ok(0)), &mut events), ((0..256).collect(), ControlFlow::Continue(())));
        assert_eq!(gather(Some(Ok(255)), &mut events).0.len(), GROUP);
        let (group, then) = gather(Some(Ok(510)), &mut events);
        assert_eq!((group.last(), then), (Some(&599), ControlFlow::Break(Some("no"))));
        assert_eq!(polled, 600, "what comes after the error is left there");
        let mut quiet = stream::pending::<Result<i32, ()>>();
        assert_eq!(gather(Some(Ok(1)), &mut quiet), (vec![1], ControlFlow::Continue(())));
        assert_eq!(gather(None, &mut quiet), (vec![], ControlFlow::Break(None)));
    }

    fn event(kind: &str, version: &str) -> WatchEvent<Guarded<Service>> {
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
        assert!(matches!(end, Some(End::WentBack)));
        assert!(matches!(sorted(&[("ADDED", "3")]).2, Some(End::WentBack)));
        assert!(matches!(sorted(&[("ADDED", "6"), ("ERROR", "")]).2, Some(End::Gone)));
    }
}
