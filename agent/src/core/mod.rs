// SPDX-License-Identifier: Apache-2.0
//! The pure part: from objects to a plan. No I/O, no clock, no netlink, no Kubernetes types.
//!
//! `model` (vocabulary) → `endpoints` (who serves) → `fragment` (what one Service contributes)
//! → `desired` (all fragments, indexed) → `plan` (difference to `observed`) → `Plan`.

pub mod address;
pub mod audit;
pub mod chains;
pub mod cleanup;
pub mod desired;
pub mod drain;
pub mod endpoints;
pub mod failures;
pub mod few;
pub mod flows;
pub mod fragment;
pub mod map;
pub mod members;
pub mod model;
pub mod node;
pub mod observed;
pub mod op;
pub mod outcome;
pub mod ownership;
pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod protected;
pub mod removal;
pub mod retries;
pub mod rules;
pub mod save;
pub mod sets;
pub mod settings;
pub mod subject;
