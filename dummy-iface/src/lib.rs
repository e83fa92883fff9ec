// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![warn(clippy::incompatible_msrv)]

mod device;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod message;
mod watch;

pub use device::{Addresses, DummyDevice, HostAddress, LinkState};
pub use error::{AddressError, AddressErrorKind, Error};
pub use netlink_batch::{Counters, Error as NetlinkError};
pub use watch::{Change, Watch};
