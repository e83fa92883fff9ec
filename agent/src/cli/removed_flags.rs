// SPDX-License-Identifier: Apache-2.0
//! Flags that kube-proxy had in earlier versions, with what to use instead.

const LOGS: &str =
    "the log goes to standard error; set its level with -v and its format with --logging-format";
const CONNTRACK: &str = "use --conntrack-max-per-core and --conntrack-min";

/// Each flag and the sentence about it.
pub(super) const REMOVED: [(&str, &str); 17] = [
    ("add-dir-header", LOGS),
    ("alsologtostderr", LOGS),
    ("cleanup-iptables", "use --cleanup"),
    ("cleanup-ipvs", "use --cleanup, or the command cleanup"),
    ("conntrack-max", CONNTRACK),
    ("log-backtrace-at", LOGS),
    ("log-dir", LOGS),
    ("log-file", LOGS),
    ("log-file-max-size", LOGS),
    ("logtostderr", LOGS),
    ("one-output", LOGS),
    ("proxy-port-range", "only the userspace mode had it: leave it out"),
    ("resource-container", "the container runtime sets the cgroup: leave it out"),
    ("skip-headers", LOGS),
    ("skip-log-headers", LOGS),
    ("stderrthreshold", LOGS),
    ("udp-timeout", "only the userspace mode had it; that of IPVS is --ipvs-udp-timeout"),
];

/// What to use instead of a removed flag.
pub(super) fn instead_of(name: &str) -> Option<&'static str> {
    REMOVED.iter().find(|(flag, _)| *flag == name).map(|(_, instead)| *instead)
}
