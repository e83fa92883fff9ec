// SPDX-License-Identifier: Apache-2.0
//! The seccomp profile that container runtimes call their default (`/usr/share/containers/seccomp.json`
//! of the package golang-github-containers-common), as an OCI runtime takes it: with the rules picked
//! that hold for this architecture and the container's capabilities.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Names of this architecture in the profile, and in the OCI specification.
#[cfg(target_arch = "x86_64")]
const ARCH: (&str, &[&str]) = ("amd64", &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
#[cfg(target_arch = "aarch64")]
const ARCH: (&str, &[&str]) = ("arm64", &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]);

/// `linux.seccomp` of the OCI configuration for a container with `capabilities` (`CAP_...`).
///
/// # Errors
/// When the profile is no such profile.
pub fn filter(profile: &Value, capabilities: &[String]) -> Result<Value> {
    let rules = profile["syscalls"].as_array().context("the seccomp profile has no syscalls")?;
    let syscalls: Vec<Value> = rules
        .iter()
        .filter(|rule| applies(rule, capabilities))
        .map(|rule| {
            let mut syscall = json!({"names": rule["names"], "action": rule["action"]});
            for field in ["args", "errnoRet"] {
                if !rule[field].is_null() {
                    syscall[field] = rule[field].clone();
                }
            }
            syscall
        })
        .collect();
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ARCH.1,
        "syscalls": syscalls,
    }))
}

fn applies(rule: &Value, capabilities: &[String]) -> bool {
    let texts = |side: &str, field: &str| -> Vec<String> {
        let list = rule[side][field].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let has = |cap: &String| capabilities.contains(cap);
    let arches = texts("includes", "arches");
    (arches.is_empty() || arches.iter().any(|arch| arch == ARCH.0))
        && texts("includes", "caps").iter().all(has)
        && !texts("excludes", "caps").iter().any(has)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn capabilities_and_architecture_select_the_rules() {
        let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {}, "excludes": {}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}, "errnoRet": 1},
            {"names": ["s390"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"names": ["ours"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": [ARCH.0]}},
        ]});
        let chosen = |caps: &[&str]| -> Vec<String> {
            let caps: Vec<String> = caps.iter().map(|c| (*c).to_owned()).collect();
            let filter = filter(&profile, &caps).unwrap();
            assert_eq!(filter["defaultErrnoRet"], 38);
            let rules = filter["syscalls"].as_array().unwrap().clone();
            rules.iter().map(|r| format!("{} {}", r["names"][0], r["action"]).replace('"', "")).collect()
        };
        assert_eq!(chosen(&[]), ["read SCMP_ACT_ALLOW", "mount SCMP_ACT_ERRNO", "ours SCMP_ACT_ALLOW"]);
        assert_eq!(
            chosen(&["CAP_SYS_ADMIN"]),
            ["read SCMP_ACT_ALLOW", "mount SCMP_ACT_ALLOW", "ours SCMP_ACT_ALLOW"]
        );
        assert!(filter(&json!({}), &[]).is_err());
    }
}
