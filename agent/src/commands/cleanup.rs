// SPDX-License-Identifier: Apache-2.0
//! Leaving a node: `kube-ipvs cleanup` removes what is ours, `--cleanup` what any mode of kube-proxy
//! makes. Both say what they do, line by line, and fail only if something is left.

use std::path::Path;

use anyhow::ensure;
use ipnet::IpNet;

use crate::cli::CleanupArgs;
use crate::config::{Config, ConfigFlags, host};
use crate::core::plan::cleanup_plan::{CleanupScope, build_steps};
use crate::inspect::owners;
use crate::kernel::teardown::Teardown;

/// Runs `kube-ipvs cleanup`.
///
/// # Errors
/// Names what is left; also when an agent runs, which would make everything anew.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let exclude_cidrs = exclude_cidrs(args.config.as_deref(), &ConfigFlags::default())?;
    clean(&CleanupScope { every_mode: false, exclude_cidrs }, args.dry_run)
}

/// Runs `--cleanup`.
///
/// # Errors
/// As [`run`].
pub fn run_every_mode(config: Option<&Path>, flags: &ConfigFlags) -> anyhow::Result<()> {
    clean(&CleanupScope { every_mode: true, exclude_cidrs: exclude_cidrs(config, flags)? }, false)
}

fn exclude_cidrs(config: Option<&Path>, flags: &ConfigFlags) -> anyhow::Result<Vec<IpNet>> {
    // Whoever moves away from ipvs changes the mode first.
    Config::read_exclude_cidrs(config, flags)
}

fn clean(scope: &CleanupScope, dry_run: bool) -> anyhow::Result<()> {
    // An agent that runs, or starts meanwhile, would make everything anew.
    let _alone = if dry_run { None } else { Some(owners::claim()?) };
    let mut teardown = Teardown::open()?;
    let (found, unreadable) = teardown.observe(&host::families());
    let (steps, kept) = build_steps(&found, scope);
    let mut left: Vec<String> = unreadable.into_iter().chain(kept).collect();
    for step in &steps {
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
    ensure!(left.is_empty(), "{} things are left on this node, named above", left.len());
    Ok(())
}
