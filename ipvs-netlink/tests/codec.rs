// SPDX-License-Identifier: Apache-2.0
//! The codec: everything survives the wire, and no input panics.

use std::net::IpAddr;

use ipvs_netlink::*;
use netlink_packet_core::{DefaultNla, Emitable};
use proptest::prelude::*;

fn emit(message: &IpvsMessage) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn any_text() -> impl Strategy<Value = String> {
    "[a-z_]{1,15}"
}

fn any_stats() -> impl Strategy<Value = Stats> {
    any::<[u64; 4]>().prop_map(|[a, b, c, d]| {
        let mut stats = Stats::default();
        (stats.connections, stats.packets_in, stats.bytes_out, stats.byte_rate_out) = (a, b, c, d);
        stats
    })
}

fn any_other() -> impl Strategy<Value = Vec<DefaultNla>> {
    let one = (100u16..1000, prop::collection::vec(any::<u8>(), 0..9));
    prop::collection::vec(one.prop_map(|(kind, value)| DefaultNla::new(kind, value)), 0..3)
}

fn any_id() -> impl Strategy<Value = ServiceId> {
    prop_oneof![
        (any::<u8>(), any::<IpAddr>(), any::<u16>()).prop_map(|(p, addr, port)| ServiceId::Address {
            protocol: p.into(),
            addr,
            port
        }),
        (1u32.., any::<bool>()).prop_map(|(mark, v6)| ServiceId::Fwmark {
            mark,
            family: if v6 { Family::Inet6 } else { Family::Inet }
        }),
    ]
}

fn any_service() -> impl Strategy<Value = Service> {
    let rest = (any::<u32>(), any::<u32>(), any::<[u8; 4]>());
    let options = (prop::option::of(any_text()), prop::option::of(any_stats()), any_other());
    (any_id(), any_text(), rest, options).prop_map(
        |(id, scheduler, (flags, timeout, mask), (pe, stats, other))| {
            let mut service = Service::new(id, scheduler);
            service.flags = ServiceFlags::from_bits(flags);
            service.timeout = timeout;
            service.persistence_mask = match id.family() {
                Family::Inet => PersistenceMask::V4(mask.into()),
                Family::Inet6 => PersistenceMask::V6(mask[0]),
            };
            service.pe_name = pe;
            service.stats = stats;
            service.other = other;
            service
        },
    )
}

fn any_destination() -> impl Strategy<Value = Destination> {
    let tunnel = prop::option::of(any::<(u8, u16, u16)>().prop_map(|(kind, port, flags)| Tunnel {
        kind: kind.into(),
        port,
        flags,
    }));
    let options = (tunnel, prop::option::of(any_stats()), any_other());
    (any::<IpAddr>(), any::<u16>(), 0..8u32, any::<[u32; 6]>(), options).prop_map(
        |(addr, port, forward, n, (tunnel, stats, other))| {
            let mut dest = Destination::new(std::net::SocketAddr::new(addr, port));
            dest.forward = forward.into();
            (dest.weight, dest.upper_threshold, dest.lower_threshold) = (n[0], n[1], n[2]);
            (dest.active_connections, dest.inactive_connections, dest.persistent_connections) =
                (n[3], n[4], n[5]);
            (dest.tunnel, dest.stats, dest.other) = (tunnel, stats, other);
            dest
        },
    )
}

fn any_daemon() -> impl Strategy<Value = SyncDaemon> {
    let options = any::<(Option<u16>, Option<IpAddr>, Option<u16>, Option<u8>)>();
    (any::<u32>(), any_text(), any::<u32>(), options, any_other()).prop_map(
        |(state, interface, id, (max_len, group, port, ttl), other)| {
            let mut daemon = SyncDaemon::new(state.into(), interface, id);
            (daemon.max_len, daemon.group, daemon.port, daemon.ttl) = (max_len, group, port, ttl);
            daemon.other = other;
            daemon
        },
    )
}

fn round_trip(command: IpvsCommand, attribute: IpvsAttribute) -> Result<(), TestCaseError> {
    let message = IpvsMessage { command, attributes: vec![attribute] };
    let bytes = emit(&message);
    prop_assert_eq!(bytes.len() % 4, 0);
    prop_assert_eq!(IpvsMessage::parse(command, &bytes).unwrap(), message);
    Ok(())
}

proptest! {
    #[test]
    fn services_survive_the_wire(service in any_service()) {
        round_trip(IpvsCommand::NewService, IpvsAttribute::Service(service))?;
    }

    #[test]
    fn destinations_survive_the_wire(dest in any_destination()) {
        round_trip(IpvsCommand::NewDest, IpvsAttribute::Destination(dest))?;
    }

    #[test]
    fn daemons_survive_the_wire(daemon in any_daemon()) {
        round_trip(IpvsCommand::NewDaemon, IpvsAttribute::Daemon(daemon))?;
    }

    #[test]
    fn timeouts_survive_the_wire(tcp: u32, tcp_fin: u32, udp: u32) {
        let attributes = vec![
            IpvsAttribute::TimeoutTcp(tcp),
            IpvsAttribute::TimeoutTcpFin(tcp_fin),
            IpvsAttribute::TimeoutUdp(udp),
        ];
        let message = IpvsMessage { command: IpvsCommand::SetConfig, attributes };
        let read = IpvsMessage::parse(IpvsCommand::SetConfig, &emit(&message)).unwrap();
        prop_assert_eq!(read.config(), Config { tcp, tcp_fin, udp });
    }

    #[test]
    fn commands_are_their_numbers(number: u8) {
        prop_assert_eq!(u8::from(IpvsCommand::from(number)), number);
    }

    #[test]
    fn no_input_panics(command: u8, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(message) = IpvsMessage::parse(command.into(), &bytes) {
            let _ = (message.config(), message.info());
        }
    }

    /// Bytes that are almost right get further into the parsers than random ones.
    #[test]
    fn no_damaged_message_panics(service in any_service(), dest in any_destination(), at: usize, to: u8, cut: usize) {
        let attributes = vec![IpvsAttribute::Service(service), IpvsAttribute::Destination(dest)];
        let mut bytes = emit(&IpvsMessage { command: IpvsCommand::NewDest, attributes });
        let len = bytes.len();
        bytes[at % len] = to;
        bytes.truncate(len - cut % len);
        let _ = IpvsMessage::parse(IpvsCommand::NewDest, &bytes);
    }
}

/// Hexadecimal digits, white space and `#` comments.
fn hex(text: &str) -> Vec<u8> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let digits: Vec<u8> = lines.flat_map(str::bytes).filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}
