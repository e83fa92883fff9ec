// SPDX-License-Identifier: Apache-2.0
//! Whether a rule of nf_tables matches a packet, and what it does.

use std::net::IpAddr;

use ipnet::IpNet;

use super::nftables::{Action, CLOSED_TO_NODE, Match, NODE_ADDRESSES, NftRule, PacketField, SERVICE_RANGES};
use super::walk::{Fate, Packet, RuleEffect, RuleWalk, in_range};
use crate::core::model::VsKey;
use crate::core::model::sets::{Entry, SetId, SetType};

/// Whether the condition holds for the first packet of a connection.
pub(super) fn holds(matched: &Match, packet: &Packet, walk: &RuleWalk<'_>) -> bool {
    match matched {
        Match::Source(net, inside) => net.contains(&packet.source) == *inside,
        Match::NotFrom(name) => {
            let is_it = |input: &str| match name.strip_suffix('+') {
                Some(prefix) => input.starts_with(prefix),
                None => input == name,
            };
            !packet.input.as_deref().is_some_and(is_it)
        }
        Match::Protocol(protocol) => packet.protocol == *protocol,
        Match::Unmarked(mark) => packet.mark & mark != *mark,
        Match::New => true,
        Match::Established => false,
        Match::In(fields, set) => is_member(fields, set, packet, walk),
        Match::FromNetwork(prefix, set) => {
            SetId::from_name(set).is_some_and(|set| in_range(walk.facts(), set, packet, *prefix))
        }
    }
}

fn is_member(fields: &[PacketField], set: &str, packet: &Packet, walk: &RuleWalk<'_>) -> bool {
    let Some(id) = SetId::from_name(set) else {
        let destination = packet.destination;
        return match set {
            NODE_ADDRESSES => walk.own_set_has(set, |text| text.parse::<IpAddr>() == Ok(destination)),
            SERVICE_RANGES => walk
                .own_set_has(set, |text| text.parse::<IpNet>().is_ok_and(|net| net.contains(&destination))),
            CLOSED_TO_NODE if packet.source == destination => {
                let key = VsKey { protocol: packet.protocol, addr: destination, port: packet.port };
                walk.own_set_has(set, |text| text == super::nftables::closed_text(&key))
            }
            _ => false,
        };
    };
    let first = if fields.first() == Some(&PacketField::Source) { packet.source } else { packet.destination };
    walk.facts().has_entry(id, &entry(id, first, packet))
}

/// The member of the set that stands for the packet. `first`: its first address.
pub(super) fn entry(set: SetId, first: IpAddr, packet: &Packet) -> Entry {
    let Packet { protocol, source, port, .. } = *packet;
    match set.kind.set_type() {
        SetType::HashIp => Entry::Ip(first),
        SetType::HashIpPort => Entry::IpPort(first, protocol, port),
        SetType::HashIpPortIp => Entry::IpPortIp(first, protocol, port, source),
        SetType::HashIpPortNet => Entry::IpPortNet(first, protocol, port, source.into()),
        SetType::BitmapPort => Entry::Port(port),
    }
}

/// What a rule that matches does.
pub(super) fn effect(rule: &NftRule, packet: &Packet) -> RuleEffect {
    match rule.action {
        Action::Jump(chain) => RuleEffect::Jump(chain.to_owned()),
        Action::Return => RuleEffect::Return,
        Action::Drop => RuleEffect::End(Fate::Dropped),
        Action::Reject => RuleEffect::End(Fate::Rejected),
        Action::Mark(mark) => RuleEffect::Mark(packet.mark | mark),
        Action::Unmark(mark) => RuleEffect::Mark(packet.mark ^ mark),
        Action::Masquerade(_) => RuleEffect::End(Fate::Masqueraded),
        Action::KeepDestination => RuleEffect::End(Fate::Accepted),
    }
}
