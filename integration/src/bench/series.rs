// SPDX-License-Identifier: Apache-2.0
//! Costs at many sizes, by a clock that counts instructions: to be run in a guest of `run --icount`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::audit;
use super::events::{self, EndpointCost};
use super::limit;
use super::mode::Mode;
use super::node::{FirstSync, Node, Size};
use super::plot::{Sample, from_csv, to_csv};
use super::rows::{row, shown, within};
use super::table::Row;

/// Endpoints of each Service.
pub(super) const ENDPOINTS: u32 = 5;
/// Number of Services of the warm-up.
const WARM_UP: u32 = 60;
/// An instruction of that clock.
pub(super) const NANOSECONDS: u128 = 2;

/// The cost of one endpoint at each size, and how much it grows from the least to the most.
///
/// # Errors
/// When the kernel refuses something.
pub fn endpoint_rows(sizes: &[u32]) -> Result<Vec<Row>> {
    let mut costs = Vec::new();
    for services in sizes {
        let cost = endpoint_cost(*services)?;
        let [comes, goes, limit] = [cost.comes, cost.goes, cost.limit].map(|c| c.as_nanos() / NANOSECONDS);
        println!(
            "{services} Services: {comes} instructions for one that comes, {goes} for one that goes, \
             {limit} for the bare command"
        );
        costs.push(cost);
    }
    Ok(vec![
        row("one endpoint comes: growth of instructions", growth(&costs, |c| c.comes), "x", 1.2, Some(1.0)),
        row("one endpoint goes: growth of instructions", growth(&costs, |c| c.goes), "x", 1.2, Some(1.0)),
        shown("the bare command: growth", growth(&costs, |c| c.limit), "x"),
    ])
}

fn growth(costs: &[EndpointCost], of: fn(&EndpointCost) -> Duration) -> f64 {
    let all = || costs.iter().map(|cost| of(cost).as_secs_f64());
    all().fold(0.0, f64::max) / all().fold(f64::INFINITY, f64::min)
}

/// Addresses are acknowledged without being bound: an endpoint needs none, and tens of thousands take
/// minutes by that clock.
fn endpoint_cost(services: u32) -> Result<EndpointCost> {
    let size = Size { services, endpoints: ENDPOINTS };
    within("bench-endpoint", |ns| {
        ns.enter(|| {
            let mut node = Node::new(Mode::IPTABLES, false)?;
            node.fill(size);
            node.cold()?;
            events::endpoint(&mut node, size)
        })?
    })
}

/// Everything at one size, with every address really bound.
fn all_costs(services: u32, mode: Mode) -> Result<Sample> {
    let size = Size { services, endpoints: ENDPOINTS };
    let (plan, cold, endpoint, audit) = within("bench-series", |ns| {
        ns.enter(|| {
            let mut node = Node::new(mode, true)?;
            node.fill(size);
            let FirstSync { plan, whole: cold, .. } = node.cold()?;
            let endpoint = events::endpoint(&mut node, size)?;
            anyhow::Ok((plan, cold, endpoint, audit::audit_cpu(&mut node)?))
        })?
    })?;
    let limit = within("bench-limit", |ns| ns.enter(|| limit::replay(&plan, mode.rules))?)?.total();
    let costs = [cold, limit, endpoint.comes, endpoint.goes, endpoint.limit, audit];
    Ok(Sample { services, costs: costs.map(|cost| cost.as_secs_f64() * 1e6) })
}

/// Measures everything at `sizes` in one mode. Writes `csv` after each size; existing samples of other sizes stay.
///
/// # Errors
/// When the kernel refuses something, or the file is of something else.
pub fn write(mode: Mode, sizes: &[u32], csv: &Path) -> Result<()> {
    let mut samples = match std::fs::read_to_string(csv) {
        Ok(text) => from_csv(&text).with_context(|| csv.display().to_string())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| csv.display().to_string()),
    };
    // The first sync after a boot loads programs and modules, which is not a cost of the first size.
    all_costs(WARM_UP, mode)?;
    for services in sizes {
        insert(&mut samples, all_costs(*services, mode)?);
        std::fs::write(csv, to_csv(&samples)).with_context(|| csv.display().to_string())?;
        println!("{mode}: {services} Services: measured");
    }
    Ok(())
}

/// Inserts a sample in order, and replaces an older one of the same size.
fn insert(samples: &mut Vec<Sample>, sample: Sample) {
    samples.retain(|old| old.services != sample.services);
    samples.push(sample);
    samples.sort_by_key(|sample| sample.services);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_maximum_over_minimum() {
        let cost = |micros| EndpointCost { comes: Duration::from_micros(micros), ..EndpointCost::default() };
        let costs = [cost(50), cost(40), cost(60)];
        assert!((growth(&costs, |c| c.comes) - 1.5).abs() < 1e-9);
    }

    #[test]
    fn sizes_are_unique_and_sorted() {
        let sample = |services, cost| Sample { services, costs: [cost; 6] };
        let mut samples = vec![sample(100, 1.0), sample(1000, 2.0)];
        insert(&mut samples, sample(300, 3.0));
        insert(&mut samples, sample(100, 4.0));
        assert_eq!(samples, [sample(100, 4.0), sample(300, 3.0), sample(1000, 2.0)]);
    }
}
