// SPDX-License-Identifier: Apache-2.0
//! What a start would change, for people and programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::layout::{Layout, Tone};
use crate::core::mirror::Observed;
use crate::core::model::real_servers::RsState;
use crate::core::plan::op::{Op, OpKind, RulesOp};
use crate::core::plan::preview::Preview;
use crate::core::rules::Chains;
use crate::words;

/// The version of the JSON: a field that is removed or means something else gets the next one.
pub const SCHEMA_VERSION: u32 = 1;

/// What a start would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    pub schema_version: u32,
    /// Where the objects came from.
    pub source: String,
    /// What sets and rules are made of.
    pub rules_mode: String,
    /// Number of Services.
    pub services: usize,
    /// Number of changes by kind of operation, such as `add_virtual_server`.
    pub summary: BTreeMap<String, usize>,
    /// Virtual servers that no agent and no kube-proxy made: a start would remove them.
    pub foreign: Vec<String>,
    pub changes: Vec<PlannedChange>,
    /// What could not be compared, a sentence each.
    pub not_compared: Vec<String>,
}

/// A change of one kernel object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PlannedChange {
    /// `add`, `change` or `remove`.
    pub change: PlannedVerb,
    pub object: String,
    /// What changes, a line each; of rules in the form of a diff.
    pub lines: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named after the change")]
pub enum PlannedVerb {
    Add,
    Change,
    Remove,
}

impl PlanReport {
    /// The report of a preview; `observed` is the kernel before it.
    pub fn build(preview: &Preview, observed: Option<&Observed>) -> Self {
        let mut report = Self { schema_version: SCHEMA_VERSION, ..Self::default() };
        for (i, op) in preview.changes() {
            *report.summary.entry(<&str>::from(op.kind()).to_owned()).or_default() += 1;
            if preview.foreign.contains(&i) {
                report.foreign.push(op.subject().to_string());
            }
            report.changes.push(PlannedChange {
                change: verb(op.kind()),
                object: op.subject().to_string(),
                lines: lines(op, observed),
            });
        }
        let unread = preview.unread.iter().map(|family| format!("the {family} rules could not be read"));
        report.not_compared.extend(unread);
        report
    }

    /// Whether a start changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The text for people; `all`: every change, not only their numbers.
    pub fn text(&self, layout: Layout, all: bool) -> String {
        let services = words::count(self.services, "Service");
        let first = match self.changes.len() {
            0 => format!("a start would change nothing: {services}, objects from {}", self.source),
            count => format!(
                "a start would make {}: {services}, objects from {}, rules mode {}",
                words::count(count, "change"),
                self.source,
                self.rules_mode
            ),
        };
        let mut text = layout.wrap("", &first);
        for (kind, count) in &self.summary {
            let _ = writeln!(text, "  {:>7} {}", words::thousands(*count), kind.replace('_', " "));
        }
        if !self.foreign.is_empty() {
            text.push_str(&layout.wrap(
                "warning: ",
                "a start would remove virtual servers that no agent and no kube-proxy made; list their networks in \
                 ipvs.excludeCIDRs to keep them:",
            ));
            self.foreign.iter().for_each(|server| _ = writeln!(text, "  {server}"));
        }
        self.not_compared.iter().for_each(|part| text.push_str(&layout.wrap("warning: ", part)));
        if all && !self.changes.is_empty() {
            text.push_str(&layout.heading("Changes"));
            self.changes.iter().for_each(|change| text.push_str(&change.text(layout)));
        }
        text
    }
}

impl PlannedChange {
    fn text(&self, layout: Layout) -> String {
        let (sign, tone) = match self.change {
            PlannedVerb::Add => ('+', Tone::Good),
            PlannedVerb::Change => ('~', Tone::Warning),
            PlannedVerb::Remove => ('-', Tone::Bad),
        };
        let mut text = layout.paint(tone, &format!("{sign} {}", self.object));
        match &self.lines[..] {
            [] => {}
            [one] => _ = write!(text, ": {one}"),
            many => many.iter().for_each(|line| _ = write!(text, "\n    {line}")),
        }
        text + "\n"
    }
}

fn verb(kind: OpKind) -> PlannedVerb {
    match kind {
        OpKind::CreateDevice
        | OpKind::CreateSet
        | OpKind::AddEntry
        | OpKind::AddVirtualServer
        | OpKind::AddRealServer
        | OpKind::Bind
        | OpKind::AddRoute => PlannedVerb::Add,
        OpKind::SetSysctl
        | OpKind::SetTimeouts
        | OpKind::GrowSet
        | OpKind::WriteRules
        | OpKind::EditVirtualServer
        | OpKind::EditRealServer
        | OpKind::DrainRealServer => PlannedVerb::Change,
        OpKind::DestroySet
        | OpKind::Unbind
        | OpKind::RemoveRoute
        | OpKind::RemoveRealServer
        | OpKind::RemoveVirtualServer
        | OpKind::RemoveEntry
        | OpKind::ForgetFlows
        | OpKind::RemoveLeftovers => PlannedVerb::Remove,
    }
}

fn lines(op: &Op, observed: Option<&Observed>) -> Vec<String> {
    let one = |text: String| vec![text];
    match op {
        Op::SetSysctl(sysctl) => {
            let before = observed.and_then(|observed| observed.node.sysctls.get(sysctl.path));
            let before = before.map_or_else(|| "not readable".to_owned(), ToString::to_string);
            one(format!("{before} → {}", sysctl.value))
        }
        Op::SetTimeouts(t) => one(format!("tcp {} tcpfin {} udp {} (0: unchanged)", t.tcp, t.tcp_fin, t.udp)),
        Op::GrowSet(grow) => {
            one(format!("replaced by one with room for {}", words::thousands(grow.capacity as usize)))
        }
        Op::AddVirtualServer(_, spec) => one(format!("scheduler {}", spec.scheduler)),
        Op::EditVirtualServer(vs, spec) => {
            let before = observed.and_then(|observed| observed.virtual_servers.get(vs));
            let text = |spec: &crate::core::model::VsSpec| {
                format!("scheduler {}, flags {:#x}, timeout {}", spec.scheduler, spec.flags, spec.timeout)
            };
            let before = before.map(|before| text(&before.spec)).unwrap_or_default();
            one(format!("{before} → {}", text(spec)))
        }
        Op::EditRealServer(vs, rs, state) => {
            let before = observed.and_then(|observed| observed.virtual_servers.get(vs)?.real_servers.get(rs));
            let before = before.map(|before| format!("{} → ", before.text())).unwrap_or_default();
            one(format!("{before}{}", state.text()))
        }
        Op::AddRealServer(.., state) if *state != RsState::USUAL => one(state.text()),
        Op::DrainRealServer(..) => one("weight 0: it keeps its connections and gets no new ones".to_owned()),
        Op::WriteRules(rules) => rules_diff(rules, observed),
        Op::RemoveLeftovers(_) => one(op.to_string().trim_start_matches("- ").to_owned()),
        _ => Vec::new(),
    }
}

/// The rules that go and those that come, chain by chain.
fn rules_diff(op: &RulesOp, observed: Option<&Observed>) -> Vec<String> {
    let nothing = Chains::new();
    let before = observed.map_or(&nothing, |observed| &observed.rules[op.family].chains);
    let mut lines: Vec<String> = op.jumps.iter().map(|fix| format!("~ jumps of {}", fix.from)).collect();
    for chain in before.keys().chain(op.chains.keys().filter(|chain| !before.contains_key(*chain))) {
        let of = |chains: &Chains| chains.get(chain).cloned().unwrap_or_default();
        let (has, wants) = (of(before), of(&op.chains));
        let name = format!("{} {}", chain.0.name(), chain.1);
        lines.extend(has.iter().filter(|rule| !wants.contains(rule)).map(|rule| format!("- {name}: {rule}")));
        lines.extend(wants.iter().filter(|rule| !has.contains(rule)).map(|rule| format!("+ {name}: {rule}")));
        if has.len() == wants.len() && has != wants && has.iter().all(|rule| wants.contains(rule)) {
            lines.push(format!("~ {name}: order of rules"));
        }
    }
    lines
}
