// SPDX-License-Identifier: Apache-2.0
//! Finds the Services of kernel objects.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::subject::Subject;
use crate::core::model::ObjectName;
use crate::core::model::map::Map;
use crate::core::service::desired::Desired;

/// The Service of each subject that has one.
pub fn services_of(desired: &Desired, subjects: &BTreeSet<Subject>) -> Vec<(Subject, ObjectName)> {
    // One search for all subjects: there are many addresses.
    let has_addresses = subjects.iter().any(|subject| subject.address().is_some());
    let servers = has_addresses.then(|| desired.virtual_servers()).into_iter().flatten();
    let by_address: Map<IpAddr, &ObjectName> = servers.map(|vs| (vs.key.addr, &vs.service)).collect();
    let service = |subject: &Subject| {
        let by_server = subject.virtual_server().and_then(|vs| desired.virtual_server(vs));
        let by_server = by_server.map(|vs| &vs.service);
        let service = by_server.or_else(|| by_address.get(&subject.address()?).copied());
        service.map(|service| (*subject, service.clone()))
    };
    subjects.iter().filter_map(service).collect()
}
