// SPDX-License-Identifier: Apache-2.0
//! The order of ipvsadm's list.
//!
//! ipvsadm compares IPv4 addresses by the sign of a 32-bit difference, so 10.0.0.0 < 100.64.0.0 < 192.168.0.0 <
//! 10.0.0.0. This is no total order, so the result depends on the algorithm: the merge sort of the C library.

use std::cmp::Ordering;
use std::net::IpAddr;

use ipvs_netlink::{Destination, Family, Service, ServiceId};

/// Sorts services as ipvsadm does.
pub fn sort_services(services: &mut Vec<Service>) {
    merge_sort(services, &|a, b| compare_services(&a.id, &b.id));
}

/// Sorts destinations as ipvsadm does.
pub fn sort_destinations(destinations: &mut Vec<Destination>) {
    merge_sort(destinations, &|a, b| compare_addrs(&a.addr, &b.addr).then_with(|| a.port.cmp(&b.port)));
}

fn compare_services(a: &ServiceId, b: &ServiceId) -> Ordering {
    let key = |id: &ServiceId| match id {
        ServiceId::Fwmark { mark, .. } => (*mark, 0),
        ServiceId::Address { protocol, .. } => (0, u8::from(*protocol)),
        _ => (0, 0),
    };
    let family = |id: &ServiceId| matches!(id.family(), Family::Inet6);
    let ((mark_a, proto_a), (mark_b, proto_b)) = (key(a), key(b));
    signed(mark_a, mark_b).then(family(a).cmp(&family(b))).then(proto_a.cmp(&proto_b)).then_with(|| {
        match (a, b) {
            (ServiceId::Address { addr: x, port: p, .. }, ServiceId::Address { addr: y, port: q, .. }) => {
                compare_addrs(x, y).then(p.cmp(q))
            }
            _ => Ordering::Equal,
        }
    })
}

/// The sign of the difference as a C `int`.
fn signed(a: u32, b: u32) -> Ordering {
    (a.wrapping_sub(b) as i32).cmp(&0)
}

fn compare_addrs(a: &IpAddr, b: &IpAddr) -> Ordering {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => signed(a.to_bits(), b.to_bits()),
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let word = |ip: &std::net::Ipv6Addr, i| (ip.to_bits() >> (32 * i)) as u32;
            let words = (0..4).rev().map(|i| signed(word(a, i), word(b, i)));
            words.fold(Ordering::Equal, Ordering::then)
        }
        (a, b) => a.cmp(b),
    }
}

/// A stable merge sort that splits as the C library does.
fn merge_sort<T>(items: &mut Vec<T>, compare: &dyn Fn(&T, &T) -> Ordering) {
    if items.len() <= 1 {
        return;
    }
    let mut right = items.split_off(items.len() / 2);
    let mut left = std::mem::take(items);
    merge_sort(&mut left, compare);
    merge_sort(&mut right, compare);
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = if compare(a, b).is_le() { left.next() } else { right.next() };
        items.extend(next);
    }
    items.extend(left);
    items.extend(right);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(addrs: &[&str]) -> Vec<String> {
        let mut services: Vec<Service> =
            addrs.iter().map(|a| Service::new(ServiceId::tcp(a.parse().unwrap()), "rr")).collect();
        sort_services(&mut services);
        services.iter().map(|s| s.id.to_string()).collect()
    }

    #[test]
    fn high_addresses_come_before_low_ones() {
        assert_eq!(
            sorted(&[
                "10.96.0.10:53",
                "192.168.10.5:8080",
                "10.96.0.1:443",
                "203.0.113.10:80",
                "10.96.0.10:9"
            ]),
            [
                "TCP 192.168.10.5:8080",
                "TCP 203.0.113.10:80",
                "TCP 10.96.0.1:443",
                "TCP 10.96.0.10:9",
                "TCP 10.96.0.10:53"
            ]
        );
    }

    #[test]
    fn protocols_and_families_come_first() {
        let mut services = vec![
            Service::new(ServiceId::tcp("[fd00::1]:80".parse().unwrap()), "rr"),
            Service::new(ServiceId::udp("10.0.0.1:53".parse().unwrap()), "rr"),
            Service::new(ServiceId::Fwmark { mark: 7, family: Family::Inet }, "rr"),
            Service::new(ServiceId::tcp("10.0.0.2:53".parse().unwrap()), "rr"),
        ];
        sort_services(&mut services);
        let protocols: Vec<Family> = services.iter().map(|s| s.id.family()).collect();
        assert!(matches!(protocols[2], Family::Inet6), "address families before protocols");
        assert!(matches!(services[3].id, ServiceId::Fwmark { .. }));
        assert_eq!(services[0].id.to_string(), "TCP 10.0.0.2:53");
    }
}
