// SPDX-License-Identifier: Apache-2.0
//! What must not run after something else failed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::model::{Family, VsKey};
use super::op::Op;
use super::sets::{Entry, SetId, SetKind};

/// The failures of a run so far, as far as later ops depend on them.
#[derive(Debug, Default)]
pub struct Failures {
    device: bool,
    sets: BTreeSet<SetId>,
    entry_addresses: BTreeSet<IpAddr>,
    rules: BTreeSet<Family>,
    virtual_servers: BTreeSet<VsKey>,
    unbound: BTreeSet<IpAddr>,
    unserved: BTreeSet<Family>,
}

impl Failures {
    /// Notes an op that failed or was skipped.
    pub fn note(&mut self, op: &Op) {
        self.unserved.extend(Family::ALL.into_iter().filter(|family| op.serves(*family)));
        match op {
            Op::CreateDevice => self.device = true,
            Op::CreateSet(set) => {
                self.sets.insert(*set);
            }
            Op::AddEntry(_, entry) => self.entry_addresses.extend(guards(entry)),
            Op::GrowSet(grow) => self.entry_addresses.extend(grow.entries.iter().filter_map(guards)),
            Op::WriteRules(rules) if !rules.tidy => {
                self.rules.insert(rules.family);
            }
            Op::AddVirtualServer(vs, _) => {
                self.virtual_servers.insert(*vs);
            }
            Op::Unbind(net) => {
                self.unbound.insert(net.addr());
            }
            _ => {}
        }
    }

    /// Why `op` must not run after these failures, if so.
    pub fn blocks(&self, op: &Op) -> Option<String> {
        match op {
            Op::AddEntry(set, _) if self.sets.contains(set) => {
                Some(format!("set {set} could not be created"))
            }
            Op::WriteRules(rules) if rules.tidy && self.rules.contains(&rules.family) => {
                Some(format!("the {} rules could not be written", rules.family))
            }
            Op::WriteRules(rules) if rules.hands_over => self.blocks_hand_over(rules.family),
            Op::WriteRules(rules) if rules.tidy => None,
            Op::RemoveLeftovers(leftovers) if leftovers.hands_over => self.blocks_hand_over(leftovers.family),
            Op::WriteRules(rules) => {
                let set = self.sets.iter().find(|s| s.family == rules.family)?;
                Some(format!("set {set} could not be created"))
            }
            Op::GrowSet(grow) if self.sets.contains(&grow.set) => {
                Some(format!("set {} could not be created", grow.set))
            }
            Op::AddRealServer(vs, _) if self.virtual_servers.contains(vs) => {
                Some(format!("virtual server {vs} could not be added"))
            }
            Op::Bind(addr) => self.blocks_bind(*addr),
            Op::RemoveEntry(SetId { kind: SetKind::IpvsIps, .. }, Entry::Ip(ip)) => {
                self.unbound.contains(ip).then(|| format!("address {ip} could not be removed"))
            }
            _ => None,
        }
    }

    fn blocks_hand_over(&self, family: Family) -> Option<String> {
        self.unserved.contains(&family).then(|| {
            format!(
                "not everything of {family} is served yet: the rules that kube-proxy left serve until then"
            )
        })
    }

    /// An address is opened only behind a standing guard and with its virtual servers in place.
    fn blocks_bind(&self, addr: IpAddr) -> Option<String> {
        let family = Family::of(addr);
        if self.device {
            return Some("the device could not be created".to_owned());
        }
        if self.rules.contains(&family) {
            return Some(format!("the {family} rules could not be written"));
        }
        if self.entry_addresses.contains(&addr) {
            return Some(format!("a set entry of {addr} could not be added"));
        }
        let failed = self.virtual_servers.iter().find(|vs| vs.addr == addr)?;
        Some(format!("virtual server {failed} could not be added"))
    }
}

/// The address that must not be opened while the entry is missing.
fn guards(entry: &Entry) -> Option<IpAddr> {
    match entry {
        Entry::Ip(ip) | Entry::IpPort(ip, ..) => Some(*ip),
        _ => None,
    }
}
