// SPDX-License-Identifier: Apache-2.0
//! Settings of a single Service, which its annotations or `kubeIPVS.serviceDefaults` choose.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ProbeSpec;
use super::real_servers::{ConnectionLimits, DIRECT_ROUTE, TUNNEL};

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

/// Whether a scheduler chooses by a hash, so that nodes that added the same real servers in the same order choose the same one
/// for a client.
pub fn chooses_by_hash(scheduler: &str) -> bool {
    matches!(scheduler, "sh" | "mh" | "dh")
}

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

/// Packets to a VIP reach the endpoint with the address of the VIP, and the endpoint answers the client directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display, strum::EnumString)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum DirectReturn {
    /// By the route to the endpoint. Only endpoints of this node are reached: another node has the VIP itself.
    Route,
    /// In an IPIP tunnel to the endpoint.
    Tunnel,
}

impl DirectReturn {
    /// `IP_VS_CONN_F_*`
    pub fn forward(self) -> u32 {
        match self {
            DirectReturn::Route => DIRECT_ROUTE,
            DirectReturn::Tunnel => TUNNEL,
        }
    }
}

/// The scheduler that heeds weights, in place of one that does not.
pub fn weighted(scheduler: &str) -> Option<&'static str> {
    match scheduler {
        "rr" => Some("wrr"),
        "lc" => Some("wlc"),
        _ => None,
    }
}

/// The settings of a Service; `None`: those of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceOptions {
    pub scheduler: Option<Scheduler>,
    /// Longest drain of a real server; zero: until its last connection ends.
    pub drain_deadline: Option<Duration>,
    /// Whether the traffic of a pod to itself through a VIP is masqueraded.
    pub hairpin: Option<bool>,
    /// The time in which a new endpoint gets its full share of connections.
    pub slow_start: Option<Duration>,
    /// Limits of each endpoint.
    pub max_connections: Option<ConnectionLimits>,
    /// How external and load-balancer IPs are forwarded, if not masqueraded.
    pub direct_return: Option<DirectReturn>,
    /// How this node checks TCP endpoints.
    pub probe: Option<ProbeSpec>,
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
            slow_start: self.slow_start.or(defaults.slow_start),
            max_connections: self.max_connections.or(defaults.max_connections),
            direct_return: self.direct_return.or(defaults.direct_return),
            probe: self.probe.or(defaults.probe),
            wrong: self.wrong.clone(),
        }
    }

    /// The options to keep: none if nothing is chosen.
    pub fn kept(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}
