// SPDX-License-Identifier: Apache-2.0
//! Slow start: the weight of a new endpoint grows in steps, so that a cold pod does not get its full share at once.
//!
//! The times are kept in memory. After a restart of the agent every endpoint has its full weight.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fragment::Fragment;
use crate::core::model::real_servers::RsState;
use crate::core::model::{ObjectName, RsKey};

/// The factor of all weights of a Service with slow start: a share of 1 has room for steps.
pub const FULL: u32 = 100;
/// Steps to the full weight.
const STEPS: u32 = 10;

/// The endpoints that have not got their full weight yet. Times are durations since a fixed start.
#[derive(Debug, Default)]
pub struct SlowStarts {
    services: BTreeMap<ObjectName, Starts>,
}

#[derive(Debug, Default)]
struct Starts {
    /// The whole time of a slow start.
    time: Duration,
    /// When each began.
    since: BTreeMap<RsKey, Duration>,
    /// When the next step is due.
    next: Duration,
}

impl Starts {
    /// Steps that an endpoint has done, at least one.
    fn steps(&self, since: Duration, now: Duration) -> u32 {
        let done = now.saturating_sub(since).as_millis() * u128::from(STEPS) / self.time.as_millis().max(1);
        u32::try_from(done + 1).unwrap_or(STEPS).min(STEPS)
    }

    fn plan(&mut self, now: Duration) {
        let next = |since: &Duration| since.saturating_add(self.time * self.steps(*since, now) / STEPS);
        self.next = self.since.values().map(next).min().unwrap_or(Duration::MAX);
    }
}

impl SlowStarts {
    /// Lowers the weights of new endpoints of a Service. `old`: its fragment until now; the endpoints of a Service that had
    /// none before start together, and need no slow start.
    pub fn lower(&mut self, name: &ObjectName, old: Option<&Fragment>, next: &mut Fragment, now: Duration) {
        let time = next.virtual_servers.first().and_then(|server| server.options.as_ref()?.slow_start);
        let Some(time) = time else {
            self.services.remove(name);
            return;
        };
        let before = old.map(weights).unwrap_or_default();
        let had_any = before.values().any(|weight| *weight > 0);
        let mut starts = self.services.remove(name).unwrap_or_default();
        starts.time = time;
        let wanted = weights(next);
        for (rs, weight) in &wanted {
            let is_new = before.get(rs).is_none_or(|before| *before == 0);
            if *weight > 0 && is_new && had_any {
                starts.since.entry(*rs).or_insert(now);
            }
        }
        starts.since.retain(|rs, since| {
            wanted.get(rs).is_some_and(|weight| *weight > 0) && now.saturating_sub(*since) < time
        });
        if starts.since.is_empty() {
            return;
        }
        let lower = |rs: &RsKey, state: RsState| match starts.since.get(rs) {
            Some(since) if state.weight > 0 => {
                let share = u64::from(state.weight) * u64::from(starts.steps(*since, now)) / u64::from(STEPS);
                RsState { weight: u32::try_from(share).unwrap_or(u32::MAX).max(1), ..state }
            }
            _ => state,
        };
        for server in &mut next.virtual_servers {
            *server = server.with_states(lower);
        }
        starts.plan(now);
        self.services.insert(name.clone(), starts);
    }

    /// Forgets a deleted Service.
    pub fn forget(&mut self, name: &ObjectName) {
        self.services.remove(name);
    }

    /// The time of the next step.
    pub fn next_at(&self) -> Option<Duration> {
        self.services.values().map(|starts| starts.next).min()
    }

    /// The Services whose next step is due.
    pub fn due(&self, now: Duration) -> impl Iterator<Item = &ObjectName> {
        self.services.iter().filter(move |(_, starts)| starts.next <= now).map(|(name, _)| name)
    }
}

/// The highest weight of each real server of a Service.
fn weights(fragment: &Fragment) -> BTreeMap<RsKey, u32> {
    let mut weights = BTreeMap::new();
    for (rs, state) in fragment.virtual_servers.iter().flat_map(|server| server.real_servers.iter()) {
        let weight: &mut u32 = weights.entry(rs).or_default();
        *weight = state.weight.max(*weight);
    }
    weights
}
