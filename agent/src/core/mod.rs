// SPDX-License-Identifier: Apache-2.0
//! The pure core: from Kubernetes objects to a plan. No I/O, no clock, no netlink, no Kubernetes types.
//!
//! Each folder imports only folders before it: `model` (shared types), `rules` (iptables chains), `mirror` (kernel
//! state), `service` (state that Services need), `plan` (the difference between both, failures and retries), `loop_state`
//! (all of these, lent to a question).

pub mod loop_state;
pub mod mirror;
pub mod model;
pub mod plan;
pub mod rules;
pub mod service;
