// SPDX-License-Identifier: Apache-2.0
//! The decoders by themselves, for fuzzing: each function takes what a kernel may send and panics when
//! what it reads breaks a rule. No part of the API.

#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

use netlink_batch::fuzzing::datagram;
use netlink_packet_core::Emitable;

use crate::client::request::parse_family;
use crate::packet::{IpvsMessage, message_attributes};
use crate::types::Family;

/// A decoder: its name, and what reads an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every decoder.
pub const TARGETS: &[Target] =
    &[("ipvs-datagram", datagram), ("ipvs-family", family), ("ipvs-message", message)];

/// What the controller of generic netlink reports about a family.
pub fn family(bytes: &[u8]) {
    let _ = parse_family(bytes);
}

/// A message of the family: its command, then attributes. What is read survives being written and read again.
pub fn message(bytes: &[u8]) {
    let Some((command, attributes)) = bytes.split_first() else { return };
    let command = (*command).into();
    // Of an old kernel: the family of destinations is that of their service.
    for service in [Family::Inet, Family::Inet6] {
        let _ = message_attributes(command, attributes, Some(service)).count();
    }
    let Ok(message) = IpvsMessage::parse(command, attributes) else { return };
    let _ = (message.config(), message.info().version_text());
    assert!(message.attributes.len() <= attributes.len() / 4 + 1);
    let mut written = vec![0; message.buffer_len()];
    message.emit(&mut written);
    assert_eq!(IpvsMessage::parse(command, &written).unwrap(), message);
}
