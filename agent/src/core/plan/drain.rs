// SPDX-License-Identifier: Apache-2.0
//! Drains: real servers of weight 0 that get no new connections until their old connections end.
//!
//! The kernel keeps the weight 0 as the record of a drain. The agent remembers only when the drain began, for the
//! deadline. After a restart the deadline starts again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::op::Op;
use crate::core::mirror::Observed;
use crate::core::model::real_servers::RsState;
use crate::core::model::{Protocol, RsKey, VsKey};
use crate::core::service::desired::Desired;

/// Whether real servers of the protocol are drained. As in kube-proxy, UDP and SCTP real servers are removed at
/// once, and the next packet of a flow goes to another real server.
pub fn is_drained(protocol: Protocol) -> bool {
    protocol == Protocol::Tcp
}

/// All drains and the time when each was first seen. Times are durations since a fixed start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drains {
    since: BTreeMap<(VsKey, RsKey), Duration>,
}

impl Drains {
    /// Finds the drains of virtual servers after a new read of them.
    pub fn adopt(&mut self, desired: &Desired, observed: &Observed, keys: &BTreeSet<VsKey>, now: Duration) {
        let mut since = BTreeMap::new();
        for vs in keys {
            for rs in draining(desired, observed, vs) {
                let key = (*vs, rs);
                since.insert(key, self.since.get(&key).copied().unwrap_or(now));
            }
        }
        self.since.retain(|(vs, _), _| !keys.contains(vs));
        self.since.append(&mut since);
    }

    /// Records an op that the kernel acknowledged.
    pub fn record(&mut self, op: &Op, now: Duration) {
        match op {
            Op::DrainRealServer(vs, rs) => {
                self.since.entry((*vs, *rs)).or_insert(now);
            }
            Op::AddRealServer(vs, rs, _) | Op::EditRealServer(vs, rs, _) | Op::RemoveRealServer(vs, rs) => {
                self.since.remove(&(*vs, *rs));
            }
            Op::RemoveVirtualServer(vs) => self.since.retain(|(of, _), _| of != vs),
            _ => {}
        }
    }

    /// Whether the real server drains.
    pub fn contains(&self, vs: VsKey, rs: RsKey) -> bool {
        self.since.contains_key(&(vs, rs))
    }

    /// Each drain, and when it was first seen.
    pub fn iter(&self) -> impl Iterator<Item = ((VsKey, RsKey), Duration)> + '_ {
        self.since.iter().map(|(key, since)| (*key, *since))
    }

    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Number of draining real servers.
    pub fn len(&self) -> usize {
        self.since.len()
    }

    pub fn virtual_servers(&self) -> BTreeSet<VsKey> {
        self.since.keys().map(|(vs, _)| *vs).collect()
    }

    /// The drains that have lasted their deadline or longer: that of the Service, else `usual`. `None`: no deadline.
    pub fn expired(
        &self,
        now: Duration,
        desired: &Desired,
        usual: Option<Duration>,
    ) -> BTreeSet<(VsKey, RsKey)> {
        let is_over = |((vs, _), since): &(&(VsKey, RsKey), &Duration)| {
            deadline(desired, vs, usual).is_some_and(|deadline| now.saturating_sub(**since) >= deadline)
        };
        self.since.iter().filter(is_over).map(|(key, _)| *key).collect()
    }
}

/// The longest drain at a virtual server.
fn deadline(desired: &Desired, vs: &VsKey, usual: Option<Duration>) -> Option<Duration> {
    let chosen = desired.options(vs).and_then(|options| options.drain_deadline);
    chosen.map_or(usual, |deadline| Some(deadline).filter(|deadline| !deadline.is_zero()))
}

/// The real servers of a wanted virtual server that are not wanted and have weight 0.
fn draining<'a>(
    desired: &'a Desired,
    observed: &'a Observed,
    vs: &VsKey,
) -> impl Iterator<Item = RsKey> + use<'a> {
    let both = desired.virtual_server(vs).zip(observed.virtual_servers.get(vs));
    both.into_iter().flat_map(|(wanted, server)| {
        let is_draining =
            move |(rs, state): &(RsKey, RsState)| state.weight == 0 && !wanted.real_servers.contains(rs);
        server.real_servers.iter().filter(is_draining).map(|(rs, _)| rs)
    })
}

/// The virtual servers among `keys` with draining real servers: their connection counters must be read before the
/// next plan.
pub fn with_drains<'a>(
    desired: &Desired,
    observed: &Observed,
    keys: impl IntoIterator<Item = &'a VsKey>,
) -> Vec<VsKey> {
    let has_one = |vs: &&VsKey| is_drained(vs.protocol) && draining(desired, observed, vs).next().is_some();
    keys.into_iter().filter(has_one).copied().collect()
}
