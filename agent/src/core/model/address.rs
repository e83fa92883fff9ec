// SPDX-License-Identifier: Apache-2.0
//! Parsers of addresses and networks with the rules of Kubernetes (`k8s.io/utils/net`, `ParseIPSloppy`): leading
//! zeros are decimal, and an IPv4-mapped IPv6 address is an IPv4 address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    // The dotted part is at the end, alone or after an IPv6 prefix.
    let (prefix, dotted) = text.split_at(text.rfind(':').map_or(0, |at| at + 1));
    let v4 = parse_dotted(dotted)?;
    if prefix.is_empty() {
        return Some(v4.into());
    }
    format!("{prefix}{v4}").parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn parse_dotted(text: &str) -> Option<Ipv4Addr> {
    let octets: Vec<u8> = text.split('.').map(parse_number).collect::<Option<_>>()?;
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?))
}

/// Digits only, without a sign.
fn parse_number<N: FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Parses `IP:PORT`, with brackets around an IPv6 address.
pub fn parse_socket(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None => Some(host).filter(|host| !host.contains(':'))?,
    };
    Some(SocketAddr::new(parse_ip(host)?, parse_number(port)?))
}

/// Parses a network and clears its host bits.
pub fn parse_net(text: &str) -> Option<IpNet> {
    let (addr, prefix) = text.split_once('/')?;
    let prefix: u8 = parse_number(prefix)?;
    let ip = parse_ip(addr)?;
    match ip {
        // `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
        IpAddr::V4(v4) if addr.contains(':') => {
            Ipv4Net::new(v4, prefix.checked_sub(96)?).ok().map(|net| IpNet::from(net).trunc())
        }
        ip => IpNet::new(ip, prefix).ok().map(|net| net.trunc()),
    }
}

/// The reason why an address can never be an endpoint or a VIP, whatever the routes of the node are.
pub fn useless(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("unspecified")
    } else if ip.is_loopback() {
        Some("a loopback address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal_and_mapped_addresses_are_ipv4() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.00.08", Some("10.0.0.8")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.09", Some("10.0.0.9")),
            ("::FFFF:a00:1", Some("10.0.0.1")),
            ("fd00::0001", Some("fd00::1")),
            ("64:ff9b::192.0.2.033", Some("64:ff9b::c000:221")),
            ("256.0.0.1", None),
            ("10.0.0", None),
            ("10.0.0.0.1", None),
            ("10.+1.0.1", None),
            ("", None),
            ("fd00::1%eth0", None),
            (" 10.0.0.1", None),
        ] {
            assert_eq!(parse_ip(text).map(|ip| ip.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn socket_addresses_are_parsed_by_the_same_rules() {
        for (text, expected) in [
            ("127.0.0.1:10249", Some("127.0.0.1:10249")),
            ("127.000.000.001:10249", Some("127.0.0.1:10249")),
            ("127.0.0.1:010249", Some("127.0.0.1:10249")),
            ("[::1]:10249", Some("[::1]:10249")),
            ("[::ffff:010.0.0.1]:80", Some("10.0.0.1:80")),
            ("[127.0.0.1]:80", Some("127.0.0.1:80")),
            ("127.0.0.1:0", Some("127.0.0.1:0")),
            ("127.0.0.1:65536", None),
            ("127.0.0.1:+80", None),
            ("127.0.0.1:", None),
            ("127.0.0.1", None),
            (":80", None),
            ("::1:80", None),
            ("[::1:80", None),
            ("::1]:80", None),
            ("[[::1]]:80", None),
            ("[fe80::1%eth0]:80", None),
            ("localhost:80", None),
        ] {
            assert_eq!(parse_socket(text).map(|at| at.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn networks_are_parsed_by_the_same_rules() {
        for (text, expected) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("010.1.2.3/08", Some("10.0.0.0/8")),
            ("::ffff:10.1.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:10.1.0.0/64", None),
            ("fd00::5/64", Some("fd00::/64")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0", None),
            ("/8", None),
        ] {
            assert_eq!(parse_net(text).map(|net| net.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn unusable_addresses_are_recognised() {
        for text in ["0.0.0.0", "::", "127.0.0.9", "::1", "224.0.0.5", "ff02::1", "255.255.255.255"] {
            assert!(useless(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in ["10.0.0.255", "fe80::1", "169.254.1.1", "192.0.2.1"] {
            assert_eq!(useless(text.parse().unwrap()), None, "{text}");
        }
    }
}
