// SPDX-License-Identifier: Apache-2.0
//! The counts of `make bench-quick` that are expected.

use Bound::{AtMost, Exactly};

use super::mode::Mode;

/// The limit of a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Necessary work: exactly this count.
    Exactly(u64),
    /// Effort: at most this count.
    AtMost(u64),
}

/// A count, its unit, and what it may be.
pub type Expected = (&'static str, &'static str, Bound);

/// The counts of each mode. Every count of the default mode is compared; of another mode, those that differ and those
/// that it promises.
pub const EXPECTED: [(Mode, &[&[Expected]]); 3] = [
    (Mode::IPTABLES, &[&EVERY_MODE, &IPTABLES]),
    (Mode::NFTABLES, &[&EVERY_MODE, &NFTABLES]),
    (Mode::NFTABLES_ROUTE, &[&EVERY_MODE, &NFTABLES, &BY_ROUTE]),
];

/// The same in every mode.
const EVERY_MODE: [Expected; 17] = [
    ("cold: IPVS commands", "", Exactly(6000)),
    ("cold: sends, IPVS", "", AtMost(11)),
    ("one endpoint comes: IPVS commands", "", Exactly(1)),
    ("one endpoint comes: sends", "", Exactly(1)),
    ("one endpoint comes: dumps", "", Exactly(0)),
    ("one endpoint comes: processes", "", Exactly(0)),
    // Weight 0, a read of its connections, removal.
    ("one endpoint goes: IPVS commands", "", Exactly(2)),
    ("one endpoint goes: sends", "", Exactly(3)),
    ("one endpoint goes: dumps", "", Exactly(1)),
    ("one endpoint goes: processes", "", Exactly(0)),
    ("one Service created: IPVS commands", "", Exactly(3)),
    ("one Service created: sends", "", AtMost(3)),
    ("one Service created: dumps", "", Exactly(0)),
    ("one Service created: processes", "", Exactly(0)),
    ("restart: ops", "", Exactly(0)),
    ("audit, nothing changed: ops", "", Exactly(0)),
    ("audit, nothing changed: processes", "", Exactly(0)),
];

/// Bytes and allocations have a little room, so that a longer
/// name is no failure; the others have none.
const IPTABLES: [Expected; 20] = [
    // One request for each set, and few others.
    ("cold: sends, sets", "", AtMost(35)),
    ("cold: sends, addresses", "", AtMost(7)),
    ("cold: bytes, IPVS", "B", AtMost(632_500)),
    ("cold: bytes, sets", "B", AtMost(55_000)),
    ("cold: bytes, addresses", "B", AtMost(40_500)),
    ("cold: dumps", "", AtMost(37)),
    ("cold: processes", "", AtMost(4)),
    ("one endpoint comes: bytes", "B", AtMost(110)),
    ("one endpoint comes: allocations", "", AtMost(55)),
    ("one endpoint comes: bytes allocated", "B", AtMost(6500)),
    ("one endpoint goes: bytes", "B", AtMost(250)),
    ("one endpoint goes: allocations", "", AtMost(110)),
    ("one endpoint goes: bytes allocated", "B", AtMost(20_000)),
    ("one Service created: bytes", "B", AtMost(560)),
    // One for each added endpoint, two for each removed one.
    ("rolling restart, 1,000 events: IPVS commands", "", Exactly(1500)),
    // The number depends on how fast events come; at most one less than one for each event.
    ("rolling restart, 1,000 events: passes", "", AtMost(999)),
    ("restart: IPVS commands", "", Exactly(0)),
    ("restart: readings of the table", "", AtMost(1)),
    ("restart: dumps", "", AtMost(37)),
    ("restart: processes", "", AtMost(2)),
];

/// Sets and rules are sent to nf_tables, both as "sets". No program is started.
const NFTABLES: [Expected; 5] = [
    // One request for each set, and few others.
    ("cold: sends, sets", "", AtMost(45)),
    ("cold: dumps", "", AtMost(39)),
    ("cold: processes", "", Exactly(0)),
    ("restart: dumps", "", AtMost(47)),
    ("restart: processes", "", Exactly(0)),
];

/// A new Service changes no address.
const BY_ROUTE: [Expected; 4] = [
    ("cold: sends, addresses", "", AtMost(8)),
    ("cold: bytes, sets", "B", AtMost(59_500)),
    ("one Service created: sends, addresses", "", Exactly(0)),
    ("restart: IPVS commands", "", Exactly(0)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_are_unique() {
        for (mode, expected) in EXPECTED {
            let names: Vec<&str> = expected.iter().flat_map(|rows| rows.iter()).map(|row| row.0).collect();
            let distinct: std::collections::BTreeSet<&str> = names.iter().copied().collect();
            assert_eq!(distinct.len(), names.len(), "{mode}");
        }
    }
}
