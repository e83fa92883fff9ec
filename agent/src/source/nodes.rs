// SPDX-License-Identifier: Apache-2.0
//! The addresses of all Nodes. No standing watch: they are listed while any Service has an external or load-balancer
//! IP, and the larger the cluster is, the more seldom.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::ApiClient;
use super::node_list::{Form, Listed, list};
use super::pauses::{Limits, Pauses};
use super::trouble::Trouble;
use crate::store::{Kind, Store, VipSummary};
use crate::words;

/// All nodes of a cluster together take so many bytes a second from the API server, at most, once each has its first
/// list.
const BYTES_PER_SECOND: f64 = 5e6;
/// The shortest time between two lists without a reason for one.
const PERIOD: Duration = Duration::from_secs(60);
/// Time between two looks whether a list is due; a new VIP is noticed at once.
const TICK: Duration = Duration::from_secs(1);
/// The same while the first list of Services is read.
const FIRST_TICK: Duration = Duration::from_millis(20);
/// New VIPs wait for the first list, for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells the store the addresses of Nodes, for ever.
pub(super) struct NodeWatch {
    api: ApiClient,
    store: Arc<Store>,
    limits: Limits,
    pauses: Pauses,
    chance: RandomState,
    nodes: Arc<[IpAddr]>,
    /// The last list, if there was one.
    last: Option<Last>,
    /// A table does not show every address of a Node.
    needs_objects: bool,
    failing: bool,
    /// Since when VIPs wait for the first list.
    waiting_since: Option<Instant>,
}

/// A list of Nodes.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    /// Which VIPs there were then.
    vips: VipSummary,
    /// How long all nodes of the cluster must take for one list each.
    spread: Duration,
}

impl NodeWatch {
    pub fn new(api: ApiClient, store: Arc<Store>, limits: Limits) -> Self {
        Self {
            api,
            store,
            limits,
            pauses: Pauses::new(limits),
            chance: RandomState::new(),
            nodes: Arc::default(),
            last: None,
            needs_objects: false,
            failing: false,
            waiting_since: None,
        }
    }

    pub async fn run(mut self) {
        let mut came = self.store.watch_vips();
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
                next = self.look(vips).await;
                continue;
            }
            let wait = self.patience(now).unwrap_or(TICK).min(TICK);
            // A sender that is gone says nothing; the clock goes on.
            let _ = tokio::time::timeout(wait, came.changed()).await;
            self.lose_patience();
        }
    }

    /// Lists once. When to list again.
    async fn look(&mut self, vips: VipSummary) -> Instant {
        let patience = self.patience(Instant::now());
        let result = {
            let listing = self.list(vips);
            tokio::pin!(listing);
            match tokio::time::timeout(patience.unwrap_or(Duration::MAX), &mut listing).await {
                Ok(result) => result,
                Err(_) => {
                    self.tell();
                    listing.await
                }
            }
        };
        let pause = match result {
            Ok((listed, needs_objects)) => {
                self.needs_objects = needs_objects;
                self.take(listed, vips);
                self.period()
            }
            Err(trouble) => {
                self.report(&trouble);
                self.lose_patience();
                let now = Instant::now();
                self.pauses.next(now, self.api.asked.left(now))
            }
        };
        Instant::now() + pause
    }

    /// Lists all Nodes, as a table where that shows every address. Whether it does not.
    async fn list(&self, vips: VipSummary) -> Result<(Listed, bool), Trouble> {
        let mut needs_objects = self.needs_objects;
        if !needs_objects && !vips.any_v6 {
            let listed = list(&self.api, Form::Table, self.limits.stall).await?;
            // What the table shows of this Node tells whether it shows everything of the others.
            let own = self.store.node().map(|node| node.addresses).unwrap_or_default();
            let shows_own = own.iter().all(|own| own.is_ipv6() || listed.addresses.contains(own));
            if shows_own && !listed.lacks_v4 {
                return Ok((listed, false));
            }
            needs_objects = true;
        }
        Ok((list(&self.api, Form::Objects, self.limits.stall).await?, needs_objects))
    }

    fn take(&mut self, listed: Listed, vips: VipSummary) {
        if std::mem::take(&mut self.failing) {
            tracing::info!("the addresses of {} are known again", words::count(listed.nodes, "Node"));
        }
        let spread = Duration::from_secs_f64(listed.nodes as f64 * listed.bytes as f64 / BYTES_PER_SECOND);
        self.last = Some(Last { at: Instant::now(), vips, spread });
        self.nodes = listed.addresses.into_iter().collect();
        self.waiting_since = None;
        self.tell();
    }

    fn tell(&self) {
        self.store.update(|update| update.set_nodes(self.nodes.clone()));
    }

    /// No VIP is there. When one comes, an old list says nothing about it: whether the list was one.
    fn forget(&mut self, now: Instant) -> bool {
        self.waiting_since = None;
        let is_old = self.last.is_some_and(|last| now.duration_since(last.at) >= PERIOD.max(last.spread));
        if is_old {
            self.last = None;
            self.store.update(|update| update.await_nodes());
        }
        is_old
    }

    /// VIPs that have waited long enough are bound without a list.
    fn lose_patience(&mut self) {
        if self.patience(Instant::now()).is_some_and(|left| left.is_zero()) {
            self.waiting_since = None;
            self.tell();
        }
    }

    /// How much longer VIPs wait for the first list; `None`: they do not.
    fn patience(&self, now: Instant) -> Option<Duration> {
        let limit = PATIENCE.min(self.limits.stall);
        Some(limit.saturating_sub(now.duration_since(self.waiting_since?)))
    }

    fn period(&self) -> Duration {
        let spread = self.last.map(|last| last.spread).unwrap_or_default();
        // The nodes do not come all at once.
        PERIOD.max(spread).mul_f64(0.75 + self.random() / 2.0)
    }

    /// Whether a VIP came after the last list, and this node's turn to look has come.
    fn is_early(&self, vips: VipSummary, now: Instant) -> bool {
        self.last.is_some_and(|last| {
            // Half of the cluster's share of time at least, and a second where the cluster is small.
            let turn = last.spread.mul_f64(0.5 + self.random()).max(TICK);
            !self.failing && last.vips != vips && now.duration_since(last.at) >= turn
        })
    }

    /// From 0 to 1, the same until the next list.
    fn random(&self) -> f64 {
        (self.chance.hash_one(self.last.map(|last| last.at)) % 1000) as f64 / 1000.0
    }

    fn report(&mut self, trouble: &Trouble) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                "cannot list the addresses of other Nodes: {}; external and load-balancer IPs are bound to \
                 kube-ipvs0 even if another Node has them",
                trouble.text()
            );
        }
    }
}
