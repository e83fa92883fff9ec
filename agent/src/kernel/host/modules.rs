// SPDX-License-Identifier: Apache-2.0
//! Loads kernel modules, in the init container, which has more privileges than the agent.

use std::time::Duration;

use super::child::{self, ChildError};

/// Modules that the agent needs and that old kernels do not load automatically.
const MODULES: [&str; 8] =
    ["ip_vs", "dummy", "ip_set", "nf_conntrack", "nf_conntrack_netlink", "xt_ipvs", "xt_set", "xt_comment"];

/// How long modprobe may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Loads the modules of the agent and of an IPVS scheduler. Failures are only logged: a module may be built in, and
/// the agent reports a missing module when it needs it.
pub fn load(scheduler: &str) {
    let scheduler = format!("ip_vs_{scheduler}");
    let names = MODULES.into_iter().chain([scheduler.as_str()]);
    let args: Vec<&str> = ["-a"].into_iter().chain(names).collect();
    match child::run("modprobe", &args, "", LIMIT, |_| {}) {
        Ok(_) => {}
        Err(ChildError::Missing(_)) => {
            tracing::info!(
                "modprobe is not installed: the kernel has to load the modules when the agent first uses them"
            );
        }
        Err(error) => {
            tracing::info!("modprobe failed to load some modules: {error}; ignored, they may be built in")
        }
    }
}
