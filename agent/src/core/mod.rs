// SPDX-License-Identifier: Apache-2.0
//! The pure part: from objects to a plan. No I/O, no clock, no netlink, no Kubernetes types.
//!
//! Each room imports only rooms before it: `model` (vocabulary), `rules` (iptables chains), `mirror` (what the
//! kernel holds), `service` (what Services ask for), `plan` (the difference, and what failed).

pub mod mirror;
pub mod model;
pub mod plan;
pub mod rules;
pub mod service;
