// SPDX-License-Identifier: Apache-2.0
//! `make bench-quick`: what can be counted, on a real kernel, against what it may be. Counts are no noise:
//! one that grows is a change for the worse.

use std::time::Duration;

use anyhow::Result;

use super::allocations::{Allocations, counted};
use super::events::{difference, rolling_restart, service_created};
use super::node::{Node, Size, slice};
use super::table::Row;
use crate::lab::Netns;

/// The size that it is counted at.
pub const SIZE: Size = Size { services: 1000, endpoints: 5 };

/// Rows of counts. To be run with [`super::allocations::Counting`] as the allocator.
///
/// # Errors
/// When something cannot be programmed.
pub fn measure() -> Result<Vec<Row>> {
    let ns = Netns::new("bench-quick")?;
    ns.enter(|| {
        let mut rows = Vec::new();
        let mut node = Node::new(true)?;
        node.fill(SIZE);
        cold(&mut node, &mut rows)?;
        endpoint(&mut node, &mut rows)?;
        created(&mut node, &mut rows)?;
        restart(&mut node, &mut rows)?;
        warm(&mut rows)?;
        Ok(rows)
    })?
}

fn row(what: &str, value: u64, unit: &'static str, must: u64) -> Row {
    Row { what: what.to_owned(), value: value as f64, unit, must: Some(must as f64), aim: None }
}

fn cold(node: &mut Node, rows: &mut Vec<Row>) -> Result<()> {
    let before = node.reconciler.kernel().kernel.traffic();
    node.cold()?;
    let cost = difference(before, node.reconciler.kernel().kernel.traffic());
    rows.extend([
        row("cold: IPVS commands", cost.commands, "", 6000),
        row("cold: sends, IPVS", cost.sends[0], "", 14),
        // One question for each of the 34 sets, and little more.
        row("cold: sends, sets", cost.sends[1], "", 40),
        row("cold: sends, addresses", cost.sends[2], "", 9),
        row("cold: bytes, IPVS", cost.bytes[0], "B", 633_000),
        row("cold: bytes, sets", cost.bytes[1], "B", 70_000),
        row("cold: bytes, addresses", cost.bytes[2], "B", 41_000),
        row("cold: processes", cost.processes, "", 4),
    ]);
    Ok(())
}

/// One endpoint that comes and one that goes, on the second try: the first makes room.
fn endpoint(node: &mut Node, rows: &mut Vec<Row>) -> Result<()> {
    for (endpoints, what) in
        [(SIZE.endpoints + 1, "one endpoint comes"), (SIZE.endpoints, "one endpoint goes")]
    {
        let dumps = u64::from(endpoints == SIZE.endpoints);
        node.store.update(|update| update.put(slice(7, 0, 0..endpoints)));
        node.follow()?;
        let object = slice(8, 0, 0..endpoints);
        let before = node.reconciler.kernel().kernel.traffic();
        let (plan, Allocations { count, bytes }) = counted(|| {
            node.store.update(|update| update.put(object));
            node.follow()
        });
        plan?;
        let cost = difference(before, node.reconciler.kernel().kernel.traffic());
        let row = |part: &str, value, unit, must| row(&format!("{what}: {part}"), value, unit, must);
        rows.extend([
            row("IPVS commands", cost.commands, "", 1),
            row("sends", cost.sends.iter().sum(), "", 1 + dumps),
            row("bytes", cost.bytes.iter().sum(), "B", 120 + dumps * 70),
            row("dumps", cost.dumps, "", dumps),
            row("processes", cost.processes, "", 0),
            row("allocations", count, "", 330),
            row("bytes allocated", bytes, "B", 60_000),
        ]);
    }
    Ok(())
}

fn created(node: &mut Node, rows: &mut Vec<Row>) -> Result<()> {
    let cost = service_created(node, SIZE)?;
    rows.extend([
        row("one Service created: sends", cost.sends.iter().sum(), "", 4),
        row("one Service created: processes", cost.processes, "", 0),
        row("one Service created: dumps", cost.dumps, "", 0),
    ]);
    Ok(())
}

fn restart(node: &mut Node, rows: &mut Vec<Row>) -> Result<()> {
    let restarted = rolling_restart(node, SIZE.services + 1, Duration::ZERO)?;
    rows.push(row("rolling restart, 1,000 changes: IPVS commands", restarted.commands, "", restarted.events));
    Ok(())
}

/// A new process on the same kernel, with what the last one knew.
fn warm(rows: &mut Vec<Row>) -> Result<()> {
    let mut node = Node::new(true)?;
    node.fill(SIZE);
    // What the measurements before left behind goes.
    node.cold()?;
    let mut node = Node::new(true)?;
    node.fill(SIZE);
    let before = node.reconciler.kernel().kernel.traffic();
    let (plan, _) = node.cold()?;
    let cost = difference(before, node.reconciler.kernel().kernel.traffic());
    rows.extend([
        row("restart: ops", plan.ops.len() as u64, "", 0),
        row("restart: IPVS commands", cost.commands, "", 0),
        row("restart: readings of the table", cost.tables, "", 1),
        row("restart: processes", cost.processes, "", 2),
    ]);
    let before = node.reconciler.kernel().kernel.traffic();
    node.cold()?;
    let cost = difference(before, node.reconciler.kernel().kernel.traffic());
    rows.push(row("audit, nothing changed: processes", cost.processes, "", 0));
    Ok(())
}
