// SPDX-License-Identifier: Apache-2.0
//! One kind of object, followed for ever: streamed lists where the server has them, pages where not,
//! and pauses that spare a server in trouble.

use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, Stream, StreamExt};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};

use super::api::{Followed, Guarded};
use super::client::{ApiClient, AskedPause};
use crate::metrics::input::{Watch, WatchState};
use crate::store::{Kind, Store, Update};

/// How patient a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long the small lists may take that come before all others.
    pub ahead: Duration,
    /// A list in which nothing comes for so long is given up.
    pub stall: Duration,
    /// How long a server may take to begin an answer. A watch is answered at once, and so is a page.
    pub answer: Duration,
    /// First pause after a failure; doubles up to `max_pause`, and is made up to half shorter or
    /// longer by chance, so that the nodes of a cluster do not come back all at once.
    pub min_pause: Duration,
    /// Longest pause.
    pub max_pause: Duration,
    /// After so long without a failure the pauses start anew.
    pub calm: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ahead: Duration::from_secs(2),
            stall: Duration::from_secs(45),
            answer: Duration::from_secs(40),
            min_pause: Duration::from_millis(800),
            max_pause: Duration::from_secs(30),
            calm: Duration::from_secs(120),
        }
    }
}

/// The pauses between failures. Neither a list that begins nor one that ends makes them short again:
/// a server whose watches fail right after their lists would be listed all the time.
#[derive(Debug)]
struct Pauses {
    limits: Limits,
    failures: u32,
    last: Option<Instant>,
    chance: RandomState,
}

impl Pauses {
    fn new(limits: Limits) -> Self {
        Self { limits, failures: 0, last: None, chance: RandomState::new() }
    }

    /// The pause after a failure now; at least as long as the server asked for.
    fn next(&mut self, now: Instant, asked: Duration) -> Duration {
        if self.last.is_some_and(|last| now.duration_since(last) > self.limits.calm) {
            self.failures = 0;
        }
        self.last = Some(now);
        let pause =
            self.limits.min_pause.saturating_mul(1 << self.failures.min(16)).min(self.limits.max_pause);
        self.failures = self.failures.saturating_add(1);
        let chance = (self.chance.hash_one(self.failures) % 1000) as u32;
        let pause = pause * (500 + chance) / 1000;
        pause.max(asked)
    }
}

/// How many events are put into the store at once.
const GROUP: usize = 256;

/// The next event with those that are there already, and how it goes on: with more, with an error, or
/// not at all. Nothing is waited for, so no event comes later for it.
fn gather<T, E>(
    first: Option<Result<T, E>>,
    events: &mut (impl Stream<Item = Result<T, E>> + Unpin),
) -> (Vec<T>, ControlFlow<Option<E>>) {
    let mut group = Vec::new();
    let mut next = first;
    loop {
        match next {
            Some(Ok(event)) => group.push(event),
            // The stream is not asked on: it would turn to the server again before the pause.
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

/// Why a watch ended.
enum End {
    /// Its version is gone: a new list.
    Gone,
    /// The server cannot stream lists.
    NoStreaming,
    /// Nothing came in the middle of a list.
    Stalled,
    /// The library ended it, which it never does.
    Over,
}

/// Follows the objects of one kind.
pub(super) struct Follower<K: Followed>
where
    Guarded<K>: Resource<DynamicType = ()>,
{
    api: Api<Guarded<K>>,
    asked: AskedPause,
    config: watcher::Config,
    store: Arc<Store>,
    watch: Watch,
    limits: Limits,
    pauses: Pauses,
    streaming: bool,
    trouble: Option<String>,
}

impl<K: Followed> Follower<K>
where
    Guarded<K>: Resource<DynamicType = ()>,
{
    pub fn new(
        api: ApiClient,
        config: watcher::Config,
        store: Arc<Store>,
        watch: Watch,
        limits: Limits,
    ) -> Self {
        let pauses = Pauses::new(limits);
        Self {
            api: Api::all(api.client),
            asked: api.asked,
            config,
            store,
            watch,
            limits,
            pauses,
            streaming: true,
            trouble: None,
        }
    }

    /// Follows until the task is dropped.
    pub async fn run(mut self) {
        loop {
            match self.follow().await {
                End::NoStreaming => {
                    tracing::debug!(kind = %K::KIND, "the server does not stream lists: listing in pages");
                    self.streaming = false;
                    continue;
                }
                // A server that knows nothing of streamed lists takes it for a plain watch.
                End::Stalled if self.streaming => self.streaming = false,
                End::Stalled => self.report(&format!("nothing came for {:?} in a list", self.limits.stall)),
                End::Gone => tracing::debug!(kind = %K::KIND, "the version is too old, listing again"),
                End::Over => {}
            }
            self.watch.set(WatchState::Failing);
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        let now = Instant::now();
        tokio::time::sleep(self.pauses.next(now, self.asked.left(now))).await;
    }

    async fn follow(&mut self) -> End {
        let config = self.config.clone();
        let config = if self.streaming { config.streaming_lists() } else { config };
        let mut events = pin!(watcher(self.api.clone(), config));
        let mut listing = true;
        loop {
            let next = if listing {
                match tokio::time::timeout(self.limits.stall, events.next()).await {
                    Ok(next) => next,
                    Err(_) => return End::Stalled,
                }
            } else {
                events.next().await
            };
            let (group, then) = gather(next, &mut events);
            listing = self.take(group, listing);
            match then {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(None) => return End::Over,
                ControlFlow::Break(Some(error)) => {
                    if self.streaming && listing && is_refused(&error) {
                        return End::NoStreaming;
                    }
                    // The library keeps asking for a version that is gone when the refusal is the
                    // status of the answer and not an event.
                    if is_gone(&error) {
                        return End::Gone;
                    }
                    self.watch.set(WatchState::Failing);
                    self.report(&error_chain(&error));
                    self.pause().await;
                }
            }
        }
    }

    /// Puts events into the store; true while a list goes on.
    fn take(&mut self, events: Vec<Event<Guarded<K>>>, listing: bool) -> bool {
        if events.is_empty() {
            return listing;
        }
        let listing = events.iter().fold(listing, |listing, event| self.note(event, listing));
        self.store.update(|update| {
            for event in events {
                put(update, event);
            }
        });
        listing
    }

    /// Tells the metrics and the log of an event; true while a list goes on.
    fn note(&mut self, event: &Event<Guarded<K>>, listing: bool) -> bool {
        let listing = match event {
            Event::Init => {
                self.watch.set(WatchState::Listing);
                true
            }
            Event::InitDone => {
                self.watch.set(WatchState::Following);
                false
            }
            _ => listing,
        };
        // The library announces a list before it asks for it.
        if !matches!(event, Event::Init) && self.trouble.take().is_some() {
            tracing::info!(kind = %K::KIND, "the API answers again");
            if !listing {
                self.watch.set(WatchState::Following);
            }
        }
        listing
    }

    /// One line per new trouble, not one per try.
    fn report(&mut self, text: &str) {
        let kind: Kind = K::KIND;
        if self.trouble.as_deref() == Some(text) {
            tracing::debug!(%kind, "still: {text}");
            return;
        }
        // A watch that only timed out or expired heals by itself.
        if text.contains("too old resource version") || text.contains("Expired") {
            tracing::debug!(%kind, "listing again: {text}");
            return;
        }
        tracing::warn!(%kind, "cannot follow the API: {text}; {}; trying again", remedy(text));
        self.trouble = Some(text.to_owned());
    }
}

fn put<K: Followed>(update: &mut Update<'_>, event: Event<Guarded<K>>) {
    match event {
        Event::Init => update.begin_list(K::KIND),
        Event::InitDone => update.finish_list(K::KIND),
        Event::InitApply(guarded) | Event::Apply(guarded) => match guarded.object {
            Ok(object) => update.put(object),
            Err(error) => update.malformed(K::KIND, &guarded.name, &error),
        },
        Event::Delete(guarded) => update.remove(K::KIND, &guarded.name),
    }
}

/// The status of an answer that the watch or list was refused with.
fn refusal(error: &watcher::Error) -> Option<&kube::core::Status> {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        WatchStartFailed(kube::Error::Api(status))
        | InitialListFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => Some(status),
        watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

fn is_gone(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

fn is_refused(error: &watcher::Error) -> bool {
    refusal(error).is_some_and(|status| matches!(status.code, 400 | 422))
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    // A page of HTML is no message.
    match text.char_indices().nth(500) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn remedy(error: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if has(&["403", "Forbidden", "forbidden"]) {
        "the service account needs get, list and watch on services, endpointslices and nodes"
    } else if has(&["401", "Unauthorized"]) {
        "check the token or client certificate"
    } else if has(&["certificate", "UnknownIssuer", "tls", "TLS"]) {
        "check that the CA of the kubeconfig is the server's"
    } else if has(&["404", "NotFound"]) {
        "check that the server is a Kubernetes API server of version 1.21 or later"
    } else if has(&["429", "TooManyRequests"]) {
        "the API server is overloaded"
    } else {
        "check that the server's address is right and reachable from this node without a ClusterIP"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_anew_after_a_calm_time() {
        let limits = Limits::default();
        let mut pauses = Pauses::new(limits);
        let mut now = Instant::now();
        for n in 0..10u32 {
            let wanted = limits.min_pause.saturating_mul(1 << n).min(limits.max_pause);
            let pause = pauses.next(now, Duration::ZERO);
            assert!(pause >= wanted / 2 && pause <= wanted * 3 / 2, "{n}: {pause:?}");
            now += pause;
        }
        assert_eq!(pauses.next(now, Duration::from_secs(100)), Duration::from_secs(100));
        let pause = pauses.next(now + limits.calm * 2, Duration::ZERO);
        assert!(pause <= limits.min_pause * 3 / 2, "{pause:?}");
    }

    #[test]
    fn pauses_differ_between_nodes() {
        let first = |_| Pauses::new(Limits::default()).next(Instant::now(), Duration::ZERO);
        let pauses: std::collections::HashSet<Duration> = (0..100).map(first).collect();
        assert!(pauses.len() > 20, "{pauses:?}");
    }

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

    #[test]
    fn remedies_fit_the_trouble() {
        for (error, part) in [
            ("ApiError: services is forbidden: 403", "get, list and watch"),
            ("Unauthorized (401)", "token"),
            ("invalid peer certificate: UnknownIssuer", "CA"),
            ("the server could not find the requested resource: NotFound", "version 1.21"),
            ("connection refused", "without a ClusterIP"),
        ] {
            assert!(remedy(error).contains(part), "{error}: {}", remedy(error));
        }
    }
}
