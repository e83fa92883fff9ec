// SPDX-License-Identifier: Apache-2.0
//! Fuzz targets of the decoders of netlink, `/proc` and system files, for [`crate::fuzzing`].

#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

use netlink_batch::{AttributeIter, messages};
use netlink_packet_core::Parseable;
use netlink_packet_sock_diag::inet::InetResponse;

use super::host::name_servers::NamedHosts;
use super::host::node_files::{FoundModules, ModuleState, module_files, parse_capabilities};
use super::host::{local_route, routes, sockets};
use super::iptables::flavour::{self, Flavour};
use super::ipvs::proc_ip_vs::{Parser, Shown};
use super::netfilter::conntrack::{self, CTA_TUPLE_REPLY};
use super::netfilter::conntrack_watch::ConntrackEvent;
use super::netfilter::ipset_codec::{encode_entry, parse_entry, parse_part};
use super::netfilter::nfnetlink::NFGEN;
use crate::core::mirror::ObservedSet;
use crate::core::model::Protocol;
use crate::core::model::map::Map;
use crate::core::model::sets::SetId;
use crate::fuzzing::{Target, text_of};

pub(crate) const TARGETS: &[Target] = &[
    ("conntrack", conntrack),
    ("ipset", ipset),
    ("name-servers", name_servers),
    ("nf-datagram", nf_datagram),
    ("node-files", node_files),
    ("proc-ip-vs", proc_ip_vs),
    ("rtnl-route", route),
    ("sock-diag", sock_diag),
];

/// The flavour that a printed rule set indicates.
pub(crate) fn flavour(text: &str) -> Option<Flavour> {
    flavour::choose(text, "").map(|(flavour, _)| flavour)
}

/// A datagram of netfilter: its messages.
fn nf_datagram(bytes: &[u8]) {
    netlink_batch::fuzzing::datagram(bytes);
}

/// A route. A truncated one has no other gateways.
fn route(bytes: &[u8]) {
    let (mut whole, mut cut) = (Vec::new(), Vec::new());
    let read = routes::parse_gateways(bytes, &mut whole).is_ok();
    let _ = local_route::parse_own(bytes);
    assert!(whole.len() <= bytes.len() / 8, "{} gateways in {} bytes", whole.len(), bytes.len());
    let cut_read = routes::parse_gateways(&bytes[..bytes.len() / 2], &mut cut).is_ok();
    assert!(!(read && cut_read) || whole.starts_with(&cut), "{cut:?} is no part of {whole:?}");
}

/// A part of a dump of sets. Encoding and decoding a member again gives the same member, and a truncated part has
/// no other members.
fn ipset(bytes: &[u8]) {
    let read = |bytes: &[u8]| {
        let mut sets: Map<SetId, ObservedSet> = Map::default();
        parse_part(bytes, &mut sets).map(|()| sets)
    };
    let Ok(whole) = read(bytes) else { return };
    // If an attribute is repeated the last one counts, which a truncated part may lack.
    let mut kinds: Vec<u16> = AttributeIter::new(bytes).flatten().map(|(kind, _)| kind).collect();
    kinds.sort_unstable();
    let once = kinds.windows(2).all(|pair| pair[0] != pair[1]);
    let cut = if once { read(&bytes[..bytes.len() / 2]).unwrap_or_default() } else { Map::default() };
    for (id, set) in &whole {
        assert!(
            set.members.len() <= bytes.len() / 8,
            "{} members in {} bytes",
            set.members.len(),
            bytes.len()
        );
        for member in set.members.iter() {
            let written = encode_entry(&member);
            assert_eq!(parse_entry(id.kind.set_type(), written.as_bytes()).unwrap(), Some(member));
        }
        // The members of a misfit are ignored; a truncated part may lack the type that makes it one.
        if let Some(cut) = cut.get(id).filter(|_| !set.misfit) {
            assert!(cut.members.iter().all(|member| set.members.contains(&member)));
        }
    }
}

/// A conntrack entry. Its identity attributes decode to the same flow.
fn conntrack(bytes: &[u8]) {
    let payload = [&[0; NFGEN], bytes].concat();
    for kind in [0x100, 0x102] {
        let received = netlink_batch::Received { kind, flags: 0, seq: 0, port: 0, payload: &payload };
        let _ = ConntrackEvent::parse(&received);
    }
    let Ok(Some(entry)) = conntrack::parse_entry(bytes) else { return };
    let reply =
        AttributeIter::new(bytes).flatten().filter(|(kind, _)| *kind == CTA_TUPLE_REPLY).last().unwrap().1;
    let mut again = entry.identity.clone();
    again.nest_bytes(CTA_TUPLE_REPLY, reply);
    let read = conntrack::parse_entry(again.as_bytes()).unwrap().unwrap();
    assert_eq!(read.flow, entry.flow);
    assert_eq!(read.identity.as_bytes(), entry.identity.as_bytes());
}

/// Sockets of programs. The first byte is ignored, for compatibility with the stored inputs.
fn sock_diag(bytes: &[u8]) {
    let Some((_, datagram)) = bytes.split_first() else { return };
    let answer = |message: netlink_batch::Received<'_>| InetResponse::parse(message.payload).ok();
    let answers: Vec<_> = messages(datagram).flatten().filter_map(answer).collect();
    assert!(answers.len() <= datagram.len() / 16);
    let mut ports = Vec::new();
    answers.iter().for_each(|answer| sockets::add(&mut ports, Protocol::Tcp, answer));
    assert!(ports.len() <= 2 * answers.len());
}

/// The table of virtual servers is the same for any size of the pieces that are read; the first two bytes give the
/// position of the split.
fn proc_ip_vs(bytes: &[u8]) {
    let Some((&[high, low], table)) = bytes.split_first_chunk() else { return };
    let at = usize::from(u16::from_be_bytes([high, low])) % (table.len() + 1);
    let read = |pieces: &[&[u8]]| -> Option<Vec<Shown>> {
        let (mut parser, mut shown) = (Parser::default(), Vec::new());
        pieces.iter().try_for_each(|piece| parser.take(piece, &mut shown))?;
        parser.finish(&mut shown)?;
        Some(shown)
    };
    let whole = read(&[table]);
    assert_eq!(read(&[&table[..at], &table[at..]]), whole);
    let lines = table.iter().filter(|byte| **byte == b'\n').count();
    let shown = whole.unwrap_or_default();
    let rows: usize = shown.iter().map(|server| 1 + server.real_servers.iter().count()).sum();
    assert!(rows <= lines, "{rows} servers in {lines} lines");
}

/// The files of resolvers and DHCP clients.
fn name_servers(bytes: &[u8]) {
    let text = text_of(bytes);
    let mut named = NamedHosts::default();
    named.take(&text);
    assert!(named.servers.len() + named.routers.len() <= text.len());
}

/// Lists of modules, and the capabilities of a process: a module in a list is there.
fn node_files(bytes: &[u8]) {
    let text = text_of(bytes);
    let mut found =
        FoundModules { installed: Some(module_files(&text).collect()), ..FoundModules::default() };
    assert!(found.installed.iter().flatten().all(|name| found.state(name) == ModuleState::Installed));
    found.take_loaded(&text);
    assert!(found.present.iter().all(|name| found.state(name) == ModuleState::Present));
    assert!(found.present.len() <= text.lines().count());
    let _ = parse_capabilities(&text);
}
