// SPDX-License-Identifier: Apache-2.0
//! Real servers that take no new connections and wait for their old ones to end.
//!
//! The record of a drain is the weight 0 in the kernel. Only when it began is remembered here, for
//! the deadline; after a restart a drain begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::op::Op;
use crate::core::mirror::{Observed, RsState};
use crate::core::model::{Protocol, RsKey, VsKey};
use crate::core::service::desired::Desired;

/// Whether real servers of the protocol are drained: UDP and SCTP ones go at once, as in kube-proxy,
/// and their flows move on with their next packet.
pub fn is_drained(protocol: Protocol) -> bool {
    protocol == Protocol::Tcp
}

/// All drains, and when each was first seen. Times are durations since some fixed start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drains {
    since: BTreeMap<(VsKey, RsKey), Duration>,
}

impl Drains {
    /// Finds the drains of virtual servers that were read afresh.
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

    /// Follows an op that the kernel acknowledged.
    pub fn record(&mut self, op: &Op, now: Duration) {
        match op {
            Op::DrainRealServer(vs, rs) => {
                self.since.entry((*vs, *rs)).or_insert(now);
            }
            Op::AddRealServer(vs, rs) | Op::EditRealServer(vs, rs) | Op::RemoveRealServer(vs, rs) => {
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

    /// True when nothing drains.
    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// How many real servers drain.
    pub fn len(&self) -> usize {
        self.since.len()
    }

    /// The virtual servers that have draining real servers.
    pub fn virtual_servers(&self) -> BTreeSet<VsKey> {
        self.since.keys().map(|(vs, _)| *vs).collect()
    }

    /// The drains that have lasted `deadline` or longer; none when there is no deadline.
    pub fn expired(&self, now: Duration, deadline: Option<Duration>) -> BTreeSet<(VsKey, RsKey)> {
        let Some(deadline) = deadline else { return BTreeSet::new() };
        let over = |since: &Duration| now.saturating_sub(*since) >= deadline;
        self.since.iter().filter(|(_, since)| over(since)).map(|(key, _)| *key).collect()
    }
}

/// The real servers of a wanted virtual server that are not wanted and take no new connections.
fn draining<'a>(
    desired: &'a Desired,
    observed: &'a Observed,
    vs: &VsKey,
) -> impl Iterator<Item = RsKey> + use<'a> {
    let both = desired.virtual_server(vs).zip(observed.virtual_servers.get(vs));
    both.into_iter().flat_map(|(wanted, server)| {
        let goes = move |(rs, state): &(&RsKey, &RsState)| {
            state.weight == 0 && wanted.real_servers.binary_search(rs).is_err()
        };
        server.real_servers.iter().filter(goes).map(|(rs, _)| *rs)
    })
}

/// The virtual servers among `keys` with a real server that drains: whether it has connections decides whether
/// it goes.
pub fn with_drains<'a>(
    desired: &Desired,
    observed: &Observed,
    keys: impl IntoIterator<Item = &'a VsKey>,
) -> Vec<VsKey> {
    let has_one = |vs: &&VsKey| is_drained(vs.protocol) && draining(desired, observed, vs).next().is_some();
    keys.into_iter().filter(has_one).copied().collect()
}
