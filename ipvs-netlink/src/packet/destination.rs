// SPDX-License-Identifier: Apache-2.0
//! Attributes of a destination.

use super::codec::{Bytes, Codec, Host, Nested, Network, RawAddress, attribute_level};
use crate::stats::Stats;

attribute_level! {
    /// Attributes of a destination, `IPVS_DEST_ATTR_*`.
    DestinationAttribute {
        /// Address.
        Address(RawAddress as Bytes) = 1,
        /// Port.
        Port(u16 as Network) = 2,
        /// Forwarding method; the bits above the lowest three are flags of connections.
        ForwardMethod(u32 as Host) = 3,
        /// Share of new connections.
        Weight(u32 as Host) = 4,
        /// Connections above which no new ones come.
        UpperThreshold(u32 as Host) = 5,
        /// Connections below which new ones come again.
        LowerThreshold(u32 as Host) = 6,
        /// Connections in an active state; only ever reported.
        ActiveConnections(u32 as Host) = 7,
        /// Other connections; only ever reported.
        InactiveConnections(u32 as Host) = 8,
        /// Persistence templates; only ever reported.
        PersistentConnections(u32 as Host) = 9,
        /// Statistics with 32 bits but for bytes; only ever reported.
        Stats(Stats as Nested) = 10,
        /// Address family (3.18 and later): 2 or 10.
        Family(u16 as Host) = 11,
        /// Statistics with 64 bits (4.1 and later); only ever reported.
        Stats64(Stats as Nested) = 12,
        /// Encapsulation (5.3 and later).
        TunnelType(u8 as Host) = 13,
        /// UDP port of the encapsulation.
        TunnelPort(u16 as Network) = 14,
        /// Flags of the encapsulation.
        TunnelFlags(u16 as Host) = 15,
    }
}
