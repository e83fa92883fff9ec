// SPDX-License-Identifier: Apache-2.0
//! The codec: everything survives the wire, and no input panics.
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

use std::net::IpAddr;

use ipvs_netlink::packet::{DaemonAttribute, DestinationAttribute, ServiceAttribute};
use ipvs_netlink::*;
use netlink_packet_core::{DefaultNla, Emitable, Nla, NlaBuffer, NlasIterator, Parseable};
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
    any::<[u64; 10]>().prop_map(|n| {
        let mut stats = Stats::default();
        (stats.connections, stats.packets_in, stats.packets_out) = (n[0], n[1], n[2]);
        (stats.bytes_in, stats.bytes_out, stats.connection_rate) = (n[3], n[4], n[5]);
        (stats.packet_rate_in, stats.packet_rate_out) = (n[6], n[7]);
        (stats.byte_rate_in, stats.byte_rate_out) = (n[8], n[9]);
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

/// Reads one level of attributes and writes it again, each attribute as it was.
fn rewrite<'a, A>(bytes: &'a [u8]) -> Vec<u8>
where
    A: Nla + Parseable<NlaBuffer<&'a [u8]>>,
{
    let mut written = Vec::new();
    for attribute in ipvs_netlink::packet::attributes::<A>(bytes).map(Result::unwrap) {
        let start = written.len();
        written.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut written[start..]);
    }
    written
}

/// As netlink-proto does it: through the traits of netlink-packet-generic.
#[test]
fn a_message_goes_through_generic_netlink() {
    use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
    use netlink_packet_generic::GenlMessage;
    let id = ServiceId::tcp("10.96.0.1:80".parse().unwrap());
    let attributes = vec![IpvsAttribute::Service(Service::new(id, "rr"))];
    let message = GenlMessage::from_payload(IpvsMessage { command: IpvsCommand::NewService, attributes });
    let mut bytes = vec![0; NetlinkSerializable::buffer_len(&message)];
    message.serialize(&mut bytes);
    assert_eq!(bytes[..2], [1, 1], "command and version");
    let read = GenlMessage::<IpvsMessage>::deserialize(&NetlinkHeader::default(), &bytes).unwrap();
    assert_eq!(read.payload, message.payload);
}

/// Nested and in network order: no kernel sends that, and it is kept all the same.
#[test]
fn an_unknown_attribute_keeps_all_its_flags() {
    let attributes = vec![IpvsAttribute::Other(DefaultNla::new(0xc000 | 100, vec![1, 2, 3]))];
    let message = IpvsMessage { command: IpvsCommand::NewService, attributes };
    assert_eq!(IpvsMessage::parse(IpvsCommand::NewService, &emit(&message)).unwrap(), message);
}

/// What does not fit 16 bits is cut off rather than taken for further attributes.
#[test]
fn oversized_values_stay_inside_their_attributes() {
    let id = ServiceId::tcp("10.96.0.1:80".parse().unwrap());
    let mut service = Service::new(id, "x".repeat(70_000));
    service.other = vec![DefaultNla::new(100, vec![1; 70_000])];
    let attributes = vec![
        IpvsAttribute::Service(service),
        IpvsAttribute::Other(DefaultNla::new(101, vec![2; 70_000])),
        IpvsAttribute::TimeoutTcp(7),
    ];
    let bytes = emit(&IpvsMessage { command: IpvsCommand::NewService, attributes });
    let nlas: Vec<_> = NlasIterator::new(&bytes[..]).map(Result::unwrap).collect();
    assert_eq!(nlas.iter().map(|nla| nla.kind()).collect::<Vec<_>>(), [1, 101, 4]);
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
    fn each_level_is_written_as_it_was_read(service in any_service(), dest in any_destination(), daemon in any_daemon()) {
        let attributes =
            vec![IpvsAttribute::Service(service), IpvsAttribute::Destination(dest), IpvsAttribute::Daemon(daemon)];
        let bytes = emit(&IpvsMessage { command: IpvsCommand::NewDest, attributes });
        let levels: Vec<_> = NlasIterator::new(&bytes[..]).map(Result::unwrap).collect();
        prop_assert_eq!(rewrite::<ServiceAttribute>(levels[0].value()), levels[0].value());
        prop_assert_eq!(rewrite::<DestinationAttribute>(levels[1].value()), levels[1].value());
        prop_assert_eq!(rewrite::<DaemonAttribute>(levels[2].value()), levels[2].value());
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
