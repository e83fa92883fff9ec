// SPDX-License-Identifier: Apache-2.0
//! The explanation as text.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::{EndpointReport, Explanation, Frontend, PathReport};
use crate::inspect::layout::{Layout, Tone};
use crate::words;

impl Explanation {
    /// The text for people. `steps`: with each decision on the way of a packet.
    pub fn text(&self, layout: Layout, steps: bool) -> String {
        let mut text = String::new();
        for line in &self.summary {
            text.push_str(&layout.wrap("", line));
        }
        for frontend in &self.frontends {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&frontend.text(layout, steps));
        }
        if self.more_frontends > 0 {
            let more = words::count(self.more_frontends, "more frontend");
            let _ = writeln!(text, "\n{more}: ask for NAMESPACE/NAME:PORT or VIP:PORT");
        }
        text
    }
}

impl Frontend {
    fn text(&self, layout: Layout, steps: bool) -> String {
        let server = match self.address.parse::<IpAddr>() {
            Ok(addr) => SocketAddr::new(addr, self.port).to_string(),
            Err(_) => format!("{}:{}", self.address, self.port),
        };
        let mut what = format!("{} {server}", self.protocol);
        match (&self.kind, &self.claimant, &self.service) {
            (Some(kind), Some(claimant), _) => _ = write!(what, "  {kind} of Service {claimant}"),
            (_, _, Some(service)) => _ = write!(what, "  Service {service}"),
            _ => what.push_str("  no Service"),
        }
        let mut text = format!("{}\n", layout.paint(Tone::Title, &what));
        for problem in &self.problems {
            let line = layout.wrap("  ! ", problem);
            text.push_str(&layout.paint(Tone::Bad, line.trim_end()));
            text.push('\n');
        }
        let mut facts = vec![self.local_address.text.clone()];
        if let Some(scheduler) = &self.scheduler {
            facts.push(format!("scheduler {scheduler}"));
        }
        if let Some(policy) = &self.policy {
            facts.push(format!("traffic policy {policy}"));
        }
        if let Some(seconds) = self.affinity {
            facts.push(format!("clients keep their endpoint for {seconds} s"));
        }
        if !self.chosen.is_empty() {
            facts.push(format!("by annotation: {}", self.chosen.join(", ")));
        }
        facts.extend(self.defaults.iter().cloned());
        text.push_str(&layout.wrap("  ", &facts.join("; ")));
        if !self.losers.is_empty() && self.claimant == self.service {
            let line = format!("also claimed by {}: younger, and not served here", self.losers.join(", "));
            text.push_str(&layout.wrap("  ", &line));
        }
        if !self.endpoints.is_empty() {
            text.push_str(&self.endpoint_table(layout));
        }
        for path in &self.paths {
            text.push_str(&path.text(layout, steps));
        }
        if steps {
            text.push_str("  see for yourself:\n");
            let checks = std::iter::once(&self.local_address.check).chain(&self.checks);
            checks.filter(|check| !check.is_empty()).for_each(|check| _ = writeln!(text, "    {check}"));
        }
        text
    }

    fn endpoint_table(&self, layout: Layout) -> String {
        let title = ["ENDPOINT", "PLACE", "WEIGHT", "ACTIVE", "INACTIVE", "STATE"];
        let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let row = |endpoint: &EndpointReport| {
            let address = match endpoint.address.parse::<IpAddr>() {
                Ok(addr) => SocketAddr::new(addr, endpoint.port).to_string(),
                Err(_) => endpoint.address.clone(),
            };
            let place = if endpoint.local { "local" } else { "remote" };
            vec![
                address,
                place.to_owned(),
                number(endpoint.weight),
                number(endpoint.active_connections),
                number(endpoint.inactive_connections),
                endpoint.reason.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = self.endpoints.iter().map(row).collect();
        let tone = |endpoint: &EndpointReport| Some(if endpoint.serves { Tone::Good } else { Tone::Warning });
        let tones: Vec<Option<Tone>> = self.endpoints.iter().map(tone).collect();
        let mut text = layout.table(&title, &rows, &tones);
        if self.more_endpoints > 0 {
            let _ = writeln!(text, "  and {}", words::count(self.more_endpoints, "more endpoint"));
        }
        text
    }
}

impl PathReport {
    fn text(&self, layout: Layout, steps: bool) -> String {
        let mut text = layout.hang(&format!("  from {}: ", self.client), 6, &self.result);
        if steps {
            for step in &self.steps {
                text.push_str(&layout.wrap("    - ", step));
            }
        }
        if let Some(oddity) = &self.oddity {
            text.push_str(&layout.wrap("    odd: ", oddity));
        }
        text
    }
}
