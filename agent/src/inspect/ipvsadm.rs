// SPDX-License-Identifier: Apache-2.0
//! The texts of `ipvsadm -Ln`, byte for byte as version 1.31 prints them.

use std::fmt::Write as _;
use std::net::SocketAddr;

use ipvs_netlink::{
    Destination, Family, ForwardMethod, Info, PersistenceMask, Service, ServiceFlags, ServiceId, Stats,
};

/// The columns of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Columns {
    /// Scheduler, forwarding method, weight and connections.
    #[default]
    Usual,
    /// `--stats`: counters since the object was made.
    Stats { exact: bool },
    /// `--rate`: the same per second.
    Rate { exact: bool },
    /// `--thresholds`: limits of connections.
    Thresholds,
    /// `--persistent-conn`: persistence templates.
    Persistent,
}

/// The first line of a whole list.
pub fn version_line(info: &Info) -> String {
    format!("IP Virtual Server version {} (size={})\n", info.version_text(), info.connection_table_size)
}

impl Columns {
    /// The two lines with the names of the columns.
    pub fn title(self) -> String {
        let names: &[(&str, usize)] = match self {
            Self::Usual => {
                return "Prot LocalAddress:Port Scheduler Flags\n  \
                        -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
                    .to_owned();
            }
            Self::Stats { .. } => {
                return numbers_title(["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"]);
            }
            Self::Rate { .. } => return numbers_title(["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"]),
            Self::Thresholds => {
                &[("Uthreshold", 10), ("Lthreshold", 10), ("ActiveConn", 10), ("InActConn", 10)]
            }
            Self::Persistent => &[("Weight", 9), ("PersistConn", 11), ("ActiveConn", 10), ("InActConn", 10)],
        };
        let columns: String = names.iter().map(|(name, width)| format!(" {name:<width$}")).collect();
        format!("{:<33}{columns}\n  -> RemoteAddress:Port\n", "Prot LocalAddress:Port")
    }

    /// The line of a virtual server, without its end.
    pub fn service(self, service: &Service) -> String {
        let id = id_text(&service.id);
        match self.numbers(service.stats.as_ref()) {
            Some(numbers) => format!("{id:<33}{numbers}"),
            None => service_line(&id, service),
        }
    }

    /// The line of a real server, with its end.
    pub fn destination(self, dest: &Destination) -> String {
        let addr = SocketAddr::new(dest.addr, dest.port).to_string();
        let (active, inactive) = (dest.active_connections, dest.inactive_connections);
        let columns = match self {
            Self::Usual => {
                let (forward, weight) = (forward_name(dest.forward), dest.weight as i32);
                format!(" {forward:<7} {weight:<6} {active:<10} {inactive:<10}")
            }
            Self::Stats { .. } | Self::Rate { .. } => self.numbers(dest.stats.as_ref()).unwrap_or_default(),
            Self::Thresholds => {
                let (upper, lower) = (dest.upper_threshold, dest.lower_threshold);
                format!(" {upper:<10} {lower:<10} {active:<10} {inactive:<10}")
            }
            Self::Persistent => {
                let (weight, persistent) = (dest.weight, dest.persistent_connections);
                format!(" {weight:<9} {persistent:<11} {active:<10} {inactive:<10}")
            }
        };
        format!("  -> {addr:<28}{columns}\n")
    }

    fn numbers(self, stats: Option<&Stats>) -> Option<String> {
        let stats = stats.copied().unwrap_or_default();
        let (numbers, exact) = match self {
            Self::Stats { exact } => (counters(&stats), exact),
            Self::Rate { exact } => (rates(&stats), exact),
            Self::Usual | Self::Thresholds | Self::Persistent => return None,
        };
        Some(numbers.into_iter().map(|number| large_number(number, exact)).collect())
    }
}

/// Connections, packets from and to clients, bytes from and to clients.
pub fn counters(stats: &Stats) -> [u64; 5] {
    [stats.connections, stats.packets_in, stats.packets_out, stats.bytes_in, stats.bytes_out]
}

/// The same per second.
pub fn rates(stats: &Stats) -> [u64; 5] {
    let Stats { connection_rate, packet_rate_in, packet_rate_out, byte_rate_in, byte_rate_out, .. } = *stats;
    [connection_rate, packet_rate_in, packet_rate_out, byte_rate_in, byte_rate_out]
}

fn numbers_title(names: [&str; 5]) -> String {
    let columns: String = names.iter().map(|name| format!(" {name:>8}")).collect();
    format!("{:<33}{columns}\n  -> RemoteAddress:Port\n", "Prot LocalAddress:Port")
}

/// A number of at least nine columns. Without `exact`, numbers from 100 million on are cut to thousands, millions and so
/// on.
fn large_number(number: u64, exact: bool) -> String {
    const STEPS: [(u64, u64, char); 4] = [
        (1_000_000_000, 1_000, 'K'),
        (100_000_000_000, 1_000_000, 'M'),
        (100_000_000_000_000, 1_000_000_000, 'G'),
        (u64::MAX, 1_000_000_000_000, 'T'),
    ];
    if number < 100_000_000 {
        return format!("{number:>9}");
    }
    if exact {
        return format!(" {number}");
    }
    let step = STEPS.iter().find(|(limit, ..)| number < *limit).unwrap_or(&STEPS[3]);
    format!("{:>8}{}", number / step.1, step.2)
}

/// Protocol padded to four, then a space and the address: `TCP  10.96.0.1:443`, `FWM  7 IPv6`.
fn id_text(id: &ServiceId) -> String {
    match id {
        ServiceId::Fwmark { mark, family: Family::Inet6 } => format!("FWM  {mark} IPv6"),
        ServiceId::Fwmark { mark, .. } => format!("FWM  {mark}"),
        ServiceId::Address { protocol, addr, port } => {
            format!("{:<4} {}", protocol.to_string(), SocketAddr::new(*addr, *port))
        }
        other => other.to_string(),
    }
}

fn service_line(id: &str, service: &Service) -> String {
    let mut line = format!("{id} {}", service.scheduler);
    line.push_str(&scheduler_flags(service));
    if service.flags.contains(ServiceFlags::PERSISTENT) {
        let _ = write!(line, " persistent {}", service.timeout);
        match service.persistence_mask {
            PersistenceMask::V4(mask) if mask != std::net::Ipv4Addr::BROADCAST => {
                let _ = write!(line, " mask {mask}");
            }
            PersistenceMask::V6(prefix) if prefix != 128 => {
                let _ = write!(line, " mask {prefix}");
            }
            _ => {}
        }
        if let Some(name) = &service.pe_name {
            let _ = write!(line, " pe {name}");
        }
    }
    if service.flags.contains(ServiceFlags::ONE_PACKET) {
        line.push_str(" ops");
    }
    line
}

/// ` (name,name)` for the scheduler's own flags, as ipvsadm names them.
fn scheduler_flags(service: &Service) -> String {
    let names = match service.scheduler.as_str() {
        "sh" => ["sh-fallback", "sh-port", "flag-3"],
        "mh" => ["mh-fallback", "mh-port", "flag-3"],
        _ => ["flag-1", "flag-2", "flag-3"],
    };
    let flags = [ServiceFlags::SCHED1, ServiceFlags::SCHED2, ServiceFlags::SCHED3];
    let set: Vec<&str> =
        flags.iter().zip(names).filter(|(flag, _)| service.flags.contains(**flag)).map(|(_, n)| n).collect();
    if set.is_empty() { String::new() } else { format!(" ({})", set.join(",")) }
}

/// The name of a forwarding method.
pub fn forward_name(forward: ForwardMethod) -> &'static str {
    match forward {
        ForwardMethod::Masquerade => "Masq",
        ForwardMethod::Local => "Local",
        ForwardMethod::Tunnel => "Tunnel",
        ForwardMethod::Route => "Route",
        _ => "Bypass",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_cut_unless_they_are_exact() {
        for (number, cut, exact) in [
            (0, "        0", "        0"),
            (99_999_999, " 99999999", " 99999999"),
            (100_000_000, "  100000K", " 100000000"),
            (999_999_999, "  999999K", " 999999999"),
            (1_000_000_000, "    1000M", " 1000000000"),
            (99_999_999_999, "   99999M", " 99999999999"),
            (100_000_000_000, "     100G", " 100000000000"),
            (100_000_000_000_000, "     100T", " 100000000000000"),
            (u64::MAX, "18446744T", " 18446744073709551615"),
        ] {
            assert_eq!((&*large_number(number, false), &*large_number(number, true)), (cut, exact));
        }
    }
}
