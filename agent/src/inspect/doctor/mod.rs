// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs doctor`: checks a node before the agent is installed, and any time after. Each check is a pure function of
//! facts that `commands/diagnose.rs` collects.

mod api_checks;
mod doctor_text;
pub mod facts;
mod ipvs_checks;
mod kernel_checks;
mod network_checks;
mod proxy_checks;
#[cfg(test)]
mod sample;
mod sysctl_checks;

use serde::Serialize;

use facts::{DoctorFacts, Intent};
pub use sysctl_checks::paths as sysctl_paths;

/// The version of the JSON: a field that is removed or means something else gets the next one.
pub const SCHEMA_VERSION: u32 = 1;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Services do not work, or not as they should.
    Error,
    /// Something may go wrong, or could not be checked.
    Warning,
    Ok,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeFinding {
    /// The name of the check.
    pub check: &'static str,
    pub level: Level,
    pub what: String,
    /// Why it matters, or why it could not be checked; null if all is well.
    pub why: Option<String>,
    /// The command, file or field that changes it; null if all is well.
    pub remedy: Option<String>,
}

impl NodeFinding {
    /// Nothing is wrong.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, what: what.into(), why: None, remedy: None }
    }

    /// A finding that may make trouble, or something that could not be checked.
    pub fn warning(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (why, remedy) = (Some(why.into()), Some(remedy.into()));
        Self { check, level: Level::Warning, what: what.into(), why, remedy }
    }

    /// A finding that makes trouble.
    pub fn error(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Error, ..Self::warning(check, what, why, remedy) }
    }
}

/// Everything that was found, errors first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DoctorReport {
    pub schema_version: u32,
    pub findings: Vec<NodeFinding>,
}

impl DoctorReport {
    /// Runs all checks. `known`: findings about the configuration and the agent, which come first in their level.
    pub fn build(known: Vec<NodeFinding>, intent: &Intent, facts: &DoctorFacts) -> Self {
        let checks = [
            kernel_checks::check,
            ipvs_checks::check,
            sysctl_checks::check,
            proxy_checks::check,
            network_checks::check,
            api_checks::check,
        ];
        let mut findings = known;
        findings.extend(checks.into_iter().flat_map(|check| check(intent, facts)));
        // Stable: a level keeps the order of the checks.
        findings.sort_by_key(|finding| finding.level);
        Self { schema_version: SCHEMA_VERSION, findings }
    }

    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// The code of `kube-ipvs doctor`: 1 if there is an error.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.count(Level::Error) > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_healthy_node_has_no_error_and_no_warning() {
        let (intent, facts) = (sample::intent(""), sample::facts());
        let report = DoctorReport::build(Vec::new(), &intent, &facts);
        let bad: Vec<&NodeFinding> = report.findings.iter().filter(|f| f.level != Level::Ok).collect();
        assert!(bad.is_empty(), "{bad:#?}");
        assert_eq!(report.exit_code(), 0);
    }

    #[test]
    fn a_node_of_which_nothing_is_known_has_only_warnings() {
        let (intent, facts) = (sample::intent(""), DoctorFacts::unknown("not root"));
        let report = DoctorReport::build(Vec::new(), &intent, &facts);
        assert_eq!(report.exit_code(), 0, "{report:#?}");
        assert!(report.count(Level::Warning) >= 10, "{report:#?}");
        for finding in report.findings.iter().filter(|f| f.level == Level::Warning) {
            assert!(finding.why.as_ref().is_some_and(|why| !why.is_empty()), "{finding:#?}");
            assert!(finding.remedy.as_ref().is_some_and(|remedy| !remedy.is_empty()), "{finding:#?}");
        }
    }

    #[test]
    fn errors_come_first_and_decide_the_exit_code() {
        let known = vec![
            NodeFinding::ok("a", "fine"),
            NodeFinding::error("b", "bad", "why", "remedy"),
            NodeFinding::warning("c", "so", "why", "remedy"),
        ];
        let report = DoctorReport::build(known, &sample::intent(""), &sample::facts());
        assert_eq!(report.findings[0].check, "b");
        assert_eq!(report.findings[1].check, "c");
        assert_eq!(report.exit_code(), 1);
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let findings = vec![
            NodeFinding::error("modules", "no module", "no address", "run `modprobe dummy`"),
            NodeFinding::ok("kernel", "Linux 6.1"),
        ];
        let report = DoctorReport { schema_version: SCHEMA_VERSION, findings };
        let expected = json!({"schemaVersion": 1, "findings": [
            {"check": "modules", "level": "error", "what": "no module", "why": "no address", "remedy": "run `modprobe dummy`"},
            {"check": "kernel", "level": "ok", "what": "Linux 6.1", "why": null, "remedy": null},
        ]});
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        let levels = [Level::Error, Level::Warning, Level::Ok];
        assert_eq!(serde_json::to_value(levels).unwrap(), json!(["error", "warning", "ok"]));
    }
}
