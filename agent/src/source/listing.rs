// SPDX-License-Identifier: Apache-2.0
//! Complete lists of one kind: streamed as the first events of a watch where the server supports that (KEP-3157),
//! otherwise read in pages. After a failed streamed list the next lists are read in pages for a long time, as in
//! client-go.

use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::time::Instant;

use futures_util::{StreamExt, stream};
use kube::api::{ListParams, WatchParams};
use kube::core::{ObjectList, Request, WatchEvent};
use tokio::time::timeout;

use super::client::ApiClient;
use super::failure::ApiFailure;
use super::resource::{ApiObject, ApiResource, watch_params};
use super::timing::Timing;
use super::version;
use super::watch_events::{Events, gather, put};
use crate::store::{Kind, Store};
use crate::words;

const PAGE: u32 = 500;
/// Marks the bookmark at the end of a streamed list.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// A complete list: the version from which to watch, and after a streamed list the open watch.
pub(super) struct CompleteList<K: ApiResource> {
    pub version: String,
    pub events: Option<Events<K>>,
}

pub(super) struct Lister<K: ApiResource> {
    pub api: ApiClient,
    selected: ListParams,
    /// The field selector of lists; `selected` may lack it.
    fields: Option<String>,
    /// The server does not select by fields, and the log says so.
    is_told: bool,
    pub timing: Timing,
    /// Lists are read in pages until then.
    paged_until: Option<Instant>,
    /// The next list is read without pages: the pages of the last one expired while they were read.
    whole: bool,
    /// A list has been complete before: the next one must not be older.
    listed: bool,
    kind: PhantomData<K>,
}

impl<K: ApiResource> Lister<K> {
    pub fn new(api: ApiClient, selected: ListParams, timing: Timing) -> Self {
        let fields = selected.field_selector.clone();
        Self {
            api,
            selected,
            fields,
            is_told: false,
            timing,
            paged_until: None,
            whole: false,
            listed: false,
            kind: PhantomData,
        }
    }

    /// Puts all objects into the store.
    pub async fn list(&mut self, store: &Store) -> Result<CompleteList<K>, ApiFailure> {
        // Every list tries the fields: another server, or a proxy, may have refused the last one.
        self.selected.field_selector.clone_from(&self.fields);
        match self.list_selected(store).await {
            Err(failure) if self.drop_fields(&failure) => {
                let list = self.list_selected(store).await;
                self.tell_of_fields(list.is_ok());
                list
            }
            list => list,
        }
    }

    /// Kubernetes before 1.31 refuses to select Services by a field. A headless Service is decoded as one without
    /// addresses. True: the request is worth another try.
    fn drop_fields(&mut self, failure: &ApiFailure) -> bool {
        let are_refused = K::KIND == Kind::Service && failure.code == Some(400);
        are_refused && self.selected.field_selector.take().is_some()
    }

    /// Logs once that a request succeeded without fields.
    fn tell_of_fields(&mut self, has_succeeded: bool) {
        if has_succeeded && !std::mem::replace(&mut self.is_told, true) {
            tracing::info!(
                kind = %K::KIND,
                "the API server does not select Services by fields, as before Kubernetes 1.31: headless ones are received, too"
            );
        }
    }

    async fn list_selected(&mut self, store: &Store) -> Result<CompleteList<K>, ApiFailure> {
        let now = Instant::now();
        if self.paged_until.is_none_or(|until| until <= now) {
            let mut refused = false;
            let streamed = timeout(self.timing.list, self.stream(store, &mut refused)).await;
            match streamed.unwrap_or_else(|_| Err(ApiFailure::stalled(self.timing.list))) {
                Ok(list) => return Ok(self.complete(list)),
                Err(failure) if failure.may_stream_again() => return Err(failure),
                Err(failure) => {
                    self.paged_until = Some(now + self.timing.no_streaming);
                    tracing::info!(
                        kind = %K::KIND,
                        "a streamed list failed, lists are read in pages for {}: {}",
                        words::time(self.timing.no_streaming),
                        failure.what
                    );
                    // A server that refuses every request gets its pause first.
                    if refused && !matches!(failure.code, Some(400 | 422)) {
                        return Err(failure);
                    }
                }
            }
        }
        self.paged(store).await.map(|list| self.complete(list))
    }

    fn complete(&mut self, list: CompleteList<K>) -> CompleteList<K> {
        (self.listed, self.whole) = (true, false);
        list
    }

    pub async fn watch(&mut self, version: &str) -> Result<Events<K>, ApiFailure> {
        match self.open(&watch_params(&self.selected), version).await {
            Err(failure) if self.drop_fields(&failure) => {
                let watch = self.open(&watch_params(&self.selected), version).await;
                self.tell_of_fields(watch.is_ok());
                watch
            }
            watch => watch,
        }
    }

    /// Whether the server is at an older version than this one.
    pub async fn is_behind(&self, version: &str) -> Result<bool, ApiFailure> {
        let page = self.page(&self.selected.clone().limit(1)).await?;
        Ok(version::is_older(page.metadata.resource_version.as_deref().unwrap_or_default(), version))
    }

    fn failure(&self, error: &kube::Error) -> ApiFailure {
        ApiFailure::of(error, &self.api.route)
    }

    async fn open(&self, params: &WatchParams, version: &str) -> Result<Events<K>, ApiFailure> {
        let request = Request::new(K::path(None)).watch(params, version).map_err(kube::Error::BuildRequest);
        let request = request.map_err(|error| self.failure(&error))?;
        let events = self.api.client.request_events(request).await;
        events.map(StreamExt::boxed).map_err(|error| self.failure(&error))
    }

    async fn page(&self, params: &ListParams) -> Result<ObjectList<ApiObject<K>>, ApiFailure> {
        let request = Request::new(K::path(None)).list(params).map_err(kube::Error::BuildRequest);
        let request = request.map_err(|error| self.failure(&error))?;
        let page = timeout(self.timing.stall, self.api.client.request(request)).await;
        let page = page.map_err(|_| ApiFailure::stalled(self.timing.stall))?;
        page.map_err(|error| self.failure(&error))
    }

    /// Streams a list; `refused` becomes whether the server did not accept the request.
    async fn stream(&self, store: &Store, refused: &mut bool) -> Result<CompleteList<K>, ApiFailure> {
        // The first list may be any cached one, as that of kube-proxy; a later one must not go back.
        let version = if self.listed { "" } else { "0" };
        let events = self.open(&watch_params(&self.selected).initial_events(), version).await;
        *refused = events.is_err();
        let mut events = events?;
        store.update(|update| update.begin_list(K::KIND));
        loop {
            let next = timeout(self.timing.stall, events.next()).await;
            let next = next.map_err(|_| ApiFailure::stalled(self.timing.stall))?;
            let (group, then) = gather(next, &mut events);
            let mut group = group.into_iter();
            let mut end = None;
            let mut listed = Vec::with_capacity(group.len());
            for event in group.by_ref() {
                match event {
                    WatchEvent::Error(status) => return Err(ApiFailure::of_status(&status)),
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
                // Events that arrived with the end of the list belong to the watch.
                let rest: Vec<_> = group.map(Ok).chain(then.break_value().flatten().map(Err)).collect();
                let events = stream::iter(rest).chain(events).boxed();
                return Ok(CompleteList { version, events: Some(events) });
            }
            match then {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Some(error)) => return Err(self.failure(&error)),
                ControlFlow::Break(None) => {
                    return Err(ApiFailure::new("a streamed list broke off", "see the API server's log"));
                }
            }
        }
    }

    async fn paged(&mut self, store: &Store) -> Result<CompleteList<K>, ApiFailure> {
        let mut params = self.selected.clone();
        if !self.whole {
            params = params.limit(PAGE);
        }
        store.update(|update| update.begin_list(K::KIND));
        loop {
            let page = self.page(&params).await.inspect_err(|failure| {
                self.whole |= failure.is_expired() && params.continue_token.is_some();
            })?;
            let token = page.metadata.continue_.filter(|token| !token.is_empty());
            let version = page.metadata.resource_version.unwrap_or_default();
            store.update(|update| {
                page.items.into_iter().for_each(|object| object.put(update));
                if token.is_none() {
                    update.finish_list(K::KIND);
                }
            });
            match token {
                Some(token) => params.continue_token = Some(token),
                None if version.is_empty() => {
                    let what = "a list has no resourceVersion";
                    return Err(ApiFailure::new(what, "check that the server is a Kubernetes API server"));
                }
                None => return Ok(CompleteList { version, events: None }),
            }
        }
    }
}
