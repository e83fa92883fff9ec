// SPDX-License-Identifier: Apache-2.0
//! Files, programs and sockets of the node.

pub mod child;
pub mod links;
pub(in crate::kernel) mod local_route;
pub mod log_output;
pub mod modules;
pub mod name_servers;
pub mod node_files;
pub mod routes;
pub mod sockets;
pub mod sysctl;
