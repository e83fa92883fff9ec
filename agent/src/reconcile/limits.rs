// SPDX-License-Identifier: Apache-2.0
//! Limits of connections in the kernel. `/proc/net/ip_vs` does not have them: virtual servers with limits are read by
//! themselves, all at a start and some at each audit. The first audits read all the others, too: a limit may be left from
//! an earlier run.

use std::time::Duration;

use super::Reconciler;
use crate::core::mirror::Observed;
use crate::core::model::VsKey;
use crate::kernel::Kernel;
use crate::store::first_after;

/// Virtual servers of one reading, which takes one to two milliseconds.
const READ: usize = 64;

/// The last virtual servers that audits have read by themselves.
#[derive(Debug, Default)]
pub(super) struct LimitReadings {
    limited: Option<VsKey>,
    any: Option<VsKey>,
    are_all_read: bool,
}

impl<K: Kernel> Reconciler<K> {
    /// The next virtual servers whose limits an audit compares.
    pub(super) fn next_limits(&mut self, observed: &Observed) -> Vec<VsKey> {
        let mut next = first_after(self.limited(observed), self.limits.limited.as_ref(), READ);
        // The last ones were read: the next audit begins again.
        self.limits.limited = next.last().copied().filter(|_| next.len() == READ);
        if !self.limits.are_all_read {
            let all = observed.virtual_servers.keys().copied();
            let others = first_after(all, self.limits.any.as_ref(), READ);
            self.limits.are_all_read = others.len() < READ;
            self.limits.any = others.last().copied();
            next.extend(others);
        }
        next
    }

    /// Reads all limits into a mirror that was just filled: a start then writes none that are in place.
    pub(super) fn fill_limits(&mut self, observed: &mut Observed, now: Duration) {
        let keys: Vec<VsKey> = self.limited(observed).collect();
        for keys in keys.chunks(READ) {
            match self.kernel.read_servers(keys) {
                Ok(read) => {
                    for (key, server) in keys.iter().zip(read) {
                        observed.virtual_servers.extend(server.map(|server| (*key, server)));
                    }
                }
                Err(error) => return self.retries.fail_reading(error.part, &error.error, now),
            }
        }
    }

    /// Existing virtual servers whose real servers have limits or should have them, in no order.
    fn limited(&self, observed: &Observed) -> impl Iterator<Item = VsKey> {
        let with_limits = self.desired.virtual_servers().filter(|server| server.real_servers.have_limits());
        with_limits.map(|server| server.key).filter(|key| observed.virtual_servers.contains_key(key))
    }
}
