// SPDX-License-Identifier: Apache-2.0
//! What Services ask for: `endpoints` (who serves) → `fragment` (what one Service contributes) → `desired` (all
//! fragments, indexed). `node_facts` and `protected` are what they need to know about the node.

pub mod chosen;
pub mod desired;
pub mod endpoints;
pub mod fragment;
pub mod node_facts;
pub mod probed;
pub mod protected;
pub mod slow_start;
