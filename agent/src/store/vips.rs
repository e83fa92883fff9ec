// SPDX-License-Identifier: Apache-2.0
//! The external and load-balancer IPs that are also addresses of endpoints. Endpoints are many and such VIPs
//! few, so only endpoints at the addresses of VIPs are counted.

use crate::core::model::map::Map;
use std::net::IpAddr;

use super::VipSummary;
use crate::core::model::{EndpointSlice, ObjectName, Service};

#[derive(Debug, Default)]
struct Vip {
    services: Vec<ObjectName>,
    /// The number of endpoints at this address; `None` until they are counted.
    endpoints: Option<u32>,
}

#[derive(Debug, Default)]
pub struct VipIndex {
    known: Map<IpAddr, Vip>,
    /// The endpoints of some VIP have not been counted.
    has_uncounted: bool,
    pub added: u64,
}

fn vips_of(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    service.external_ips.iter().chain(&service.load_balancer_ips).copied()
}

impl VipIndex {
    pub fn add(&mut self, service: &Service) {
        for addr in vips_of(service) {
            let vip = self.known.entry(addr).or_default();
            self.has_uncounted |= vip.endpoints.is_none();
            self.added += u64::from(vip.services.is_empty());
            if !vip.services.contains(&service.name) {
                vip.services.push(service.name.clone());
            }
        }
    }

    pub fn remove(&mut self, service: &Service) {
        for addr in vips_of(service) {
            if let Some(vip) = self.known.get_mut(&addr) {
                vip.services.retain(|name| *name != service.name);
                if vip.services.is_empty() {
                    self.known.remove(&addr);
                }
            }
        }
    }

    /// Counts a slice that was added or removed. Returns the Services with a VIP that became the address of an
    /// endpoint, or stopped being one.
    pub fn slice(&mut self, slice: &EndpointSlice, is_added: bool) -> Vec<ObjectName> {
        let mut changed = Vec::new();
        if self.known.is_empty() {
            return changed;
        }
        for endpoint in &slice.endpoints {
            let Some(vip) = self.known.get_mut(&endpoint.addr) else { continue };
            // `Self::count` counts the endpoints of a new VIP.
            let Some(count) = &mut vip.endpoints else { continue };
            let before = *count;
            *count = if is_added { before + 1 } else { before.saturating_sub(1) };
            if (before == 0) != (*count == 0) {
                changed.extend(vip.services.iter().cloned());
            }
        }
        changed
    }

    /// Counts the endpoints of new VIPs, in one pass over all slices.
    pub fn count<'a>(&mut self, slices: impl Iterator<Item = &'a EndpointSlice>) {
        if !std::mem::take(&mut self.has_uncounted) {
            return;
        }
        let mut new: Map<IpAddr, u32> = self
            .known
            .iter()
            .filter(|(_, vip)| vip.endpoints.is_none())
            .map(|(addr, _)| (*addr, 0))
            .collect();
        for endpoint in slices.flat_map(|slice| &slice.endpoints) {
            if let Some(count) = new.get_mut(&endpoint.addr) {
                *count += 1;
            }
        }
        for (addr, count) in new {
            if let Some(vip) = self.known.get_mut(&addr) {
                vip.endpoints = Some(count);
            }
        }
    }

    /// The VIPs of a Service that are addresses of endpoints.
    pub fn of_endpoints(&self, service: &Service) -> Box<[IpAddr]> {
        let has =
            |addr: &IpAddr| self.known.get(addr).is_some_and(|vip| vip.endpoints.is_some_and(|n| n > 0));
        vips_of(service).filter(has).collect()
    }

    pub fn summary(&self) -> VipSummary {
        let any_v6 = self.known.keys().any(IpAddr::is_ipv6);
        VipSummary { any: !self.known.is_empty(), any_v6, added: self.added }
    }
}
