// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![warn(clippy::incompatible_msrv)]

mod attributes;
mod channel;
mod dump;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod listener;
mod message;
mod pack;
mod socket;
#[cfg(test)]
mod testing;
mod transaction;

pub use attributes::{AttributeIter, Attributes, text};
pub use channel::{Channel, KernelChannel};
pub use dump::Dump;
pub use error::{Error, Refusal};
pub use listener::Listener;
pub use message::{Message, Packet, Received, messages};
/// Numbers of the netlink families, such as `protocols::NETLINK_ROUTE`.
pub use netlink_sys::protocols;
pub use nix::errno::Errno;
pub use socket::{Answer, Counters, Socket};
pub use transaction::Refusals;
