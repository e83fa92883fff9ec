// SPDX-License-Identifier: Apache-2.0
//! Addresses of ClusterIPs that a route already serves (`clusterIPs: route-then-address`). They are bound a few at a time,
//! so that other work and other programs get the kernel's lock.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use super::Reconciler;
use crate::kernel::Kernel;

/// Addresses that are bound together.
const BATCH: usize = 64;
/// Binding takes at most this part of the time.
const SHARE: u32 = 10;
/// The shortest pause between two batches.
const PAUSE: Duration = Duration::from_millis(50);
/// The pause after the last address: a failed one is tried again, and one that another program removed is found.
const PERIOD: Duration = Duration::from_secs(30);

/// The progress of binding.
#[derive(Debug, Default)]
pub(super) struct LaterBinds {
    /// The addresses of the next pass.
    pub batch: BTreeSet<IpAddr>,
    last: Option<IpAddr>,
    next: Duration,
}

impl LaterBinds {
    /// A pass that took this time has ended.
    pub fn passed(&mut self, took: Duration, now: Duration) {
        if !std::mem::take(&mut self.batch).is_empty() {
            self.next = now.saturating_add(took.saturating_mul(SHARE).max(PAUSE));
        }
    }
}

impl<K: Kernel> Reconciler<K> {
    /// While nothing else is due: requests the next batch if it is time. Returns when to call again.
    pub(super) fn bind_later(&mut self, now: Duration) -> Duration {
        if !self.settings.binds_routed {
            return Duration::MAX;
        }
        if now >= self.later.next
            && let Some(observed) = self.mirror.observed()
        {
            let is_unbound = |addr: &IpAddr| !observed.addresses.contains(&(*addr).into());
            let routed = self.desired.addresses().filter(|addr| self.node.is_routed(*addr));
            let unbound: BTreeSet<IpAddr> = routed.filter(is_unbound).collect();
            let after = self.later.last.map_or(Unbounded, Excluded);
            self.later.batch = unbound.range((after, Unbounded)).take(BATCH).copied().collect();
            self.later.last = self.later.batch.last().copied();
            self.pending.addresses.extend(&self.later.batch);
            if self.later.batch.is_empty() {
                self.later.next = now.saturating_add(PERIOD);
            }
        }
        self.later.next
    }
}
