// SPDX-License-Identifier: Apache-2.0
//! `kube_ipvs_*`: the desired objects, and the objects in the kernel.

use std::collections::BTreeMap;
use std::sync::Mutex;

use prometheus::{IntGauge, IntGaugeVec};

use super::register::declare;
use crate::core::mirror::Observed;
use crate::core::model::sets::SetId;
use crate::core::model::{Family, PerFamily};
use crate::core::plan::op::Op;
use crate::core::service::desired::Desired;
use crate::core::service::node_facts::Binding;
use crate::core::service::protected::Protection;
use crate::lock::lock;

/// Conflicts with a series of their own; the gauge without labels counts all.
const MAX_CONFLICTS: usize = 100;

declare! {
    pub struct ObjectMetrics {
        contested: IntGauge = "kube_ipvs_contested_virtual_servers"
            => "Virtual servers that more than one Service claims; the oldest Service gets the virtual server.";
        conflicts: IntGaugeVec = "kube_ipvs_address_conflict" ["namespace", "service", "virtual_server", "winner"]
            => "1 for a Service that is not served at an address and port because an older Service claims them.";
        unbound: IntGaugeVec = "kube_ipvs_unbound_vips" ["reason"]
            => "External and load-balancer IPs of Services that are not bound to kube-ipvs0, by reason.";
        pub drains: IntGauge = "kube_ipvs_draining_real_servers"
            => "Real servers that get no new connections and are removed when their connections have ended.";
        services: IntGauge = "kube_ipvs_services" => "Services that this node serves.";
        virtual_servers: PerFamily<IntGauge> = "kube_ipvs_virtual_servers" ["ip_family"]
            => "Virtual servers in the kernel, including those of other programs.";
        real_servers: PerFamily<IntGauge> = "kube_ipvs_real_servers" ["ip_family"]
            => "Real servers in the kernel, including draining ones and those of other programs.";
        entries: IntGaugeVec = "kube_ipvs_set_entries" ["set"] => "Entries of the ipsets that exist.";
        addresses: IntGauge = "kube_ipvs_bound_addresses" => "Addresses on the device kube-ipvs0.";
    }
    with {
        /// The series of `entries`: a lookup by label allocates.
        entries_by_set: Mutex<BTreeMap<SetId, IntGauge>> = Mutex::default();
    }
}

impl ObjectMetrics {
    /// Replaces all series of conflicts.
    pub fn set_conflicts(&self, desired: &Desired) {
        self.contested.set(desired.contested().len() as i64);
        self.conflicts.reset();
        let losers = desired.contested().iter().flat_map(|key| {
            let winner = desired.virtual_server(key).map(|vs| vs.service.to_string()).unwrap_or_default();
            desired.losers(key).map(move |loser| (key, winner.clone(), loser))
        });
        for (key, winner, loser) in losers.take(MAX_CONFLICTS) {
            let name = &loser.service;
            let labels = [&*name.namespace, &*name.name, &*key.to_string(), &*winner];
            self.conflicts.with_label_values(&labels).set(1);
        }
    }

    /// Sets the number of unbound VIPs by reason.
    pub fn set_unbound(&self, desired: &Desired) {
        let protected = Protection::ALL.iter().map(|one| (Binding::Protected(*one), one.name()));
        for (binding, reason) in protected.chain([(Binding::Special, "NotUsable")]) {
            let count = desired.unbound().get(&binding).copied().unwrap_or_default();
            self.unbound.with_label_values(&[reason]).set(i64::from(count));
        }
    }

    /// Counts all servers, after an audit.
    pub fn count_servers(&self, observed: &Observed) {
        let mut counts = PerFamily::<[usize; 2]>::default();
        for (vs, server) in &observed.virtual_servers {
            let [virtual_servers, real_servers] = &mut counts[vs.family()];
            *virtual_servers += 1;
            *real_servers += server.real_servers.len();
        }
        for family in Family::ALL {
            self.virtual_servers[family].set(counts[family][0] as i64);
            self.real_servers[family].set(counts[family][1] as i64);
        }
    }

    /// Virtual servers and real servers in the kernel, of each family.
    pub fn servers(&self) -> PerFamily<[usize; 2]> {
        let number = |gauge: &IntGauge| usize::try_from(gauge.get()).unwrap_or_default();
        PerFamily::of(|family| [number(&self.virtual_servers[family]), number(&self.real_servers[family])])
    }

    /// The kernel acknowledged an op; `observed` is the mirror before it.
    pub fn done(&self, op: &Op, observed: &Observed) {
        match op {
            Op::AddVirtualServer(vs, _) => self.virtual_servers[vs.family()].inc(),
            Op::RemoveVirtualServer(vs) => {
                self.virtual_servers[vs.family()].dec();
                let removed = observed.virtual_servers.get(vs).map_or(0, |server| server.real_servers.len());
                self.real_servers[vs.family()].sub(removed as i64);
            }
            Op::AddRealServer(vs, ..) => self.real_servers[vs.family()].inc(),
            Op::RemoveRealServer(vs, _) => self.real_servers[vs.family()].dec(),
            _ => {}
        }
    }

    /// Sets what is cheap to count, after every sync.
    pub fn set_sizes(&self, desired: &Desired, observed: &Observed) {
        self.services.set(desired.service_count() as i64);
        self.addresses.set(observed.addresses.len() as i64);
        for (id, set) in &observed.sets {
            let gauge = || self.entries.with_label_values(&[id.name()]);
            let entries = lock(&self.entries_by_set).entry(*id).or_insert_with(gauge).clone();
            entries.set(set.members.len() as i64);
        }
    }
}
