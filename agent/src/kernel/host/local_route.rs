// SPDX-License-Identifier: Apache-2.0
//! Our local routes: each makes all addresses of a network of ClusterIPs local (`<linux/rtnetlink.h>`).

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_batch::{Attributes, Error, Message};

use super::routes::{AF_INET, AF_INET6, FLAGS_AT, RTMSG_LEN, address, each_attribute};

/// `rtm_protocol` of our routes, by which they are found again. No other program in iproute2's `rt_protos` uses it.
const PROTOCOL: u8 = 96;
const RT_TABLE_LOCAL: u8 = 255;
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_HOST: u8 = 254;
/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;

/// A request for one of our routes: `ip route add local NET dev lo proto 96`. The device is `lo` and not `kube-ipvs0`: the
/// kernel refuses an IPv6 route on a device that is down, and it removes the IPv4 routes of a device with its last address
/// (`fib_disable_ip`).
#[derive(Debug)]
pub(super) struct LocalRoute {
    /// `RTM_NEWROUTE` or `RTM_DELROUTE`.
    pub kind: u16,
    /// Additional `NLM_F_*`.
    pub flags: u16,
    pub net: IpNet,
}

impl Message for LocalRoute {
    fn kind(&self) -> u16 {
        self.kind
    }

    fn flags(&self) -> u16 {
        self.flags
    }

    fn write(&self, out: &mut Vec<u8>) {
        let family = if self.net.addr().is_ipv4() { AF_INET } else { AF_INET6 };
        let scope = if self.net.addr().is_ipv4() { RT_SCOPE_HOST } else { 0 };
        let header = [family, self.net.prefix_len(), 0, 0, RT_TABLE_LOCAL, PROTOCOL, scope, RTN_LOCAL];
        out.extend_from_slice(&header);
        out.extend_from_slice(&[0; RTMSG_LEN - FLAGS_AT]);
        let mut attributes = Attributes::default();
        match self.net.addr() {
            IpAddr::V4(ip) => attributes.put(RTA_DST, &ip.octets()),
            IpAddr::V6(ip) => attributes.put(RTA_DST, &ip.octets()),
        };
        attributes.put(RTA_OIF, &LOOPBACK.to_ne_bytes());
        out.extend_from_slice(attributes.as_bytes());
    }
}

/// The network of a local route of ours.
pub(in crate::kernel) fn parse_own(payload: &[u8]) -> Result<Option<IpNet>, Error> {
    let [family, prefix, _, _, RT_TABLE_LOCAL, PROTOCOL, _, RTN_LOCAL, ..] = *payload else {
        return Ok(None);
    };
    let mut network = None;
    if [AF_INET, AF_INET6].contains(&family) {
        each_attribute(payload.get(RTMSG_LEN..).unwrap_or_default(), |kind, value| {
            if kind == RTA_DST {
                network = IpNet::new(address(value)?, prefix).ok();
            }
            Ok(())
        })?;
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{Emitable, Parseable};
    use netlink_packet_route::AddressFamily;
    use netlink_packet_route::route::{
        RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
    };

    fn request(net: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        LocalRoute { kind: 24, flags: 0, net: net.parse().unwrap() }.write(&mut bytes);
        bytes
    }

    /// What netlink-packet-route reads in a request.
    fn message(net: &str) -> RouteMessage {
        RouteMessage::parse(&request(net)).unwrap()
    }

    #[test]
    fn a_request_has_the_route_that_ip_would_add() {
        let v4 = message("10.96.0.0/12");
        assert_eq!(
            (v4.header.address_family, v4.header.destination_prefix_length),
            (AddressFamily::Inet, 12)
        );
        assert_eq!((v4.header.table, v4.header.kind), (255, RouteType::Local));
        assert_eq!((v4.header.protocol, v4.header.scope), (RouteProtocol::Other(96), RouteScope::Host));
        let to = RouteAttribute::Destination(RouteAddress::Inet([10, 96, 0, 0].into()));
        assert_eq!(v4.attributes, [to, RouteAttribute::Oif(1)]);
        let v6 = message("fd00:96::/112");
        assert_eq!((v6.header.address_family, v6.header.scope), (AddressFamily::Inet6, RouteScope::Universe));
    }

    #[test]
    fn only_our_own_routes_are_found() {
        for net in ["10.96.0.0/12", "fd00:96::/112"] {
            assert_eq!(parse_own(&request(net)).unwrap(), Some(net.parse().unwrap()));
            let mut other = message(net);
            other.header.protocol = RouteProtocol::Static;
            let mut bytes = vec![0; other.buffer_len()];
            other.emit(&mut bytes);
            assert_eq!(parse_own(&bytes).unwrap(), None, "a route of another program");
        }
        assert_eq!(parse_own(&request("10.96.0.0/12")[..11]).unwrap(), None, "no complete header");
        let mut cut = request("10.96.0.0/12");
        cut.truncate(RTMSG_LEN + 6);
        assert!(parse_own(&cut).is_err());
    }
}
