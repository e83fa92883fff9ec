// SPDX-License-Identifier: Apache-2.0
//! `kube_ipvs_*`: what is wanted and what the kernel holds.

use std::collections::BTreeMap;
use std::sync::Mutex;

use prometheus::{IntGauge, IntGaugeVec, Registry};

use super::{label, lock, register_gauge, register_gauges};
use crate::core::mirror::Observed;
use crate::core::model::Family;
use crate::core::model::sets::SetId;
use crate::core::plan::op::Op;
use crate::core::service::desired::Desired;
use crate::core::service::node_facts::Binding;
use crate::core::service::protected::Protection;

/// Conflicts shown one by one; the gauge without labels counts all.
const CONFLICTS_SHOWN: usize = 100;

#[derive(Debug)]
pub(super) struct Holdings {
    contested: IntGauge,
    conflicts: IntGaugeVec,
    unbound: IntGaugeVec,
    drains: IntGauge,
    services: IntGauge,
    /// By [`Family::index`], as the next.
    virtual_servers: [IntGauge; 2],
    real_servers: [IntGauge; 2],
    entries: IntGaugeVec,
    /// The members of `entries`: finding one by its label costs a text each time.
    shown: Mutex<BTreeMap<SetId, IntGauge>>,
    addresses: IntGauge,
}

fn by_family(registry: &Registry, name: &str, help: &str) -> prometheus::Result<[IntGauge; 2]> {
    let gauges = register_gauges(registry, name, help, &["ip_family"])?;
    Ok(Family::ALL.map(|family| gauges.with_label_values(&[label(family)])))
}

impl Holdings {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            contested: register_gauge(
                registry,
                "kube_ipvs_contested_virtual_servers",
                "Virtual servers that more than one Service claims; the oldest Service has each.",
            )?,
            conflicts: register_gauges(
                registry,
                "kube_ipvs_address_conflict",
                "1 for a Service that is not served at an address and port because an older one is.",
                &["namespace", "service", "virtual_server", "winner"],
            )?,
            unbound: register_gauges(
                registry,
                "kube_ipvs_unbound_vips",
                "External and load-balancer IPs of Services that are not bound to kube-ipvs0, by the reason.",
                &["reason"],
            )?,
            drains: register_gauge(
                registry,
                "kube_ipvs_draining_real_servers",
                "Real servers that take no new connections and wait for the old ones to end.",
            )?,
            services: register_gauge(registry, "kube_ipvs_services", "Services that this node serves.")?,
            virtual_servers: by_family(
                registry,
                "kube_ipvs_virtual_servers",
                "Virtual servers in the kernel, those of others included.",
            )?,
            real_servers: by_family(
                registry,
                "kube_ipvs_real_servers",
                "Real servers in the kernel, draining ones and those of others included.",
            )?,
            entries: register_gauges(
                registry,
                "kube_ipvs_set_entries",
                "Entries of the ipsets that exist.",
                &["set"],
            )?,
            shown: Mutex::default(),
            addresses: register_gauge(
                registry,
                "kube_ipvs_bound_addresses",
                "Addresses on the device kube-ipvs0.",
            )?,
        })
    }

    /// Shows the conflicts as they are now.
    pub fn set_conflicts(&self, desired: &Desired) {
        self.contested.set(desired.contested().len() as i64);
        self.conflicts.reset();
        let losers = desired.contested().iter().flat_map(|key| {
            let winner = desired.virtual_server(key).map(|vs| vs.service.to_string()).unwrap_or_default();
            desired.losers(key).map(move |loser| (key, winner.clone(), loser))
        });
        for (key, winner, loser) in losers.take(CONFLICTS_SHOWN) {
            let name = &loser.service;
            let labels = [&*name.namespace, &*name.name, &*key.to_string(), &*winner];
            self.conflicts.with_label_values(&labels).set(1);
        }
    }

    /// Shows how many VIPs are not bound.
    pub fn set_unbound(&self, desired: &Desired) {
        let protections = Protection::ALL.map(Binding::Protected);
        for binding in protections.into_iter().chain([Binding::Special]) {
            let reason = match binding {
                Binding::Protected(protection) => protection.name(),
                _ => "NotUsable",
            };
            let count = desired.unbound().get(&binding).copied().unwrap_or_default();
            self.unbound.with_label_values(&[reason]).set(i64::from(count));
        }
    }

    pub fn set_drains(&self, count: usize) {
        self.drains.set(count as i64);
    }

    /// Counts servers anew, after an audit.
    pub fn count_servers(&self, observed: &Observed) {
        let (mut virtual_servers, mut real_servers) = ([0; 2], [0; 2]);
        for (vs, server) in &observed.virtual_servers {
            virtual_servers[vs.family().index()] += 1;
            real_servers[vs.family().index()] += server.real_servers.len() as i64;
        }
        for (gauge, count) in self.virtual_servers.iter().zip(virtual_servers) {
            gauge.set(count);
        }
        for (gauge, count) in self.real_servers.iter().zip(real_servers) {
            gauge.set(count);
        }
    }

    /// An op was acknowledged; `observed` is the mirror before it.
    pub fn done(&self, op: &Op, observed: &Observed) {
        match op {
            Op::AddVirtualServer(vs, _) => self.virtual_servers[vs.family().index()].inc(),
            Op::RemoveVirtualServer(vs) => {
                self.virtual_servers[vs.family().index()].dec();
                let with_it = observed.virtual_servers.get(vs).map_or(0, |server| server.real_servers.len());
                self.real_servers[vs.family().index()].sub(with_it as i64);
            }
            Op::AddRealServer(vs, _) => self.real_servers[vs.family().index()].inc(),
            Op::RemoveRealServer(vs, _) => self.real_servers[vs.family().index()].dec(),
            _ => {}
        }
    }

    /// Shows what is cheap to count, after every pass.
    pub fn set_sizes(&self, desired: &Desired, observed: &Observed) {
        self.services.set(desired.service_count() as i64);
        self.addresses.set(observed.addresses.len() as i64);
        for (id, set) in &observed.sets {
            let gauge = || self.entries.with_label_values(&[id.name()]);
            let shown = lock(&self.shown).entry(*id).or_insert_with(gauge).clone();
            shown.set(set.members.len() as i64);
        }
    }
}
