// SPDX-License-Identifier: Apache-2.0
//! Whose addresses the cluster knows, and which VIPs could be one of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::watch;

use super::{Store, Update, Vips};
use crate::core::service::protected::Peers;

impl Store {
    /// Whose addresses the cluster knows, as far as it is known now.
    pub fn peers(&self) -> Peers {
        let inner = self.lock();
        let mut peers = inner.peers.clone();
        let mut api_servers: BTreeSet<SocketAddr> = inner.index.api_server_endpoints().collect();
        if !api_servers.is_empty() {
            api_servers.extend(peers.api_servers.iter());
            peers.api_servers = api_servers.into_iter().collect();
        }
        peers
    }

    /// Whether the addresses of Nodes are not known yet.
    pub fn awaits_nodes(&self) -> bool {
        self.lock().awaits_nodes
    }

    /// Tells when an external or load-balancer IP comes.
    pub fn watch_vips(&self) -> watch::Receiver<u64> {
        self.vips_came.subscribe()
    }

    /// Whether any Service has an external or load-balancer IP, and whether any of those is of IPv6.
    pub fn vips(&self) -> Vips {
        let inner = self.lock();
        let vips = inner.index.vips();
        Vips { any: !vips.is_empty(), any_v6: vips.has_v6(), came: vips.came() }
    }
}

impl Update<'_> {
    /// The addresses of Nodes follow: until then nothing new is bound that they might have.
    pub fn await_nodes(&mut self) {
        if !std::mem::replace(&mut self.inner.awaits_nodes, true) {
            self.inner.node_changed = true;
        }
    }

    /// Every address of every Node, sorted, as far as it is known.
    pub fn set_nodes(&mut self, nodes: Arc<[IpAddr]>) {
        let inner = &mut *self.inner;
        if std::mem::take(&mut inner.awaits_nodes) || inner.peers.nodes != nodes {
            inner.peers.nodes = nodes;
            inner.node_changed = true;
            inner.tally.changed();
        }
    }

    /// Addresses and ports of the API server that the agent talks to, sorted.
    pub fn set_api_servers(&mut self, api_servers: Arc<[SocketAddr]>) {
        let inner = &mut *self.inner;
        if inner.peers.api_servers != api_servers {
            inner.peers.api_servers = api_servers;
            inner.node_changed = true;
            inner.early = true;
            inner.tally.changed();
        }
    }
}
