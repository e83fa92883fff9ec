// SPDX-License-Identifier: Apache-2.0
//! Attributes of statistics.

use super::codec::{Codec, Counter, attribute_level};

attribute_level! {
    /// Attributes of statistics, `IPVS_STATS_ATTR_*`. Values have 32 or 64 bits and are written with 64.
    StatsAttribute {
        /// Connections scheduled.
        Connections(u64 as Counter) = 1,
        /// Packets from clients.
        PacketsIn(u64 as Counter) = 2,
        /// Packets to clients.
        PacketsOut(u64 as Counter) = 3,
        /// Bytes from clients.
        BytesIn(u64 as Counter) = 4,
        /// Bytes to clients.
        BytesOut(u64 as Counter) = 5,
        /// Connections per second.
        ConnectionRate(u64 as Counter) = 6,
        /// Packets from clients per second.
        PacketRateIn(u64 as Counter) = 7,
        /// Packets to clients per second.
        PacketRateOut(u64 as Counter) = 8,
        /// Bytes from clients per second.
        ByteRateIn(u64 as Counter) = 9,
        /// Bytes to clients per second.
        ByteRateOut(u64 as Counter) = 10,
    }
}
