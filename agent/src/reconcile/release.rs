// SPDX-License-Identifier: Apache-2.0
//! Releases addresses on `kube-ipvs0` and local routes that block the way of the agent to the API server. This cannot
//! wait for the lists, which do not arrive then.

use crate::core::plan::outcome::Outcome;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::{Reconciler, sync};
use crate::core::mirror::Observed;
use crate::core::model::changes::Changes;
use crate::core::plan::op::{Op, Plan};
use crate::core::plan::ownership::{may_be_cluster_ip, may_remove};
use crate::core::service::protected::{Protected, Protection};
use crate::kernel::Kernel;

impl<K: Kernel> Reconciler<K> {
    /// Before every list is complete: unbinds addresses of the API server, of gateways, DNS and DHCP servers and of
    /// `protectedCIDRs`, except ClusterIPs, removes virtual servers that capture connections to the API server, and removes
    /// local routes that cover the API server or a gateway.
    pub(super) fn release(&mut self, now: Duration) {
        let Some(mut observed) = self.mirror.lend() else { return };
        let mut protected = (*self.protected).clone();
        protected.learn(&observed);
        protected.peers = self.store.peers();
        let ops = self.to_release(&observed, &protected);
        if !ops.is_empty() {
            let plan = Plan::new(ops, &Changes::default());
            let applied = self.apply(&plan, &observed, now, sync::RULES_TIMEOUT);
            self.follow(&plan, &applied.report, &mut observed, now);
            for (op, outcome) in plan.ops.iter().zip(&applied.report.outcomes) {
                self.report_released(op, outcome, &observed, &protected);
            }
            self.take_finished(applied.finished, now);
        }
        self.mirror.put_back(observed);
    }

    fn to_release(&self, observed: &Observed, protected: &Protected) -> Vec<Op> {
        // Addresses of Nodes do not block the way to the API server.
        let blocks = |addr| protected.find(addr).is_some_and(|why| why != Protection::OtherNode);
        let wrong = observed.addresses.iter().filter(|net| {
            let addr = net.addr();
            blocks(addr) && !may_be_cluster_ip(observed, addr)
        });
        let servers = observed.virtual_servers.keys().filter(|key| {
            protected.is_way_to_api_server(key)
                && may_remove(key, &self.settings)
                && !may_be_cluster_ip(observed, key.addr)
        });
        let covered = |net: &&IpNet| covered_by(net, observed, protected).is_some();
        let routes = observed.node.routes.iter().filter(covered);
        servers
            .map(|key| Op::RemoveVirtualServer(*key))
            .chain(wrong.map(|net| Op::Unbind(*net)))
            .chain(routes.map(|net| Op::RemoveRoute(*net)))
            .collect()
    }

    fn report_released(&mut self, op: &Op, outcome: &Outcome, observed: &Observed, protected: &Protected) {
        let (addr, done, remove) = match op {
            Op::Unbind(net) => (net.addr(), format!("unbound {} from kube-ipvs0", net.addr()), "unbind it"),
            Op::RemoveVirtualServer(key) => {
                (key.addr, format!("removed virtual server {key}"), "remove its virtual server")
            }
            Op::RemoveRoute(net) => {
                let Some(addr) = covered_by(net, observed, protected) else { return };
                (addr, format!("removed the local route {net}"), "remove the local route that covers it")
            }
            _ => return,
        };
        let Some(protection) = protected.find(addr) else { return };
        match outcome {
            Outcome::Done => {
                tracing::warn!("{done} before the Services are listed: {addr} is {protection}");
            }
            Outcome::Failed(error) if self.released.insert(addr) => {
                tracing::error!("{addr} is {protection}; cannot {remove}: {error}; retried");
            }
            _ => {}
        }
    }
}

/// A gateway, or an address of the API server that is no ClusterIP, in the network.
fn covered_by(net: &IpNet, observed: &Observed, protected: &Protected) -> Option<IpAddr> {
    let servers = protected.peers.api_servers.iter().map(SocketAddr::ip);
    let mut hosts = protected.gateways.iter().copied().chain(servers);
    hosts.find(|addr| net.contains(addr) && !may_be_cluster_ip(observed, *addr))
}
