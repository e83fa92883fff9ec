// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod device;
mod error;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod message;
mod route;
mod route_watch;
mod socket;
mod watch;

pub use device::{Addresses, DummyDevice, Ensured, HostAddress, LinkState};
pub use error::{AddressError, AddressErrorKind, Error};
pub use route_watch::RouteWatch;
pub use socket::Counters;
pub use watch::{Change, Watch};
