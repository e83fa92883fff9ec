// SPDX-License-Identifier: Apache-2.0
//! `kube_ipvs_*`: the objects that come in, and the state of watching the API.

use std::sync::Mutex;
use std::time::SystemTime;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGaugeVec};
use serde::{Deserialize, Serialize};

use super::register::{catch_up, declare, seconds};
use crate::lock::lock;
use crate::source::monitor::WatchState;
use crate::store::{Kind, Tally};

const STATES: [(WatchState, &str); 3] = [
    (WatchState::Listing, "listing"),
    (WatchState::Following, "following"),
    (WatchState::Failing, "failing"),
];

/// The state of watching one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WatchReport {
    pub kind: String,
    /// `listing`, `following` or `failing`.
    pub state: String,
    /// Seconds since this state began.
    pub since: Option<f64>,
}

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
        /// The current state of each kind, and when it began.
        states: Mutex<[Option<(WatchState, SystemTime)>; Kind::ALL.len()]> = Mutex::default();
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

    /// The current states.
    pub fn watches(&self) -> Vec<WatchReport> {
        let states = *lock(&self.states);
        let report = |(kind, state): (Kind, Option<(WatchState, SystemTime)>)| {
            let (state, since) = state?;
            let name = STATES.iter().find(|(known, _)| *known == state).map_or("", |(_, name)| name);
            let since = since.elapsed().ok().map(|since| since.as_secs_f64().round());
            Some(WatchReport { kind: kind.to_string(), state: name.to_owned(), since })
        };
        Kind::ALL.into_iter().zip(states).filter_map(report).collect()
    }

    /// Counts each list and each failure, and notes when the state changes.
    pub fn set_watch_state(&self, kind: Kind, state: WatchState) {
        let now = SystemTime::now();
        let is_new = {
            let current = &mut lock(&self.states)[kind as usize];
            let is_new = current.is_none_or(|(known, _)| known != state);
            if is_new {
                *current = Some((state, now));
            }
            is_new
        };
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
        self.watch_since.with_label_values(&[&label]).set(seconds(now));
    }
}
