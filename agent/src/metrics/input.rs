// SPDX-License-Identifier: Apache-2.0
//! `kube_ipvs_*`: the objects that come in, and the state of watching the API.

use std::sync::Mutex;
use std::time::SystemTime;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGaugeVec};

use super::register::{catch_up, declare, seconds};
use crate::lock::lock;
use crate::source::monitor::WatchState;
use crate::store::{Kind, Tally};

const STATES: [(WatchState, &str); 3] = [
    (WatchState::Listing, "listing"),
    (WatchState::Following, "following"),
    (WatchState::Failing, "failing"),
];

declare! {
    pub(super) struct InputMetrics {
        malformed: IntCounterVec = "kube_ipvs_malformed_objects_total" ["kind"]
            => "Objects that could not be decoded, counted each time that they are received.";
        synced: IntGaugeVec = "kube_ipvs_objects_synced" ["kind"]
            => "1 once all objects of a kind have been listed; before that, nothing is programmed.";
        events_dropped: IntCounter = "kube_ipvs_events_dropped_total"
            => "Events that were not sent because too many were waiting.";
        watch_state: IntGaugeVec = "kube_ipvs_watch_state" ["kind", "state"]
            => "1 for the current state of watching the API, by kind of object.";
        watch_since: GaugeVec = "kube_ipvs_watch_state_since_timestamp_seconds" ["kind"]
            => "When the current state began; 0 when the API is not watched.";
        watch_lists: IntCounterVec = "kube_ipvs_watch_lists_total" ["kind"] => "Lists that were requested.";
        watch_failures: IntCounterVec = "kube_ipvs_watch_failures_total" ["kind"] => "Lists and watches that failed.";
    }
    with {
        /// The current state of each kind.
        states: Mutex<[Option<WatchState>; Kind::ALL.len()]> = Mutex::default();
    }
}

impl InputMetrics {
    /// Shows every series of the watches from zero.
    pub fn show_watches(&self) {
        for kind in Kind::ALL.map(|kind| kind.to_string()) {
            STATES.iter().for_each(|(_, name)| drop(self.watch_state.with_label_values(&[&*kind, *name])));
            self.watch_since.with_label_values(&[&kind]);
            self.watch_lists.with_label_values(&[&kind]);
            self.watch_failures.with_label_values(&[&kind]);
        }
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
