// SPDX-License-Identifier: Apache-2.0
//! `kube_ipvs_*`: the objects that come in, and the state of watching the API.

use std::sync::Mutex;
use std::time::SystemTime;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Registry};

use super::{catch_up, lock, register_counter, register_counters, register_floats, register_gauges, seconds};
use crate::source::monitor::WatchState;
use crate::store::{Kind, Tally};

const STATES: [(WatchState, &str); 3] = [
    (WatchState::Listing, "listing"),
    (WatchState::Following, "following"),
    (WatchState::Failing, "failing"),
];

#[derive(Debug)]
pub(super) struct Input {
    malformed: IntCounterVec,
    synced: IntGaugeVec,
    events_dropped: IntCounter,
    watch_state: IntGaugeVec,
    watch_since: GaugeVec,
    watch_lists: IntCounterVec,
    watch_failures: IntCounterVec,
    /// The current state of each kind.
    states: Mutex<[Option<WatchState>; Kind::ALL.len()]>,
}

impl Input {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let input = Self {
            malformed: register_counters(
                registry,
                "kube_ipvs_malformed_objects_total",
                "Objects that could not be decoded, counted each time that they are received.",
                &["kind"],
            )?,
            synced: register_gauges(
                registry,
                "kube_ipvs_objects_synced",
                "1 once all objects of a kind have been listed; before that, nothing is programmed.",
                &["kind"],
            )?,
            events_dropped: register_counter(
                registry,
                "kube_ipvs_events_dropped_total",
                "Events that were not sent because too many were waiting.",
            )?,
            watch_state: register_gauges(
                registry,
                "kube_ipvs_watch_state",
                "1 for the current state of watching the API, by kind of object.",
                &["kind", "state"],
            )?,
            watch_since: register_floats(
                registry,
                "kube_ipvs_watch_state_since_timestamp_seconds",
                "When the current state began; 0 when the API is not watched.",
                &["kind"],
            )?,
            watch_lists: register_counters(
                registry,
                "kube_ipvs_watch_lists_total",
                "Lists that were requested.",
                &["kind"],
            )?,
            watch_failures: register_counters(
                registry,
                "kube_ipvs_watch_failures_total",
                "Lists and watches that failed.",
                &["kind"],
            )?,
            states: Mutex::default(),
        };
        for kind in Kind::ALL.map(|kind| kind.to_string()) {
            STATES.iter().for_each(|(_, name)| drop(input.watch_state.with_label_values(&[&*kind, *name])));
            input.watch_since.with_label_values(&[&kind]);
            input.watch_lists.with_label_values(&[&kind]);
            input.watch_failures.with_label_values(&[&kind]);
        }
        Ok(input)
    }

    /// Updates what the store and the Events count.
    pub fn refresh(&self, tally: &Tally, waiting_for: &[Kind], events_dropped: u64) {
        for kind in Kind::ALL {
            let of = &[kind.to_string()];
            catch_up(&self.malformed.with_label_values(of), tally.malformed[kind as usize]);
            self.synced.with_label_values(of).set(i64::from(!waiting_for.contains(&kind)));
        }
        catch_up(&self.events_dropped, events_dropped);
    }

    /// Counts each list and each failure, and notes when the state changes.
    pub fn set_watch_state(&self, kind: Kind, state: WatchState) {
        let is_new = lock(&self.states)[kind as usize].replace(state) != Some(state);
        if !is_new && state == WatchState::Following {
            return;
        }
        let label = kind.to_string();
        match state {
            WatchState::Listing => self.watch_lists.with_label_values(&[&label]).inc(),
            WatchState::Failing => self.watch_failures.with_label_values(&[&label]).inc(),
            WatchState::Following => {}
        }
        if !is_new {
            return;
        }
        for (other, name) in STATES {
            self.watch_state.with_label_values(&[&*label, name]).set(i64::from(other == state));
        }
        self.watch_since.with_label_values(&[&label]).set(seconds(SystemTime::now()));
    }
}
