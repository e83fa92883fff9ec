// SPDX-License-Identifier: Apache-2.0
//! IPVS besides commands: the table in `/proc`, and counters.

pub mod ipvs_survey;
pub mod proc_ip_vs;
pub mod traffic;

use ipvs_netlink as ipvs;
use ipvs_netlink::ServiceId;

use crate::core::model::{Protocol, VsKey};

/// The key of an IPVS service; `None`: a Service cannot have it (fwmark, other protocols).
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

pub fn service_id(key: &VsKey) -> ServiceId {
    let protocol = match key.protocol {
        Protocol::Tcp => ipvs::Protocol::Tcp,
        Protocol::Udp => ipvs::Protocol::Udp,
        Protocol::Sctp => ipvs::Protocol::Sctp,
    };
    ServiceId::Address { protocol, addr: key.addr, port: key.port }
}
