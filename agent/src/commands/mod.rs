// SPDX-License-Identifier: Apache-2.0
//! The commands of the program.

pub mod cleanup;
pub mod init;
pub mod list;
pub mod run;
pub mod show_config;

use std::io::{ErrorKind, Write as _};

/// Writes to standard output. A closed pipe is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
