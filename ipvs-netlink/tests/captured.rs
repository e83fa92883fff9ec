// SPDX-License-Identifier: Apache-2.0
//! What a kernel really says, read and written again. The bytes are of a little-endian machine.
#![cfg(target_endian = "little")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

use ipvs_netlink::*;
use netlink_packet_core::Emitable;

/// One message per line; lines with `#` are comments.
fn captured(text: &str, command: IpvsCommand) -> Vec<IpvsMessage> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| read(command, &hex(line))).collect()
}

fn hex(line: &str) -> Vec<u8> {
    let digits = line.trim().as_bytes().chunks(2);
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

/// Reads a message, and sees that it survives being written and read again.
fn read(command: IpvsCommand, bytes: &[u8]) -> IpvsMessage {
    let message = IpvsMessage::parse(command, bytes).unwrap();
    let mut written = vec![0; message.buffer_len()];
    message.emit(&mut written);
    assert_eq!(IpvsMessage::parse(command, &written).unwrap(), message);
    message
}

fn tcp(text: &str) -> ServiceId {
    ServiceId::tcp(text.parse().unwrap())
}

fn udp(text: &str) -> ServiceId {
    ServiceId::udp(text.parse().unwrap())
}

/// After 5 datagrams, each of which was refused.
fn busy() -> Stats {
    let mut stats = Stats::default();
    (stats.connections, stats.packets_in, stats.packets_out) = (5, 5, 5);
    (stats.bytes_in, stats.bytes_out) = (170, 310);
    (stats.byte_rate_in, stats.byte_rate_out) = (12, 22);
    stats
}

#[test]
fn services() {
    use ServiceFlags as F;
    let persistent = |mask: &str| PersistenceMask::V4(mask.parse().unwrap());
    let make = |id, scheduler: &str, flags, timeout, mask| {
        let mut service = Service::new(id, scheduler);
        (service.flags, service.timeout, service.persistence_mask) = (flags | F::HASHED, timeout, mask);
        service.stats = Some(Stats::default());
        service
    };
    let full = persistent("255.255.255.255");
    let mut sip = make(udp("10.96.0.6:5060"), "rr", F::PERSISTENT | F::ONE_PACKET, 60, full);
    sip.pe_name = Some("sip".to_owned());
    let mut counted = make(udp("10.96.0.20:53"), "rr", F::default(), 0, full);
    counted.stats = Some(busy());
    let mark = ServiceId::Fwmark { mark: 7, family: Family::Inet6 };
    let expected = [
        make(tcp("10.96.0.1:443"), "rr", F::PERSISTENT, 600, persistent("255.255.255.0")),
        make(tcp("10.96.0.5:5060"), "mh", F::PERSISTENT, 60, full),
        sip,
        make(udp("10.96.0.2:53"), "sh", F::SCHED1 | F::SCHED2, 0, full),
        make(tcp("[fd00::1]:80"), "wrr", F::PERSISTENT, 300, PersistenceMask::V6(64)),
        make(mark, "lc", F::default(), 0, PersistenceMask::V6(128)),
        counted,
    ];
    let messages = captured(include_str!("captured/services.hex"), IpvsCommand::NewService);
    assert_eq!(messages.len(), expected.len());
    for (message, service) in messages.into_iter().zip(expected) {
        assert_eq!(message.attributes, [IpvsAttribute::Service(service)]);
    }
}

#[test]
fn destinations() {
    let ipip = Tunnel { kind: TunnelKind::IpIp, port: 0, flags: 0 };
    let make = |addr: &str, tunnel| {
        let mut dest = Destination::new(addr.parse().unwrap());
        (dest.tunnel, dest.stats) = (Some(tunnel), Some(Stats::default()));
        dest
    };
    let mut limited = make("10.0.0.8:8443", ipip);
    (limited.weight, limited.upper_threshold, limited.lower_threshold) = (5, 100, 50);
    let mut tunnel = make("10.0.0.9:443", Tunnel { kind: TunnelKind::Gue, port: 6080, flags: 0 });
    tunnel.forward = ForwardMethod::Tunnel;
    let mut counted = make("127.0.0.1:5353", ipip);
    (counted.inactive_connections, counted.stats) = (5, Some(busy()));
    let expected = [limited, tunnel, counted];
    let messages = captured(include_str!("captured/destinations.hex"), IpvsCommand::NewDest);
    assert_eq!(messages.len(), expected.len());
    for (message, dest) in messages.into_iter().zip(expected) {
        assert_eq!(message.attributes, [IpvsAttribute::Destination(dest)]);
    }
}

#[test]
fn timeouts_version_and_daemons() {
    let lines: Vec<&str> =
        include_str!("captured/control.hex").lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), 3);
    let config = read(IpvsCommand::SetConfig, &hex(lines[0])).config();
    assert_eq!(config, Config { tcp: 800, tcp_fin: 20, udp: 300 });
    let info = read(IpvsCommand::SetInfo, &hex(lines[1])).info();
    assert_eq!((info.version_text(), info.connection_table_size), ("1.2.1".to_owned(), 4096));
    let mut daemon = SyncDaemon::new(DaemonState::Master, "eth9", 7);
    (daemon.max_len, daemon.group) = (Some(1472), Some([224, 0, 0, 81].into()));
    (daemon.port, daemon.ttl) = (Some(8848), Some(1));
    let message = read(IpvsCommand::NewDaemon, &hex(lines[2]));
    assert_eq!(message.attributes, [IpvsAttribute::Daemon(daemon)]);
}
