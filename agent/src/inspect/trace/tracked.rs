// SPDX-License-Identifier: Apache-2.0
//! What connection tracking tells of the connection of a packet.

use std::net::SocketAddr;

use serde::Serialize;

use super::packet_head::PacketHead;
use super::{StepAction, TracedPacket};
use crate::kernel::netfilter::conntrack_watch::{ConntrackEvent, ENDED};

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
    pub(super) fn of<'a>(
        head: &PacketHead,
        events: impl IntoIterator<Item = &'a ConntrackEvent>,
    ) -> Option<Self> {
        let mut found: Option<Self> = None;
        for event in events.into_iter().filter(|event| is_of(head, event)) {
            let is_same = |tracked: &&mut Self| {
                let has_ended = tracked.states.last().is_some_and(|last| last == ENDED);
                !has_ended
                    && (tracked.real_server, tracked.source_seen) == (event.answered_by, event.answers_to)
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

/// Why connection tracking tells nothing, if packets passed that it should have reported. One that a rule or IPVS stopped
/// is no connection, and an old connection changes no more. `heard`: it reported something, if only about others.
pub fn silence_note(heard: bool, packets: &[TracedPacket]) -> Option<String> {
    let is_stopped = |packet: &TracedPacket| {
        packet.steps.iter().any(|step| matches!(step.action, StepAction::Drop | StepAction::Reject))
    };
    let has_passed = packets.iter().any(|packet| packet.real_server.is_some() && !is_stopped(packet));
    (!heard && has_passed).then(|| {
        "connection tracking reported nothing: if these connections are new, load nf_conntrack_netlink \
         (`modprobe nf_conntrack_netlink`), or set net.netfilter.nf_conntrack_events to 1"
            .to_owned()
    })
}
