// SPDX-License-Identifier: Apache-2.0
//! The findings as text: errors first, each with its reason and its remedy.

use super::{DoctorReport, Level, NodeFinding};
use crate::inspect::layout::{Layout, Tone};
use crate::words::count;

impl DoctorReport {
    /// The findings by level, and their counts in the last line.
    pub fn text(&self, layout: Layout) -> String {
        let mut text = String::new();
        let names = self.findings.iter().map(|finding| finding.check.len());
        let width = names.max().unwrap_or_default();
        for (level, title, tone) in [
            (Level::Error, "Errors", Tone::Bad),
            (Level::Warning, "Warnings", Tone::Warning),
            (Level::Ok, "In order", Tone::Good),
        ] {
            let findings = || self.findings.iter().filter(|finding| finding.level == level);
            if findings().next().is_some() {
                text.push_str(&layout.paint(Tone::Title, title));
                text.push('\n');
                findings().for_each(|finding| text.push_str(&lines(finding, width, tone, layout)));
                text.push('\n');
            }
        }
        let [errors, warnings, ok] = [Level::Error, Level::Warning, Level::Ok].map(|level| self.count(level));
        text + &format!("{}, {}, {ok} in order\n", count(errors, "error"), count(warnings, "warning"))
    }
}

fn lines(finding: &NodeFinding, width: usize, tone: Tone, layout: Layout) -> String {
    let NodeFinding { check, what, why, remedy, .. } = finding;
    let said = match why {
        Some(why) => format!("{what}: {why}"),
        None => what.clone(),
    };
    let first = layout.wrap(&format!("  {check:width$}  "), &said);
    let mut text = first.replacen(check, &layout.paint(tone, check), 1);
    if let Some(remedy) = remedy {
        let indent = " ".repeat(width + 4);
        text.push_str(&layout.wrap(&format!("{indent}-> "), remedy));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> DoctorReport {
        let findings = vec![
            NodeFinding::error(
                "modules",
                "Linux 6.12.0-10.el10 has no module ip_set, xt_set",
                "the agent cannot program sets or rules without it",
                "install kernel-modules-extra and run `modprobe -a ip_set xt_set`",
            ),
            NodeFinding::warning(
                "timeouts",
                "IPVS forgets TCP connections that are idle for 900 s",
                "TCP keepalive begins after 7200 s",
                "set ipvs.tcpTimeout: 7500s",
            ),
            NodeFinding::ok("kernel", "Linux 6.12.0-10.el10"),
            NodeFinding::ok("virtualServers", "no virtual server of another program is in the way"),
        ];
        DoctorReport { schema_version: 1, findings }
    }

    #[test]
    fn lines_of_80_columns_wrap_below_their_text() {
        let expected = "\
Errors
  modules         Linux 6.12.0-10.el10 has no module ip_set, xt_set: the agent
                  cannot program sets or rules without it
                  -> install kernel-modules-extra and run `modprobe -a ip_set
                     xt_set`

Warnings
  timeouts        IPVS forgets TCP connections that are idle for 900 s: TCP
                  keepalive begins after 7200 s
                  -> set ipvs.tcpTimeout: 7500s

In order
  kernel          Linux 6.12.0-10.el10
  virtualServers  no virtual server of another program is in the way

1 error, 1 warning, 2 in order
";
        assert_eq!(report().text(Layout { width: 80, color: false }), expected);
    }

    #[test]
    fn lines_of_200_columns_do_not_wrap() {
        let expected = "\
Errors
  modules         Linux 6.12.0-10.el10 has no module ip_set, xt_set: the agent cannot program sets or rules without it
                  -> install kernel-modules-extra and run `modprobe -a ip_set xt_set`

Warnings
  timeouts        IPVS forgets TCP connections that are idle for 900 s: TCP keepalive begins after 7200 s
                  -> set ipvs.tcpTimeout: 7500s

In order
  kernel          Linux 6.12.0-10.el10
  virtualServers  no virtual server of another program is in the way

1 error, 1 warning, 2 in order
";
        assert_eq!(report().text(Layout { width: 200, color: false }), expected);
    }

    #[test]
    fn colours_show_the_level() {
        let text = report().text(Layout { width: 80, color: true });
        assert!(text.contains("\u{1b}[31mmodules\u{1b}[0m"), "{text:?}");
        assert!(text.contains("\u{1b}[33mtimeouts\u{1b}[0m"), "{text:?}");
        assert!(text.contains("\u{1b}[32mkernel\u{1b}[0m"), "{text:?}");
    }
}
