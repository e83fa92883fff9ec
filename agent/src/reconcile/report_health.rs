// SPDX-License-Identifier: Apache-2.0
//! Updates the state of the health endpoints and of the health-check node ports.

use std::time::SystemTime;

use super::Reconciler;
use crate::core::model::sets::{SetId, SetKind};
use crate::core::model::{Family, ObjectName};
use crate::core::plan::outcome::Cause;
use crate::core::plan::subject::{Part, Subject};
use crate::core::rules::is_always_referenced;
use crate::kernel::Kernel;
use crate::serve::node_ports::HealthChecks;

impl<K: Kernel> Reconciler<K> {
    /// Reports the synced families. Returns them, and whether some family is missing.
    pub(super) fn report_health(&mut self) -> (Vec<Family>, bool) {
        // Before the first whole pass no family is synced.
        if !self.is_whole() {
            return (Vec::new(), true);
        }
        let possible = self.settings.families.iter().copied().filter(|family| !self.is_absent(*family));
        let mut families: Vec<Family> = possible.collect();
        let synced: Vec<Family> =
            families.iter().copied().filter(|family| self.is_guarded(*family)).collect();
        // A failing family that no Service has does not affect health.
        if families.iter().any(|family| self.is_wanted(*family)) {
            families.retain(|family| self.is_wanted(*family) || synced.contains(family));
        }
        let now = SystemTime::now();
        let awaits_nodes = self.awaits_nodes();
        self.reporting.health.with(|health| {
            if !awaits_nodes {
                health.tried(&families, &synced, now);
            }
            synced.iter().for_each(|family| health.synced(*family, now));
        });
        self.report_health_checks();
        let incomplete = synced.len() < families.len();
        (synced, incomplete)
    }

    /// Whether the device, sets and rules that every address of the family needs are in place.
    fn is_guarded(&self, family: Family) -> bool {
        let unread = self.mirror.observed().is_none_or(|observed| observed.unread_rules[family]);
        let mode = self.settings.rules;
        let needs = |set: SetId| {
            is_always_referenced(set.kind, mode) || self.desired.has_members(set.kind, set.family)
        };
        !unread && self.retries.guard_is_ready(family, &needs)
    }

    fn is_wanted(&self, family: Family) -> bool {
        self.desired.has_members(SetKind::ClusterIp, family)
    }

    /// Whether this node does not support the family: `iptables-save` of the family is not installed.
    fn is_absent(&self, family: Family) -> bool {
        let reading = Subject::Reading(Part::Rules(family));
        let unread = self.mirror.observed().is_some_and(|observed| observed.unread_rules[family]);
        unread
            && self
                .retries
                .failing()
                .any(|(subject, failing)| *subject == reading && failing.error.cause == Cause::ProgramMissing)
    }

    /// Updates the health-check node ports: each reports the state of its own Service.
    fn report_health_checks(&mut self) {
        let changed = std::mem::take(&mut self.health_checks_changed);
        if !changed && self.retries.is_empty() && !self.served_in_part {
            return;
        }
        let mut services = self.desired.health_checks().clone();
        self.served_in_part = false;
        for (name, check) in &mut services {
            for family in Family::ALL {
                if check.local[family].is_some_and(|count| count > 0) && !self.is_served(name, family) {
                    check.local[family] = Some(0);
                    self.served_in_part = true;
                }
            }
        }
        let addresses = self.node.health_check_addresses(&self.settings);
        let new = HealthChecks { services, addresses };
        let replace = |current: &mut HealthChecks| std::mem::replace(current, new) != *current;
        self.reporting.health_checks.send_if_modified(replace);
    }

    /// Whether all virtual servers and addresses of the Service are in place.
    fn is_served(&self, name: &ObjectName, family: Family) -> bool {
        let (Some(fragment), Some(observed)) = (self.desired.fragment(name), self.mirror.observed()) else {
            return false;
        };
        let mut servers = fragment.virtual_servers.iter().filter(|vs| vs.key.family() == family);
        let mut addresses = fragment.addresses.iter().filter(|addr| Family::of(**addr) == family);
        servers.all(|vs| observed.virtual_servers.contains_key(&vs.key))
            && addresses.all(|addr| observed.addresses.contains(&ipnet::IpNet::from(*addr)))
    }
}
