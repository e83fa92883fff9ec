// SPDX-License-Identifier: Apache-2.0
//! The gateways of routes on a real kernel, seen by `ip`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;

use integration::lab::Netns;
use kube_ipvs::kernel::host::routes::{RouteWatch, Routes};

fn in_netns(test: impl FnOnce(&Netns) + Send) {
    let ns = Netns::new("routes").unwrap();
    ns.enter(|| test(&ns)).unwrap();
}

fn next_hops() -> Vec<IpAddr> {
    Routes::open().unwrap().read().unwrap().next_hops
}

#[test]
fn gateways_of_new_routes_are_reported() {
    in_netns(|ns| {
        let mut watch = RouteWatch::open().unwrap();
        ns.ip("link add eth9 type dummy\n\
               addr add 192.168.1.5/24 dev eth9\n\
               addr add fd00:1::5/64 dev eth9 nodad\n\
               link set eth9 up\n\
               route add 10.1.0.0/16 dev eth9\n\
               route add 10.2.0.0/16 via 192.168.1.1\n\
               route del 10.2.0.0/16\n\
               route add 10.4.0.0/16 nexthop via 192.168.1.4 nexthop via 192.168.1.6\n\
               route add fd00:3::/64 via fd00:1::9")
            .unwrap();
        let mut seen = Vec::new();
        while seen.len() < 4 {
            seen.extend(watch.wait().unwrap().gateways);
        }
        let expected = ["192.168.1.1", "192.168.1.4", "192.168.1.6", "fd00:1::9"];
        assert_eq!(seen.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    });
}

#[test]
fn next_hops_are_the_gateways_of_all_routes() {
    in_netns(|ns| {
        assert_eq!(next_hops(), [] as [IpAddr; 0]);
        ns.ip("link add eth9 type dummy\n\
               addr add 192.168.1.5/24 dev eth9\n\
               addr add fd00:1::5/64 dev eth9 nodad\n\
               link set eth9 up\n\
               route add 10.1.0.0/16 dev eth9\n\
               route add default via 192.168.1.1\n\
               route add 10.2.0.0/16 via 192.168.1.1\n\
               route add 10.3.0.0/16 via 192.168.1.3 mtu 1400 table 77\n\
               route add 10.4.0.0/16 nexthop via 192.168.1.4 weight 2 nexthop via 192.168.1.6 dev eth9\n\
               route add 10.5.0.0/16 via inet6 fd00:1::7\n\
               route add 10.6.0.0/16 nexthop via inet6 fd00:1::8 nexthop via 192.168.1.8\n\
               route add ::/0 via fd00:1::1\n\
               route add fd00:2::/64 nexthop via fd00:1::2 nexthop via fd00:1::3\n\
               route add fd00:3::/64 via fe80::9 dev eth9\n\
               route add blackhole 10.9.0.0/16")
            .unwrap();
        let expected: Vec<IpAddr> =
            "192.168.1.1 192.168.1.3 192.168.1.4 192.168.1.6 192.168.1.8 fd00:1::1 fd00:1::2 \
                                     fd00:1::3 fd00:1::7 fd00:1::8 fe80::9"
                .split(' ')
                .map(|addr| addr.parse().unwrap())
                .collect();
        assert_eq!(next_hops(), expected);
        let list = |family| ns.exec(&["ip", family, "route", "show", "table", "all"]).unwrap().stdout;
        let shown = list("-4") + &list("-6");
        let via =
            |line: &str| line.split_once("via ").map(|(_, to)| to.trim_start_matches("inet6 ").to_owned());
        let mut shown_gateways: Vec<IpAddr> =
            shown.lines().filter_map(via).map(|to| to.split(' ').next().unwrap().parse().unwrap()).collect();
        shown_gateways.sort_unstable();
        shown_gateways.dedup();
        assert_eq!(shown_gateways, expected, "{shown}");
    });
}

#[test]
fn next_hops_of_many_routes_are_read_completely() {
    in_netns(|ns| {
        ns.ip("link add eth9 type dummy\naddr add 10.0.0.1/8 dev eth9\nlink set eth9 up").unwrap();
        let lines: String = (0..3000u32)
            .map(|n| {
                format!("route add 172.16.{}.{}/32 via 10.1.{}.{}\n", n / 250, n % 250, n / 250, n % 250)
            })
            .collect();
        ns.ip(&lines).unwrap();
        assert_eq!(next_hops().len(), 3000);
    });
}
