// SPDX-License-Identifier: Apache-2.0
//! dummy-iface on a real kernel, seen by `ip`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::time::Duration;

use dummy_iface::{Change, DummyDevice, Ensured, Error, RouteWatch, Watch};
use integration::lab::Netns;

const NAME: &str = "kube-ipvs0";

fn in_netns(test: impl FnOnce(&Netns, &mut DummyDevice) + Send) {
    let ns = Netns::new("dummy").unwrap();
    ns.enter(|| test(&ns, &mut DummyDevice::open(NAME).unwrap())).unwrap();
}

fn ip(ns: &Netns, args: &[&str]) -> String {
    let command: Vec<&str> = std::iter::once("ip").chain(args.iter().copied()).collect();
    ns.exec(&command).unwrap().stdout
}

#[test]
fn the_device_is_as_kube_proxy_leaves_it() {
    in_netns(|ns, device| {
        assert_eq!(device.state().unwrap(), None);
        assert_eq!(device.ensure().unwrap(), Ensured::Created);
        assert_eq!(device.ensure().unwrap(), Ensured::AlreadyThere);
        let shown = ip(ns, &["-d", "link", "show", "dev", NAME]);
        assert!(shown.contains("<BROADCAST,NOARP>") && shown.contains("state DOWN"), "{shown}");
        assert!(shown.contains("dummy"), "{shown}");
        assert!(!device.state().unwrap().unwrap().up);
        assert!(device.remove().unwrap());
        assert!(!device.remove().unwrap());
        assert!(ns.try_exec(&["ip", "link", "show", "dev", NAME], None).unwrap().success("ip").is_err());
    });
}

#[test]
fn a_device_of_another_kind_is_not_touched() {
    in_netns(|ns, device| {
        ns.ip(&format!("link add {NAME} type veth peer name x")).unwrap();
        for error in [device.ensure().unwrap_err(), device.remove().unwrap_err()] {
            assert!(matches!(&error, Error::WrongKind { kind, .. } if kind == "veth"), "{error}");
        }
        ip(ns, &["link", "show", "dev", NAME]);
    });
}

#[test]
fn many_addresses_come_and_go_in_few_sends() {
    in_netns(|ns, device| {
        assert!(matches!(device.add(&["10.0.0.1".parse().unwrap()]), Err(Error::NoDevice(_))));
        device.ensure().unwrap();
        let mut addrs: Vec<IpAddr> =
            (0..2000u16).map(|n| IpAddr::from([10, 96, (n / 250) as u8, (n % 250) as u8])).collect();
        addrs.push("fd00:96::1".parse().unwrap());
        let before = device.counters();
        for _ in 0..2 {
            assert_eq!(device.add(&addrs).unwrap(), [], "those that are there are fine");
        }
        let (sends, bytes) =
            (device.counters().sends - before.sends, device.counters().bytes_sent - before.bytes_sent);
        // Each call asks once for the index of the device.
        assert!(sends <= bytes.div_ceil(64 * 1024) + 4, "{sends} sends for {bytes} bytes");
        let shown = ip(ns, &["-o", "addr", "show", "dev", NAME]);
        assert_eq!(shown.lines().count(), 2001);
        assert!(shown.contains("inet 10.96.7.249/32 scope global kube-ipvs0"), "no label, no broadcast");
        assert!(shown.contains("inet6 fd00:96::1/128 scope global"));
        let mut listed = device.list().unwrap();
        assert_eq!(listed.len(), 2001);
        listed.truncate(1500);
        for _ in 0..2 {
            assert_eq!(device.remove_addrs(&listed).unwrap(), []);
        }
        assert_eq!(ip(ns, &["-o", "addr", "show", "dev", NAME]).lines().count(), 501);
    });
}

#[test]
fn addresses_elsewhere_and_wider_prefixes() {
    in_netns(|ns, device| {
        device.ensure().unwrap();
        ns.ip(&format!(
            "link add eth9 type dummy\naddr add 192.168.1.5/24 dev eth9\naddr add 10.1.2.3/24 dev {NAME}"
        ))
        .unwrap();
        let listed = device.list().unwrap();
        assert_eq!(listed, ["10.1.2.3/24".parse().unwrap()]);
        let elsewhere: Vec<String> =
            device.addresses().unwrap().elsewhere.iter().map(|a| a.addr.to_string()).collect();
        assert!(
            elsewhere.contains(&"192.168.1.5/24".to_owned()) && elsewhere.contains(&"127.0.0.1/8".to_owned())
        );
        assert!(!elsewhere.contains(&"10.1.2.3/24".to_owned()));
        assert_eq!(device.remove_addrs(&listed).unwrap(), []);
        assert!(device.list().unwrap().is_empty());
    });
}

#[test]
fn a_disabled_family_refuses_its_addresses_only() {
    in_netns(|ns, device| {
        device.ensure().unwrap();
        ns.set_sysctls(&[("net.ipv6.conf.all.disable_ipv6", "1")]).unwrap();
        let addrs = ["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        let refused = device.add(&addrs).unwrap();
        assert_eq!(refused.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [0]);
        assert_eq!(device.list().unwrap().len(), 1);
    });
}

#[test]
fn the_watch_tells_what_others_did_and_not_what_we_did() {
    in_netns(|ns, device| {
        let mut watch = Watch::open(NAME, device.port_number()).unwrap();
        device.ensure().unwrap();
        device.add(&["10.0.0.1".parse().unwrap()]).unwrap();
        ns.ip(&format!("addr add 10.0.0.2/32 dev {NAME}\naddr del 10.0.0.1/32 dev {NAME}")).unwrap();
        ns.ip(&format!("addr add 10.9.9.9/32 dev lo\nlink del {NAME}\nlink add {NAME} type dummy")).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || while sender.send(watch.next().unwrap()).is_ok() {});
        let mut seen = Vec::new();
        while !seen.ends_with(&[Change::DeviceGone, Change::DeviceAppeared]) {
            let change = receiver.recv_timeout(Duration::from_secs(20));
            seen.push(change.unwrap_or_else(|_| panic!("no more changes after {seen:?}")));
        }
        // Before Linux 6.2 notifications of devices do not say who made them.
        if seen[0] == Change::DeviceAppeared {
            seen.remove(0);
        }
        let added = Change::Added("10.0.0.2/32".parse().unwrap());
        let removed = Change::Removed("10.0.0.1/32".parse().unwrap());
        assert_eq!(seen[..3], [added, removed, Change::OtherDevice]);
    });
}

#[test]
fn gateways_of_new_routes_are_reported() {
    in_netns(|ns, _| {
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
            seen.extend(watch.next_gateways().unwrap());
        }
        let expected = ["192.168.1.1", "192.168.1.4", "192.168.1.6", "fd00:1::9"];
        assert_eq!(seen.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    });
}

#[test]
fn next_hops_are_the_gateways_of_all_routes() {
    in_netns(|ns, device| {
        assert_eq!(device.next_hops().unwrap(), [] as [IpAddr; 0]);
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
        assert_eq!(device.next_hops().unwrap(), expected);
        let shown =
            ip(ns, &["route", "show", "table", "all"]) + &ip(ns, &["-6", "route", "show", "table", "all"]);
        let via =
            |line: &str| line.split_once("via ").map(|(_, to)| to.trim_start_matches("inet6 ").to_owned());
        let mut told: Vec<IpAddr> =
            shown.lines().filter_map(via).map(|to| to.split(' ').next().unwrap().parse().unwrap()).collect();
        told.sort_unstable();
        told.dedup();
        assert_eq!(told, expected, "{shown}");
    });
}

#[test]
fn next_hops_of_many_routes_are_read_whole() {
    in_netns(|ns, device| {
        ns.ip("link add eth9 type dummy\naddr add 10.0.0.1/8 dev eth9\nlink set eth9 up").unwrap();
        let lines: String = (0..3000u32)
            .map(|n| {
                format!("route add 172.16.{}.{}/32 via 10.1.{}.{}\n", n / 250, n % 250, n / 250, n % 250)
            })
            .collect();
        ns.ip(&lines).unwrap();
        assert_eq!(device.next_hops().unwrap().len(), 3000);
    });
}
