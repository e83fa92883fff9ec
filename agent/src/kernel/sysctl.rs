// SPDX-License-Identifier: Apache-2.0
//! Sysctls of the network namespace under `/proc/sys`, and parameters of modules under `/sys`.

use std::fs;

use super::OpError;
use crate::core::settings::Sysctl;

/// The current number; `None` when it cannot be read.
pub fn read(path: &str) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Writes a number.
///
/// # Errors
/// Names the file, the value, and the remedy.
pub fn write(sysctl: &Sysctl) -> Result<(), OpError> {
    fs::write(sysctl.path, sysctl.value.to_string()).map_err(|error| {
        let Sysctl { path, value, .. } = sysctl;
        let now = read(path).map_or_else(|| "unreadable".to_owned(), |n| n.to_string());
        let on_node = match path.strip_prefix("/proc/sys/") {
            Some(name) => format!("sysctl -w {}={value}", name.replace('/', ".")),
            None => format!("echo {value} > {path}"),
        };
        OpError::plain(format!(
            "cannot set {path} to {value} (it is {now}): {error}; set it on the node (`{on_node}`) or let this \
             container write it (privileged)"
        ))
    })
}
