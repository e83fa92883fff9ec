// SPDX-License-Identifier: Apache-2.0
//! Endpoints that do not answer the TCP checks of this node get no new connections.
//!
//! If more than half of the endpoints of a virtual server do not answer, none is taken out: the fault is more likely one of
//! the node or its network, and the rest could not bear the load. So the last endpoint always stays.

use std::collections::BTreeSet;

use super::fragment::{Fragment, VirtualServer};
use crate::core::mirror::Observed;
use crate::core::model::real_servers::{RsState, WantedServers};
use crate::core::model::{ProbeSpec, Protocol, RsKey};

fn probe(server: &VirtualServer) -> Option<ProbeSpec> {
    let options = server.options.as_ref().filter(|_| server.key.protocol == Protocol::Tcp)?;
    options.probe
}

/// Real servers that get new connections as far as the API says.
fn open(real_servers: &WantedServers) -> impl Iterator<Item = RsKey> + '_ {
    real_servers.iter().filter(|(_, state)| state.weight > 0).map(|(rs, _)| rs)
}

/// How a Service has its endpoints checked, and which.
pub fn targets(fragment: &Fragment) -> Option<(ProbeSpec, BTreeSet<RsKey>)> {
    let spec = fragment.virtual_servers.iter().find_map(|server| probe(server))?;
    let checked = fragment.virtual_servers.iter().filter(|server| probe(server).is_some());
    let targets: BTreeSet<RsKey> = checked.flat_map(|server| open(&server.real_servers)).collect();
    (!targets.is_empty()).then_some((spec, targets))
}

/// The endpoints to check that the kernel gives no new connections.
pub fn closed<'a>(fragment: &'a Fragment, observed: &'a Observed) -> impl Iterator<Item = RsKey> + 'a {
    let checked = fragment.virtual_servers.iter().filter(|server| probe(server).is_some());
    checked.flat_map(|server| {
        let existing = observed.virtual_servers.get(&server.key);
        let is_closed = move |rs: &RsKey| {
            existing.and_then(|it| it.real_servers.get(rs)).is_some_and(|it| it.weight == 0)
        };
        open(&server.real_servers).filter(is_closed)
    })
}

/// Whether so many of the real servers are dead that none is taken out.
pub fn is_storm(real_servers: &WantedServers, dead: &BTreeSet<RsKey>) -> bool {
    let failed = open(real_servers).filter(|rs| dead.contains(rs)).count();
    failed * 2 > open(real_servers).count()
}

/// Takes the dead endpoints out.
pub fn take_out(fragment: &mut Fragment, dead: &BTreeSet<RsKey>) {
    for server in &mut fragment.virtual_servers {
        let has_dead = open(&server.real_servers).any(|rs| dead.contains(&rs));
        if probe(server).is_none() || !has_dead || is_storm(&server.real_servers, dead) {
            continue;
        }
        let weight = |rs: &RsKey, state: RsState| match dead.contains(rs) {
            true => RsState { weight: 0, ..state },
            false => state,
        };
        *server = server.with_states(weight);
    }
}
