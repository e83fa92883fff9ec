// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs cleanup` removes the objects of this agent, `--cleanup` those of every mode of kube-proxy. Both print one
//! line per removed object, and fail only if an object is left.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::ensure;

use crate::cli::CleanupArgs;
use crate::config::{Config, ConfigFlags, host};
use crate::core::plan::cleanup_plan::{CleanupScope, CleanupStep, build_steps, is_served_otherwise};
use crate::inspect::socket;
use crate::kernel::teardown::Teardown;

/// When our rules for VIPs in nf_tables are gone, new connections go to the other mode. Those that IPVS balanced in the moment
/// before get this time to end.
const GRACE: Duration = Duration::from_secs(2);

/// Runs `kube-ipvs cleanup`.
///
/// # Errors
/// When an object is left, or when an agent runs, which would create everything again.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    clean(false, args.config.as_deref(), &ConfigFlags::default(), args.dry_run)
}

/// Removes the objects of this agent, or (`--cleanup`) those of every mode.
///
/// # Errors
/// As [`run`].
pub fn clean(
    every_mode: bool,
    config: Option<&Path>,
    flags: &ConfigFlags,
    dry_run: bool,
) -> anyhow::Result<()> {
    // The mode may be another one already, so the rest of the file is not validated.
    let exclude_cidrs = Config::read_exclude_cidrs(config, flags)?;
    let scope = CleanupScope { every_mode, exclude_cidrs };
    // No agent may run or start meanwhile: it would create everything again.
    let _alone = if dry_run { None } else { Some(socket::claim()?) };
    let mut teardown = Teardown::open()?;
    let (found, unreadable) = teardown.observe(&host::families());
    let (steps, kept) = build_steps(&found, &scope);
    let mut left: Vec<String> = unreadable.into_iter().chain(kept).collect();
    let is_guarding = |step: &CleanupStep| matches!(step, CleanupStep::NftServices(_));
    let mut waits = steps.iter().any(is_guarding) && !dry_run && !every_mode && is_served_otherwise(&found);
    for step in &steps {
        if waits && !is_guarding(step) {
            thread::sleep(GRACE);
            waits = false;
        }
        let result = if dry_run { Ok(()) } else { teardown.run(step) };
        let word = match (&result, dry_run) {
            (Ok(()), true) => "would remove",
            (Ok(()), false) => "removed",
            (Err(_), _) => "cannot remove",
        };
        step.to_string().lines().for_each(|line| println!("{word} {line}"));
        if let Err(error) = result {
            left.push(format!("{}: {error}", step.to_string().replace('\n', "; ")));
        }
    }
    if steps.is_empty() && left.is_empty() {
        println!("nothing to remove");
    }
    left.iter().for_each(|thing| println!("left: {thing}"));
    ensure!(left.is_empty(), "{} objects are left on this node, listed above", left.len());
    Ok(())
}
