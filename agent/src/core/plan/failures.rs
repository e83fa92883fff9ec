// SPDX-License-Identifier: Apache-2.0
//! Ops that must not run now: an op whose retry is not due, and an op that depends on another op that failed or has
//! not finished.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::op::Op;
use super::outcome::Outcome;
use super::retries::Retries;
use super::subject::{Part, Subject, SubjectKind};
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::{Family, PerFamily, VsKey};
use crate::core::rules::references_set;

/// Ops of the current sync that failed, were held back or have not finished, as far as later ops depend on them.
#[derive(Debug)]
pub struct Failures<'a> {
    retries: &'a Retries,
    now: Duration,
    /// Subjects that block the ops that depend on them. A family whose rules have not been read is among them: its
    /// access filter may be missing.
    missing: BTreeSet<Subject>,
    /// Addresses that must not be bound, and the set entry that each lacks.
    entries: BTreeMap<IpAddr, Subject>,
    /// Networks whose local route was not added.
    unrouted: Vec<IpNet>,
    /// Virtual servers that were not added, by their VIP.
    unserved_addresses: BTreeMap<IpAddr, VsKey>,
    /// Subjects that traffic of a family needs and that are not in place.
    unserved: PerFamily<BTreeSet<Subject>>,
}

impl<'a> Failures<'a> {
    /// The state at the start of a sync at the time `now`. `unread`: families whose rules have not been read.
    pub fn new(retries: &'a Retries, now: Duration, unread: Vec<Family>) -> Self {
        let (entries, unserved_addresses) = (BTreeMap::new(), BTreeMap::new());
        let (mut missing, mut unserved) = (BTreeSet::new(), PerFamily::<BTreeSet<Subject>>::default());
        for family in unread {
            let reading = Subject::Reading(Part::Rules(family));
            missing.insert(reading);
            unserved[family].insert(reading);
        }
        let unrouted = Vec::new();
        Self { retries, now, missing, entries, unrouted, unserved_addresses, unserved }
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
            Op::CreateDevice | Op::CreateSet(_) | Op::DestroySet(_) => _ = self.missing.insert(subject),
            Op::AddEntry(_, entry) => self.note_entry(entry, subject),
            Op::GrowSet(grow) => grow.entries.iter().for_each(|entry| self.note_entry(entry, subject)),
            Op::WriteRules(rules) if !rules.tidy => _ = self.missing.insert(subject),
            Op::AddVirtualServer(vs, _) => {
                self.missing.insert(subject);
                self.unserved_addresses.insert(vs.addr, *vs);
            }
            Op::AddRoute(net) => self.unrouted.push(*net),
            Op::Bind(_) | Op::RemoveRoute(_) => _ = self.missing.insert(subject),
            Op::Unbind(net) => _ = self.missing.insert(Subject::Address(net.addr())),
            _ => {}
        }
    }

    /// An op that was noted as unfinished has succeeded.
    pub fn done(&mut self, op: &Op) {
        let subject = op.subject();
        self.unserved.iter_mut().for_each(|unserved| _ = unserved.remove(&subject));
        if matches!(op, Op::WriteRules(_)) {
            self.missing.remove(&subject);
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
            Op::CreateSet(set) | Op::AddEntry(set, _) => self.missing(Subject::Set(*set)),
            Op::GrowSet(grow) => self.missing(Subject::Set(grow.set)),
            Op::WriteRules(rules) if rules.tidy => {
                let takeover = || self.blocks_takeover(rules.family).filter(|_| rules.is_takeover);
                // A route that was not removed needs its filter.
                let is_route = |subject: &&Subject| {
                    subject.kind() == SubjectKind::Route && subject.family() == Some(rules.family)
                };
                let route = || self.missing.iter().find(is_route).copied();
                self.missing(Subject::Rules(rules.family)).or_else(takeover).or_else(route)
            }
            Op::WriteRules(rules) => {
                let is_used = |subject: &&Subject| {
                    matches!(subject, Subject::Set(set)
                        if set.family == rules.family && references_set(&rules.chains, *set))
                };
                self.missing.iter().find(is_used).copied()
            }
            Op::RemoveLeftovers(leftovers) if leftovers.is_takeover => self.blocks_takeover(leftovers.family),
            Op::AddRealServer(vs, ..) => self.missing(Subject::VirtualServer(*vs)),
            Op::Bind(addr) => self.blocks_bind(*addr),
            Op::AddRoute(net) => self.blocks_open(Family::of(net.addr())),
            // Its address stays local until the route that replaces it is in place, and the other way round.
            Op::Unbind(bound) => {
                let route = self.unrouted.iter().find(|net| net.contains(&bound.addr()));
                route.map(|net| Subject::Route(*net))
            }
            Op::RemoveRoute(net) => {
                let is_inside =
                    |subject: &&Subject| matches!(subject, Subject::Address(a) if net.contains(a));
                self.missing.iter().find(is_inside).copied()
            }
            Op::RemoveEntry(SetId { kind: SetKind::IpvsIps, .. }, Entry::Ip(ip)) => {
                // Without this entry the rules must guard the address, if it is local.
                self.missing(Subject::Address(*ip)).or_else(|| self.missing(Subject::Rules(Family::of(*ip))))
            }
            _ => None,
        }
    }

    fn missing(&self, subject: Subject) -> Option<Subject> {
        self.missing.get(&subject).copied()
    }

    /// Rules of another kube-proxy mode stay until everything of the family is programmed.
    fn blocks_takeover(&self, family: Family) -> Option<Subject> {
        self.unserved[family].first().copied()
    }

    /// An address is bound only when the access filter, its set entry and its virtual servers are in place.
    fn blocks_bind(&self, addr: IpAddr) -> Option<Subject> {
        let entry = || self.entries.get(&addr).copied();
        let server = || self.unserved_addresses.get(&addr).map(|vs| Subject::VirtualServer(*vs));
        self.blocks_open(Family::of(addr)).or_else(entry).or_else(server)
    }

    /// Nothing of a family becomes local without the device and the access filter.
    fn blocks_open(&self, family: Family) -> Option<Subject> {
        let filter = [Subject::Device, Subject::Rules(family), Subject::Reading(Part::Rules(family))];
        filter.into_iter().find_map(|subject| self.missing(subject))
    }
}
