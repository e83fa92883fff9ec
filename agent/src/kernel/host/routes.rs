// SPDX-License-Identifier: Apache-2.0
//! The routes of the network namespace (`<linux/rtnetlink.h>`): their gateways, and our local routes. Parsed here and not
//! with netlink-packet-route, which rejects a message with an unknown encapsulation or metric: the gateway of such a route
//! must be known, too.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_batch::{AttributeIter, Counters, Errno, Error, Listener, Message, Socket, protocols};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::local_route::{LocalRoute, parse_own};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_ROUTE`
const GROUPS: [u32; 2] = [7, 11];

pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;
pub(super) const RTMSG_LEN: usize = 12;
pub(super) const FLAGS_AT: usize = 8;
/// A route that the kernel caches for one destination.
const RTM_F_CLONED: u32 = 0x200;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
const RTNEXTHOP_LEN: usize = 8;

const TRUNCATED: Error = Error::Malformed("a route attribute is truncated");

/// Reads the routes of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Routes {
    socket: Socket,
}

impl Routes {
    /// Opens a socket; nothing is read yet.
    ///
    /// # Errors
    /// When there is no rtnetlink socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(protocols::NETLINK_ROUTE)? })
    }

    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }

    /// Reads the routes of all tables and of both families in one dump.
    ///
    /// # Errors
    /// When the list cannot be read completely.
    pub fn read(&mut self) -> Result<FoundRoutes, Error> {
        let mut found = self.socket.dump(&GetRoutes, |found: &mut FoundRoutes, payload| {
            parse_gateways(payload, &mut found.next_hops)?;
            found.own.extend(parse_own(payload)?);
            Ok::<(), Error>(())
        })?;
        found.next_hops.sort_unstable();
        found.next_hops.dedup();
        Ok(found)
    }

    /// Makes all addresses of the network local. A route that exists is replaced.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&mut self, net: IpNet) -> Result<(), Error> {
        self.change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, net, &[])
    }

    /// Removes our route of the network. A route that does not exist counts as removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, net: IpNet) -> Result<(), Error> {
        self.change(RTM_DELROUTE, 0, net, &[Errno::ESRCH])
    }

    fn change(&mut self, kind: u16, flags: u16, net: IpNet, fine: &[Errno]) -> Result<(), Error> {
        let refused = self.socket.batch([LocalRoute { kind, flags, net }])?.pop();
        match refused {
            Some((_, refusal)) if !fine.contains(&refusal.errno()) => Err(refusal.into()),
            _ => Ok(()),
        }
    }
}

/// What a dump of routes has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundRoutes {
    /// The gateways, sorted and each once: the addresses after `via` in `ip route show table all`. A route to a nexthop
    /// object includes the gateways of that object, unless the sysctl `net.ipv4.nexthop_compat_mode` is 0.
    pub next_hops: Vec<IpAddr>,
    /// The networks of our local routes.
    pub own: BTreeSet<IpNet>,
}

/// Requests the routes of all families.
struct GetRoutes;

impl Message for GetRoutes {
    fn kind(&self) -> u16 {
        RTM_GETROUTE
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[0; RTMSG_LEN]);
    }
}

/// What a [`RouteWatch`] reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteChange {
    /// The gateways of new routes.
    pub gateways: Vec<IpAddr>,
    /// A local route of ours was removed, perhaps by this agent.
    pub is_own_removed: bool,
}

/// Waits for changes of routes in the network namespace in which it was opened.
#[derive(Debug)]
pub struct RouteWatch {
    listener: Listener,
}

impl RouteWatch {
    /// Starts to listen.
    ///
    /// # Errors
    /// When there is no rtnetlink socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { listener: Listener::open(protocols::NETLINK_ROUTE, &GROUPS)? })
    }

    /// Waits for new routes with gateways, and for removals of our local routes.
    ///
    /// # Errors
    /// [`Error::Overrun`]: the kernel dropped notifications. Others: the socket failed, or a message is malformed.
    pub fn wait(&mut self) -> Result<RouteChange, Error> {
        loop {
            let mut change = RouteChange::default();
            for message in self.listener.receive()? {
                let message = message?;
                match message.kind {
                    RTM_NEWROUTE => parse_gateways(message.payload, &mut change.gateways)?,
                    RTM_DELROUTE => change.is_own_removed |= parse_own(message.payload)?.is_some(),
                    _ => {}
                }
            }
            if change != RouteChange::default() {
                return Ok(change);
            }
        }
    }
}

/// Adds the gateways of a route to `found`. Cached routes, and routes of other families (MPLS, multicast), which
/// are also in the dump, are ignored.
pub(in crate::kernel) fn parse_gateways(payload: &[u8], found: &mut Vec<IpAddr>) -> Result<(), Error> {
    const SHORT: Error = Error::Malformed("a route message is too short");
    let flags = payload.get(FLAGS_AT..FLAGS_AT + 4).and_then(|bytes| bytes.try_into().ok());
    let cached = flags.map(u32::from_ne_bytes).ok_or(SHORT)? & RTM_F_CLONED != 0;
    if cached || !payload.first().is_some_and(|family| [AF_INET, AF_INET6].contains(family)) {
        return Ok(());
    }
    each_attribute(payload.get(RTMSG_LEN..).ok_or(SHORT)?, |kind, value| match kind {
        RTA_MULTIPATH => each_next_hop(value, |attributes| {
            each_attribute(attributes, |kind, value| gateway(kind, value, found))
        }),
        kind => gateway(kind, value, found),
    })
}

fn gateway(kind: u16, value: &[u8], found: &mut Vec<IpAddr>) -> Result<(), Error> {
    match kind {
        RTA_GATEWAY => found.push(address(value)?),
        RTA_VIA => found.extend(via(value)?),
        _ => {}
    }
    Ok(())
}

/// Parses `RTA_VIA`, an IPv4 route through an IPv6 gateway: the family in host order, then the address. `None`: an
/// address of the link layer.
fn via(value: &[u8]) -> Result<Option<IpAddr>, Error> {
    let (family, addr) = value.split_first_chunk().ok_or(TRUNCATED)?;
    let is_ip = [AF_INET, AF_INET6].map(u16::from).contains(&u16::from_ne_bytes(*family));
    is_ip.then(|| address(addr)).transpose()
}

pub(super) fn address(bytes: &[u8]) -> Result<IpAddr, Error> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(|ip| Ipv4Addr::from(ip).into());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|ip| Ipv6Addr::from(ip).into());
    v4().or_else(|_| v6()).map_err(|_| Error::Malformed("a gateway address has the wrong length"))
}

pub(super) fn each_attribute(
    bytes: &[u8],
    mut each: impl FnMut(u16, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    AttributeIter::new(bytes).try_for_each(|attribute| {
        let (kind, value) = attribute?;
        each(kind, value)
    })
}

/// Calls `each` with the attributes of every `rtnexthop`: a header, which has the length of both, then attributes.
fn each_next_hop(mut bytes: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    while let Some(len) = bytes.get(..2).and_then(|len| len.try_into().ok()).map(u16::from_ne_bytes) {
        let len = usize::from(len);
        each(bytes.get(RTNEXTHOP_LEN..len).ok_or(TRUNCATED)?)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    if bytes.is_empty() { Ok(()) } else { Err(TRUNCATED) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;
    use netlink_packet_route::AddressFamily;
    use netlink_packet_route::route::{
        RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteVia,
    };
    use proptest::prelude::*;

    fn route(family: AddressFamily, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.attributes = attributes;
        message
    }

    fn emit(message: &RouteMessage) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn gateways(message: &RouteMessage) -> Vec<String> {
        let mut found = Vec::new();
        parse_gateways(&emit(message), &mut found).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn hop(attributes: Vec<RouteAttribute>) -> RouteNextHop {
        let mut hop = RouteNextHop::default();
        hop.interface_index = 7;
        hop.attributes = attributes;
        hop
    }

    #[test]
    fn the_request_is_for_all_families() {
        let mut bytes = Vec::new();
        GetRoutes.write(&mut bytes);
        assert_eq!(bytes, emit(&RouteMessage::default()));
    }

    #[test]
    fn the_gateway_of_a_route_is_found() {
        let to = |gateway: &str| RouteAttribute::Gateway(ip(gateway).into());
        let v4 = route(AddressFamily::Inet, vec![RouteAttribute::Oif(2), to("192.168.50.1")]);
        assert_eq!(gateways(&v4), ["192.168.50.1"]);
        let v6 = route(AddressFamily::Inet6, vec![RouteAttribute::Priority(1024), to("fd00:50::1")]);
        assert_eq!(gateways(&v6), ["fd00:50::1"]);
        let link_local = route(AddressFamily::Inet6, vec![to("fe80::1")]);
        assert_eq!(gateways(&link_local), ["fe80::1"]);
        let mixed = route(AddressFamily::Inet, vec![RouteAttribute::Via(ip("fd00:50::2").into())]);
        assert_eq!(gateways(&mixed), ["fd00:50::2"]);
        assert!(gateways(&route(AddressFamily::Inet, vec![RouteAttribute::Oif(2)])).is_empty());
    }

    #[test]
    fn all_gateways_of_a_multipath_route_are_found() {
        let hops = vec![
            hop(vec![RouteAttribute::Gateway(ip("10.0.0.1").into())]),
            hop(vec![]),
            hop(vec![RouteAttribute::Via(ip("fd00::2").into())]),
            hop(vec![RouteAttribute::Gateway(ip("10.0.0.3").into())]),
        ];
        let message =
            route(AddressFamily::Inet, vec![RouteAttribute::Priority(7), RouteAttribute::MultiPath(hops)]);
        assert_eq!(gateways(&message), ["10.0.0.1", "fd00::2", "10.0.0.3"]);
    }

    #[test]
    fn other_families_cached_routes_and_link_layer_addresses_are_ignored() {
        let to = RouteAttribute::Gateway(ip("10.0.0.1").into());
        assert!(
            gateways(&route(AddressFamily::Mpls, vec![RouteAttribute::Via(ip("10.0.0.1").into())]))
                .is_empty()
        );
        let mut cached = route(AddressFamily::Inet, vec![to]);
        cached.header.flags = RouteFlags::Cloned;
        assert!(gateways(&cached).is_empty());
        let link_layer = RouteAttribute::Via(RouteVia::Packet(vec![1, 2, 3, 4, 5, 6]));
        assert!(gateways(&route(AddressFamily::Inet, vec![link_layer])).is_empty());
    }

    #[test]
    fn a_truncated_route_is_an_error() {
        let hops = vec![hop(vec![RouteAttribute::Gateway(ip("10.0.0.1").into())])];
        let whole = emit(&route(
            AddressFamily::Inet,
            vec![RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]), RouteAttribute::MultiPath(hops)],
        ));
        let mut shorter_hop = whole.clone();
        let hop_at = whole.len() - 16;
        shorter_hop[hop_at..hop_at + 2].copy_from_slice(&4u16.to_ne_bytes());
        for bad in [&whole[..whole.len() - 1], &whole[..11], &[], &shorter_hop] {
            assert!(matches!(parse_gateways(bad, &mut Vec::new()), Err(Error::Malformed(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), family in 0..2usize) {
            let _ = parse_gateways(&bytes, &mut Vec::new());
            // Parsing ends early for most families.
            if let Some(first) = bytes.first_mut() {
                *first = [AF_INET, AF_INET6][family];
            }
            let _ = parse_gateways(&bytes, &mut Vec::new());
        }

        #[test]
        fn no_damaged_route_panics_or_hangs(at in 0..200usize, with: u8) {
            let hops = ["10.0.0.1", "10.0.0.2"].map(|to| hop(vec![RouteAttribute::Gateway(ip(to).into())]));
            let mut bytes = emit(&route(AddressFamily::Inet, vec![RouteAttribute::MultiPath(hops.into())]));
            let at = at % bytes.len();
            bytes[at] = with;
            let _ = parse_gateways(&bytes, &mut Vec::new());
        }
    }
}
