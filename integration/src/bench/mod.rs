// SPDX-License-Identifier: Apache-2.0
//! Benchmarks of `make bench`.
//!
//! [`table`] is what it prints, [`rows`] and [`process_rows`] what is in it, [`series`] and [`instructions`] what an
//! instruction clock says. [`mode`] is what is compared, [`limit`] what everything is measured against. [`node`] has the
//! agent's loop on a real kernel in this process, [`events`] what changes cost it, [`audit`] what looking after everything
//! does; [`process`] starts the agent as it is installed; [`first`] asks as a client; [`counts`] is the part that cannot be
//! noise and runs in CI, with its [`expected`] counts; [`plot`] draws.

pub mod allocations;
pub mod audit;
pub mod counts;
pub mod events;
pub mod expected;
pub mod first;
pub mod instructions;
pub mod limit;
pub mod mode;
pub mod node;
pub mod plot;
pub mod process;
pub mod process_rows;
mod question_rows;
pub mod rows;
pub mod series;
pub mod table;
