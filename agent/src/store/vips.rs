// SPDX-License-Identifier: Apache-2.0
//! Which external and load-balancer IPs are addresses of endpoints, too. Endpoints are many and such VIPs
//! few, so only the addresses of VIPs are counted.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::core::model::{EndpointSlice, ObjectName, Service};

#[derive(Debug, Default)]
struct Vip {
    /// The Services that have it.
    services: Vec<ObjectName>,
    /// How many endpoints have it, once they were counted.
    endpoints: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Vips {
    known: HashMap<IpAddr, Vip>,
    /// Some VIP is new: its endpoints have not been counted.
    is_new: bool,
    /// How many VIPs came so far.
    came: u64,
}

fn vips_of(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    service.external_ips.iter().chain(&service.load_balancer_ips).copied()
}

impl Vips {
    /// Whether no Service has such an address.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// A Service came.
    pub fn add(&mut self, service: &Service) {
        for addr in vips_of(service) {
            let vip = self.known.entry(addr).or_default();
            self.is_new |= vip.endpoints.is_none();
            self.came += u64::from(vip.services.is_empty());
            if !vip.services.contains(&service.name) {
                vip.services.push(service.name.clone());
            }
        }
    }

    /// A Service went.
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

    /// A slice came or went. The Services of the VIPs that an endpoint has now and had not before, or the
    /// other way round.
    pub fn slice(&mut self, slice: &EndpointSlice, came: bool) -> Vec<ObjectName> {
        let mut changed = Vec::new();
        if self.known.is_empty() {
            return changed;
        }
        for endpoint in &slice.endpoints {
            let Some(vip) = self.known.get_mut(&endpoint.addr) else { continue };
            // One that was not counted yet is counted with all others.
            let Some(count) = &mut vip.endpoints else { continue };
            let before = *count;
            *count = if came { before + 1 } else { before.saturating_sub(1) };
            if (before == 0) != (*count == 0) {
                changed.extend(vip.services.iter().cloned());
            }
        }
        changed
    }

    /// Counts the endpoints of new VIPs, in one pass over all slices.
    pub fn count<'a>(&mut self, slices: impl Iterator<Item = &'a EndpointSlice>) {
        if !std::mem::take(&mut self.is_new) {
            return;
        }
        let mut new: HashMap<IpAddr, u32> = self
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

    /// The VIPs of a Service that endpoints have.
    pub fn of_endpoints(&self, service: &Service) -> Box<[IpAddr]> {
        let has =
            |addr: &IpAddr| self.known.get(addr).is_some_and(|vip| vip.endpoints.is_some_and(|n| n > 0));
        vips_of(service).filter(has).collect()
    }

    /// How many came so far: another number means that some are new.
    pub fn came(&self) -> u64 {
        self.came
    }

    /// Whether any of them is an IPv6 address.
    pub fn has_v6(&self) -> bool {
        self.known.keys().any(IpAddr::is_ipv6)
    }
}
