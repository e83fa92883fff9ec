// SPDX-License-Identifier: Apache-2.0
//! All objects of a kind: as the first events of a watch where the server can (KEP-3157), in pages where not.
//! After any streamed list that failed the next ones come in pages for a long time, as in client-go.

use std::ops::ControlFlow;
use std::time::Instant;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryFutureExt};
use kube::core::WatchEvent;
use kube::{Api, Resource};
use tokio::time::timeout;

use super::api::{Followed, Guarded, Selectors};
use super::client::{ApiClient, Route};
use super::follow::{gather, put, put_object};
use super::pauses::Limits;
use super::trouble::Trouble;
use super::version;
use crate::store::Store;
use crate::words;

/// Objects of one page.
const PAGE: u32 = 500;
/// Marks the bookmark at the end of a streamed list.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// An open watch.
pub(super) type Events<K> = BoxStream<'static, kube::Result<WatchEvent<Guarded<K>>>>;

/// A complete list: where a watch goes on, and the watch itself after a streamed one.
pub(super) struct Listed<K: Followed>
where
    Guarded<K>: Resource<DynamicType = ()>,
{
    pub version: String,
    pub events: Option<Events<K>>,
}

/// Why a streamed list failed, and whether it had begun.
struct Broken {
    trouble: Trouble,
    began: bool,
}

/// Lists and watches one kind.
pub(super) struct Lists<K: Followed>
where
    Guarded<K>: Resource<DynamicType = ()>,
{
    api: Api<Guarded<K>>,
    route: Route,
    selectors: Selectors,
    limits: Limits,
    /// Lists come in pages until then.
    paged_until: Option<Instant>,
    /// The next list comes in one piece: the pages of the last one expired while they were read.
    whole: bool,
    /// A list has been complete before: the next one must not be older.
    listed: bool,
}

impl<K: Followed> Lists<K>
where
    Guarded<K>: Resource<DynamicType = ()>,
{
    pub fn new(api: ApiClient, selectors: Selectors, limits: Limits) -> Self {
        let (route, api) = (api.route, Api::all(api.client));
        Self { api, route, selectors, limits, paged_until: None, whole: false, listed: false }
    }

    /// Puts all objects into the store.
    pub async fn next(&mut self, store: &Store) -> Result<Listed<K>, Trouble> {
        let now = Instant::now();
        if self.paged_until.is_none_or(|until| until <= now) {
            match self.streamed(store).await {
                Ok(listed) => return Ok(self.complete(listed)),
                Err(Broken { trouble, .. }) if trouble.spares_streaming() => return Err(trouble),
                Err(Broken { trouble, began }) => {
                    self.paged_until = Some(now + self.limits.no_streaming);
                    tracing::info!(
                        kind = %K::KIND,
                        "lists are read in pages for {}, for a streamed one failed: {}",
                        words::time(self.limits.no_streaming),
                        trouble.what
                    );
                    // Whoever refuses every request is to have its pause first.
                    if !began && !matches!(trouble.code, Some(400 | 422)) {
                        return Err(trouble);
                    }
                }
            }
        }
        self.paged(store).await.map(|listed| self.complete(listed))
    }

    fn complete(&mut self, listed: Listed<K>) -> Listed<K> {
        self.listed = true;
        self.whole = false;
        listed
    }

    /// Opens a watch from a version.
    pub async fn watch(&self, version: &str) -> Result<Events<K>, Trouble> {
        let events = self.api.watch(&self.selectors.watch(), version).await;
        Ok(events.map_err(|error| self.trouble(&error))?.boxed())
    }

    /// Whether the server is at an older version than this one.
    pub async fn is_behind(&self, version: &str) -> Result<bool, Trouble> {
        let params = self.selectors.list().limit(1);
        let list = timeout(self.limits.stall, self.api.list(&params).map_err(|error| self.trouble(&error)));
        let list = list.await.unwrap_or_else(|_| Err(Trouble::stalled(self.limits.stall)))?;
        Ok(version::is_older(list.metadata.resource_version.as_deref().unwrap_or_default(), version))
    }

    /// What is wrong, in words.
    pub fn trouble(&self, error: &kube::Error) -> Trouble {
        Trouble::of(error, &self.route)
    }

    async fn streamed(&self, store: &Store) -> Result<Listed<K>, Broken> {
        let list = timeout(self.limits.list, self.stream(store));
        let stalled = |_| Err(Broken { trouble: Trouble::stalled(self.limits.list), began: true });
        list.await.unwrap_or_else(stalled)
    }

    async fn stream(&self, store: &Store) -> Result<Listed<K>, Broken> {
        // The first list may be any that the server has at hand, as kube-proxy's is; a later one must not
        // go back.
        let version = if self.listed { "" } else { "0" };
        let params = self.selectors.watch().initial_events();
        let events = self.api.watch(&params, version).await;
        let mut events =
            events.map_err(|error| Broken { trouble: self.trouble(&error), began: false })?.boxed();
        let broken = |trouble| Broken { trouble, began: true };
        store.update(|update| update.begin_list(K::KIND));
        loop {
            let next = timeout(self.limits.stall, events.next()).await;
            let next = next.map_err(|_| broken(Trouble::stalled(self.limits.stall)))?;
            let (group, then) = gather(next, &mut events);
            let mut group = group.into_iter();
            let mut end = None;
            let mut listed = Vec::with_capacity(group.len());
            for event in group.by_ref() {
                match event {
                    WatchEvent::Error(status) => return Err(broken(Trouble::of_status(&status))),
                    WatchEvent::Bookmark(mark) if mark.metadata.annotations.contains_key(END_OF_LIST) => {
                        end = Some(mark.metadata.resource_version);
                        break;
                    }
                    event => listed.push(event),
                }
            }
            store.update(|update| {
                listed.into_iter().for_each(|event| put(update, event));
                if end.is_some() {
                    update.finish_list(K::KIND);
                }
            });
            if let Some(version) = end {
                // What came with the end of the list is read as the watch that goes on.
                let rest = stream::iter(group.map(Ok).collect::<Vec<_>>());
                let error = match then {
                    ControlFlow::Break(Some(error)) => Some(Err(error)),
                    _ => None,
                };
                let events = rest.chain(stream::iter(error)).chain(events).boxed();
                return Ok(Listed { version, events: Some(events) });
            }
            match then {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Some(error)) => return Err(broken(self.trouble(&error))),
                ControlFlow::Break(None) => {
                    let what = "a streamed list broke off";
                    return Err(broken(Trouble::new(what, "see the API server's log")));
                }
            }
        }
    }

    async fn paged(&mut self, store: &Store) -> Result<Listed<K>, Trouble> {
        let mut params = self.selectors.list();
        if !self.whole {
            params = params.limit(PAGE);
        }
        store.update(|update| update.begin_list(K::KIND));
        loop {
            let page = timeout(self.limits.stall, self.api.list(&params)).await;
            let page = page.map_err(|_| Trouble::stalled(self.limits.stall))?;
            let page = page.map_err(|error| self.trouble(&error)).inspect_err(|trouble| {
                self.whole |= trouble.is_gone() && params.continue_token.is_some();
            })?;
            let token = page.metadata.continue_.filter(|token| !token.is_empty());
            let version = page.metadata.resource_version.unwrap_or_default();
            store.update(|update| {
                page.items.into_iter().for_each(|object| put_object(update, object));
                if token.is_none() {
                    update.finish_list(K::KIND);
                }
            });
            match token {
                Some(token) => params.continue_token = Some(token),
                None if version.is_empty() => {
                    let what = "a list has no resourceVersion";
                    return Err(Trouble::new(what, "check that the server is a Kubernetes API server"));
                }
                None => return Ok(Listed { version, events: None }),
            }
        }
    }
}
