// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs plan`: what a start would change on this node; and `run --dry-run`, which follows the changes of objects.

use std::process::ExitCode;
use std::time::Duration;

use super::offline::Offline;
use crate::cli::{LookArgs, PlanArgs};
use crate::inspect::layout::Layout;

/// The code when a start would change something.
const CHANGES: u8 = 2;
/// How often a dry run reads the kernel when no object changes.
const PERIOD: Duration = Duration::from_secs(30);

/// Prints the plan. The code is 0 if a start would change nothing, 2 if something.
///
/// # Errors
/// The objects or the kernel cannot be read.
pub fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let mut offline = Offline::open(&args.look)?;
    let preview = offline.preview()?;
    let report = offline.report(&preview);
    super::print_answer(&report, args.answer.output, |layout| report.text(layout, !args.summary))?;
    Ok(ExitCode::from(if report.is_empty() { 0 } else { CHANGES }))
}

/// Prints the plan whenever it is another one, until the process is stopped.
///
/// # Errors
/// The objects or the kernel cannot be read at the start.
pub fn follow(args: &LookArgs) -> anyhow::Result<()> {
    let mut offline = Offline::open(args)?;
    let mut last = None;
    loop {
        let preview = offline.preview()?;
        let report = offline.report(&preview);
        if last.as_ref() != Some(&report) {
            super::print(&format!("{} {}", jiff::Timestamp::now(), report.text(Layout::of_stdout(), true)))?;
            last = Some(report);
        }
        offline.wait_for_change(PERIOD);
        offline.refresh()?;
    }
}
