// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs verify`: whether the kernel equals what the objects ask for.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::offline::Offline;
use crate::cli::{LookArgs, VerifyArgs};
use crate::core::plan::preview::Preview;
use crate::inspect::layout::{Layout, Tone};
use crate::words;

/// The pause between two comparisons.
const PAUSE: Duration = Duration::from_secs(1);
/// Differences that are named.
const NAMED: usize = 50;

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    pub schema_version: u32,
    /// Whether the kernel equals what the objects ask for.
    pub equal: bool,
    /// Number of Services.
    pub services: usize,
    /// Number of differences.
    pub differences: usize,
    /// The first 50, such as `+ address 10.96.0.1`: `+` is missing, `-` is too much, `=` is different.
    pub first: Vec<String>,
    /// Why nothing was compared.
    pub problem: Option<String>,
}

/// Compares until the kernel is as it should be or the time is over. The code is 0 if it is, 1 if not.
///
/// # Errors
/// The objects or the kernel cannot be read at the first try.
pub fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let until = Instant::now() + args.timeout;
    let mut offline = open(&args.look, until)?;
    let mut is_synced = offline.refresh()?;
    let report = loop {
        let report = match (is_synced, offline.preview()) {
            (false, _) => VerifyReport::problem("the agent has not listed all objects yet".to_owned()),
            (true, Ok(preview)) => VerifyReport::of(&preview, offline.report(&preview).services),
            (true, Err(error)) => VerifyReport::problem(words::chain(&error)),
        };
        if report.equal || Instant::now() + PAUSE > until {
            break report;
        }
        std::thread::sleep(PAUSE);
        is_synced = offline.refresh()?;
    };
    super::print_answer(&report, args.answer.output, |layout| report.text(layout))?;
    Ok(ExitCode::from(u8::from(!report.equal)))
}

/// Opens the node. An agent that starts has no socket yet: tried again until the time is over.
fn open(look: &LookArgs, until: Instant) -> anyhow::Result<Offline> {
    loop {
        match Offline::open(look) {
            Err(_) if Instant::now() + PAUSE <= until => std::thread::sleep(PAUSE),
            opened => return opened,
        }
    }
}

impl VerifyReport {
    /// Nothing could be compared.
    pub fn problem(problem: String) -> Self {
        Self { schema_version: 1, problem: Some(problem), ..Self::default() }
    }

    /// The result of a comparison. `services`: number of Services.
    pub fn of(preview: &Preview, services: usize) -> Self {
        let differences: Vec<String> = preview.differences().map(ToString::to_string).collect();
        let unread = preview.unread.iter().map(|family| format!("the {family} rules cannot be read"));
        Self {
            schema_version: 1,
            equal: differences.is_empty() && preview.unread.is_empty(),
            services,
            differences: differences.len(),
            first: differences.into_iter().take(NAMED).collect(),
            problem: unread.reduce(|all, one| format!("{all}; {one}")),
        }
    }

    /// The text for people.
    pub fn text(&self, layout: Layout) -> String {
        let services = words::count(self.services, "Service");
        if self.equal {
            let good = layout.paint(Tone::Good, "equal");
            return format!("{good}: the kernel has what {services} ask for\n");
        }
        let mut text = layout.paint(Tone::Bad, "not equal") + "\n";
        if let Some(problem) = &self.problem {
            text.push_str(&layout.wrap("  ", problem));
        }
        self.first.iter().for_each(|difference| text.push_str(&format!("  {difference}\n")));
        if self.differences > self.first.len() {
            text.push_str(&format!("  and {} more\n", words::thousands(self.differences - self.first.len())));
        }
        text
    }
}
