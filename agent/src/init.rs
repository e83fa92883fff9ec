// SPDX-License-Identifier: Apache-2.0
//! `--init-only`: what needs more privileges than the agent itself, done once before it starts.

use crate::core::op::Op;
use crate::core::settings::Settings;
use crate::kernel::linux::LinuxKernel;
use crate::kernel::{Kernel, modules, sysctl};

/// Loads modules, sets sysctls and IPVS timeouts, and tries the scheduler. Creates nothing. A sysctl that
/// cannot be set is logged: without it Services are served worse, without the agent not at all.
///
/// # Errors
/// What the agent cannot work without.
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
    for error in &failed {
        tracing::error!("{error}; Services are served all the same");
    }
    tracing::info!(set = ops.len() - failed.len(), failed = failed.len(), "the node is prepared");
    Ok(())
}
