// SPDX-License-Identifier: Apache-2.0
//! Reading IPVS beside its netlink family: the table of `/proc`, and counters.

pub mod proc_ip_vs;
pub mod traffic;

use ipvs_netlink as ipvs;
use ipvs_netlink::ServiceId;

use crate::core::model::{Protocol, VsKey};

/// Our name of an IPVS service, if it can be one of ours.
pub fn vs_key(id: &ServiceId) -> Option<VsKey> {
    match id {
        ServiceId::Address { protocol, addr, port } => {
            let protocol = match protocol {
                ipvs::Protocol::Tcp => Protocol::Tcp,
                ipvs::Protocol::Udp => Protocol::Udp,
                ipvs::Protocol::Sctp => Protocol::Sctp,
                _ => return None,
            };
            Some(VsKey { protocol, addr: *addr, port: *port })
        }
        _ => None,
    }
}

/// The IPVS service of that name.
pub fn service_id(key: &VsKey) -> ServiceId {
    let protocol = match key.protocol {
        Protocol::Tcp => ipvs::Protocol::Tcp,
        Protocol::Udp => ipvs::Protocol::Udp,
        Protocol::Sctp => ipvs::Protocol::Sctp,
    };
    ServiceId::Address { protocol, addr: key.addr, port: key.port }
}
