// SPDX-License-Identifier: Apache-2.0
//! Threads that notice at once what other programs do to addresses, devices, routes and rules, where the kernel
//! reports it.

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

/// Pause after a notification that could not be read, and between notifications about rules: reading rules
/// is dear, and the loop does so once a second at most.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the threads.
///
/// # Errors
/// When the kernel tells nothing about addresses, or no thread can be started.
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

/// Logs failures of a watch, paced.
struct Trouble {
    what: &'static str,
    start: Instant,
    pace: Pace,
}

impl Trouble {
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
                "cannot read a notification about {what}: {error}; they are read in full instead"
            );
        }
        std::thread::sleep(PAUSE);
    }
}

fn watch_addresses(mut watch: Watch, inbox: &Inbox) {
    let mut trouble = Trouble::new("addresses");
    loop {
        match watch.next() {
            // The agent's own creation of the device is reported as well; an audit then finds nothing.
            Ok(Change::DeviceAppeared) => {}
            // IPv6 changes do not say who made them: the loop knows what it wants.
            Ok(Change::Added(net)) => inbox.address(net, true),
            Ok(Change::Removed(net)) => inbox.address(net, false),
            Ok(change) => {
                tracing::debug!(?change, "a device changed");
                inbox.changed(Part::Addresses);
            }
            Err(error) => {
                inbox.changed(Part::Addresses);
                trouble.report(&error);
            }
        }
    }
}

/// A gateway must be known before a Service may have its address, and stays known when its route goes.
fn watch_routes(mut watch: RouteWatch, inbox: &Inbox) {
    let mut trouble = Trouble::new("routes");
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
                trouble.report(&error);
            }
        }
    }
}

fn watch_rules(mut watch: RulesWatch, inbox: &Inbox) {
    let mut trouble = Trouble::new("rules");
    loop {
        match watch.wait() {
            Ok(families) => {
                families.into_iter().for_each(|family| inbox.changed(Part::Rules(family)));
                std::thread::sleep(PAUSE);
            }
            Err(error) => trouble.report(&error),
        }
    }
}
