// SPDX-License-Identifier: Apache-2.0
//! Why an endpoint serves, or not.

use serde::{Deserialize, Serialize};

use crate::core::loop_state::LoopState;
use crate::core::model::{RsKey, VsKey};
use crate::core::plan::subject::Subject;
use crate::core::service::endpoints::{PortEndpoint, Role};
use crate::core::service::slow_start;

/// An endpoint of a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EndpointReport {
    pub address: String,
    pub port: u16,
    /// Whether it runs on this node.
    pub local: bool,
    /// Whether new connections go to it.
    pub serves: bool,
    /// The reason.
    pub reason: String,
    /// Weight in the kernel; null: the kernel does not have it.
    pub weight: Option<u32>,
    pub active_connections: Option<u32>,
    pub inactive_connections: Option<u32>,
}

impl EndpointReport {
    pub(super) fn build(state: &LoopState<'_>, vs: VsKey, endpoint: &PortEndpoint<'_>, role: Role) -> Self {
        let rs = endpoint.target;
        let weight = weight(state, vs, rs);
        let failure = state.retries.failing().find(|(s, _)| **s == Subject::RealServer(vs, rs));
        let options = state.desired.options(&vs);
        let is_checked = options.is_some_and(|options| options.probe.is_some());
        let has_slow_start = options.is_some_and(|options| options.slow_start.is_some());
        let reason = match (failure, weight) {
            (Some((_, failing)), _) => format!("cannot program it: {}", failing.error),
            (None, None) if role.serves() && state.observed.is_some() => "not in the kernel yet".to_owned(),
            (None, Some(0)) if role.serves() && endpoint.weight == 0 => {
                "weight 0 by the annotation of its EndpointSlice: gets no new connections".to_owned()
            }
            (None, Some(0)) if role.serves() && state.dead.contains(&rs) => {
                "does not answer the TCP checks of this node: gets no new connections".to_owned()
            }
            (None, Some(_)) if role.serves() && state.dead.contains(&rs) && is_checked => {
                "serves; does not answer the TCP checks of this node, but too few of the endpoints do"
                    .to_owned()
            }
            (None, Some(now))
                if role.serves() && now < u32::from(endpoint.weight) * slow_start::FULL && has_slow_start =>
            {
                "serves; starts slowly".to_owned()
            }
            (None, Some(0)) if !role.serves() => format!("{}; drains its old connections", text(role)),
            _ => text(role).to_owned(),
        };
        let serves = role.serves() && weight.is_some_and(|weight| weight > 0);
        Self { local: endpoint.local, serves, reason, weight, ..Self::of(rs) }
    }

    fn of(rs: RsKey) -> Self {
        Self { address: rs.addr.to_string(), port: rs.port, ..Self::default() }
    }

    /// Real servers in the kernel that are no endpoint any more.
    pub(super) fn left_over(state: &LoopState<'_>, vs: VsKey, all: &[PortEndpoint<'_>]) -> Vec<Self> {
        let Some(server) = state.observed.and_then(|observed| observed.virtual_servers.get(&vs)) else {
            return Vec::new();
        };
        let is_left = |rs: &RsKey| all.iter().all(|endpoint| endpoint.target != *rs);
        let left = server.real_servers.iter().filter(|(rs, _)| is_left(rs));
        left.map(|(rs, state)| Self {
            reason: match state.weight {
                0 => "no endpoint any more; drains its old connections",
                _ => "no endpoint any more; the next sync removes it",
            }
            .to_owned(),
            weight: Some(state.weight),
            ..Self::of(rs)
        })
        .collect()
    }
}

fn weight(state: &LoopState<'_>, vs: VsKey, rs: RsKey) -> Option<u32> {
    Some(state.observed?.virtual_servers.get(&vs)?.real_servers.get(&rs)?.weight)
}

fn text(role: Role) -> &'static str {
    match role {
        Role::Serves => "serves",
        Role::ServesUntilDeleted => "is being deleted; serves because no endpoint is ready",
        Role::NotReady => "not ready",
        Role::Deleted => "is being deleted; others serve",
        Role::OnOtherNode => "on another node, and the policy is Local",
        Role::HintsOtherNode => "its topology hints name other nodes",
        Role::HintsOtherZone => "its topology hints name other zones",
    }
}
