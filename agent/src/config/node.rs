// SPDX-License-Identifier: Apache-2.0
//! What the agent finds out about the machine before it starts: node name, families, kernel version.

use std::fs;

use anyhow::{Context, ensure};

use crate::core::model::{Family, Sysctl};

/// The node's name: the flag, else the configuration, else the host name; trimmed, lower case.
///
/// # Errors
/// When the name is blank.
pub fn node_name(flag: Option<&str>, config: &str) -> anyhow::Result<String> {
    let name = match (flag, config) {
        (Some(flag), _) => flag.to_owned(),
        (None, "") => fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?,
        (None, config) => config.to_owned(),
    };
    let name = name.trim().to_lowercase();
    ensure!(
        !name.is_empty(),
        "the node name is blank: set --hostname-override to the name of the Node object"
    );
    Ok(name)
}

/// The families that this network namespace has.
pub fn families() -> Vec<Family> {
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    // /proc/net is the main thread's namespace; /proc/thread-self/net is ours.
    let has_v6 = fs::metadata("/proc/thread-self/net/if_inet6").is_ok()
        && disabled.map_or(true, |text| text.trim() != "1");
    Family::ALL.into_iter().filter(|f| *f == Family::V4 || has_v6).collect()
}

/// Major and minor version of the running kernel.
///
/// # Errors
/// When `/proc/sys/kernel/osrelease` cannot be read or understood.
pub fn kernel_version() -> anyhow::Result<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel version")?;
    parse_version(&text).with_context(|| format!("cannot understand the kernel version {:?}", text.trim()))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The sysctls that IPVS mode needs on this kernel, as kube-proxy sets them.
pub fn sysctls((major, minor): (u32, u32)) -> Vec<Sysctl> {
    let mut sysctls = vec![Sysctl { path: "net/ipv4/vs/conntrack", value: 1 }];
    // From 5.9 on the kernel's default no longer delays reused connections by a second.
    if (4, 1) <= (major, minor) && (major, minor) < (5, 9) {
        sysctls.push(Sysctl { path: "net/ipv4/vs/conn_reuse_mode", value: 0 });
    }
    for path in
        ["net/ipv4/vs/expire_nodest_conn", "net/ipv4/vs/expire_quiescent_template", "net/ipv4/ip_forward"]
    {
        sysctls.push(Sysctl { path, value: 1 });
    }
    sysctls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_and_names_are_lower_case() {
        assert_eq!(node_name(Some(" Node-A "), "b").unwrap(), "node-a");
        assert_eq!(node_name(None, "B").unwrap(), "b");
        assert!(node_name(Some(" "), "b").is_err());
    }

    #[test]
    fn versions_of_distributions_are_understood() {
        for (text, version) in [("6.1.0-56-amd64\n", (6, 1)), ("5.9", (5, 9)), ("4.18.0-80.el8", (4, 18))] {
            assert_eq!(parse_version(text), Some(version));
        }
        assert_eq!(parse_version("linux"), None);
    }

    #[test]
    fn conn_reuse_mode_is_for_old_kernels_only() {
        let has = |version| sysctls(version).iter().any(|s| s.path.ends_with("conn_reuse_mode"));
        assert!(has((4, 18)) && has((5, 8)) && !has((5, 9)) && !has((6, 1)) && !has((4, 0)));
    }
}
