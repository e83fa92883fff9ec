// SPDX-License-Identifier: Apache-2.0
//! Threads that receive the kernel's notifications about addresses, devices, routes and rules.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use dummy_iface::Change;

use crate::core::model::settings::RulesMode;
use crate::core::plan::subject::Part;
use crate::inbox::Inbox;
use crate::kernel::host::routes::{RouteChange, RouteWatch};
use crate::kernel::linux::LinuxKernel;
use crate::kernel::netfilter::nft_watch::RulesWatch;
use crate::pace::Pace;
use crate::words;

/// Pause after a failed read of a notification, and between notifications about rules: reading rules is expensive,
/// and the loop does so at most once a second.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the threads.
///
/// # Errors
/// When addresses or routes cannot be watched, or a thread cannot be started.
pub fn start(kernel: &LinuxKernel, mode: RulesMode, inbox: &Arc<Inbox>) -> anyhow::Result<()> {
    let mut watch = kernel.watch_addresses().context("cannot watch addresses")?;
    follow("addresses", inbox, Some(Part::Addresses), move || watch.next(), take_address)?;
    let mut watch = RouteWatch::open().context("cannot watch routes")?;
    // Gateways are protected addresses. They stay known when their route is removed.
    let mut known = BTreeSet::new();
    let take_routes = move |inbox: &Inbox, RouteChange { mut gateways, is_own_removed }: RouteChange| {
        gateways.retain(|gateway| known.insert(*gateway));
        if !gateways.is_empty() {
            inbox.gateways(gateways);
        }
        if is_own_removed {
            inbox.changed(Part::Node);
        }
    };
    follow("routes", inbox, Some(Part::Node), move || watch.wait(), take_routes)?;
    match RulesWatch::open(mode, kernel.rule_writers()) {
        Ok(mut watch) => follow("rules", inbox, None, move || watch.wait(), take_rules)?,
        Err(error) => {
            let why = words::causes(&error);
            tracing::info!("the kernel does not report changes of rules ({why}): the next audit finds them");
        }
    }
    Ok(())
}

/// Starts a thread that takes each notification about `what`. A failed read marks `part` as changed, and is logged at a
/// limited rate.
fn follow<T, E: std::error::Error + 'static>(
    what: &'static str,
    inbox: &Arc<Inbox>,
    part: Option<Part>,
    mut next: impl FnMut() -> Result<T, E> + Send + 'static,
    mut take: impl FnMut(&Inbox, T) + Send + 'static,
) -> std::io::Result<()> {
    let inbox = inbox.clone();
    let run = move || {
        let (start, mut pace) = (Instant::now(), Pace::default());
        loop {
            let error = match next() {
                Ok(notification) => {
                    take(&inbox, notification);
                    continue;
                }
                Err(error) => words::causes(&error),
            };
            part.into_iter().for_each(|part| inbox.changed(part));
            let now = start.elapsed();
            let first = pace.happened(1, now);
            let due = pace.due(now);
            if first || due.is_some() {
                let times = due.map_or(1, |(count, _)| count);
                tracing::warn!(
                    times,
                    "cannot read a notification about {what}: {error}; reading all {what} instead"
                );
            }
            std::thread::sleep(PAUSE);
        }
    };
    std::thread::Builder::new().name(what.to_owned()).spawn(run).map(drop)
}

fn take_address(inbox: &Inbox, change: Change) {
    match change {
        // Also reported when the agent itself creates the device.
        Change::DeviceAppeared => {}
        // IPv6 notifications do not name the process: the loop compares them with the desired addresses.
        Change::Added(net) => inbox.address(net, true),
        Change::Removed(net) => inbox.address(net, false),
        change => {
            tracing::debug!(?change, "a device changed");
            inbox.changed(Part::Addresses);
        }
    }
}

fn take_rules(inbox: &Inbox, parts: BTreeSet<Part>) {
    parts.into_iter().for_each(|part| inbox.changed(part));
    std::thread::sleep(PAUSE);
}
