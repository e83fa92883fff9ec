// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs top`: from readings of the IPVS table to the text of a screen. Everything here is pure; the loop, the terminal
//! and the readings are in `commands/watch_traffic.rs`.

mod draw_detail;
pub mod draw_top;
mod figures;
pub mod keyboard;
pub mod once_table;
pub mod rate_meter;
mod table_columns;
pub mod table_reading;
pub mod top_state;
pub mod traffic_order;

#[cfg(test)]
mod top_state_tests;
#[cfg(test)]
mod top_tests;
