// SPDX-License-Identifier: Apache-2.0
//! Traced packets as text.

use super::{SCHEMA_VERSION, StepAction, TraceReport, TraceStep, TracedPacket};
use crate::inspect::layout::{Layout, Tone};
use crate::words;

impl TraceReport {
    /// A report about a target.
    pub fn new(target: String, seconds: u64, packets: Vec<TracedPacket>, notes: Vec<String>) -> Self {
        Self { schema_version: SCHEMA_VERSION, target, seconds, packets, notes }
    }

    /// The text for people.
    pub fn text(&self, layout: Layout) -> String {
        let mut text = String::new();
        for (index, packet) in self.packets.iter().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            text.push_str(&packet.text(index + 1, layout));
        }
        if self.packets.is_empty() {
            text.push_str(&layout.wrap("", &self.nothing()));
        }
        for note in &self.notes {
            text.push_str(&layout.wrap("note: ", note));
        }
        for command in self.commands() {
            text.push_str(&format!("see the rules: {command}\n"));
        }
        text
    }

    /// Says that nothing was seen.
    pub fn nothing(&self) -> String {
        format!("no packet to {} came in {} s", self.target, self.seconds)
    }

    /// Commands that show the rules whose text is not known.
    fn commands(&self) -> Vec<String> {
        let steps = self.packets.iter().flat_map(|packet| &packet.steps);
        let unknown = steps.filter(|step| step.rule.is_some() && step.rule_text.is_none());
        let mut commands: Vec<String> =
            unknown.map(|step| format!("nft -a list chain {}", step.place())).collect();
        commands.sort_unstable();
        commands.dedup();
        commands
    }
}

impl TracedPacket {
    fn text(&self, number: usize, layout: Layout) -> String {
        let way = format!("{} {} -> {}", self.protocol, self.client, self.destination);
        let service =
            self.service.as_ref().map_or("no Service known".to_owned(), |name| format!("Service {name}"));
        let title = format!("PACKET {number}  {way}  {service}");
        let mut text = format!("{}\n", layout.paint(Tone::Title, &title));
        text.push_str(&match &self.interface {
            Some(interface) => format!("  came in by {interface}\n"),
            None => "  sent by this node\n".to_owned(),
        });
        let hook = |step: &TraceStep| step.hook.clone().unwrap_or_else(|| "-".to_owned());
        let width = |of: &dyn Fn(&TraceStep) -> String| {
            self.steps.iter().map(|step| of(step).chars().count()).max().unwrap_or_default()
        };
        let (hooks, places) = (width(&hook), width(&TraceStep::place));
        for step in &self.steps {
            if let Some(destination) = step.new_destination {
                text.push_str(&layout.wrap("  ", &format!("it goes to {destination} from here on")));
            }
            let first = format!("  {:hooks$}  {:places$}  ", hook(step), step.place());
            text.push_str(&layout.hang(&first, 4, &step.what()));
        }
        if self.more_steps > 0 {
            text.push_str(&format!("  and {}\n", words::count(self.more_steps, "more step")));
        }
        if let Some(tracked) = &self.conntrack {
            text.push_str(&layout.wrap("  ", &tracked.sentence(self.client)));
        }
        let tone = if self.real_server.is_some() { Tone::Good } else { Tone::Warning };
        let line = layout.wrap("  ", &self.result);
        text.push_str(&format!("{}\n", layout.paint(tone, line.trim_end())));
        text
    }
}

impl TraceStep {
    fn what(&self) -> String {
        let met = match (self.rule, &self.rule_text) {
            (Some(handle), Some(text)) => format!("rule {handle} ({text})"),
            (Some(handle), None) => format!("rule {handle}"),
            (None, _) => "end of the chain".to_owned(),
        };
        let became = match (self.action, &self.to) {
            (StepAction::Continue, _) => "went on".to_owned(),
            (StepAction::Jump, Some(to)) => format!("jump to {to}"),
            (StepAction::Jump, None) => "jump".to_owned(),
            (StepAction::Return, _) => "return".to_owned(),
            (StepAction::Accept, _) => "accept".to_owned(),
            (StepAction::Drop, _) => "drop".to_owned(),
            (StepAction::Reject, _) => "refused with an answer".to_owned(),
            (StepAction::Other, _) => "another verdict".to_owned(),
        };
        let mark = self.mark.map(|mark| format!(", mark is now {mark:#x}")).unwrap_or_default();
        format!("{met}: {became}{mark}")
    }
}
