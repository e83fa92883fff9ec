// SPDX-License-Identifier: Apache-2.0
//! Threads that receive the kernel's notifications about addresses, devices, routes and rules.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use dummy_iface::{Change, Watch};

use crate::core::plan::subject::Part;
use crate::inbox::Inbox;
use crate::kernel::host::routes::RouteWatch;
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
pub fn start(kernel: &LinuxKernel, inbox: &Arc<Inbox>) -> anyhow::Result<()> {
    let watch = kernel.watch_addresses().context("cannot watch addresses")?;
    spawn("addresses", inbox, |inbox| watch_addresses(watch, inbox))?;
    let routes = RouteWatch::open().context("cannot watch routes")?;
    spawn("routes", inbox, |inbox| watch_routes(routes, inbox))?;
    match RulesWatch::open(kernel.rule_writers()) {
        Ok(watch) => spawn("rules", inbox, |inbox| watch_rules(watch, inbox))?,
        Err(error) => {
            let why = words::causes(&error);
            tracing::info!("the kernel does not report changes of rules ({why}): the next audit finds them");
        }
    }
    Ok(())
}

fn spawn(name: &str, inbox: &Arc<Inbox>, run: impl FnOnce(&Inbox) + Send + 'static) -> std::io::Result<()> {
    let to = inbox.clone();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&to)).map(drop)
}

/// Logs failures of a watch, at a limited rate.
struct WatchFailures {
    what: &'static str,
    start: Instant,
    pace: Pace,
}

impl WatchFailures {
    fn new(what: &'static str) -> Self {
        Self { what, start: Instant::now(), pace: Pace::default() }
    }

    fn report(&mut self, error: &(dyn std::error::Error + 'static)) {
        let now = self.start.elapsed();
        let first = self.pace.happened(1, now);
        let due = self.pace.due(now);
        if first || due.is_some() {
            let times = due.map_or(1, |(count, _)| count);
            let (what, error) = (self.what, words::causes(error));
            tracing::warn!(
                times,
                "cannot read a notification about {what}: {error}; reading all {what} instead"
            );
        }
        std::thread::sleep(PAUSE);
    }
}

fn watch_addresses(mut watch: Watch, inbox: &Inbox) {
    let mut failures = WatchFailures::new("addresses");
    loop {
        match watch.next() {
            // Also reported when the agent itself creates the device.
            Ok(Change::DeviceAppeared) => {}
            // IPv6 notifications do not name the process: the loop compares them with the desired addresses.
            Ok(Change::Added(net)) => inbox.address(net, true),
            Ok(Change::Removed(net)) => inbox.address(net, false),
            Ok(change) => {
                tracing::debug!(?change, "a device changed");
                inbox.changed(Part::Addresses);
            }
            Err(error) => {
                inbox.changed(Part::Addresses);
                failures.report(&error);
            }
        }
    }
}

/// Gateways are protected addresses. They stay known when their route is removed.
fn watch_routes(mut watch: RouteWatch, inbox: &Inbox) {
    let mut failures = WatchFailures::new("routes");
    let mut known = BTreeSet::new();
    loop {
        match watch.next_gateways() {
            Ok(mut gateways) => {
                gateways.retain(|gateway| known.insert(*gateway));
                if !gateways.is_empty() {
                    inbox.gateways(gateways);
                }
            }
            Err(error) => {
                inbox.changed(Part::Node);
                failures.report(&error);
            }
        }
    }
}

fn watch_rules(mut watch: RulesWatch, inbox: &Inbox) {
    let mut failures = WatchFailures::new("rules");
    loop {
        match watch.wait() {
            Ok(families) => {
                families.into_iter().for_each(|family| inbox.changed(Part::Rules(family)));
                std::thread::sleep(PAUSE);
            }
            Err(error) => failures.report(&error),
        }
    }
}
