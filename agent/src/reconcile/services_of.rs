// SPDX-License-Identifier: Apache-2.0
//! Finds the Services of kernel objects.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::Reconciler;
use crate::core::model::ObjectName;
use crate::core::model::map::Map;
use crate::core::plan::subject::Subject;
use crate::kernel::Kernel;

impl<K: Kernel> Reconciler<K> {
    /// The Service of every virtual server, one line each.
    pub fn owners(&self) -> String {
        let mut text = String::new();
        for vs in self.desired.virtual_servers() {
            let colon = if vs.port_name.is_empty() { "" } else { ":" };
            let _ = writeln!(text, "{} {}{colon}{}", vs.key, vs.service, vs.port_name);
        }
        text
    }

    /// The Service of each subject that has one.
    pub(super) fn services_of(&self, subjects: &BTreeSet<Subject>) -> Vec<(Subject, ObjectName)> {
        // One search for all subjects: there are many addresses.
        let has_addresses = subjects.iter().any(|subject| subject.address().is_some());
        let servers = has_addresses.then(|| self.desired.virtual_servers()).into_iter().flatten();
        let by_address: Map<IpAddr, &ObjectName> = servers.map(|vs| (vs.key.addr, &vs.service)).collect();
        let service = |subject: &Subject| {
            let by_server = subject.virtual_server().and_then(|vs| self.desired.virtual_server(vs));
            let by_server = by_server.map(|vs| &vs.service);
            let service = by_server.or_else(|| by_address.get(&subject.address()?).copied());
            service.map(|service| (*subject, service.clone()))
        };
        subjects.iter().filter_map(service).collect()
    }
}
