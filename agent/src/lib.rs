// SPDX-License-Identifier: Apache-2.0
//! The library of the `kube-ipvs` agent. The data flow, the rooms and the rules of the house are
//! in ARCHITECTURE.md.

#![deny(unsafe_code)]

pub mod chance;
pub mod cli;
pub mod commands;
pub mod config;
pub mod core;
pub mod events;
pub mod file_watch;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod inbox;
pub mod inspect;
pub mod kernel;
pub mod lock;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod notices;
pub mod pace;
pub mod probe;
pub mod reconcile;
#[cfg(test)]
mod reconcile_tests;
pub mod reload;
pub mod serve;
pub mod source;
pub mod store;
#[cfg(test)]
mod testing;
pub mod trial;
pub mod watchdog;
pub mod watches;
pub mod words;
pub mod yaml;
