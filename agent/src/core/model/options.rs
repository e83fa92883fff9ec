// SPDX-License-Identifier: Apache-2.0
//! Settings of a single Service, which its annotations or `kubeIPVS.serviceDefaults` choose.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The schedulers of Linux (`net/netfilter/ipvs/ip_vs_*.c`).
pub const SCHEDULERS: [&str; 14] =
    ["rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "twos"];

/// `IP_VS_SVC_F_SCHED1`: `sh-fallback` and `mh-fallback`.
pub const SCHED_FALLBACK: u32 = 0x8;
/// `IP_VS_SVC_F_SCHED2`: `sh-port` and `mh-port`.
pub const SCHED_PORT: u32 = 0x10;
/// The flags of schedulers: `IP_VS_SVC_F_SCHED1`, `_SCHED2` and `_SCHED3`.
pub const SCHED_FLAGS: u32 = SCHED_FALLBACK | SCHED_PORT | 0x20;

/// Schedulers that have flags.
pub const FLAGGED: [&str; 2] = ["mh", "sh"];

/// The flags of a scheduler for which nothing else is chosen: as in kube-proxy, `mh` hashes the source port too.
pub fn usual_flags(scheduler: &str) -> u32 {
    if scheduler == "mh" { SCHED_PORT } else { 0 }
}

/// A scheduler with its flags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// One of [`SCHEDULERS`].
    pub name: Arc<str>,
    /// Some of [`SCHED_FLAGS`].
    pub flags: u32,
}

/// The settings of a Service; `None`: those of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceOptions {
    pub scheduler: Option<Scheduler>,
    /// Longest drain of a real server; zero: until its last connection ends.
    pub drain_deadline: Option<Duration>,
    /// Whether the traffic of a pod to itself through a VIP is masqueraded.
    pub hairpin: Option<bool>,
    /// What is wrong with annotations that have no effect, a sentence each.
    pub wrong: Vec<Arc<str>>,
}

impl ServiceOptions {
    /// These options, and those of `defaults` where nothing is chosen.
    pub fn or(&self, defaults: &Self) -> Self {
        Self {
            scheduler: self.scheduler.as_ref().or(defaults.scheduler.as_ref()).cloned(),
            drain_deadline: self.drain_deadline.or(defaults.drain_deadline),
            hairpin: self.hairpin.or(defaults.hairpin),
            wrong: self.wrong.clone(),
        }
    }

    /// The options to keep: none if nothing is chosen.
    pub fn kept(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}
