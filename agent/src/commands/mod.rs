// SPDX-License-Identifier: Apache-2.0
//! The commands of the program.

pub mod cleanup;
pub mod init;
pub mod list;
pub mod run;
pub mod show_config;
