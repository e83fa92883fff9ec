// SPDX-License-Identifier: Apache-2.0
//! Attributes of a service.

use super::codec::{Bytes, Codec, Host, Nested, Network, RawAddress, Text, WithMask, attribute_level};
use crate::stats::Stats;
use crate::types::ServiceFlags;

attribute_level! {
    /// Attributes of a service, `IPVS_SVC_ATTR_*`.
    ServiceAttribute {
        /// Address family: 2 or 10.
        Family(u16 as Host) = 1,
        /// IANA number of the transport protocol.
        Protocol(u16 as Host) = 2,
        /// Virtual address.
        Address(RawAddress as Bytes) = 3,
        /// Virtual port.
        Port(u16 as Network) = 4,
        /// Firewall mark, instead of protocol, address and port.
        Fwmark(u32 as Host) = 5,
        /// Name of the scheduler.
        Scheduler(String as Text) = 6,
        /// Flags.
        Flags(ServiceFlags as WithMask) = 7,
        /// Persistence timeout in seconds.
        Timeout(u32 as Host) = 8,
        /// Persistence mask: of IPv4 a netmask in network order, of IPv6 a prefix length in host order.
        Netmask([u8; 4] as Bytes) = 9,
        /// Statistics with 32 bits but for bytes; only ever reported.
        Stats(Stats as Nested) = 10,
        /// Name of the persistence engine.
        PersistenceEngine(String as Text) = 11,
        /// Statistics with 64 bits (4.1 and later); only ever reported.
        Stats64(Stats as Nested) = 12,
    }
}
