// SPDX-License-Identifier: Apache-2.0
//! Addresses and ports in the headers of a traced packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::core::model::Protocol;

/// From where to where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHead {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl PacketHead {
    /// Reads the headers; `None` if they are cut off or of another protocol.
    pub fn parse(network: &[u8], transport: &[u8]) -> Option<Self> {
        let (number, source, destination) = match network.first()? >> 4 {
            4 => {
                let address = |at: usize| {
                    let octets: [u8; 4] = network.get(at..at + 4)?.try_into().ok()?;
                    Some(IpAddr::from(Ipv4Addr::from(octets)))
                };
                (*network.get(9)?, address(12)?, address(16)?)
            }
            6 => {
                let address = |at: usize| {
                    let octets: [u8; 16] = network.get(at..at + 16)?.try_into().ok()?;
                    Some(IpAddr::from(Ipv6Addr::from(octets)))
                };
                (*network.get(6)?, address(8)?, address(24)?)
            }
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(transport.get(at..at + 2)?.try_into().ok()?));
        Some(Self {
            protocol: Protocol::from_number(number)?,
            source: SocketAddr::new(source, port(0)?),
            destination: SocketAddr::new(destination, port(2)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_families_are_read() {
        let mut v4 = [0; 20];
        (v4[0], v4[9]) = (0x45, 17);
        v4[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 96, 0, 10]);
        let head = PacketHead::parse(&v4, &[0xa0, 0x28, 0, 53]).unwrap();
        assert_eq!((head.protocol, head.source.to_string()), (Protocol::Udp, "10.0.0.1:41000".to_owned()));
        assert_eq!(head.destination.to_string(), "10.96.0.10:53");
        let mut v6 = [0; 40];
        (v6[0], v6[6], v6[23], v6[39]) = (0x60, 6, 1, 2);
        let head = PacketHead::parse(&v6, &[0, 1, 0, 80]).unwrap();
        assert_eq!(
            (head.source.to_string(), head.destination.to_string()),
            ("[::1]:1".into(), "[::2]:80".into())
        );
        assert_eq!(PacketHead::parse(&v6[..39], &[0, 1, 0, 80]), None);
        assert_eq!(PacketHead::parse(&v6, &[0, 1, 0]), None);
    }

    proptest! {
        #[test]
        fn no_input_panics(network in proptest::collection::vec(any::<u8>(), 0..60), transport in proptest::collection::vec(any::<u8>(), 0..9)) {
            let _ = PacketHead::parse(&network, &transport);
        }
    }
}
