// SPDX-License-Identifier: Apache-2.0
//! `--init-only`: what needs more privileges than the agent itself, done once before it starts.

use std::io::ErrorKind;
use std::process::Command;

use anyhow::Context;

use crate::core::op::Op;
use crate::core::settings::Settings;
use crate::kernel::linux::LinuxKernel;
use crate::kernel::{Kernel, sysctl};

/// The modules that the agent needs and the kernel does not load by itself when asked.
const MODULES: [&str; 4] = ["ip_vs", "nf_conntrack", "xt_ipvs", "xt_set"];

/// Loads modules, sets sysctls and IPVS timeouts, and tries the scheduler. Creates nothing.
///
/// # Errors
/// Names everything that is not as it must be.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    load_modules(&format!("ip_vs_{}", settings.scheduler));
    let mut kernel = LinuxKernel::open(settings)?;
    kernel.check_scheduler(&settings.scheduler)?;
    let mut ops: Vec<Op> = Vec::new();
    let unmet = settings.sysctls.iter().filter(|wanted| !wanted.is_met(sysctl::read(wanted.path)));
    ops.extend(unmet.cloned().map(Op::SetSysctl));
    ops.push(Op::SetTimeouts(settings.timeouts));
    let results = kernel.execute(&ops.iter().collect::<Vec<_>>());
    let failed: Vec<String> = results.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    tracing::info!(set = ops.len() - 1, "the node is prepared: sysctls, timeouts, scheduler");
    Ok(())
}

/// A module may be built in, or be loaded already; what is missing in truth is found by its use.
fn load_modules(scheduler: &str) {
    let names = MODULES.into_iter().chain([scheduler]);
    match Command::new("modprobe").arg("-qa").args(names).output().context("modprobe") {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            tracing::info!("modprobe could not load every module ({}): {}", output.status, text.trim());
        }
        Err(error)
            if error.downcast_ref().is_some_and(|e: &std::io::Error| e.kind() == ErrorKind::NotFound) =>
        {
            tracing::info!("there is no modprobe here: modules are loaded by their first use, if at all");
        }
        Err(error) => tracing::warn!("{error:#}"),
    }
}
