// SPDX-License-Identifier: Apache-2.0
//! `--init-only`: the steps that need more privileges than the agent, once before it starts.

use crate::core::model::settings::Settings;
use crate::core::plan::op::Op;
use crate::kernel::Kernel;
use crate::kernel::host::{modules, sysctl};
use crate::kernel::linux::LinuxKernel;
use crate::words;

/// Loads modules, sets sysctls and IPVS timeouts, and tests the scheduler. Creates nothing. A sysctl that cannot be set
/// is only logged, because the agent works without it.
///
/// # Errors
/// A missing module, privilege or scheduler.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    modules::load(&settings.scheduler);
    let mut kernel = LinuxKernel::open(settings)?;
    kernel.check_scheduler(&settings.scheduler)?;
    let unmet = settings.sysctls.iter().filter(|wanted| !wanted.is_met(sysctl::read(wanted.path)));
    let ops: Vec<Op> =
        unmet.cloned().map(Op::SetSysctl).chain([Op::SetTimeouts(settings.timeouts)]).collect();
    let results = kernel.execute(&ops.iter().collect::<Vec<_>>());
    let failed = ops.iter().zip(results).filter_map(|(op, result)| Some((op, result.err()?)));
    let mut failures = 0;
    for (op, error) in failed {
        failures += 1;
        tracing::error!("cannot set {}: {error}; Services are served without this setting", op.subject());
    }
    let set = words::count(ops.len() - failures, "setting");
    tracing::info!(
        set = ops.len() - failures,
        failed = failures,
        "prepared the node: {set} changed, {failures} failed"
    );
    Ok(())
}
