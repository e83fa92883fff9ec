// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![warn(clippy::incompatible_msrv)]

#[macro_use]
mod numbers;
mod chain;
mod client;
mod command;
mod element;
mod error;
mod expression;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod generation;
mod key;
mod notification;
mod register;
mod rule;
mod set;
mod table;
mod trace;
mod transaction;
pub mod userdata;
mod wire;

pub use chain::{BaseChain, Chain, Hook, Policy, priority};
pub use client::{Client, Scope};
pub use command::Command;
pub use element::{Element, parse_elements};
pub use error::{CommitError, RefusedCommand};
pub use expression::{
    CmpOp, Counter, CtKey, CtState, Expression, FibFlags, FibResult, MasqueradeFlags, MetaKey, NatKind,
    PayloadBase, RangeOp, Reject, Verdict,
};
pub use generation::Generation;
pub use key::{Key, KeyField};
/// The transport.
pub use netlink_batch;
pub use netlink_batch::{Counters, Error, Refusal};
pub use notification::{Action, GROUP, Notification, Object, listen};
pub use register::Register;
pub use rule::Rule;
pub use set::{Set, SetFlags};
pub use table::{Table, TableFlags};
pub use trace::{TRACE_GROUP, TraceEvent, TraceKind, TraceVerdict, listen_traces};
pub use transaction::{Transaction, TransactionMessage};
pub use wire::Family;
