// SPDX-License-Identifier: Apache-2.0
//! `kube_ipvs_*`: how objects come in, and whether following the API works.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{catch_up, lock, register_counter, register_counters, register_floats, register_gauges, seconds};
use crate::store::Kind;
use crate::store::Tally;

#[derive(Debug)]
pub(super) struct Input {
    malformed: IntCounterVec,
    synced: IntGaugeVec,
    events_dropped: IntCounter,
    watches: [Watch; Kind::ALL.len()],
}

impl Input {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let watches = Watches::new(registry)?;
        Ok(Self {
            malformed: register_counters(
                registry,
                "kube_ipvs_malformed_objects_total",
                "Objects that could not be decoded, each time that they came.",
                &["kind"],
            )?,
            synced: register_gauges(
                registry,
                "kube_ipvs_objects_synced",
                "1 once all objects of a kind have been listed; before, nothing is programmed.",
                &["kind"],
            )?,
            events_dropped: register_counter(
                registry,
                "kube_ipvs_events_dropped_total",
                "Events that were not sent because too many waited.",
            )?,
            watches: Kind::ALL.map(|kind| watches.of(kind)),
        })
    }

    /// Follows what came into the store, and what did not go out.
    pub fn refresh(&self, tally: &Tally, waiting_for: &[Kind], events_dropped: u64) {
        for kind in Kind::ALL {
            let of = &[kind.to_string()];
            catch_up(&self.malformed.with_label_values(of), tally.malformed[kind as usize]);
            self.synced.with_label_values(of).set(i64::from(!waiting_for.contains(&kind)));
        }
        catch_up(&self.events_dropped, events_dropped);
    }

    pub fn watch(&self, kind: Kind) -> Watch {
        self.watches[kind as usize].clone()
    }
}

/// How the API is followed for one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchState {
    /// A list is being read.
    Listing,
    /// Changes come as they happen.
    Following,
    /// The API server cannot be reached, or refuses.
    Failing,
}

impl WatchState {
    const ALL: [WatchState; 3] = [WatchState::Listing, WatchState::Following, WatchState::Failing];

    fn name(self) -> &'static str {
        match self {
            WatchState::Listing => "listing",
            WatchState::Following => "following",
            WatchState::Failing => "failing",
        }
    }
}

struct Watches {
    state: IntGaugeVec,
    since: GaugeVec,
    lists: IntCounterVec,
    failures: IntCounterVec,
}

impl Watches {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            state: register_gauges(
                registry,
                "kube_ipvs_watch_state",
                "1 for the state that following the API is in, by kind of object.",
                &["kind", "state"],
            )?,
            since: register_floats(
                registry,
                "kube_ipvs_watch_state_since_timestamp_seconds",
                "When that state began; 0 when the API is not followed.",
                &["kind"],
            )?,
            lists: register_counters(
                registry,
                "kube_ipvs_watch_lists_total",
                "Lists that were asked for.",
                &["kind"],
            )?,
            failures: register_counters(
                registry,
                "kube_ipvs_watch_failures_total",
                "Failures to list or to watch.",
                &["kind"],
            )?,
        })
    }

    fn of(&self, kind: Kind) -> Watch {
        let label = &[kind.to_string()];
        let state =
            WatchState::ALL.map(|state| self.state.with_label_values(&[&*kind.to_string(), state.name()]));
        Watch(Arc::new(WatchInner {
            now: Mutex::new(None),
            state,
            since: self.since.with_label_values(label),
            lists: self.lists.with_label_values(label),
            failures: self.failures.with_label_values(label),
        }))
    }
}

#[derive(Debug)]
struct WatchInner {
    now: Mutex<Option<WatchState>>,
    state: [IntGauge; WatchState::ALL.len()],
    since: Gauge,
    lists: IntCounter,
    failures: IntCounter,
}

/// The state of following one kind.
#[derive(Clone, Debug)]
pub struct Watch(Arc<WatchInner>);

impl Watch {
    /// Enters a state. Each list and each failure is to be told, also one after another.
    pub fn set(&self, state: WatchState) {
        match state {
            WatchState::Listing => self.0.lists.inc(),
            WatchState::Failing => self.0.failures.inc(),
            WatchState::Following => {}
        }
        let mut now = lock(&self.0.now);
        if *now == Some(state) {
            return;
        }
        *now = Some(state);
        for (gauge, is) in self.0.state.iter().zip(WatchState::ALL.map(|s| s == state)) {
            gauge.set(i64::from(is));
        }
        self.0.since.set(seconds(SystemTime::now()));
    }
}
