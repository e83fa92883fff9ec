// SPDX-License-Identifier: Apache-2.0
//! Mirrors the objects of one kind into the store: a list, then a watch from its version, and a new list when that
//! version has expired or the server went back to an older state. Pauses protect a server in trouble.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::api::ListParams;

use super::client::ApiClient;
use super::failure::ApiFailure;
use super::listing::{CompleteList, Lister};
use super::monitor::WatchState;
use super::outage_log::OutageLog;
use super::resource::{ApiResource, WATCH_SECONDS};
use super::timing::{RetryPauses, Timing};
use super::watch_events::{Events, WatchEnd, gather, put, sort};
use crate::store::Store;

/// A watch that the server ends after this time ended because its time was over.
const REGULAR: Duration = Duration::from_secs(WATCH_SECONDS as u64 - 10);

/// Lists and watches one kind.
pub(super) struct Reflector<K: ApiResource> {
    lister: Lister<K>,
    store: Arc<Store>,
    pauses: RetryPauses,
    log: OutageLog,
    /// The last try failed.
    failing: bool,
}

impl<K: ApiResource> Reflector<K> {
    pub fn new(
        api: &ApiClient,
        selected: ListParams,
        store: &Arc<Store>,
        log: &OutageLog,
        timing: Timing,
    ) -> Self {
        let lister = Lister::new(api.clone(), selected, timing);
        let (store, log) = (store.clone(), log.clone());
        Self { lister, store, pauses: RetryPauses::new(timing), log, failing: false }
    }

    /// Lists and watches until the task is dropped.
    pub async fn run(mut self) {
        loop {
            self.report(WatchState::Listing);
            match self.lister.list(&self.store).await {
                Ok(list) => {
                    self.answered();
                    self.watch(list).await;
                    // Many nodes may need a new list at the same moment.
                    self.pause().await;
                }
                Err(failure) => self.failed(&failure).await,
            }
        }
    }

    /// Watches from the version of a list until a new list is needed.
    async fn watch(&mut self, list: CompleteList<K>) {
        let CompleteList { mut version, mut events } = list;
        // The server may have gone back to a state older than `version` between the list and the watch.
        let mut uncertain = true;
        loop {
            let watch = match events.take() {
                Some(events) => Ok(events),
                None => self.lister.watch(&version).await,
            };
            let began = Instant::now();
            let end = match watch {
                Ok(mut watch) => self.read(&mut watch, &mut version, &mut uncertain).await,
                Err(failure) => failure.into(),
            };
            let failure = match end {
                WatchEnd::Expired => {
                    tracing::debug!(kind = %K::KIND, "listing again: the version of the watch has expired");
                    return;
                }
                WatchEnd::WentBack => {
                    tracing::warn!(
                        kind = %K::KIND,
                        "the API server went back to an older state, as after a restore from a backup: listing again"
                    );
                    return;
                }
                WatchEnd::Silent => continue,
                // A watch that ended early: the server stopped, maybe for a restore from a backup.
                WatchEnd::Closed if began.elapsed() >= self.lister.timing.min_pause => {
                    uncertain = began.elapsed() < REGULAR;
                    continue;
                }
                WatchEnd::Closed => ApiFailure::short_watch(),
                WatchEnd::Failed(failure) => failure,
            };
            uncertain = true;
            self.failed(&failure).await;
        }
    }

    /// Puts the events of a watch into the store until it ends. `version` becomes that of the last event.
    async fn read(&mut self, watch: &mut Events<K>, version: &mut String, uncertain: &mut bool) -> WatchEnd {
        loop {
            let timing = &self.lister.timing;
            let limit = if *uncertain { self.pauses.about(timing.uncertain) } else { timing.silence };
            let Ok(next) = tokio::time::timeout(limit, watch.next()).await else {
                match self.lister.is_behind(version).await {
                    Ok(true) => return WatchEnd::WentBack,
                    Ok(false) => self.answered(),
                    Err(failure) => return WatchEnd::Failed(failure),
                }
                if std::mem::take(uncertain) {
                    continue;
                }
                return WatchEnd::Silent;
            };
            let (group, then) = gather(next, watch);
            let (events, end) = sort(group, version);
            if !events.is_empty() || end.is_none() && matches!(then, ControlFlow::Continue(())) {
                *uncertain = false;
                self.answered();
            }
            if !events.is_empty() {
                self.store.update(|update| events.into_iter().for_each(|event| put(update, event)));
            }
            match (end, then) {
                (Some(end), _) => return end,
                (None, ControlFlow::Continue(())) => {}
                (None, ControlFlow::Break(None)) => return WatchEnd::Closed,
                // Like client-go, ignores a line that is no event.
                (None, ControlFlow::Break(Some(kube::Error::SerdeError(error)))) => {
                    tracing::warn!(kind = %K::KIND, "an event of the API server is ignored: it is not a Kubernetes object");
                    tracing::debug!(kind = %K::KIND, "{error}");
                }
                (None, ControlFlow::Break(Some(error))) => {
                    return WatchEnd::Failed(ApiFailure::of(&error, &self.lister.api.route));
                }
            }
        }
    }

    fn report(&self, state: WatchState) {
        self.lister.api.monitor.watch_state(K::KIND, state);
    }

    fn answered(&mut self) {
        self.report(WatchState::Following);
        if std::mem::take(&mut self.failing) {
            self.log.answered(K::KIND);
        }
    }

    async fn failed(&mut self, failure: &ApiFailure) {
        self.failing = true;
        self.report(WatchState::Failing);
        self.log.failed(K::KIND, &failure.text());
        self.pause().await;
    }

    async fn pause(&mut self) {
        let now = Instant::now();
        tokio::time::sleep(self.pauses.next(now, self.lister.api.retry_after.left(now))).await;
    }
}
