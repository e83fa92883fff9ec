// SPDX-License-Identifier: Apache-2.0
//! Kernel modules, for the one time that more privileges than usual are there.

use std::io::ErrorKind;
use std::process::Command;

/// What the agent needs and old kernels do not load by themselves when asked.
const MODULES: [&str; 8] =
    ["ip_vs", "dummy", "ip_set", "nf_conntrack", "nf_conntrack_netlink", "xt_ipvs", "xt_set", "xt_comment"];

/// Loads the modules of the agent and of an IPVS scheduler. A module may be built in, or be loaded
/// already; what is missing in truth is found by its use.
pub fn load(scheduler: &str) {
    let scheduler = format!("ip_vs_{scheduler}");
    let names = MODULES.into_iter().chain([scheduler.as_str()]);
    match Command::new("modprobe").arg("-a").args(names).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            tracing::info!("modprobe could not load every module ({}): {}", output.status, text.trim());
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            tracing::info!("there is no modprobe here: modules are loaded by their first use, if at all");
        }
        Err(error) => tracing::warn!("cannot start modprobe: {error}"),
    }
}
