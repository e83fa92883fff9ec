// SPDX-License-Identifier: Apache-2.0
//! What Go programs tell about their process and the `prometheus` crate does not.

use std::fs;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Gauge, IntCounter, Registry};

use super::{catch_up, register_counter, register_float};
use crate::log;

#[derive(Debug)]
pub(super) struct Process {
    virtual_memory_max: Gauge,
    received: IntCounter,
    sent: IntCounter,
    suppressed: IntCounter,
}

impl Process {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self {
            virtual_memory_max: register_float(
                registry,
                "process_virtual_memory_max_bytes",
                "Limit of the virtual memory in bytes; 2^64 when there is none.",
            )?,
            received: register_counter(
                registry,
                "process_network_receive_bytes_total",
                "Bytes that came over IPv4 into the network namespace of the process.",
            )?,
            sent: register_counter(
                registry,
                "process_network_transmit_bytes_total",
                "Bytes that went over IPv4 out of the network namespace of the process.",
            )?,
            suppressed: register_counter(
                registry,
                "kube_ipvs_log_lines_suppressed_total",
                "Log lines that were not written because there were too many in a second: ten at most, some of them kept for errors.",
            )?,
        })
    }

    /// Reads anew. What cannot be read stays as it is.
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

/// `InOctets` and `OutOctets` of the lines `IpExt:`, one of names and one of values.
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
