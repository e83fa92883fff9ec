// SPDX-License-Identifier: Apache-2.0
//! Sysctls of the network namespace, under `/proc/sys`.

use std::fs;

use super::OpError;
use crate::core::model::Sysctl;

fn file(path: &str) -> String {
    format!("/proc/sys/{path}")
}

/// The current number; `None` when it cannot be read.
pub fn read(path: &str) -> Option<i64> {
    fs::read_to_string(file(path)).ok()?.trim().parse().ok()
}

/// Writes a sysctl.
///
/// # Errors
/// Names the sysctl, the value, and the remedy.
pub fn write(sysctl: &Sysctl) -> Result<(), OpError> {
    fs::write(file(sysctl.path), sysctl.value.to_string()).map_err(|error| {
        let name = sysctl.path.replace('/', ".");
        OpError::plain(format!(
            "cannot set {name}: {error}; set it on the node (`sysctl -w {name}={}`) or let this container write \
             /proc/sys (privileged)",
            sysctl.value
        ))
    })
}
