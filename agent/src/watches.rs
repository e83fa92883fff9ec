// SPDX-License-Identifier: Apache-2.0
//! Threads that receive the kernel's notifications about addresses, devices, routes and rules.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use anyhow::Context;
use dummy_iface::Change;

use crate::core::model::settings::RulesMode;
use crate::core::plan::subject::Part;
use crate::inbox::Inbox;
use crate::kernel::host::routes::{RouteChange, RouteWatch};
use crate::kernel::linux::LinuxKernel;
use crate::kernel::netfilter::nft_watch::{OwnPorts, RulesWatch, all_parts};
use crate::pace::Pace;
use crate::words;

/// Pause after a failed read of a notification, and between notifications about rules: reading rules is expensive,
/// and the loop does so at most once a second.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the watch of our own tables waits for the first sync.
const FIRST_SYNC: Duration = Duration::from_secs(10);

/// Starts the threads. Drop the result after the first sync: for each element of a set, the kernel makes a notification
/// of 8 KiB if anyone listens, which would be half of the time of a first sync.
///
/// # Errors
/// When addresses or routes cannot be watched, or a thread cannot be started.
pub fn start(kernel: &LinuxKernel, mode: RulesMode, inbox: &Arc<Inbox>) -> anyhow::Result<Sender<()>> {
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
    let (until_synced, synced) = mpsc::channel();
    let writers = kernel.rule_writers();
    match mode {
        RulesMode::Iptables => watch_rules(mode, writers, inbox),
        RulesMode::Nftables => {
            let inbox = inbox.clone();
            let wait = move || {
                // An error means that the sender was dropped.
                let _ = synced.recv_timeout(FIRST_SYNC);
                watch_rules(mode, writers, &inbox);
                // What changed before, the loop sees by the generation of the tables.
                all_parts(mode).for_each(|part| inbox.changed(part));
            };
            std::thread::Builder::new().name("rules-wait".to_owned()).spawn(wait)?;
        }
    }
    Ok(until_synced)
}

fn watch_rules(mode: RulesMode, writers: OwnPorts, inbox: &Arc<Inbox>) {
    let watch = RulesWatch::open(mode, writers).map_err(|error| words::causes(&error));
    let start = |mut watch: RulesWatch| follow("rules", inbox, None, move || watch.wait(), take_rules);
    let started = watch.and_then(|watch| start(watch).map_err(|error| words::io_error(&error)));
    if let Err(why) = started {
        tracing::info!("the kernel does not report changes of rules ({why}): the next audit finds them");
    }
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
