// SPDX-License-Identifier: Apache-2.0
//! The status as text.

use std::fmt::Write as _;
use std::time::Duration;

use super::layout::{Layout, Tone};
use super::status::{Status, SyncReport};
use crate::words;

/// Rows of each list.
const ROWS: usize = 20;

impl Status {
    /// One screen.
    pub fn text(&self, layout: Layout) -> String {
        let mut text = String::new();
        let (state, tone) = match (self.ready, self.degraded) {
            (true, false) => ("ready", Tone::Good),
            (true, true) => ("ready, but degraded", Tone::Warning),
            (false, _) => ("not ready", Tone::Bad),
        };
        let _ = writeln!(text, "{} on node {}", layout.paint(tone, state), self.node);
        for problem in &self.problems {
            text.push_str(&layout.wrap("  - ", problem));
        }
        let facts = self.facts();
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in facts {
            text.push_str(&layout.wrap(&format!("  {name:width$}  "), &value));
        }
        text.push_str(&self.counts(layout));
        text.push_str(&self.unprogrammed(layout));
        text.push_str(&self.draining(layout));
        if !self.drift.is_empty() {
            text.push_str(&layout.heading("Restored in the last hour, after another program changed it"));
            for (kind, count) in &self.drift {
                let _ = writeln!(text, "  {count} {}", kind.replace('_', " "));
            }
        }
        text
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let versions = &self.versions;
        let mut about = format!("kube-ipvs {}, Linux {}", versions.agent, versions.kernel);
        for (name, version) in
            [("IPVS", &versions.ipvs), ("iptables", &versions.iptables), ("Kubernetes", &versions.kubernetes)]
        {
            if let Some(version) = version {
                let _ = write!(about, ", {name} {version}");
            }
        }
        let mut rows = vec![
            ("version", about),
            ("running for", words::time(Duration::from_secs(self.uptime))),
            ("sets and rules", self.rules_mode.clone()),
            ("objects from", self.source.clone()),
            ("last sync", sync(self.last_sync.as_ref())),
            ("last audit", sync(self.last_audit.as_ref())),
        ];
        if let Some(age) = self.oldest_pending_change {
            rows.push(("oldest change", format!("waits for {}", time(age))));
        }
        for watch in &self.watches {
            let since = watch.since.map(|since| format!(" for {}", time(since))).unwrap_or_default();
            rows.push(("watch", format!("{}: {}{since}", watch.kind, watch.state)));
        }
        for (kind, count) in &self.malformed {
            rows.push((
                "malformed",
                format!("{kind}: {}, see the log", words::count(*count as usize, "object")),
            ));
        }
        rows
    }

    fn counts(&self, layout: Layout) -> String {
        let mut text = layout.heading(&words::count(self.services, "Service"));
        let title = ["FAMILY", "VIRTUAL SERVERS", "REAL SERVERS", "ADDRESSES", "ROUTES", "SET ENTRIES"];
        let row = |family: &super::status::FamilyCounts| {
            let numbers = [
                family.virtual_servers,
                family.real_servers,
                family.addresses,
                family.routes,
                family.set_entries,
            ];
            std::iter::once(family.family.clone()).chain(numbers.map(words::thousands)).collect()
        };
        let rows: Vec<Vec<String>> = self.families.iter().map(row).collect();
        text.push_str(&layout.table(&title, &rows, &[]));
        text
    }

    fn unprogrammed(&self, layout: Layout) -> String {
        let list = &self.not_programmed;
        if list.count == 0 {
            return String::new();
        }
        let mut text = layout.heading(&format!("Not programmed: {}", words::count(list.count, "object")));
        for object in list.objects.iter().take(ROWS) {
            let of = object.service.as_ref().map(|name| format!(" of Service {name}")).unwrap_or_default();
            let when = match (object.since, object.next_try) {
                (Some(since), Some(next)) => format!(
                    " ({} in {}; next try in {})",
                    words::count(object.tries as usize, "failure"),
                    time(since),
                    time(next)
                ),
                _ => String::new(),
            };
            let line = format!("{}{of}: {}{when}", object.object, object.message);
            text.push_str(&layout.wrap("  - ", &line));
        }
        text + &more(list.count, list.objects.len().min(ROWS))
    }

    fn draining(&self, layout: Layout) -> String {
        let list = &self.drains;
        if list.count == 0 {
            return String::new();
        }
        let until = match list.deadline {
            Some(seconds) => {
                format!("at most {}", words::time(Duration::from_secs(seconds)))
            }
            None => "until their last connection ends".to_owned(),
        };
        let real_servers = words::count(list.count, "real server");
        let mut text = layout.heading(&format!("Draining: {real_servers}, {until}"));
        let row = |drain: &super::status::Draining| {
            let service = drain.service.clone().unwrap_or_else(|| "-".to_owned());
            vec![drain.virtual_server.clone(), drain.real_server.clone(), time(drain.since), service]
        };
        let rows: Vec<Vec<String>> = list.real_servers.iter().take(ROWS).map(row).collect();
        text.push_str(&layout.table(&["VIRTUAL SERVER", "REAL SERVER", "FOR", "SERVICE"], &rows, &[]));
        text + &more(list.count, rows.len())
    }
}

fn more(count: usize, shown: usize) -> String {
    match count - shown {
        0 => String::new(),
        more => format!("  and {} more: see -o json and /readyz?verbose\n", words::thousands(more)),
    }
}

fn sync(report: Option<&SyncReport>) -> String {
    let Some(report) = report else { return "none yet".to_owned() };
    let failed = match report.failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    format!(
        "{} ago, because of {}: {}{failed}, in {}",
        time(report.ago),
        report.reason,
        words::count(report.operations, "operation"),
        time(report.milliseconds / 1e3)
    )
}

fn time(seconds: f64) -> String {
    words::time(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}
