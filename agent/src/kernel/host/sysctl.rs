// SPDX-License-Identifier: Apache-2.0
//! Sysctls of the network namespace under `/proc/sys`, and parameters of modules under `/sys`.

use std::fs;

use crate::core::model::settings::Sysctl;
use crate::core::plan::outcome::{Cause, OpError};
use crate::words;

/// The current number; `None`: it cannot be read.
pub fn read(path: &str) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Writes a number.
///
/// # Errors
/// When the file cannot be written and another program has not set the value meanwhile, with the remedy.
pub fn write(sysctl: &Sysctl) -> Result<(), OpError> {
    fs::write(sysctl.path, sysctl.value.to_string()).or_else(|error| {
        let Sysctl { path, value, .. } = sysctl;
        let now = read(path);
        if sysctl.is_met(now) {
            return Ok(());
        }
        let now = now.map_or_else(|| "unreadable".to_owned(), |n| n.to_string());
        let on_node = match path.strip_prefix("/proc/sys/") {
            Some(name) => format!("sysctl -w {}={value}", name.replace('/', ".")),
            None => format!("echo {value} > {path}"),
        };
        Err(OpError::plain(
            Cause::of_errno(error.raw_os_error().unwrap_or(0)),
            format!(
                "it is {now} and must be {value}: {}; run `{on_node}` on the node, or make this container \
                 privileged, so that the agent can write it",
                words::io_error(&error)
            ),
        ))
    })
}
