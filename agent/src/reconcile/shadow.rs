// SPDX-License-Identifier: Apache-2.0
//! Finds Services at an address of this node that take the traffic of a program which listens there.

use std::collections::BTreeSet;

use super::Reconciler;
use crate::core::mirror::OpenPort;
use crate::core::model::changes::Changes;
use crate::core::model::{ObjectName, VsKey};
use crate::core::service::desired::Desired;
use crate::core::service::fragment::Notice;
use crate::core::service::node_facts::Binding;
use crate::kernel::Kernel;
use crate::notices;

/// Services that can shadow a program, and those that do.
#[derive(Debug, Default)]
pub(super) struct Shadows {
    /// Services with a VIP that is an address on a link of this node.
    at_own_address: BTreeSet<ObjectName>,
    /// Shadowed programs that were reported.
    reported: BTreeSet<(VsKey, ObjectName)>,
}

impl Shadows {
    fn follow(&mut self, desired: &Desired, changes: &Changes) {
        let is_own = |notice: &Notice| matches!(notice, Notice::SpecialVip(_, Binding::OnLink));
        for name in &changes.noticed {
            if desired.notices(name).iter().any(is_own) {
                self.at_own_address.insert(name.clone());
            } else {
                self.at_own_address.remove(name);
            }
        }
    }

    /// The virtual servers that take the traffic of a listening program, with their Services.
    fn find(
        &self,
        desired: &Desired,
        is_own: impl Fn(&VsKey) -> bool,
        listeners: &[OpenPort],
    ) -> BTreeSet<(VsKey, ObjectName)> {
        let mut found = BTreeSet::new();
        for name in &self.at_own_address {
            for server in desired.fragment(name).iter().flat_map(|fragment| &fragment.virtual_servers) {
                let key = &server.key;
                let wins = desired.virtual_server(key).is_some_and(|winner| winner.service == *name);
                if wins && is_own(key) && listeners.iter().any(|port| port.receives(key)) {
                    found.insert((*key, name.clone()));
                }
            }
        }
        found
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Reports newly shadowed programs.
    pub(super) fn report_shadowed(&mut self, changes: &Changes) {
        self.shadows.follow(&self.desired, changes);
        let Some(observed) = self.mirror.observed() else { return };
        if self.shadows.at_own_address.is_empty() {
            return self.shadows.reported.clear();
        }
        let is_own = |key: &VsKey| self.node.addresses.binary_search(&key.addr).is_ok();
        let found = self.shadows.find(&self.desired, is_own, &observed.node.listeners);
        let new = found.difference(&self.shadows.reported);
        self.reporting.events.send(new.map(|(key, name)| notices::shadowed(name, key)));
        self.shadows.reported = found;
    }
}
