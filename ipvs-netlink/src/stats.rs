// SPDX-License-Identifier: Apache-2.0
//! Statistics (`IPVS_STATS_ATTR_*`).

use netlink_batch::Attributes;
use netlink_packet_core::DecodeError;

use crate::packet::StatsAttribute;

/// Counters and rates of a service or a destination. Rates are per second, averaged by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients (masquerading only).
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients (masquerading only).
    pub bytes_out: u64,
    /// Connections per second.
    pub connection_rate: u64,
    /// Packets from clients per second.
    pub packet_rate_in: u64,
    /// Packets to clients per second.
    pub packet_rate_out: u64,
    /// Bytes from clients per second.
    pub byte_rate_in: u64,
    /// Bytes to clients per second.
    pub byte_rate_out: u64,
}

impl Stats {
    /// Number of fields.
    pub(crate) const COUNT: usize = 10;

    /// Collects statistics from their attributes. Kinds that this version does not know are skipped.
    ///
    /// # Errors
    /// The first error of an attribute.
    pub fn from_attributes(
        attributes: impl Iterator<Item = Result<StatsAttribute, DecodeError>>,
    ) -> Result<Self, DecodeError> {
        use StatsAttribute as A;
        let mut stats = Self::default();
        for attribute in attributes {
            match attribute? {
                A::Connections(n) => stats.connections = n,
                A::PacketsIn(n) => stats.packets_in = n,
                A::PacketsOut(n) => stats.packets_out = n,
                A::BytesIn(n) => stats.bytes_in = n,
                A::BytesOut(n) => stats.bytes_out = n,
                A::ConnectionRate(n) => stats.connection_rate = n,
                A::PacketRateIn(n) => stats.packet_rate_in = n,
                A::PacketRateOut(n) => stats.packet_rate_out = n,
                A::ByteRateIn(n) => stats.byte_rate_in = n,
                A::ByteRateOut(n) => stats.byte_rate_out = n,
                A::Other(_) => {}
            }
        }
        Ok(stats)
    }

    /// The attributes of all fields.
    pub fn attributes(&self) -> [StatsAttribute; Self::COUNT] {
        use StatsAttribute as A;
        [
            A::Connections(self.connections),
            A::PacketsIn(self.packets_in),
            A::PacketsOut(self.packets_out),
            A::BytesIn(self.bytes_in),
            A::BytesOut(self.bytes_out),
            A::ConnectionRate(self.connection_rate),
            A::PacketRateIn(self.packet_rate_in),
            A::PacketRateOut(self.packet_rate_out),
            A::ByteRateIn(self.byte_rate_in),
            A::ByteRateOut(self.byte_rate_out),
        ]
    }

    pub(crate) fn write(&self, out: &mut Attributes) {
        self.attributes().iter().for_each(|attribute| _ = out.put_nla(attribute));
    }
}

/// The better of the two encodings that a message may carry at once: `STATS` has 32 bits but for bytes, `STATS64`
/// (4.1 and later) has 64.
#[derive(Default)]
pub(crate) struct StatsParts {
    pub narrow: Option<Stats>,
    pub wide: Option<Stats>,
}

impl StatsParts {
    pub fn build(self) -> Option<Stats> {
        self.wide.or(self.narrow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::attributes;

    #[test]
    fn the_narrow_form_has_wide_bytes() {
        let mut out = Attributes::default();
        out.put(1, &3u32.to_ne_bytes()).put(4, &(1u64 << 40).to_ne_bytes()).put(6, &9u32.to_ne_bytes());
        out.put(11, &[]);
        let stats = Stats::from_attributes(attributes(out.as_bytes())).unwrap();
        assert_eq!((stats.connections, stats.bytes_in, stats.connection_rate), (3, 1 << 40, 9));
    }

    #[test]
    fn the_wide_form_wins() {
        let one = Stats { connections: 1, ..Stats::default() };
        let two = Stats { connections: 2, ..Stats::default() };
        assert_eq!(StatsParts { narrow: Some(one), wide: Some(two) }.build(), Some(two));
        assert_eq!(StatsParts { narrow: Some(one), wide: None }.build(), Some(one));
    }
}
