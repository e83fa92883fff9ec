// SPDX-License-Identifier: Apache-2.0
//! The family as a codec (`<linux/ip_vs.h>`), in the shape of the rust-netlink crates: one enum for each level of
//! attributes, each an [`Nla`](netlink_packet_core::Nla) and a [`Parseable`]. On top
//! of them are [`Service`](crate::Service), [`Destination`](crate::Destination) and [`SyncDaemon`](crate::SyncDaemon),
//! which are read from an iterator, so that a list needs no vector of attributes for each entry.
//!
//! Multi-byte values are in host order, but for ports, tunnel ports, addresses and the IPv4 persistence mask, which
//! are in network order. Everything is copied from and to byte arrays, so both endiannesses are right.

mod codec;
mod command;
mod daemon;
mod destination;
mod info;
mod message;
mod service;
mod stats;

use netlink_packet_core::{NlaBuffer, NlasIterator, Parseable};

pub use netlink_packet_core::{DecodeError, DefaultNla};

pub use codec::RawAddress;
pub use command::IpvsCommand;
pub use daemon::DaemonAttribute;
pub use destination::DestinationAttribute;
pub use info::InfoAttribute;
pub use message::{IpvsAttribute, IpvsMessage};
pub use service::ServiceAttribute;
pub use stats::StatsAttribute;

pub(crate) use message::{FAMILY_NAME, VERSION, message_attributes};

pub(crate) const ATTR_SERVICE: u16 = 1;
pub(crate) const ATTR_DEST: u16 = 2;
pub(crate) const ATTR_DAEMON: u16 = 3;

/// Reads attributes of one level, one after the other.
///
/// # Errors
/// An item is an error when the attribute does not fit its buffer or its type. Unknown kinds are kept.
pub fn attributes<'a, A>(bytes: &'a [u8]) -> impl Iterator<Item = Result<A, DecodeError>>
where
    A: Parseable<NlaBuffer<&'a [u8]>>,
{
    NlasIterator::new(bytes).map(|nla| A::parse(&nla?))
}
