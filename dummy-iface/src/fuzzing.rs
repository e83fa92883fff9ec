// SPDX-License-Identifier: Apache-2.0
//! The decoders by themselves, for fuzzing: each function takes what a kernel may send and panics when
//! what it reads breaks a rule. No part of the API.

#![allow(clippy::unwrap_used, reason = "a panic is what tells")]

use netlink_packet_core::Emitable;

use crate::frame::{Received, messages, refusal};
use crate::message::{self, RTM_NEWADDR, RTM_NEWLINK, parse_address, parse_link};
use crate::route::parse_gateways;
use crate::watch::{Change, change};

/// A decoder: its name, and what reads an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every decoder.
pub const TARGETS: &[Target] = &[("rtnl-datagram", datagram), ("rtnl-route", route), ("rtnl-watch", watch)];

/// A datagram of many messages. Cut short it holds the first of them, or is an error.
pub fn datagram(bytes: &[u8]) {
    let Ok(all) = messages(bytes) else { return };
    let total: usize = all.iter().map(|message| 16 + message.payload.len()).sum();
    assert!(total <= bytes.len(), "{total} bytes of messages in {}", bytes.len());
    for message in &all {
        if let Ok(refusal) = refusal(message) {
            // A byte that is no text is told by a character of three.
            let text = refusal.message.unwrap_or_default();
            assert!(text.len() <= 3 * message.payload.len(), "{text:?}");
        }
    }
    if let Ok(first) = messages(&bytes[..bytes.len() / 2]) {
        assert!(first.len() <= all.len());
        for (cut, whole) in first.iter().zip(&all) {
            let parts = |m: &Received<'_>| (m.kind, m.flags, m.seq, m.port, m.payload.to_vec());
            assert_eq!(parts(cut), parts(whole));
        }
    }
}

/// A route. Cut short it has no other gateways.
pub fn route(bytes: &[u8]) {
    let (mut whole, mut cut) = (Vec::new(), Vec::new());
    let read = parse_gateways(bytes, &mut whole).is_ok();
    assert!(whole.len() <= bytes.len() / 8, "{} gateways in {} bytes", whole.len(), bytes.len());
    let cut_read = parse_gateways(&bytes[..bytes.len() / 2], &mut cut).is_ok();
    assert!(!(read && cut_read) || whole.starts_with(&cut), "{cut:?} is no part of {whole:?}");
}

/// Notifications, as the watch of a device reads them from one datagram.
pub fn watch(bytes: &[u8]) {
    let Ok(all) = messages(bytes) else { return };
    let mut index = None;
    for message in &all {
        let before = index;
        let Ok(change) = change("kube-ipvs0", &mut index, message.kind, message.payload) else { continue };
        match change {
            Some(Change::DeviceAppeared) => assert!(index.is_some() && index != before),
            Some(Change::DeviceGone) => assert!(index.is_none() && before.is_some()),
            _ => assert!(index == before || message.kind == RTM_NEWLINK),
        }
        if message.kind == RTM_NEWADDR
            && let Ok(Some(found)) = parse_address(message.payload)
        {
            let built = message::address(found.index, found.addr);
            let mut written = vec![0; built.buffer_len()];
            built.emit(&mut written);
            let again = parse_address(&written).unwrap().unwrap();
            assert_eq!((again.index, again.addr), (found.index, found.addr));
        }
        if let Ok(link) = parse_link(message.payload) {
            let kind = link.kind.unwrap_or_default();
            assert!(link.name.len() + kind.len() <= 3 * message.payload.len());
        }
    }
}
