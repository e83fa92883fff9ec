// SPDX-License-Identifier: Apache-2.0
//! One log line a minute about the changes.

use crate::core::plan::pass::{Pass, Touched};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::core::model::ObjectName;
use crate::core::plan::op::OpKind;
use crate::core::plan::outcome::Outcome;
use crate::words;

/// Period of the log line.
const MINUTE: Duration = Duration::from_secs(60);

/// Changes since the last log line.
#[derive(Debug, Default)]
pub(super) struct Minute {
    began: Duration,
    passes: usize,
    changes: usize,
    /// The first of the changed Services.
    services: BTreeSet<ObjectName>,
    ops: BTreeMap<OpKind, usize>,
    slowest: Duration,
}

impl Minute {
    /// Adds a pass that changed something.
    pub fn add(&mut self, pass: &Pass, took: Duration, now: Duration) {
        if self.passes == 0 {
            self.began = now;
        }
        self.passes += 1;
        self.slowest = self.slowest.max(took);
        self.changes += pass.services.count;
        if self.services.len() < Touched::NAMED {
            self.services.extend(pass.services.names.iter().cloned());
        }
        for (op, outcome) in pass.plan.ops.iter().zip(&pass.report.outcomes) {
            if *outcome == Outcome::Done {
                *self.ops.entry(op.kind()).or_default() += 1;
            }
        }
    }

    /// Logs the changes if the line is due.
    pub fn tick(&mut self, now: Duration) {
        if now >= self.began.saturating_add(MINUTE) {
            std::mem::take(self).log();
            self.began = now;
        }
    }

    fn log(&self) {
        if self.ops.is_empty() {
            return;
        }
        let ops: Vec<String> = self.ops.iter().map(|(kind, count)| kind.past(*count)).collect();
        let services = match self.changes {
            0 => String::new(),
            count => {
                let names: Vec<String> = self.services.iter().map(ToString::to_string).collect();
                let more = if count > names.len() { ", …" } else { "" };
                format!(" ({}: {}{more})", words::count(count, "changed Service"), names.join(", "))
            }
        };
        tracing::info!(
            passes = self.passes,
            slowest_ms = milliseconds(self.slowest),
            "in the last minute: {}{services}; slowest sync {}",
            ops.join(", "),
            words::time(self.slowest)
        );
    }
}

/// Milliseconds, rounded to microseconds.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl OpKind {
    /// The number of ops, as text: `3 real servers added`.
    fn past(self, count: usize) -> String {
        let (one, many, verb) = match self {
            OpKind::SetSysctl => ("sysctl", "sysctls", "set"),
            OpKind::SetTimeouts => ("set of IPVS timeouts", "sets of IPVS timeouts", "changed"),
            OpKind::CreateDevice => ("device", "devices", "created"),
            OpKind::DestroySet => ("ipset", "ipsets", "destroyed"),
            OpKind::CreateSet => ("ipset", "ipsets", "created"),
            OpKind::GrowSet => ("ipset", "ipsets", "enlarged"),
            OpKind::AddEntry => ("set entry", "set entries", "added"),
            OpKind::WriteRules => ("rule set", "rule sets", "written"),
            OpKind::AddVirtualServer => ("virtual server", "virtual servers", "added"),
            OpKind::EditVirtualServer => ("virtual server", "virtual servers", "changed"),
            OpKind::AddRealServer => ("real server", "real servers", "added"),
            OpKind::EditRealServer => ("real server", "real servers", "changed"),
            OpKind::Bind => ("address", "addresses", "bound"),
            OpKind::Unbind => ("address", "addresses", "unbound"),
            OpKind::AddRoute => ("local route", "local routes", "added"),
            OpKind::RemoveRoute => ("local route", "local routes", "removed"),
            OpKind::DrainRealServer => ("real server", "real servers", "set to drain"),
            OpKind::RemoveRealServer => ("real server", "real servers", "removed"),
            OpKind::RemoveVirtualServer => ("virtual server", "virtual servers", "removed"),
            OpKind::RemoveEntry => ("set entry", "set entries", "removed"),
            OpKind::ForgetFlows => ("search for stale UDP flows", "searches for stale UDP flows", "made"),
            OpKind::RemoveLeftovers => ("rule set of another mode", "rule sets of other modes", "removed"),
        };
        format!("{} {} {verb}", words::thousands(count), if count == 1 { one } else { many })
    }
}
