// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![warn(clippy::incompatible_msrv)]

mod client;
mod command;
mod control;
mod daemon;
mod destination;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod packet;
mod service;
mod stats;
mod types;

pub use client::{BatchReport, Client, ServiceList};
pub use command::{Command, CommandKind};
pub use control::{Config, Info};
pub use daemon::{DaemonState, SyncDaemon};
pub use destination::{Destination, Tunnel, TunnelKind};
pub use error::{CommandError, Error, ErrorKind};
pub use netlink_batch::{Counters, Error as NetlinkError};
pub use packet::{IpvsAttribute, IpvsCommand, IpvsMessage};
pub use service::{PersistenceMask, Service};
pub use stats::Stats;
pub use types::{Family, ForwardMethod, Protocol, ServiceFlags, ServiceId};
/// The crates whose traits the codec implements.
pub use {netlink_packet_core, netlink_packet_generic};
