// SPDX-License-Identifier: Apache-2.0
//! The addresses of all Nodes. They are not watched but listed, while any Service has an external or load-balancer IP;
//! the larger the cluster, the longer the interval.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::ApiClient;
use super::failure::ApiFailure;
use super::node_list::{Form, NodeAddresses, list};
use super::timing::{RetryPauses, Timing, wait_patiently};
use crate::chance::Chance;
use crate::store::{Kind, Store, VipSummary};
use crate::words;

/// The maximum that all nodes of a cluster together read from the API server, once each node has its first list.
const BYTES_PER_SECOND: f64 = 5e6;
/// The shortest interval between two regular lists.
const PERIOD: Duration = Duration::from_secs(60);
/// The interval of the check whether a list is due; a new VIP wakes the task at once.
const TICK: Duration = Duration::from_secs(1);
/// The same while the first list of Services is being read.
const FIRST_TICK: Duration = Duration::from_millis(20);

/// Keeps the addresses of the Nodes in the store up to date.
pub(super) struct NodeAddressSource {
    api: ApiClient,
    store: Arc<Store>,
    timing: Timing,
    pauses: RetryPauses,
    chance: Chance,
    nodes: Arc<[IpAddr]>,
    last: Option<LastList>,
    /// A table does not show every address of some Node.
    needs_objects: bool,
    failing: bool,
    /// When VIPs began to wait for the first list.
    waiting_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct LastList {
    at: Instant,
    /// The VIPs at that time.
    vips: VipSummary,
    /// The time over which the nodes of the cluster spread one list each.
    spread: Duration,
}

impl NodeAddressSource {
    pub fn new(api: ApiClient, store: Arc<Store>, timing: Timing) -> Self {
        Self {
            api,
            store,
            timing,
            pauses: RetryPauses::new(timing),
            chance: Chance::default(),
            nodes: Arc::default(),
            last: None,
            needs_objects: false,
            failing: false,
            waiting_since: None,
        }
    }

    pub async fn run(mut self) {
        let mut vips_added = self.store.watch_vips();
        let mut next = Instant::now();
        loop {
            if self.store.waiting_for().contains(&Kind::Service) {
                tokio::time::sleep(FIRST_TICK).await;
                continue;
            }
            let (vips, now) = (self.store.vips(), Instant::now());
            if vips.any && self.last.is_none() && self.store.awaits_nodes() {
                self.waiting_since.get_or_insert(now);
            }
            if !vips.any {
                if self.forget(now) {
                    next = now;
                }
            } else if now >= next || self.is_early(vips, now) {
                next = self.list_once(vips).await;
                continue;
            }
            let wait = self.patience(now).unwrap_or(TICK).min(TICK);
            // An error means that the sender is gone; the next tick checks again.
            let _ = tokio::time::timeout(wait, vips_added.changed()).await;
            self.lose_patience();
        }
    }

    /// Lists once. Returns when to list again.
    async fn list_once(&mut self, vips: VipSummary) -> Instant {
        let patience = self.patience(Instant::now());
        let patience = patience.unwrap_or(Duration::MAX);
        let result = wait_patiently(patience, self.list(vips), || self.publish()).await;
        let pause = match result {
            Ok((nodes, needs_objects)) => {
                self.needs_objects = needs_objects;
                let spread = self.take(nodes, vips);
                // The nodes must not list all at the same moment.
                PERIOD.max(spread).mul_f64(0.75 + self.random() / 2.0)
            }
            Err(failure) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        "cannot list the addresses of other Nodes: {}; external and load-balancer IPs are bound to \
                         kube-ipvs0 even if another Node has them",
                        failure.text()
                    );
                }
                self.lose_patience();
                let now = Instant::now();
                self.pauses.next(now, self.api.retry_after.left(now))
            }
        };
        Instant::now() + pause
    }

    /// Lists all Nodes, as a table if that shows every address. Returns also whether objects are needed.
    async fn list(&self, vips: VipSummary) -> Result<(NodeAddresses, bool), ApiFailure> {
        let mut needs_objects = self.needs_objects;
        if !needs_objects && !vips.any_v6 {
            let nodes = list(&self.api, Form::Table, self.timing.stall).await?;
            // If the table shows every address of this Node, it shows those of the others.
            let own = self.store.node().map(|node| node.addresses).unwrap_or_default();
            let shows_own = own.iter().all(|own| own.is_ipv6() || nodes.addresses.contains(own));
            if shows_own && !nodes.lacks_v4 {
                return Ok((nodes, false));
            }
            needs_objects = true;
        }
        Ok((list(&self.api, Form::Objects, self.timing.stall).await?, needs_objects))
    }

    /// Takes a list. Returns the time over which the nodes of the cluster spread one list each.
    fn take(&mut self, nodes: NodeAddresses, vips: VipSummary) -> Duration {
        if std::mem::take(&mut self.failing) {
            tracing::info!("the addresses of {} are known again", words::count(nodes.nodes, "Node"));
        }
        let spread = Duration::from_secs_f64(nodes.nodes as f64 * nodes.bytes as f64 / BYTES_PER_SECOND);
        self.last = Some(LastList { at: Instant::now(), vips, spread });
        self.nodes = nodes.addresses.into_iter().collect();
        self.waiting_since = None;
        self.publish();
        spread
    }

    fn publish(&self) {
        self.store.update(|update| update.set_nodes(self.nodes.clone()));
    }

    /// Drops an old list while no Service has a VIP: it would be out of date for a new VIP. Returns whether it was old.
    fn forget(&mut self, now: Instant) -> bool {
        self.waiting_since = None;
        let is_old = self.last.is_some_and(|last| now.duration_since(last.at) >= PERIOD.max(last.spread));
        if is_old {
            self.last = None;
            self.store.update(|update| update.await_nodes());
        }
        is_old
    }

    /// Publishes without a list once VIPs have waited long enough.
    fn lose_patience(&mut self) {
        if self.patience(Instant::now()).is_some_and(|left| left.is_zero()) {
            self.waiting_since = None;
            self.publish();
        }
    }

    /// The rest of the time that VIPs wait for the first list; `None`: they do not wait.
    fn patience(&self, now: Instant) -> Option<Duration> {
        Some(self.timing.patience().saturating_sub(now.duration_since(self.waiting_since?)))
    }

    /// Whether a VIP was added after the last list and it is this node's turn to list.
    fn is_early(&self, vips: VipSummary, now: Instant) -> bool {
        self.last.is_some_and(|last| {
            // At least half of the spread, and a second in a small cluster.
            let turn = last.spread.mul_f64(0.5 + self.random()).max(TICK);
            !self.failing && last.vips != vips && now.duration_since(last.at) >= turn
        })
    }

    /// From 0 to 1; the same until the next list.
    fn random(&self) -> f64 {
        self.chance.of(self.last.map(|last| last.at))
    }
}
