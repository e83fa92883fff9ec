// SPDX-License-Identifier: Apache-2.0
//! What the commands show that look at a node: the IPVS table, and what the running agent answers at its socket.

pub mod agent_objects;
pub mod answers;
pub mod doctor;
pub mod explain;
pub mod filter;
pub mod ipvs_conn;
pub mod ipvs_table;
pub mod ipvsadm;
pub mod kernel_text;
pub mod layout;
pub mod list_document;
pub mod owners;
pub mod plan_report;
pub mod socket;
pub mod sort;
pub mod status;
mod status_text;
pub mod top;
pub mod trace;
