// SPDX-License-Identifier: Apache-2.0
//! ipvs-netlink on a real kernel: every command, seen by `ipvsadm`, and every errno.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use integration::lab::Netns;
use ipvs_netlink::*;

fn in_netns(test: impl FnOnce(&Netns, &mut Client) + Send) {
    let ns = Netns::new("ipvs").unwrap();
    ns.enter(|| test(&ns, &mut Client::open().unwrap())).unwrap();
}

fn ipvsadm(ns: &Netns, args: &[&str]) -> String {
    let command: Vec<&str> = std::iter::once("ipvsadm").chain(args.iter().copied()).collect();
    ns.exec(&command).unwrap().stdout
}

fn kind(error: Error) -> ErrorKind {
    match error {
        Error::Command(error) => error.kind,
        other => panic!("{other} is not a refusal"),
    }
}

fn tcp(text: &str) -> ServiceId {
    ServiceId::tcp(text.parse().unwrap())
}

fn dest(text: &str) -> Destination {
    Destination::new(text.parse().unwrap())
}

#[test]
fn ipvsadm_shows_what_the_client_created() {
    in_netns(|ns, client| {
        let mut persistent = Service::new(tcp("10.96.0.1:443"), "rr");
        persistent.flags = ServiceFlags::PERSISTENT;
        persistent.timeout = 600;
        persistent.persistence_mask = PersistenceMask::V4("255.255.255.0".parse().unwrap());
        let mut v6 = Service::new(tcp("[fd00::1]:80"), "wrr");
        v6.flags = ServiceFlags::PERSISTENT;
        v6.timeout = 300;
        v6.persistence_mask = PersistenceMask::V6(64);
        let mut hash = Service::new(ServiceId::udp("10.96.0.2:53".parse().unwrap()), "sh");
        hash.flags = ServiceFlags::SCHED1 | ServiceFlags::SCHED2;
        let mut once = Service::new(ServiceId::udp("10.96.0.3:53".parse().unwrap()), "rr");
        once.flags = ServiceFlags::ONE_PACKET;
        let mark = Service::new(ServiceId::Fwmark { mark: 7, family: Family::Inet }, "lc");
        let sctp = Service::new(ServiceId::sctp("10.96.0.4:9".parse().unwrap()), "rr");
        for service in [&persistent, &v6, &hash, &once, &mark, &sctp] {
            client.new_service(service).unwrap();
        }
        let mut tunnel = dest("10.0.0.9:443");
        tunnel.forward = ForwardMethod::Tunnel;
        tunnel.tunnel = Some(Tunnel { kind: TunnelKind::Gue, port: 6080, flags: 0 });
        let mut limited = dest("10.0.0.8:8443");
        (limited.weight, limited.upper_threshold, limited.lower_threshold) = (5, 100, 50);
        client.new_destination(&persistent.id, &limited).unwrap();
        client.new_destination(&persistent.id, &tunnel).unwrap();
        client.new_destination(&v6.id, &dest("[fd00::8]:80")).unwrap();
        let saved = ipvsadm(ns, &["-Sn"]);
        for line in [
            "-A -t 10.96.0.1:443 -s rr -p 600 -M 255.255.255.0",
            "-a -t 10.96.0.1:443 -r 10.0.0.8:8443 -m -w 5",
            "-a -t 10.96.0.1:443 -r 10.0.0.9:443 -i -w 1 --tun-type gue --tun-port 6080",
            "-A -t [fd00::1]:80 -s wrr -p 300 -M 64",
            "-a -t [fd00::1]:80 -r [fd00::8]:80 -m -w 1",
            "-A -u 10.96.0.2:53 -s sh -b sh-fallback,sh-port",
            "-A -u 10.96.0.3:53 -s rr -o",
            "-A -f 7 -s lc",
            "-A --sctp-service 10.96.0.4:9 -s rr",
        ] {
            assert!(saved.lines().any(|l| l.trim().starts_with(line)), "{line:?} is not in\n{saved}");
        }
        let limits = ipvsadm(ns, &["-Ln", "--thresholds"]);
        let limits = limits.lines().find(|l| l.contains("10.0.0.8:8443")).unwrap();
        assert_eq!(limits.split_whitespace().skip(2).take(2).collect::<Vec<_>>(), ["100", "50"], "{limits}");
        // And back: what the client reads is what it made.
        for made in [&persistent, &v6, &hash, &once, &mark, &sctp] {
            let read = client.service(&made.id).unwrap();
            assert_eq!(read.flags.without_hashed(), made.flags, "{}", made.id);
            assert!(read.flags.contains(ServiceFlags::HASHED));
            assert_eq!(
                (&read.scheduler, read.timeout, read.persistence_mask),
                (&made.scheduler, made.timeout, made.persistence_mask)
            );
            assert!(read.stats.is_some() && read.other.is_empty(), "{read:?}");
        }
        assert_eq!(client.services().unwrap().len(), 6);
        let read = client.destinations(&persistent.id).unwrap();
        let read = read.iter().find(|d| d.port == 443).unwrap();
        assert_eq!((read.forward, read.tunnel), (ForwardMethod::Tunnel, tunnel.tunnel));
    });
}

#[test]
fn edits_and_removals() {
    in_netns(|ns, client| {
        let id = tcp("10.96.0.1:80");
        client.new_service(&Service::new(id, "rr")).unwrap();
        client.new_destination(&id, &dest("10.0.0.1:8080")).unwrap();
        client.set_service(&Service::new(id, "wrr")).unwrap();
        let mut heavy = dest("10.0.0.1:8080");
        heavy.weight = 0;
        client.set_destination(&id, &heavy).unwrap();
        assert_eq!(
            ipvsadm(ns, &["-Sn"]).split_whitespace().collect::<Vec<_>>().join(" "),
            "-A -t 10.96.0.1:80 -s wrr -a -t 10.96.0.1:80 -r 10.0.0.1:8080 -m -w 0"
        );
        client.del_destination(&id, "10.0.0.1:8080".parse().unwrap()).unwrap();
        assert!(client.destinations(&id).unwrap().is_empty());
        client.new_destination(&id, &dest("10.0.0.2:8080")).unwrap();
        client.zero_service(&id).unwrap();
        client.zero().unwrap();
        client.del_service(&id).unwrap();
        assert_eq!(ipvsadm(ns, &["-Sn"]), "", "a service takes its destinations along");
        client.new_service(&Service::new(id, "rr")).unwrap();
        client.flush().unwrap();
        assert_eq!(client.services().unwrap().len(), 0);
    });
}

#[test]
fn the_errno_table() {
    in_netns(|_, client| {
        let (id, missing) = (tcp("10.96.0.1:80"), tcp("10.96.0.9:80"));
        let service = Service::new(id, "rr");
        client.new_service(&service).unwrap();
        client.new_destination(&id, &dest("10.0.0.1:80")).unwrap();
        let gone = Service::new(missing, "rr");
        use ErrorKind as K;
        assert_eq!(kind(client.new_service(&service).unwrap_err()), K::ServiceExists);
        assert_eq!(
            kind(client.new_service(&Service::new(missing, "nosuch")).unwrap_err()),
            K::NoSuchScheduler
        );
        assert_eq!(kind(client.set_service(&gone).unwrap_err()), K::NoSuchService);
        assert_eq!(kind(client.del_service(&missing).unwrap_err()), K::NoSuchService);
        assert_eq!(kind(client.service(&missing).unwrap_err()), K::NoSuchService);
        assert_eq!(
            kind(client.new_destination(&missing, &dest("10.0.0.1:80")).unwrap_err()),
            K::NoSuchService
        );
        assert_eq!(
            kind(client.new_destination(&id, &dest("10.0.0.1:80")).unwrap_err()),
            K::DestinationExists
        );
        assert_eq!(
            kind(client.set_destination(&id, &dest("10.0.0.2:80")).unwrap_err()),
            K::NoSuchDestination
        );
        let other = "10.0.0.2:80".parse().unwrap();
        assert_eq!(kind(client.del_destination(&id, other).unwrap_err()), K::NoSuchDestination);
        assert_eq!(kind(client.zero_service(&missing).unwrap_err()), K::NoSuchService);
        assert!(client.destinations(&missing).unwrap().is_empty(), "the kernel answers with an empty list");
    });
}

#[test]
fn a_destination_needs_the_loopback_device() {
    in_netns(|_, _| {
        // A namespace in which the loopback device was never up.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let client = &mut Client::open().unwrap();
        let id = tcp("10.96.0.1:80");
        client.new_service(&Service::new(id, "rr")).unwrap();
        let error = client.new_destination(&id, &dest("10.0.0.1:80")).unwrap_err();
        assert_eq!(kind(error), ErrorKind::InvalidArgument);
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        client.new_destination(&id, &dest("10.0.0.1:80")).unwrap();
    });
}

#[test]
fn timeouts_info_and_daemons() {
    in_netns(|ns, client| {
        client.set_config(Config { tcp: 800, tcp_fin: 20, udp: 0 }).unwrap();
        assert_eq!(client.config().unwrap(), Config { tcp: 800, tcp_fin: 20, udp: 300 });
        assert!(ipvsadm(ns, &["-Ln", "--timeout"]).contains("800 20 300"));
        let info = client.info().unwrap();
        let first = format!(
            "IP Virtual Server version {} (size={})",
            info.version_text(),
            info.connection_table_size
        );
        assert!(ipvsadm(ns, &["-Ln"]).starts_with(&first), "{first}");
        ns.ip("link add d0 type dummy\naddr add 10.1.0.1/24 dev d0\nlink set d0 multicast on up\nroute add 224.0.0.0/4 dev d0")
            .unwrap();
        let mut daemon = SyncDaemon::new(DaemonState::Master, "d0", 7);
        daemon.port = Some(9000);
        client.new_daemon(&daemon).unwrap();
        assert_eq!(kind(client.new_daemon(&daemon).unwrap_err()), ErrorKind::DaemonExists);
        let daemons = client.daemons().unwrap();
        assert_eq!(daemons.len(), 1);
        assert_eq!((&*daemons[0].interface, daemons[0].sync_id, daemons[0].port), ("d0", 7, Some(9000)));
        let shown = ipvsadm(ns, &["-L", "--daemon"]);
        assert!(shown.contains("master") && shown.contains("d0") && shown.contains("9000"), "{shown}");
        client.del_daemon(&daemon).unwrap();
        assert_eq!(kind(client.del_daemon(&daemon).unwrap_err()), ErrorKind::NoSuchDaemon);
    });
}

#[test]
fn a_batch_is_few_sends_and_maps_each_failure_to_its_command() {
    in_netns(|ns, client| {
        let id = |n: u16| tcp(&format!("10.96.{}.{}:80", n / 250, n % 250 + 1));
        let commands: Vec<Command> = (0..2000u16)
            .flat_map(|n| {
                // Every 100th command repeats the one before.
                let n = if n % 100 == 99 { n - 1 } else { n };
                [Command::NewService(Service::new(id(n), "rr")), Command::NewDest(id(n), dest("10.0.0.1:80"))]
            })
            .collect();
        let before = client.counters();
        let report = client.batch(&commands).unwrap();
        let after = client.counters();
        let indexes: Vec<usize> = report.failures.iter().map(|(i, _)| *i).collect();
        let expected: Vec<usize> = (0..20).flat_map(|k| [k * 200 + 198, k * 200 + 199]).collect();
        assert_eq!(indexes, expected);
        for (i, error) in &report.failures {
            let kind = if i % 2 == 0 { ErrorKind::ServiceExists } else { ErrorKind::DestinationExists };
            assert_eq!(error.kind, kind, "{error}");
        }
        let (sends, bytes) = (after.sends - before.sends, after.bytes_sent - before.bytes_sent);
        assert!(sends <= bytes.div_ceil(64 * 1024), "{sends} sends for {bytes} bytes");
        assert_eq!(after.commands - before.commands, 4000);
        assert_eq!(ipvsadm(ns, &["-Sn"]).lines().filter(|l| l.starts_with("-A")).count(), 1980);
        let dumps = client.counters().dumps;
        assert_eq!(client.services().unwrap().len(), 1980);
        assert_eq!(client.counters().dumps, dumps + 1);
    });
}
