// SPDX-License-Identifier: Apache-2.0
//! dummy-iface on a real kernel, seen by `ip`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::time::Duration;

use dummy_iface::{Change, DummyDevice, Error};
use integration::lab::Netns;
use ipnet::IpNet;

const NAME: &str = "kube-ipvs0";

fn in_netns(test: impl FnOnce(&Netns, &mut DummyDevice) + Send) {
    let ns = Netns::new("dummy").unwrap();
    ns.enter(|| test(&ns, &mut DummyDevice::open(NAME).unwrap())).unwrap();
}

fn own(device: &mut DummyDevice) -> Vec<IpNet> {
    device.addresses().unwrap().own.unwrap()
}

fn ip(ns: &Netns, args: &[&str]) -> String {
    let command: Vec<&str> = std::iter::once("ip").chain(args.iter().copied()).collect();
    ns.exec(&command).unwrap().stdout
}

#[test]
fn the_device_is_created_as_by_kube_proxy() {
    in_netns(|ns, device| {
        assert_eq!(device.state().unwrap(), None);
        assert!(device.create().unwrap());
        assert!(!device.create().unwrap());
        let shown = ip(ns, &["-d", "link", "show", "dev", NAME]);
        assert!(shown.contains("<BROADCAST,NOARP>") && shown.contains("state DOWN"), "{shown}");
        assert!(shown.contains("dummy"), "{shown}");
        assert!(!device.state().unwrap().unwrap().up);
        assert!(device.delete().unwrap());
        assert!(!device.delete().unwrap());
        assert!(ns.try_exec(&["ip", "link", "show", "dev", NAME], None).unwrap().success("ip").is_err());
    });
}

#[test]
fn a_device_of_another_kind_is_not_changed() {
    in_netns(|ns, device| {
        ns.ip(&format!("link add {NAME} type veth peer name x")).unwrap();
        for error in [device.create().unwrap_err(), device.delete().unwrap_err()] {
            assert!(matches!(&error, Error::WrongKind { kind, .. } if kind == "veth"), "{error}");
        }
        ip(ns, &["link", "show", "dev", NAME]);
    });
}

#[test]
fn many_addresses_are_added_and_removed_in_few_sends() {
    in_netns(|ns, device| {
        assert!(matches!(device.add_addresses(&["10.0.0.1".parse().unwrap()]), Err(Error::NoDevice(_))));
        device.create().unwrap();
        let mut addrs: Vec<IpAddr> =
            (0..2000u16).map(|n| IpAddr::from([10, 96, (n / 250) as u8, (n % 250) as u8])).collect();
        addrs.push("fd00:96::1".parse().unwrap());
        let before = device.counters();
        for _ in 0..2 {
            assert_eq!(device.add_addresses(&addrs).unwrap(), [], "existing addresses are no failure");
        }
        let (sends, bytes) =
            (device.counters().sends - before.sends, device.counters().bytes_sent - before.bytes_sent);
        // Each call asks once for the index of the device.
        assert!(sends <= bytes.div_ceil(64 * 1024) + 4, "{sends} sends for {bytes} bytes");
        let shown = ip(ns, &["-o", "addr", "show", "dev", NAME]);
        assert_eq!(shown.lines().count(), 2001);
        assert!(shown.contains("inet 10.96.7.249/32 scope global kube-ipvs0"), "no label, no broadcast");
        assert!(shown.contains("inet6 fd00:96::1/128 scope global"));
        let mut listed = own(device);
        assert_eq!(listed.len(), 2001);
        listed.truncate(1500);
        for _ in 0..2 {
            assert_eq!(device.delete_addresses(&listed).unwrap(), []);
        }
        assert_eq!(ip(ns, &["-o", "addr", "show", "dev", NAME]).lines().count(), 501);
    });
}

#[test]
fn addresses_elsewhere_and_wider_prefixes() {
    in_netns(|ns, device| {
        device.create().unwrap();
        ns.ip(&format!(
            "link add eth9 type dummy\naddr add 192.168.1.5/24 dev eth9\naddr add 10.1.2.3/24 dev {NAME}"
        ))
        .unwrap();
        let listed = own(device);
        assert_eq!(listed, ["10.1.2.3/24".parse().unwrap()]);
        let elsewhere: Vec<String> =
            device.addresses().unwrap().elsewhere.iter().map(|a| a.addr.to_string()).collect();
        assert!(
            elsewhere.contains(&"192.168.1.5/24".to_owned()) && elsewhere.contains(&"127.0.0.1/8".to_owned())
        );
        assert!(!elsewhere.contains(&"10.1.2.3/24".to_owned()));
        assert_eq!(device.delete_addresses(&listed).unwrap(), []);
        assert!(own(device).is_empty());
    });
}

#[test]
fn a_disabled_family_refuses_its_addresses_only() {
    in_netns(|ns, device| {
        device.create().unwrap();
        ns.set_sysctls(&[("net.ipv6.conf.all.disable_ipv6", "1")]).unwrap();
        let addrs = ["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        let refused = device.add_addresses(&addrs).unwrap();
        assert_eq!(refused.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [0]);
        assert_eq!(own(device).len(), 1);
    });
}

#[test]
fn the_watch_reports_only_changes_by_other_programs() {
    in_netns(|ns, device| {
        let mut watch = device.watch().unwrap();
        device.create().unwrap();
        device.add_addresses(&["10.0.0.1".parse().unwrap()]).unwrap();
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
