// SPDX-License-Identifier: Apache-2.0
//! What the configuration needs to know about this machine: node name, IP families, kernel version, CPUs.

use std::fs;

use anyhow::{Context, ensure};

use crate::core::model::Family;
use crate::core::model::settings::Sysctl;

/// The node's name: `hostnameOverride`, else the host name; trimmed, lower case.
///
/// # Errors
/// The name is blank.
pub fn node_name(configured: &str) -> anyhow::Result<String> {
    let name = match configured {
        "" => fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?,
        name => name.to_owned(),
    };
    let name = name.trim().to_lowercase();
    ensure!(
        !name.is_empty(),
        "the node name is blank: set --hostname-override to the name of the Node object"
    );
    Ok(name)
}

/// The IP families of this network namespace.
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
/// `/proc/sys/kernel/osrelease` cannot be read or parsed.
pub fn kernel_version() -> anyhow::Result<(u32, u32)> {
    let text = kernel_release()?;
    parse_version(&text).with_context(|| format!("cannot parse the kernel version {text:?}"))
}

/// The release of the kernel, as `uname -r` prints it.
///
/// # Errors
/// When it cannot be read.
pub fn kernel_release() -> anyhow::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel version")?;
    Ok(text.trim().to_owned())
}

pub(crate) fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The number of CPUs online in the machine, whatever the quota of the container is.
pub fn cpus() -> i64 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let counted = online.and_then(|text| parse_cpus(&text)).filter(|n| *n > 0);
    counted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as i64))
}

/// Counts a list of ranges, e.g. `0-3,8`.
pub(crate) fn parse_cpus(text: &str) -> Option<i64> {
    text.trim().split(',').try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        i64::from(last.checked_sub(first)?).checked_add(1)?.checked_add(sum)
    })
}

/// The sysctls that the ipvs mode needs on this kernel, as in kube-proxy.
pub fn sysctls((major, minor): (u32, u32), strict_arp: bool) -> Vec<Sysctl> {
    let mut sysctls = vec![Sysctl::exactly("/proc/sys/net/ipv4/vs/conntrack", 1)];
    // Since Linux 5.9 the kernel's default does not delay reused connections by a second.
    if (4, 1) <= (major, minor) && (major, minor) < (5, 9) {
        sysctls.push(Sysctl::exactly("/proc/sys/net/ipv4/vs/conn_reuse_mode", 0));
    }
    sysctls.push(Sysctl::exactly("/proc/sys/net/ipv4/vs/expire_nodest_conn", 1));
    sysctls.push(Sysctl::exactly("/proc/sys/net/ipv4/vs/expire_quiescent_template", 1));
    sysctls.push(Sysctl::exactly("/proc/sys/net/ipv4/ip_forward", 1));
    if strict_arp {
        sysctls.push(Sysctl::exactly("/proc/sys/net/ipv4/conf/all/arp_ignore", 1));
        sysctls.push(Sysctl::exactly("/proc/sys/net/ipv4/conf/all/arp_announce", 2));
    }
    sysctls
}

/// Connection tracking (`conntrack`). 0: leave the kernel's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Table entries for each CPU.
    pub max_per_core: i64,
    /// The least number of table entries, if `max_per_core` is set.
    pub min: i64,
    /// Seconds that idle established TCP connections are kept.
    pub tcp_established: i64,
    /// Seconds that half-closed TCP connections are kept.
    pub tcp_close_wait: i64,
    /// Packets outside of the window do not end a TCP connection.
    pub tcp_be_liberal: bool,
    /// Seconds that a UDP flow without answer is kept.
    pub udp: i64,
    /// Seconds that a UDP flow with answers is kept.
    pub udp_stream: i64,
}

/// The largest table by `conntrack.maxPerCore` alone, as in kube-proxy.
const CONNTRACK_CAP: i64 = 1 << 20;

impl Conntrack {
    /// The sysctls of connection tracking on a machine with this number of CPUs.
    pub fn sysctls(&self, cpus: i64) -> Vec<Sysctl> {
        let mut sysctls = Vec::new();
        if self.max_per_core > 0 {
            let max = self.max_per_core.saturating_mul(cpus).min(CONNTRACK_CAP).max(self.min);
            sysctls.push(Sysctl::exactly("/proc/sys/net/netfilter/nf_conntrack_max", max));
            sysctls.push(Sysctl {
                path: "/sys/module/nf_conntrack/parameters/hashsize",
                value: max / 4,
                at_least: true,
            });
        }
        let timeouts = [
            ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", self.tcp_established),
            ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", self.tcp_close_wait),
            ("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", i64::from(self.tcp_be_liberal)),
            ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", self.udp),
            ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", self.udp_stream),
        ];
        let set = timeouts.into_iter().filter(|(_, value)| *value > 0);
        sysctls.extend(set.map(|(path, value)| Sysctl::exactly(path, value)));
        sysctls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_and_not_blank() {
        assert_eq!(node_name(" Node-A ").unwrap(), "node-a");
        assert!(node_name(" ").is_err());
        assert!(!node_name("").unwrap().is_empty());
    }

    #[test]
    fn versions_of_distributions_are_parsed() {
        for (text, version) in [("6.1.0-56-amd64\n", (6, 1)), ("5.9", (5, 9)), ("4.18.0-80.el8", (4, 18))] {
            assert_eq!(parse_version(text), Some(version));
        }
        assert_eq!(parse_version("linux"), None);
    }

    #[test]
    fn conn_reuse_mode_is_for_old_kernels_only() {
        let has = |version| sysctls(version, false).iter().any(|s| s.path.ends_with("conn_reuse_mode"));
        assert!(has((4, 18)) && has((5, 8)) && !has((5, 9)) && !has((6, 1)) && !has((4, 0)));
    }

    #[test]
    fn cpus_are_counted_in_ranges() {
        for (text, count) in [("0\n", 1), ("0-3\n", 4), ("0-3,8,10-11", 7)] {
            assert_eq!(parse_cpus(text), Some(count));
        }
        for none in ["", "3-0", "0-9223372036854775807", "-1"] {
            assert_eq!(parse_cpus(none), None, "{none:?}");
        }
    }

    #[test]
    fn the_table_of_connection_tracking_is_kube_proxys() {
        let conntrack = |max_per_core, min| Conntrack {
            max_per_core,
            min,
            tcp_established: 0,
            tcp_close_wait: 0,
            tcp_be_liberal: false,
            udp: 0,
            udp_stream: 0,
        };
        let max = |c: Conntrack, cpus| c.sysctls(cpus).first().map(|s| s.value);
        assert_eq!(max(conntrack(32768, 131_072), 1), Some(131_072));
        assert_eq!(max(conntrack(32768, 131_072), 8), Some(262_144));
        assert_eq!(max(conntrack(32768, 131_072), 64), Some(1 << 20), "capped");
        assert_eq!(max(conntrack(1, 2_000_000), 1), Some(2_000_000), "the minimum is not");
        assert_eq!(max(conntrack(0, 131_072), 8), None);
        let hashsize = &conntrack(32768, 131_072).sysctls(1)[1];
        assert!(hashsize.is_met(Some(65536)) && !hashsize.is_met(Some(100)) && !hashsize.is_met(None));
    }
}
