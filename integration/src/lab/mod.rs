// SPDX-License-Identifier: Apache-2.0
//! A cluster in network namespaces: nodes, pods, clients, traffic, and what the kernel says about it.
//!
//! Needs root and a kernel with IPVS (`integration/guest/run`). Every test builds its own namespaces, so
//! tests do not see each other. Process starts are dear in an emulated guest: what can be done on a thread
//! inside of a namespace is done there.

mod agent;
mod command;
mod netns;
pub mod nft_table;
pub mod oracle;
mod setup;
mod topology;
pub mod traffic;

pub use agent::{Agent, AgentSpec, agent_binary, write_objects};
pub use command::{Output, Process};
pub use netns::Netns;
pub use setup::{Setup, at, bound, ipvsadm};
pub use topology::{ConformanceNode, Host, Lab, Node, Pod, conformance_node};
