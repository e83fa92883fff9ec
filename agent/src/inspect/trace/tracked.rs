// SPDX-License-Identifier: Apache-2.0
//! What connection tracking tells of the connection of a packet.

use std::net::SocketAddr;

use serde::Serialize;

use super::packet_head::PacketHead;
use crate::kernel::netfilter::conntrack_watch::ConntrackEvent;

/// A connection as connection tracking reported it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TrackedConnection {
    /// Who answers.
    #[cfg_attr(test, schemars(with = "String"))]
    pub real_server: SocketAddr,
    /// The source that the real server sees.
    #[cfg_attr(test, schemars(with = "String"))]
    pub source_seen: SocketAddr,
    /// Its states in their order: those of TCP or SCTP; of UDP `not answered` and `answered`; `ended`.
    pub states: Vec<String>,
}

impl TrackedConnection {
    /// The connection of a packet, if there were events of it. Of a client port that was used again, the last one.
    pub(super) fn of(head: &PacketHead, events: &[ConntrackEvent]) -> Option<Self> {
        let mut found: Option<Self> = None;
        for event in events.iter().filter(|event| is_of(head, event)) {
            let is_same = |tracked: &&mut Self| {
                (tracked.real_server, tracked.source_seen) == (event.answered_by, event.answers_to)
            };
            let new =
                Self { real_server: event.answered_by, source_seen: event.answers_to, states: Vec::new() };
            let tracked = match found.as_mut().filter(is_same) {
                Some(tracked) => tracked,
                None => found.insert(new),
            };
            if tracked.states.last().is_none_or(|last| last != event.state) {
                tracked.states.push(event.state.to_owned());
            }
        }
        found
    }

    /// In a sentence.
    pub(super) fn sentence(&self, client: SocketAddr) -> String {
        let source = match self.source_seen == client {
            true => format!("the client's own address {client}"),
            false => format!("{}: masqueraded", self.source_seen),
        };
        format!("conntrack: {} sees {source}; {}", self.real_server, self.states.join(", "))
    }
}

fn is_of(head: &PacketHead, event: &ConntrackEvent) -> bool {
    (event.protocol, event.client, event.destination) == (head.protocol, head.source, head.destination)
}
