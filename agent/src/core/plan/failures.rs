// SPDX-License-Identifier: Apache-2.0
//! Ops that must not run now: an op whose retry is not due, and an op that depends on another op that failed or has
//! not finished.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::op::Op;
use super::outcome::Outcome;
use super::retries::Retries;
use super::subject::{Part, Subject};
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::{Family, PerFamily, VsKey};
use crate::core::rules::references_set;

/// Ops of the current sync that failed, were held back or have not finished, as far as later ops depend on them.
#[derive(Debug)]
pub struct Failures<'a> {
    retries: &'a Retries,
    now: Duration,
    device: bool,
    sets: BTreeSet<SetId>,
    /// Addresses that must not be bound, and the set entry that each lacks.
    entries: BTreeMap<IpAddr, Subject>,
    rules: BTreeSet<Family>,
    /// Families whose rules have not been read: the access filter may be missing.
    unread: Vec<Family>,
    virtual_servers: BTreeSet<VsKey>,
    /// Virtual servers that were not added, by their VIP.
    unserved_addresses: BTreeMap<IpAddr, VsKey>,
    unbound: BTreeSet<IpAddr>,
    /// Subjects that traffic of a family needs and that are not in place.
    unserved: PerFamily<BTreeSet<Subject>>,
}

impl<'a> Failures<'a> {
    /// The state at the start of a sync at the time `now`. `unread`: families whose rules have not been read.
    pub fn new(retries: &'a Retries, now: Duration, unread: Vec<Family>) -> Self {
        let mut unserved: PerFamily<BTreeSet<Subject>> = PerFamily::default();
        for family in &unread {
            unserved[*family].insert(Subject::Reading(Part::Rules(*family)));
        }
        Self {
            retries,
            now,
            device: false,
            sets: BTreeSet::new(),
            entries: BTreeMap::new(),
            rules: BTreeSet::new(),
            virtual_servers: BTreeSet::new(),
            unserved_addresses: BTreeMap::new(),
            unbound: BTreeSet::new(),
            unserved,
            unread,
        }
    }

    /// Why the op must not run now: [`Outcome::Waiting`] or [`Outcome::Blocked`]. `None`: it may run.
    pub fn verdict(&mut self, op: &Op) -> Option<Outcome> {
        if let Some(blocks) = self.retries.holds(op, self.now) {
            if blocks {
                self.note(op);
            }
            return Some(Outcome::Waiting);
        }
        self.blocks(op).map(Outcome::Blocked)
    }

    /// Notes an op that failed, did not run, or has not finished.
    pub fn note(&mut self, op: &Op) {
        let subject = op.subject();
        for family in Family::ALL.into_iter().filter(|family| op.affects_traffic(*family)) {
            self.unserved[family].insert(subject);
        }
        match op {
            Op::CreateDevice => self.device = true,
            Op::CreateSet(set) | Op::DestroySet(set) => _ = self.sets.insert(*set),
            Op::AddEntry(_, entry) => self.note_entry(entry, subject),
            Op::GrowSet(grow) => grow.entries.iter().for_each(|entry| self.note_entry(entry, subject)),
            Op::WriteRules(rules) if !rules.tidy => _ = self.rules.insert(rules.family),
            Op::AddVirtualServer(vs, _) => {
                self.virtual_servers.insert(*vs);
                self.unserved_addresses.insert(vs.addr, *vs);
            }
            Op::Unbind(net) => _ = self.unbound.insert(net.addr()),
            _ => {}
        }
    }

    /// An op that was noted as unfinished has succeeded.
    pub fn done(&mut self, op: &Op) {
        let subject = op.subject();
        self.unserved.iter_mut().for_each(|unserved| _ = unserved.remove(&subject));
        if let Op::WriteRules(rules) = op {
            self.rules.remove(&rules.family);
        }
    }

    fn note_entry(&mut self, entry: &Entry, subject: Subject) {
        if let Entry::Ip(ip) | Entry::IpPort(ip, ..) = entry {
            self.entries.insert(*ip, subject);
        }
    }

    /// The subject that blocks `op`, if any.
    pub fn blocks(&self, op: &Op) -> Option<Subject> {
        match op {
            Op::CreateSet(set) | Op::AddEntry(set, _) if self.sets.contains(set) => Some(Subject::Set(*set)),
            Op::GrowSet(grow) if self.sets.contains(&grow.set) => Some(Subject::Set(grow.set)),
            Op::WriteRules(rules) if rules.tidy && self.rules.contains(&rules.family) => {
                Some(Subject::Rules(rules.family))
            }
            Op::WriteRules(rules) if rules.is_takeover => self.blocks_takeover(rules.family),
            Op::WriteRules(rules) if rules.tidy => None,
            Op::WriteRules(rules) => {
                let is_used =
                    |set: &&SetId| set.family == rules.family && references_set(&rules.chains, **set);
                self.sets.iter().find(is_used).map(|set| Subject::Set(*set))
            }
            Op::RemoveLeftovers(leftovers) if leftovers.is_takeover => self.blocks_takeover(leftovers.family),
            Op::AddRealServer(vs, _) if self.virtual_servers.contains(vs) => {
                Some(Subject::VirtualServer(*vs))
            }
            Op::Bind(addr) => self.blocks_bind(*addr),
            Op::RemoveEntry(SetId { kind: SetKind::IpvsIps, .. }, Entry::Ip(ip)) => {
                self.unbound.contains(ip).then_some(Subject::Address(*ip))
            }
            _ => None,
        }
    }

    /// Rules of another kube-proxy mode stay until everything of the family is programmed.
    fn blocks_takeover(&self, family: Family) -> Option<Subject> {
        self.unserved[family].first().copied()
    }

    /// An address is bound only when the access filter, its set entry and its virtual servers are in place.
    fn blocks_bind(&self, addr: IpAddr) -> Option<Subject> {
        let family = Family::of(addr);
        if self.device {
            return Some(Subject::Device);
        }
        if self.rules.contains(&family) {
            return Some(Subject::Rules(family));
        }
        if self.unread.contains(&family) {
            return Some(Subject::Reading(Part::Rules(family)));
        }
        let entry = || self.entries.get(&addr).copied();
        let server = || self.unserved_addresses.get(&addr).map(|vs| Subject::VirtualServer(*vs));
        entry().or_else(server)
    }
}
