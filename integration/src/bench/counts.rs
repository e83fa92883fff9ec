// SPDX-License-Identifier: Apache-2.0
//! `make bench-quick`: counts on a real kernel, compared with their limits. Counts have no noise:
//! a higher count is a regression.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube_ipvs::kernel::linux::KernelCounters;

use super::allocations::{Allocations, counted};
use super::events::{difference, rolling_restart, service_created};
use super::node::{Node, Size, slice};
use super::table::Row;
use crate::lab::Netns;

/// Number of Services.
pub const SIZE: Size = Size { services: 1000, endpoints: 5 };

/// The limit of a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Necessary work: exactly this count.
    Exactly(u64),
    /// Effort: at most this count.
    AtMost(u64),
}
use Bound::{AtMost, Exactly};

/// Every count, its unit and what it may be. Bytes and allocations have a little room, so that a longer
/// name is no failure; the others have none.
pub const EXPECTED: [(&str, &str, Bound); 37] = [
    ("cold: IPVS commands", "", Exactly(6000)),
    ("cold: sends, IPVS", "", AtMost(11)),
    // One request for each set, and few others.
    ("cold: sends, sets", "", AtMost(35)),
    ("cold: sends, addresses", "", AtMost(7)),
    ("cold: bytes, IPVS", "B", AtMost(632_500)),
    ("cold: bytes, sets", "B", AtMost(55_000)),
    ("cold: bytes, addresses", "B", AtMost(40_500)),
    ("cold: dumps", "", AtMost(37)),
    ("cold: processes", "", AtMost(4)),
    ("one endpoint comes: IPVS commands", "", Exactly(1)),
    ("one endpoint comes: sends", "", Exactly(1)),
    ("one endpoint comes: bytes", "B", AtMost(110)),
    ("one endpoint comes: dumps", "", Exactly(0)),
    ("one endpoint comes: processes", "", Exactly(0)),
    ("one endpoint comes: allocations", "", AtMost(55)),
    ("one endpoint comes: bytes allocated", "B", AtMost(6500)),
    // Weight 0, a read of its connections, removal.
    ("one endpoint goes: IPVS commands", "", Exactly(2)),
    ("one endpoint goes: sends", "", Exactly(3)),
    ("one endpoint goes: bytes", "B", AtMost(250)),
    ("one endpoint goes: dumps", "", Exactly(1)),
    ("one endpoint goes: processes", "", Exactly(0)),
    ("one endpoint goes: allocations", "", AtMost(110)),
    ("one endpoint goes: bytes allocated", "B", AtMost(20_000)),
    ("one Service created: IPVS commands", "", Exactly(3)),
    ("one Service created: sends", "", AtMost(4)),
    ("one Service created: bytes", "B", AtMost(560)),
    ("one Service created: dumps", "", Exactly(0)),
    ("one Service created: processes", "", Exactly(0)),
    // One for each added endpoint, two for each removed one.
    ("rolling restart, 1,000 events: IPVS commands", "", Exactly(1500)),
    // The number depends on how fast events come; at most one less than one for each event.
    ("rolling restart, 1,000 events: passes", "", AtMost(999)),
    ("restart: ops", "", Exactly(0)),
    ("restart: IPVS commands", "", Exactly(0)),
    ("restart: readings of the table", "", AtMost(1)),
    ("restart: dumps", "", AtMost(37)),
    ("restart: processes", "", AtMost(2)),
    ("audit, nothing changed: ops", "", Exactly(0)),
    ("audit, nothing changed: processes", "", Exactly(0)),
];

/// Counts by name.
type Counts = BTreeMap<String, u64>;

/// Rows of counts, and the counts below the necessary work. Must run with
/// [`super::allocations::Counting`] as the allocator.
///
/// # Errors
/// When something cannot be programmed.
pub fn measure() -> Result<(Vec<Row>, Vec<String>)> {
    let ns = Netns::new("bench-quick")?;
    let counts = ns.enter(|| {
        let mut counts = Counts::new();
        let mut node = Node::new(true)?;
        node.fill(SIZE);
        cold(&mut node, &mut counts)?;
        endpoint(&mut node, &mut counts)?;
        let cost = service_created(&mut node, SIZE)?;
        note(&mut counts, "one Service created", cost);
        restart(&mut node, &mut counts)?;
        warm(&mut counts)?;
        anyhow::Ok(counts)
    })??;
    compare(&EXPECTED, &counts)
}

/// Compares counts with their limits. No expected count may be missing.
fn compare(expected: &[(&str, &'static str, Bound)], counts: &Counts) -> Result<(Vec<Row>, Vec<String>)> {
    let (mut rows, mut too_few) = (Vec::new(), Vec::new());
    for (name, unit, bound) in expected {
        let Some(value) = counts.get(*name).copied() else { anyhow::bail!("{name}: was not counted") };
        let (Exactly(must) | AtMost(must)) = *bound;
        if matches!(bound, Exactly(_)) && value < must {
            too_few.push(format!("{name}: {value} instead of {must}"));
        }
        let must = Some(must as f64);
        rows.push(Row { what: (*name).to_owned(), value: value as f64, unit, must, aim: None });
    }
    Ok((rows, too_few))
}

/// Records the sends to the kernel under one name.
fn note(counts: &mut Counts, what: &str, cost: KernelCounters) {
    let parts = [
        ("IPVS commands", cost.commands),
        ("sends", cost.sends.iter().sum()),
        ("sends, IPVS", cost.sends[0]),
        ("sends, sets", cost.sends[1]),
        ("sends, addresses", cost.sends[2]),
        ("bytes", cost.bytes.iter().sum()),
        ("bytes, IPVS", cost.bytes[0]),
        ("bytes, sets", cost.bytes[1]),
        ("bytes, addresses", cost.bytes[2]),
        ("dumps", cost.dumps),
        ("processes", cost.processes),
        ("readings of the table", cost.tables),
    ];
    counts.extend(parts.map(|(part, value)| (format!("{what}: {part}"), value)));
}

fn cold(node: &mut Node, counts: &mut Counts) -> Result<()> {
    let before = node.traffic();
    node.cold()?;
    note(counts, "cold", difference(before, node.traffic()));
    Ok(())
}

/// One added and one removed endpoint, on the second try: the first try allocates buffers.
fn endpoint(node: &mut Node, counts: &mut Counts) -> Result<()> {
    for (endpoints, what) in
        [(SIZE.endpoints + 1, "one endpoint comes"), (SIZE.endpoints, "one endpoint goes")]
    {
        let passes = if endpoints == SIZE.endpoints { 2 } else { 1 };
        node.store.update(|update| update.put(slice(7, 0, 0..endpoints)));
        (0..passes).try_for_each(|_| node.follow().map(drop))?;
        let object = slice(8, 0, 0..endpoints);
        let before = node.traffic();
        let (plan, Allocations { count, bytes }) = counted(|| {
            node.store.update(|update| update.put(object));
            (0..passes).try_for_each(|_| node.follow().map(drop))
        });
        plan?;
        note(counts, what, difference(before, node.traffic()));
        ensure!(count > 0, "allocations are not counted: the allocator is another one");
        counts.insert(format!("{what}: allocations"), count);
        counts.insert(format!("{what}: bytes allocated"), bytes);
    }
    Ok(())
}

fn restart(node: &mut Node, counts: &mut Counts) -> Result<()> {
    let restarted = rolling_restart(node, SIZE.services + 1, Duration::ZERO)?;
    ensure!(restarted.events == 1000, "{} events", restarted.events);
    counts.insert("rolling restart, 1,000 events: IPVS commands".to_owned(), restarted.commands);
    counts.insert("rolling restart, 1,000 events: passes".to_owned(), restarted.passes);
    Ok(())
}

/// A new process on the same kernel with the same objects.
fn warm(counts: &mut Counts) -> Result<()> {
    let mut node = Node::new(true)?;
    node.fill(SIZE);
    // Removes objects of earlier measurements.
    node.cold()?;
    let mut node = Node::new(true)?;
    node.fill(SIZE);
    for what in ["restart", "audit, nothing changed"] {
        let before = node.traffic();
        let (plan, _) = node.cold()?;
        note(counts, what, difference(before, node.traffic()));
        counts.insert(format!("{what}: ops"), plan.ops.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_effort_passes_and_less_work_fails() {
        let expected = [("work", "", Exactly(6)), ("effort", "B", AtMost(10))];
        let compare = |work, effort| {
            let counts = [("work".to_owned(), work), ("effort".to_owned(), effort)].into();
            let (rows, too_few) = compare(&expected, &counts).unwrap();
            (rows.iter().all(Row::holds), too_few.is_empty())
        };
        assert_eq!(compare(6, 10), (true, true));
        assert_eq!(compare(6, 3), (true, true));
        assert_eq!(compare(5, 10), (true, false), "work that was not done");
        assert_eq!(compare(7, 10), (false, true));
        assert_eq!(compare(6, 11), (false, true));
    }

    #[test]
    fn expected_counts_must_exist() {
        let error = compare(&[("work", "", Exactly(6))], &Counts::new()).unwrap_err();
        assert!(error.to_string().contains("work"), "{error}");
    }

    #[test]
    fn expectations_are_unique() {
        let names: std::collections::BTreeSet<&str> = EXPECTED.iter().map(|row| row.0).collect();
        assert_eq!(names.len(), EXPECTED.len());
    }
}
