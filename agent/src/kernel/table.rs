// SPDX-License-Identifier: Apache-2.0
//! `/proc/net/ip_vs`: every virtual server with its real servers and their connections, in one
//! reading (`ip_vs_info_seq_show` in the kernel's `ip_vs_ctl.c`).

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use crate::core::model::{Protocol, RsKey, VsKey};

/// The table of this thread's network namespace.
const TABLE: &str = "/proc/thread-self/net/ip_vs";

/// Every real server that has connections.
///
/// # Errors
/// When the table cannot be read, or a line of it cannot be understood.
pub fn read_busy() -> std::io::Result<HashSet<(VsKey, RsKey)>> {
    let text = fs::read_to_string(TABLE)?;
    parse_busy(&text).ok_or_else(|| std::io::Error::other(format!("{TABLE} has an unknown form")))
}

fn parse_busy(text: &str) -> Option<HashSet<(VsKey, RsKey)>> {
    let mut busy = HashSet::new();
    let mut server = None;
    // Three lines of headings come first.
    for line in text.lines().skip(3) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["->", target, _, _, active, inactive] => {
                let connections = active.parse::<u64>().ok()? + inactive.parse::<u64>().ok()?;
                if let Some(vs) = server
                    && connections > 0
                {
                    let (addr, port) = parse_address(target)?;
                    busy.insert((vs, RsKey { addr, port }));
                }
            }
            [protocol, address, ..] => server = parse_server(protocol, address)?,
            _ => {}
        }
    }
    Some(busy)
}

/// A virtual server that can be ours, or the news that it cannot.
fn parse_server(protocol: &str, address: &str) -> Option<Option<VsKey>> {
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return Some(None),
    };
    let (addr, port) = parse_address(address)?;
    Some(Some(VsKey { protocol, addr, port }))
}

/// `0A600001:01BB` or `[fd00:0096:0000:0000:0000:0000:0000:0001]:01BB`, all in hexadecimal.
fn parse_address(text: &str) -> Option<(IpAddr, u16)> {
    let (addr, port) = text.rsplit_once(':')?;
    let addr = match addr.strip_prefix('[') {
        Some(v6) => IpAddr::V6(v6.strip_suffix(']')?.parse().ok()?),
        None => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(addr, 16).ok()?)),
    };
    Some((addr, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0050 rr persistent 600 FFFFFFFF
  -> 0AF40105:1F90      Masq    1      70000      0         \x20
  -> 0AF40106:1F90      Masq    0      0          1         \x20
  -> 0AF40107:1F90      Masq    1      0          0         \x20
FWM  00000007 rr\x20
  -> 0AF40109:0000      Masq    1      5          0         \x20
TCP  [fd00:0096:0000:0000:0000:0000:0000:0010]:0050 rr\x20
  -> [fd00:0244:0001:0000:0000:0000:0000:0005]:1F90      Masq    1      2          0         \x20
";

    #[test]
    fn real_servers_with_connections_are_found() {
        let busy = parse_busy(TABLE).unwrap();
        let mut found: Vec<String> = busy.iter().map(|(vs, rs)| format!("{vs} {rs}")).collect();
        found.sort();
        assert_eq!(
            found,
            [
                "TCP 10.96.0.10:80 10.244.1.5:8080",
                "TCP 10.96.0.10:80 10.244.1.6:8080",
                "TCP [fd00:96::10]:80 [fd00:244:1::5]:8080",
            ]
        );
    }

    #[test]
    fn an_unknown_form_is_an_error_and_never_an_idle_server() {
        for broken in ["0A60000A", "XYZ:0050", "[fd00::1:0050"] {
            assert_eq!(parse_busy(&TABLE.replacen("0A60000A:0050", broken, 1)), None, "{broken}");
        }
        assert_eq!(parse_busy(&TABLE.replacen("70000", "many", 1)), None);
    }
}
