// SPDX-License-Identifier: Apache-2.0
//! `make bench-quick`: counts on a real kernel, compared with their limits. Counts have no noise:
//! a higher count is a regression.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube_ipvs::kernel::linux::KernelCounters;

use super::allocations::{Allocations, counted};
use super::events::{difference, rolling_restart, service_created};
use super::expected::Bound::{AtMost, Exactly};
use super::expected::{EXPECTED, Expected};
use super::mode::Mode;
use super::node::{FirstSync, Node, Size, slice};
use super::rows::{row, within};
use super::table::Row;

/// Number of Services.
pub const SIZE: Size = Size { services: 1000, endpoints: 5 };

/// Counts by name.
type Counts = BTreeMap<String, u64>;

/// Rows of counts, and the counts below the necessary work. Must run with
/// [`super::allocations::Counting`] as the allocator.
///
/// # Errors
/// When something cannot be programmed.
pub fn measure() -> Result<(Vec<Row>, Vec<String>)> {
    let (mut rows, mut too_few) = (Vec::new(), Vec::new());
    for (mode, expected) in EXPECTED {
        let counts = within("bench-quick", |ns| ns.enter(|| count(mode))?)?;
        for expected in expected {
            let (more, missing) = compare(mode, expected, &counts)?;
            rows.extend(more);
            too_few.extend(missing);
        }
    }
    Ok((rows, too_few))
}

/// All counts of a mode.
fn count(mode: Mode) -> Result<Counts> {
    let mut counts = Counts::new();
    let mut node = Node::new(mode, true)?;
    node.fill(SIZE);
    cold(&mut node, &mut counts)?;
    endpoint(&mut node, &mut counts)?;
    let cost = service_created(&mut node, SIZE)?;
    note(&mut counts, "one Service created", cost);
    if mode == Mode::IPTABLES {
        restart(&mut node, &mut counts)?;
    }
    warm(mode, &mut counts)?;
    Ok(counts)
}

/// Compares counts with their limits. No expected count may be missing.
fn compare(mode: Mode, expected: &[Expected], counts: &Counts) -> Result<(Vec<Row>, Vec<String>)> {
    let (mut rows, mut too_few) = (Vec::new(), Vec::new());
    for (name, unit, bound) in expected {
        let Some(value) = counts.get(*name).copied() else {
            anyhow::bail!("{mode}: {name}: was not counted")
        };
        let (Exactly(must) | AtMost(must)) = *bound;
        if matches!(bound, Exactly(_)) && value < must {
            too_few.push(format!("{mode}: {name}: {value} instead of {must}"));
        }
        rows.push(row(format!("{mode}: {name}"), value as f64, unit, must as f64, None));
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
fn warm(mode: Mode, counts: &mut Counts) -> Result<()> {
    let mut node = Node::new(mode, true)?;
    node.fill(SIZE);
    // Removes objects of earlier measurements.
    node.cold()?;
    let mut node = Node::new(mode, true)?;
    node.fill(SIZE);
    for what in ["restart", "audit, nothing changed"] {
        let before = node.traffic();
        let FirstSync { plan, .. } = node.cold()?;
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
            let (rows, too_few) = compare(Mode::IPTABLES, &expected, &counts).unwrap();
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
        let error = compare(Mode::IPTABLES, &[("work", "", Exactly(6))], &Counts::new()).unwrap_err();
        assert!(error.to_string().contains("work"), "{error}");
    }
}
