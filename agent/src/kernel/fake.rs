// SPDX-License-Identifier: Apache-2.0
//! A kernel in memory that returns the errnos of the real one and can fail the next op of a kind. The kernel suite
//! runs the same cases on it and on a real kernel.

use crate::core::plan::outcome::{Cause, ObserveError, OpError, Progress};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use ipnet::IpNet;

use super::fake_reading::{ReadPosition, injected};
use super::iptables::IPVS_MATCH;
use super::{Kernel, ProbeResult, Runner};
use crate::core::mirror::comparison::{Piece, ReadStep};
use crate::core::mirror::{Observed, ObservedServer};
use crate::core::model::map::Set;
use crate::core::model::real_servers::RsState;
use crate::core::model::sets::{Entry, ProbedSet, SetId, SetKind};
use crate::core::model::{Family, PerFamily, RsKey, VsKey};
use crate::core::plan::op::{Op, OpKind};
use crate::core::plan::outcome::Finished;
use crate::core::plan::subject::{Part, Subject};
use crate::core::rules::save::ObservedRules;
use crate::core::rules::{nftables, references_set};
use crate::lock::lock;

/// Calls of a fake kernel, for tests that assert counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// Ops by kind, failed ones included.
    pub ops: HashMap<OpKind, usize>,
    /// Readings begun.
    pub observations: usize,
    /// Readings of the rules of a family.
    pub rule_readings: usize,
    /// Calls of [`Kernel::busy`].
    pub busy_reads: usize,
    /// Calls of [`Kernel::probe`].
    pub probes: usize,
    /// Virtual servers in all probes.
    pub probed_servers: usize,
    /// Sets in all probes.
    pub probed_sets: usize,
}

/// A kernel in memory.
#[derive(Debug, Default)]
pub struct FakeKernel {
    /// Its state; tests may change it, as another program does.
    pub state: Observed,
    /// Calls so far.
    pub counts: OpCounts,
    /// A set that rules match cannot be destroyed, as in the kernel.
    pub holds_sets: bool,
    /// Sets grow by themselves, as those of nf_tables.
    pub sets_grow: bool,
    /// Schedulers that it does not have.
    pub missing_schedulers: Vec<&'static str>,
    fail_next: Vec<OpKind>,
    /// Subjects whose ops fail until [`Self::accept`].
    refused: HashMap<Subject, OpError>,
    /// Parts that cannot be read, until [`Self::set_unreadable`] with `None`.
    pub(super) unreadable: HashMap<Part, OpError>,
    /// Programs that write rules do not end, until [`Self::end_slow_rules`].
    slow_rules: bool,
    slow: Vec<Op>,
    ended: Vec<Finished>,
    /// The rules of each family at the last reading: unchanged rules are not read again.
    read_rules: PerFamily<Option<ObservedRules>>,
    fail_observe: bool,
    fail_busy: bool,
    degrade_rules: bool,
    stop_after: Option<usize>,
    fail_at: Option<(usize, bool)>,
    position: Option<ReadPosition>,
}

impl FakeKernel {
    /// An empty kernel that already has these sysctls readable, all 0.
    pub fn new(sysctls: &[&'static str]) -> Self {
        let mut kernel = Self::default();
        kernel.state.node.sysctls = sysctls.iter().map(|path| (*path, 0)).collect();
        kernel
    }

    /// Makes the next op of this kind fail with an error after which its object is unchanged.
    pub fn fail_next(&mut self, kind: OpKind) {
        self.fail_next.push(kind);
    }

    /// Makes the op after `ops` others fail; `uncertain`: its object must be read again.
    pub fn fail_at(&mut self, ops: usize, uncertain: bool) {
        self.fail_at = Some((ops, uncertain));
    }

    /// Makes every op on this subject fail, until [`Self::accept`].
    pub fn refuse(&mut self, subject: Subject, error: OpError) {
        self.refused.insert(subject, error);
    }

    /// Ops on this subject work again.
    pub fn accept(&mut self, subject: &Subject) {
        self.refused.remove(subject);
    }

    /// Makes a part unreadable, or readable again.
    pub fn set_unreadable(&mut self, part: Part, error: Option<OpError>) {
        match error {
            Some(error) => _ = self.unreadable.insert(part, error),
            None => _ = self.unreadable.remove(&part),
        }
    }

    /// Programs that write rules start and do not end, until [`Self::end_slow_rules`].
    pub fn slow_rules(&mut self) {
        self.slow_rules = true;
    }

    /// The programs that write rules end.
    pub fn end_slow_rules(&mut self) {
        self.slow_rules = false;
        for op in std::mem::take(&mut self.slow) {
            let result = self.run(&op);
            self.ended.push(Finished::Op(op.subject(), result));
        }
    }

    /// Makes the next observation fail.
    pub fn fail_next_observe(&mut self) {
        self.fail_observe = true;
    }

    /// Makes the next [`Kernel::busy`] fail.
    pub fn fail_next_busy(&mut self) {
        self.fail_busy = true;
    }

    /// Makes rules that need the match `ipvs` fail.
    pub fn degrade_rules(&mut self, degrade: bool) {
        self.degrade_rules = degrade;
    }

    /// Fails every op after `ops` more: the state that a killed process leaves.
    pub fn stop_after(&mut self, ops: Option<usize>) {
        self.stop_after = ops;
    }

    /// Ops of this kind so far.
    pub fn count(&self, kind: OpKind) -> usize {
        self.counts.ops.get(&kind).copied().unwrap_or(0)
    }

    fn run(&mut self, op: &Op) -> Result<(), OpError> {
        *self.counts.ops.entry(op.kind()).or_default() += 1;
        match op.subject() {
            Subject::Rules(family) | Subject::Leftovers(family) => self.read_rules[family] = None,
            _ => {}
        }
        if let Some(left) = &mut self.stop_after {
            if *left == 0 {
                return Err(OpError::plain(Cause::Other, "stopped"));
            }
            *left -= 1;
        }
        match &mut self.fail_at {
            Some((0, uncertain)) => {
                let message = format!("injected failure: {op}");
                let error = if *uncertain {
                    OpError::uncertain(Cause::Other, message)
                } else {
                    OpError::plain(Cause::Other, message)
                };
                self.fail_at = None;
                return Err(error);
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        if let Some(i) = self.fail_next.iter().position(|kind| *kind == op.kind()) {
            self.fail_next.remove(i);
            return Err(OpError::plain(Cause::Other, format!("injected failure: {op}")));
        }
        if let Some(error) = self.refused.get(&op.subject()) {
            return Err(error.clone());
        }
        self.check(op)?;
        if let Op::WriteRules(rules) = op
            && self.degrade_rules
        {
            let mut rules = rules.clone();
            let filtered: usize = rules.chains.values_mut().map(drop_ipvs_matches).sum();
            self.state.record(&Op::WriteRules(rules));
            let error = || OpError::degraded(Cause::ProgramFailed, "no match ipvs");
            return if filtered > 0 { Err(error()) } else { Ok(()) };
        }
        self.state.record(op);
        Ok(())
    }

    /// Returns the error of an op that the real kernel refuses.
    fn check(&self, op: &Op) -> Result<(), OpError> {
        let s = &self.state;
        match op {
            Op::SetSysctl(sysctl) if !s.node.sysctls.contains_key(sysctl.path) => {
                Err(OpError::plain(Cause::Missing, "ENOENT"))
            }
            Op::CreateSet(set) if s.sets.contains_key(set) => Err(exists()),
            Op::DestroySet(set) if self.holds_sets && references_set(&s.rules[set.family].chains, *set) => {
                Err(OpError::plain(Cause::WrongKind, "EBUSY"))
            }
            Op::AddEntry(set, entry) => self.check_room(*set, entry),
            Op::RemoveEntry(set, _) => self.check_set(*set),
            Op::GrowSet(grow) => self.check_set(grow.set),
            Op::WriteRules(rules) => {
                let mut named = SetId::all(rules.family).filter(|set| references_set(&rules.chains, *set));
                named.try_for_each(|set| self.check_set(set))
            }
            Op::AddVirtualServer(_, spec) | Op::EditVirtualServer(_, spec)
                if self.missing_schedulers.contains(&&*spec.scheduler) =>
            {
                Err(OpError::plain(Cause::NoScheduler, "ENOENT"))
            }
            Op::AddVirtualServer(vs, _) if s.virtual_servers.contains_key(vs) => Err(exists()),
            Op::EditVirtualServer(vs, _) | Op::RemoveVirtualServer(vs) => self.check_server(vs),
            Op::AddRealServer(vs, rs, _) => match self.real_server(vs, rs)? {
                Some(_) => Err(exists()),
                None => Ok(()),
            },
            Op::EditRealServer(vs, rs, _) | Op::DrainRealServer(vs, rs) | Op::RemoveRealServer(vs, rs) => {
                match self.real_server(vs, rs)? {
                    Some(_) => Ok(()),
                    None => Err(missing("ENOENT")),
                }
            }
            Op::Bind(_) | Op::Unbind(_) if !s.device => Err(missing("ENODEV")),
            _ => Ok(()),
        }
    }

    fn check_set(&self, set: SetId) -> Result<(), OpError> {
        match self.state.sets.get(&set) {
            Some(set) if !set.misfit => Ok(()),
            Some(_) => Err(OpError::plain(Cause::InvalidArgument, "EINVAL")),
            None => Err(missing("ENOENT")),
        }
    }

    fn check_room(&self, set: SetId, entry: &Entry) -> Result<(), OpError> {
        self.check_set(set)?;
        let state = &self.state.sets[&set];
        let has_room = self.sets_grow || state.members.len() < state.capacity as usize;
        let full = !has_room && !state.members.contains(entry);
        if full { Err(OpError::plain(Cause::Full, "full")) } else { Ok(()) }
    }

    fn check_server(&self, vs: &VsKey) -> Result<(), OpError> {
        if self.state.virtual_servers.contains_key(vs) { Ok(()) } else { Err(missing("ESRCH")) }
    }

    fn real_server(&self, vs: &VsKey, rs: &RsKey) -> Result<Option<RsState>, OpError> {
        self.check_server(vs)?;
        Ok(self.state.virtual_servers[vs].real_servers.get(rs))
    }

    /// The first addresses of local networks that expose listeners of the host: their family has no filter, or they are neither in its
    /// `KUBE-IPVS-IPS` nor rejected by a rule for a network. There must be none at any time.
    pub fn exposed(&self) -> BTreeSet<IpAddr> {
        let guarded = |net: &&IpNet| {
            let family = Family::of(net.addr());
            let rules = &self.state.rules[family];
            let has = |text: &str| text.parse().is_ok_and(|range: IpNet| range.contains(*net));
            let rejected = |rule: &String| {
                let rejects = rule.contains(" -j REJECT");
                rejects && rule.strip_prefix("-d ").and_then(|rule| rule.split(' ').next()).is_some_and(has)
            };
            let ranges = rules.chains.get(&nftables::set_key(nftables::SERVICE_RANGES));
            let is_in_range = ranges.into_iter().flatten().any(|range| has(range));
            let jumps = rules.broken_jumps().is_empty() && !rules.chains.is_empty();
            let filters = jumps || rules.chains.contains_key(&nftables::key("filter-input"));
            filters
                && (is_in_range
                    || self.state.has_entry(SetId { kind: SetKind::IpvsIps, family }, &Entry::Ip(net.addr()))
                    || rules.chains.values().flatten().any(rejected))
        };
        let routes = &self.state.node.routes;
        self.state.addresses.iter().chain(routes).filter(|net| !guarded(net)).map(IpNet::addr).collect()
    }
}

fn exists() -> OpError {
    OpError::uncertain(Cause::Exists, "EEXIST")
}

fn missing(errno: &str) -> OpError {
    OpError::uncertain(Cause::Missing, errno)
}

/// Removes the rules that need the match `ipvs`, and returns their number.
fn drop_ipvs_matches(chain: &mut Vec<String>) -> usize {
    let before = chain.len();
    chain.retain(|rule| !rule.contains(IPVS_MATCH));
    before - chain.len()
}

impl Kernel for FakeKernel {
    fn read(&mut self, step: ReadStep) -> Result<Option<Piece>, ObserveError> {
        if step != ReadStep::Next {
            self.counts.observations += 1;
            self.position = None;
        }
        let first =
            if step == ReadStep::Compare { ReadPosition::Shown(None) } else { ReadPosition::Listed(None) };
        let (piece, next) = self.piece(self.position.unwrap_or(first));
        self.position = Some(next);
        if std::mem::take(&mut self.fail_observe) {
            return Err(injected(Part::Node));
        }
        match piece.as_ref().and_then(|piece| self.read_error(piece)) {
            Some(error) => {
                if error.part == Part::Ipvs {
                    self.position = Some(ReadPosition::Set(0));
                }
                Err(error)
            }
            None => Ok(piece),
        }
    }

    fn read_part(&mut self, part: Part) -> Result<Piece, ObserveError> {
        let position = match part {
            Part::Set(id) => {
                let n = Family::ALL.into_iter().flat_map(SetId::all).position(|set| set == id);
                ReadPosition::Set(n.unwrap_or_default())
            }
            Part::Addresses => ReadPosition::Addresses,
            Part::Node => ReadPosition::Rest,
            Part::Ipvs | Part::Rules(_) => return Err(injected(part)),
        };
        let piece = self.piece(position).0.ok_or_else(|| injected(part))?;
        self.read_error(&piece).map_or(Ok(piece), Err)
    }

    fn read_rules(&mut self, families: &[Family], afresh: bool) {
        for family in families {
            let rules = &self.state.rules[*family];
            if !afresh && self.read_rules[*family].as_ref() == Some(rules) {
                self.ended.push(Finished::Rules(*family, Ok(None)));
                continue;
            }
            self.counts.rule_readings += 1;
            let result = match self.unreadable.get(&Part::Rules(*family)) {
                Some(error) => Err(error.clone()),
                None => Ok(Some(Box::new(rules.clone()))),
            };
            self.read_rules[*family] = result.is_ok().then(|| rules.clone());
            self.ended.push(Finished::Rules(*family, result));
        }
    }

    fn finished(&mut self, _: Duration) -> Vec<Finished> {
        std::mem::take(&mut self.ended)
    }

    fn probe(&mut self, servers: &[VsKey], sets: &[ProbedSet]) -> ProbeResult {
        self.counts.probes += 1;
        self.counts.probed_servers += servers.len();
        self.counts.probed_sets += sets.len();
        let check = |part: Part| match self.unreadable.get(&part) {
            Some(error) => Err(ObserveError { part, error: error.clone() }),
            None => Ok(()),
        };
        let exists = |vs: &VsKey| {
            check(Part::Ipvs)?;
            Ok(self.state.virtual_servers.contains_key(vs))
        };
        let has = |(id, member): &ProbedSet| {
            check(Part::Set(*id))?;
            let set = self.state.sets.get(id);
            Ok(set.is_some_and(|set| member.is_none_or(|member| set.members.contains(&member))))
        };
        ProbeResult { servers: servers.iter().map(exists).collect(), sets: sets.iter().map(has).collect() }
    }

    fn has_scheduler(&mut self, name: &str) -> bool {
        !self.missing_schedulers.contains(&name)
    }

    fn read_servers(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError> {
        Ok(servers.iter().map(|key| self.state.virtual_servers.get(key).cloned()).collect())
    }

    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError> {
        self.counts.busy_reads += 1;
        if std::mem::take(&mut self.fail_busy) {
            return Err(injected(Part::Ipvs));
        }
        Ok(self.state.busy.iter().filter(|(vs, _)| servers.contains(vs)).copied().collect())
    }

    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>)) {
        let kernel = Mutex::new(self);
        let run = |ops: &[&Op]| lock(&kernel).execute(ops);
        work(&mut { run }, &mut { run });
    }

    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        let mut execute = |op: &Op| {
            let is_slow = matches!(op, Op::WriteRules(_) | Op::RemoveLeftovers(_));
            if self.slow_rules && is_slow {
                self.slow.push(op.clone());
                return Ok(Progress::Started);
            }
            self.run(op).map(|()| Progress::Done)
        };
        ops.iter().map(|op| execute(op)).collect()
    }
}
