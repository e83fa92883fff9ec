// SPDX-License-Identifier: Apache-2.0
//! The kernel objects that a plan compares.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::sets::{Entry, SetId};
use super::{ObjectName, VsKey};

/// Kernel objects whose wanted state may have changed, in a stable order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Virtual servers with their real servers.
    pub virtual_servers: BTreeSet<VsKey>,
    /// Addresses on `kube-ipvs0`.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses with a wider prefix on `kube-ipvs0`: never wanted.
    pub networks: BTreeSet<IpNet>,
    pub entries: BTreeSet<(SetId, Entry)>,
    /// Services whose UDP frontends or endpoints changed: their stale flows must be deleted.
    pub flows: BTreeSet<ObjectName>,
    /// Virtual servers with new or fewer losing claims, or with another winner.
    pub contested: BTreeSet<VsKey>,
    /// Services whose notices changed.
    pub noticed: BTreeSet<ObjectName>,
    /// The answers of health-check node ports changed.
    pub health_checks: bool,
    /// Something that every plan compares changed: device, sets, rules, sysctls.
    pub common: bool,
    /// The next plan compares everything: entries and addresses need no keys.
    pub everything: bool,
}

impl Changes {
    /// True when no kernel object may have changed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.flows.is_empty() && !self.common
    }

    pub(in crate::core) fn entry(&mut self, entry: (SetId, Entry)) {
        if !self.everything {
            self.entries.insert(entry);
        }
    }

    pub(in crate::core) fn address(&mut self, addr: IpAddr) {
        if !self.everything {
            self.addresses.insert(addr);
        }
    }

    pub fn append(&mut self, mut others: Changes) {
        self.virtual_servers.append(&mut others.virtual_servers);
        self.addresses.append(&mut others.addresses);
        self.networks.append(&mut others.networks);
        self.entries.append(&mut others.entries);
        self.flows.append(&mut others.flows);
        self.contested.append(&mut others.contested);
        self.noticed.append(&mut others.noticed);
        self.health_checks |= others.health_checks;
        self.common |= others.common;
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.virtual_servers.len() + self.addresses.len() + self.networks.len() + self.entries.len()
    }
}
