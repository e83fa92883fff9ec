// SPDX-License-Identifier: Apache-2.0
//! Statistics (`IPVS_STATS_ATTR_*`).

use netlink_packet_core::DecodeError;

use crate::wire::{self, Writer};

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

/// The two encodings: `STATS` has 32 bits but for bytes, `STATS64` (4.1 and later) has 64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Narrow,
    Wide,
}

impl Stats {
    fn fields(&mut self) -> [&mut u64; 10] {
        [
            &mut self.connections,
            &mut self.packets_in,
            &mut self.packets_out,
            &mut self.bytes_in,
            &mut self.bytes_out,
            &mut self.connection_rate,
            &mut self.packet_rate_in,
            &mut self.packet_rate_out,
            &mut self.byte_rate_in,
            &mut self.byte_rate_out,
        ]
    }

    /// Reads the attributes; kinds 1 to 10 are the fields in their order, others are passed over.
    pub(crate) fn parse(bytes: &[u8], width: Width) -> Result<Self, DecodeError> {
        let mut stats = Self::default();
        for nla in wire::attributes(bytes) {
            let nla = nla?;
            let index = usize::from(nla.kind()).wrapping_sub(1);
            let is_bytes = index == 3 || index == 4;
            if let Some(field) = stats.fields().get_mut(index) {
                **field = if width == Width::Wide || is_bytes {
                    wire::get_u64(nla.value(), "statistics")?
                } else {
                    wire::get_u32(nla.value(), "statistics")?.into()
                };
            }
        }
        Ok(stats)
    }

    /// Writes all fields with 64 bits.
    pub(crate) fn write(mut self, out: &mut Writer) {
        for (kind, field) in (1..).zip(self.fields()) {
            out.put_u64(kind, *field);
        }
    }
}

/// The better of the two encodings that a message may carry at once.
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

    #[test]
    fn the_narrow_form_has_wide_bytes() {
        let mut out = Writer::default();
        out.put_u32(1, 3);
        out.put_u64(4, 1 << 40);
        out.put_u32(6, 9);
        out.put(11, &[]);
        let stats = Stats::parse(&out.bytes, Width::Narrow).unwrap();
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
