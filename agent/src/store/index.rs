// SPDX-License-Identifier: Apache-2.0
//! Services with their slices, indexed by name. Each name is stored once, in the object itself.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use super::vips::VipIndex;
use crate::core::model::Few;
use crate::core::model::map::Set;
use crate::core::model::{EndpointSlice, ObjectName, Protocol, Service};

/// A value with a name, for sets that are searched by name.
trait Named {
    fn name(&self) -> &ObjectName;
}

#[derive(Debug)]
struct ByName<T>(T);

impl<T: Named> Borrow<ObjectName> for ByName<T> {
    fn borrow(&self) -> &ObjectName {
        self.0.name()
    }
}

impl<T: Named> Hash for ByName<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl<T: Named> PartialEq for ByName<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl<T: Named> Eq for ByName<T> {}

/// The name of an empty entry, which is never stored.
static NOBODY: LazyLock<ObjectName> = LazyLock::new(ObjectName::default);

static API_SERVER: LazyLock<ObjectName> = LazyLock::new(|| ObjectName::new("default", "kubernetes"));

#[derive(Debug, Default)]
struct ServiceEntry {
    service: Option<Arc<Service>>,
    /// Sorted by name.
    slices: Few<Arc<EndpointSlice>>,
}

impl ServiceEntry {
    fn known_name(&self) -> Option<&ObjectName> {
        let of_slice = || self.slices.first().map(|slice| &slice.service);
        self.service.as_ref().map(|service| &service.name).or_else(of_slice)
    }
}

impl Named for ServiceEntry {
    fn name(&self) -> &ObjectName {
        self.known_name().unwrap_or_else(|| &NOBODY)
    }
}

impl Named for Arc<EndpointSlice> {
    fn name(&self) -> &ObjectName {
        &self.name
    }
}

#[derive(Debug, Default)]
pub struct Index {
    entries: Set<ByName<ServiceEntry>>,
    slices: Set<ByName<Arc<EndpointSlice>>>,
    pub vips: VipIndex,
}

impl Index {
    /// Updates `vips` after Services were added.
    pub fn count_vips(&mut self) {
        self.vips.count(self.slices.iter().map(|slice| &*slice.0));
    }

    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.entries.get(name)?.0.service.as_ref()
    }

    pub fn slice(&self, name: &ObjectName) -> Option<&Arc<EndpointSlice>> {
        Some(&self.slices.get(name)?.0)
    }

    /// The slices of a Service, sorted by name.
    pub fn slices_of(&self, service: &ObjectName) -> &[Arc<EndpointSlice>] {
        self.entries.get(service).map_or(&[], |entry| &entry.0.slices)
    }

    /// Addresses and TCP ports of the endpoints of the API server's Service.
    pub fn api_server_endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.slices_of(&API_SERVER).iter().flat_map(|slice| {
            let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            ports.flat_map(|port| {
                slice.endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.addr, port.port))
            })
        })
    }

    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.entries.iter().filter_map(|entry| Some(&entry.0.service.as_ref()?.name))
    }

    pub fn slices(&self) -> impl Iterator<Item = &ObjectName> {
        self.slices.iter().map(|slice| &slice.0.name)
    }

    pub fn put_service(&mut self, mut service: Service) {
        let mut entry = self.take(&service.name);
        if let Some(name) = entry.known_name() {
            service.name = name.clone();
        }
        if let Some(before) = &entry.service {
            self.vips.remove(before);
        }
        self.vips.add(&service);
        entry.service = Some(Arc::new(service));
        self.keep(entry);
    }

    /// Removes a Service; false if it was not there.
    pub fn remove_service(&mut self, name: &ObjectName) -> bool {
        let mut entry = self.take(name);
        let before = entry.service.take();
        if let Some(service) = &before {
            self.vips.remove(service);
        }
        self.keep(entry);
        before.is_some()
    }

    /// Adds a new slice. Returns the Services with a VIP that became the address of an endpoint.
    pub fn add_slice(&mut self, mut slice: EndpointSlice) -> Vec<ObjectName> {
        let mut entry = self.take(&slice.service);
        if let Some(name) = entry.known_name() {
            slice.service = name.clone();
        }
        let slice = Arc::new(slice);
        let slices = &mut entry.slices;
        let at = slices.partition_point(|other| other.name < slice.name);
        slices.insert(at, slice.clone());
        self.keep(entry);
        let changed = self.vips.slice(&slice, true);
        self.slices.insert(ByName(slice));
        changed
    }

    /// Removes a slice. Returns it with the Services whose VIP is no longer the address of an endpoint.
    pub fn remove_slice(&mut self, name: &ObjectName) -> Option<(Arc<EndpointSlice>, Vec<ObjectName>)> {
        let ByName(slice) = self.slices.take(name)?;
        let mut entry = self.take(&slice.service);
        entry.slices = entry.slices.iter().filter(|other| other.name != *name).cloned().collect();
        self.keep(entry);
        let changed = self.vips.slice(&slice, false);
        Some((slice, changed))
    }

    fn take(&mut self, name: &ObjectName) -> ServiceEntry {
        self.entries.take(name).map(|entry| entry.0).unwrap_or_default()
    }

    fn keep(&mut self, entry: ServiceEntry) {
        if entry.known_name().is_some() {
            self.entries.insert(ByName(entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::Family;

    #[test]
    fn a_service_and_its_slices_share_its_name() {
        for service_first in [true, false] {
            let mut index = Index::default();
            let service = || Service { name: name(), ..Service::default() };
            if service_first {
                index.put_service(service());
            }
            for slice in ["a-2", "a-1"] {
                let _ = index.add_slice(EndpointSlice {
                    wrong_weights: None,
                    name: ObjectName::new("d", slice),
                    service: name(),
                    family: Family::V4,
                    ports: Box::default(),
                    endpoints: Box::default(),
                });
            }
            index.put_service(service());
            let of_service = index.service(&name()).unwrap().name.clone();
            let slices = index.slices_of(&name());
            assert_eq!(slices.iter().map(|s| &*s.name.name).collect::<Vec<_>>(), ["a-1", "a-2"]);
            assert!(slices.iter().all(|s| Arc::ptr_eq(&s.service.name, &of_service.name)));
            assert!(index.remove_service(&name()) && !index.remove_service(&name()));
            assert_eq!(index.slices_of(&name()).len(), 2);
            for slice in ["a-1", "a-2"] {
                assert!(index.remove_slice(&ObjectName::new("d", slice)).is_some());
            }
            assert!(index.entries.is_empty() && index.slices.is_empty());
        }
    }

    fn name() -> ObjectName {
        ObjectName::new("d", "a")
    }
}
