// SPDX-License-Identifier: Apache-2.0
//! Which kernel objects a plan looks at.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::sets::{Entry, SetId};
use super::{ObjectName, VsKey};

/// Kernel objects whose wanted state may have changed, in a stable order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Virtual servers, their real servers included.
    pub virtual_servers: BTreeSet<VsKey>,
    /// Addresses on `kube-ipvs0`.
    pub addresses: BTreeSet<IpAddr>,
    /// Other prefixes on `kube-ipvs0`: never wanted.
    pub networks: BTreeSet<IpNet>,
    /// Set entries.
    pub entries: BTreeSet<(SetId, Entry)>,
    /// Services whose UDP frontends or endpoints changed: flows that are stale now are to be forgotten.
    pub flows: BTreeSet<ObjectName>,
    /// Virtual servers that a Service newly claims in vain, or claims no longer.
    pub contested: BTreeSet<VsKey>,
    /// Services with other notices than before.
    pub noticed: BTreeSet<ObjectName>,
    /// Health-check node ports have other answers than before.
    pub health_checks: bool,
    /// What every plan looks at has changed: device, sets, rules, sysctls.
    pub common: bool,
    /// Everything will be looked at: entries and addresses need not be noted one by one.
    pub everything: bool,
}

impl Changes {
    /// True when nothing in the kernel is concerned.
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

    /// Adds others.
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
