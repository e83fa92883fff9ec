// SPDX-License-Identifier: Apache-2.0
//! Lists the IPv4 addresses of this network namespace with the indexes of their interfaces. Needs no privilege.

use std::net::Ipv4Addr;

use netlink_batch::{AttributeIter, Error, Message, Socket, protocols};

/// `RTM_GETADDR` with a `struct ifaddrmsg` for `AF_INET`.
struct GetAddresses;

impl Message for GetAddresses {
    fn kind(&self) -> u16 {
        22
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0]);
    }
}

/// `IFA_LOCAL`
const LOCAL: u16 = 2;

fn main() -> Result<(), Error> {
    let mut socket = Socket::open(protocols::NETLINK_ROUTE)?;
    let addresses = socket.dump(&GetAddresses, |found: &mut Vec<(u32, Ipv4Addr)>, payload| {
        let Some((&[_, _, _, _, a, b, c, d], attributes)) = payload.split_first_chunk() else {
            return Err(Error::Malformed("an address message is too short"));
        };
        for attribute in AttributeIter::new(attributes) {
            if let (LOCAL, &[w, x, y, z]) = attribute? {
                found.push((u32::from_ne_bytes([a, b, c, d]), Ipv4Addr::new(w, x, y, z)));
            }
        }
        Ok(())
    })?;
    for (interface, address) in addresses {
        println!("{interface}: {address}");
    }
    Ok(())
}
