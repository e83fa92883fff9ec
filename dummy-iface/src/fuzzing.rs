// SPDX-License-Identifier: Apache-2.0
//! The decoders by themselves, for fuzzing: each function takes what a kernel may send and panics when
//! what it reads breaks a rule. No part of the API.

#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

use netlink_batch::{fuzzing::datagram, messages};
use netlink_packet_core::Emitable;

use crate::message::{self, RTM_NEWADDR, RTM_NEWLINK, parse_address, parse_link};
use crate::watch::{Change, change};

/// A decoder: its name, and what reads an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every decoder.
pub const TARGETS: &[Target] = &[("rtnl-datagram", datagram), ("rtnl-watch", watch)];

/// Notifications, as the watch of a device reads them from one datagram.
pub fn watch(bytes: &[u8]) {
    let mut index = None;
    for message in messages(bytes).flatten() {
        let before = index;
        let Ok(change) = change("kube-ipvs0", &mut index, message.kind, message.payload) else { continue };
        match change {
            Some(Change::DeviceAppeared) => assert!(index.is_some() && index != before),
            Some(Change::DeviceGone) => assert!(index.is_none() && before.is_some()),
            _ => assert!(index == before || message.kind == RTM_NEWLINK),
        }
        let found = if message.kind == RTM_NEWADDR { parse_address(message.payload) } else { Ok(None) };
        if let Ok(Some(found)) = found {
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
