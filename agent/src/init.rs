// SPDX-License-Identifier: Apache-2.0
//! `--init-only`: what needs more privileges than the agent itself, done once before it starts.

use crate::core::op::Op;
use crate::core::settings::Settings;
use crate::kernel::linux::LinuxKernel;
use crate::kernel::{Kernel, modules, sysctl};

/// Loads modules, sets sysctls and IPVS timeouts, and tries the scheduler. Creates nothing.
///
/// # Errors
/// Names everything that is not as it must be.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    modules::load(&settings.scheduler);
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
