// SPDX-License-Identifier: Apache-2.0
//! `process_*` metrics of Go programs that the `prometheus` crate lacks, and suppressed log lines.

use std::fs;

use prometheus::{Gauge, IntCounter};

use super::register::{catch_up, declare};
use crate::log;

declare! {
    pub(super) struct ProcessMetrics {
        virtual_memory_max: Gauge = "process_virtual_memory_max_bytes"
            => "Limit of the virtual memory in bytes; 2^64 without a limit.";
        received: IntCounter = "process_network_receive_bytes_total"
            => "Bytes received over IPv4 in the network namespace of the process.";
        sent: IntCounter = "process_network_transmit_bytes_total"
            => "Bytes sent over IPv4 in the network namespace of the process.";
        suppressed: IntCounter = "kube_ipvs_log_lines_suppressed_total"
            => "Log lines that were suppressed; the limit is ten lines a second, some of them kept for errors.";
    }
}

impl ProcessMetrics {
    /// Reads the values again. A value that cannot be read stays as it is.
    pub fn refresh(&self) {
        catch_up(&self.suppressed, log::suppressed());
        if let Some(limit) = fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(address_space) {
            self.virtual_memory_max.set(limit);
        }
        if let Some([received, sent]) =
            fs::read_to_string("/proc/self/net/netstat").ok().as_deref().and_then(octets)
        {
            catch_up(&self.received, received);
            catch_up(&self.sent, sent);
        }
    }
}

/// The soft limit of `Max address space`.
pub(crate) fn address_space(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    match line.split_whitespace().next()? {
        // Go prints its largest unsigned number.
        "unlimited" => Some(u64::MAX as f64),
        bytes => bytes.parse().ok(),
    }
}

/// `InOctets` and `OutOctets` of the two lines `IpExt:`, first names, then values.
pub(crate) fn octets(netstat: &str) -> Option<[u64; 2]> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted| {
        let at = names.split_whitespace().position(|name| name == wanted)?;
        values.split_whitespace().nth(at)?.parse().ok()
    };
    Some([value("InOctets")?, value("OutOctets")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max data size             unlimited            unlimited            bytes\n\
                      Max address space         1048576              unlimited            bytes\n";
        assert_eq!(address_space(limits), Some(1_048_576.0));
        assert_eq!(
            address_space(&limits.replace("1048576", "unlimited")),
            Some(18_446_744_073_709_551_615.0)
        );
        assert_eq!(address_space("Max data size unlimited"), None);
        let netstat = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 700 90\n";
        assert_eq!(octets(netstat), Some([700, 90]));
        assert_eq!(octets("TcpExt: InOctets\nTcpExt: 1\n"), None);
    }
}
