// SPDX-License-Identifier: Apache-2.0
//! Kernel modules, for the one time that more privileges than usual are there.

use std::time::Duration;

use super::child::{self, ChildError};

/// What the agent needs and old kernels do not load by themselves when asked.
const MODULES: [&str; 8] =
    ["ip_vs", "dummy", "ip_set", "nf_conntrack", "nf_conntrack_netlink", "xt_ipvs", "xt_set", "xt_comment"];

/// How long modprobe may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Loads the modules of the agent and of an IPVS scheduler. A module may be built in, or be loaded
/// already; what is missing in truth is found by its use.
pub fn load(scheduler: &str) {
    let scheduler = format!("ip_vs_{scheduler}");
    let names = MODULES.into_iter().chain([scheduler.as_str()]);
    let args: Vec<&str> = ["-a"].into_iter().chain(names).collect();
    match child::run("modprobe", &args, "", LIMIT, |_| {}) {
        Ok(_) => {}
        Err(ChildError::Missing(_)) => {
            tracing::info!("there is no modprobe here: modules are loaded by their first use, if at all");
        }
        Err(error) => tracing::info!("modprobe did not load every module: {error}"),
    }
}
