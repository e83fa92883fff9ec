// SPDX-License-Identifier: Apache-2.0
//! Attributes of a sync daemon.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::codec::{Bytes, Codec, Host, Text, attribute_level};

attribute_level! {
    /// Attributes of a sync daemon, `IPVS_DAEMON_ATTR_*`.
    DaemonAttribute {
        /// 1: it sends, 2: it receives.
        State(u32 as Host) = 1,
        /// Interface of the multicast.
        Interface(String as Text) = 2,
        /// Number of the group of directors.
        SyncId(u32 as Host) = 3,
        /// Longest message in bytes.
        MaxLen(u16 as Host) = 4,
        /// IPv4 multicast group.
        Group(Ipv4Addr as Bytes) = 5,
        /// IPv6 multicast group.
        Group6(Ipv6Addr as Bytes) = 6,
        /// UDP port: in host order, unlike every other port of the family.
        Port(u16 as Host) = 7,
        /// Time to live.
        Ttl(u8 as Host) = 8,
    }
}
