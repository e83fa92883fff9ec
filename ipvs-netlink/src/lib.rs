// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod client;
mod command;
mod control;
mod destination;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod message;
mod service;
mod stats;
mod types;
mod wire;

pub use client::{BatchReport, Client, ServiceList};
pub use command::{Command, CommandKind};
pub use control::{Config, DaemonState, Info, SyncDaemon};
pub use destination::{Destination, Tunnel, TunnelKind};
pub use error::{CommandError, Error, ErrorKind};
pub use message::{IpvsAttribute, IpvsCommand, IpvsMessage};
pub use netlink_batch::{Counters, Error as NetlinkError};
pub use service::{PersistenceMask, Service};
pub use stats::Stats;
pub use types::{Family, ForwardMethod, Protocol, ServiceFlags, ServiceId};
