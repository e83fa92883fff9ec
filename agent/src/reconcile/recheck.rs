// SPDX-License-Identifier: Apache-2.0
//! Reads parts of the kernel again after a notification, a refusal or a probe, and takes the results of work on other
//! threads.

use crate::core::plan::outcome::{Finished, OpError};
use crate::core::plan::pass::{Due, Pass};
use std::collections::BTreeSet;
use std::time::Duration;

use super::{PassScope, Reconciler};
use crate::core::mirror::comparison::Audit;
use crate::core::model::changes::Changes;
use crate::core::model::sets::ProbedSet;
use crate::core::model::{Family, VsKey};
use crate::core::plan::subject::{Part, Subject};
use crate::core::rules::save::ObservedRules;
use crate::kernel::Kernel;
use crate::reconcile::schedule::Schedule;

/// Virtual servers of one probe.
pub(super) const PROBED: usize = 4;
/// Virtual servers of one sample: probes read them all before the next sample is chosen.
const SAMPLE: usize = 64;

/// Parts and virtual servers that must be read again.
#[derive(Debug, Default)]
pub(super) struct Recheck {
    parts: BTreeSet<Part>,
    servers: BTreeSet<VsKey>,
    /// The state of a set is unknown, whether or not another program has changed it.
    unknown_set: bool,
}

impl Recheck {
    pub fn add_part(&mut self, part: Part) {
        self.parts.insert(part);
    }

    /// Adds a subject whose state is unknown.
    pub fn add(&mut self, subject: &Subject) {
        match subject {
            Subject::VirtualServer(vs) | Subject::RealServer(vs, _) => _ = self.servers.insert(*vs),
            Subject::Entry(set, _) | Subject::Set(set) => {
                self.unknown_set = true;
                self.add_part(Part::Set(*set));
            }
            Subject::Address(_) | Subject::Network(_) | Subject::Device => self.add_part(Part::Addresses),
            Subject::Rules(family) => self.add_part(Part::Rules(*family)),
            Subject::Leftovers(family) => {
                self.add_part(Part::Rules(*family));
                self.add_part(Part::Node);
            }
            Subject::Sysctl(_) | Subject::Timeouts | Subject::Route(_) => self.add_part(Part::Node),
            Subject::Reading(part) => self.add_part(*part),
            Subject::Flows(_) => {}
        }
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.servers.is_empty()
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Reads the parts again, and runs the pass that repairs the differences.
    pub fn recheck(&mut self, now: Duration) -> Pass {
        let Recheck { parts, servers, unknown_set } = std::mem::take(&mut self.recheck);
        let Some(mut observed) = self.mirror.lend() else { return Pass::default() };
        let mut audit = Audit::default();
        let has_sets = parts.iter().any(|part| matches!(part, Part::Set(_)));
        let sets_are_known = has_sets && !unknown_set && self.kernel.sets_are_known();
        for part in parts {
            match part {
                Part::Rules(family) => self.kernel.read_rules(&[family], false),
                Part::Ipvs => {}
                Part::Set(_) if sets_are_known => {}
                part => match self.kernel.read_part(part) {
                    Ok(piece) => {
                        audit.add(piece, &mut observed);
                        self.retries.read(part, &mut self.pending);
                    }
                    Err(error) => self.retries.fail_reading(error.part, &error.error, now),
                },
            }
        }
        let servers: Vec<VsKey> = servers.into_iter().collect();
        self.confirm(&servers, &mut audit, &mut observed, now);
        self.mirror.put_back(observed);
        self.poll_finished(now);
        self.pass(Due::Recheck, PassScope::Found(audit.finish()), now)
    }

    /// Probes a few objects; true: some are missing, so that an audit is needed. Objects that cannot be read are ignored.
    pub fn probe(&mut self) -> bool {
        let Some(observed) = self.mirror.observed() else { return false };
        if self.unprobed.len() < PROBED {
            self.unprobed = observed.virtual_servers.keys().take(SAMPLE).copied().collect();
        }
        let mut servers = self.unprobed.split_off(self.unprobed.len().saturating_sub(PROBED));
        servers.retain(|key| observed.virtual_servers.contains_key(key));
        let ours = observed.sets.iter().filter(|(_, set)| !set.misfit);
        let sets: Vec<ProbedSet> = ours.map(|(id, set)| (*id, set.members.iter().next())).collect();
        let probed = self.kernel.probe(&servers, &sets);
        probed.servers.iter().chain(&probed.sets).any(|found| *found == Ok(false))
    }

    /// Starts the readings whose retry is due.
    pub(super) fn retry_readings(&mut self, schedule: &mut Schedule, now: Duration) {
        for part in self.retries.due_readings(now) {
            match part {
                Part::Rules(family) => self.kernel.read_rules(&[family], true),
                Part::Ipvs => schedule.audit_soon(),
                part => self.recheck.add_part(part),
            }
        }
    }

    /// Takes the results of work on other threads.
    pub fn take_finished(&mut self, finished: Vec<Finished>, now: Duration) {
        for finished in finished {
            match finished {
                Finished::Op(subject, result) => self.finish_op(&subject, &result, now),
                Finished::Rules(family, Ok(rules)) => {
                    if let Some(rules) = rules {
                        self.take_rules(family, *rules);
                    }
                    self.retries.read(Part::Rules(family), &mut self.pending);
                }
                Finished::Rules(family, Err(error)) => {
                    self.retries.fail_reading(Part::Rules(family), &error, now);
                }
                Finished::Unread(set, error) => self.retries.fail_reading(Part::Set(set), &error, now),
            }
        }
    }

    fn take_rules(&mut self, family: Family, rules: ObservedRules) {
        let Some(observed) = self.mirror.observed_mut() else { return };
        let was_unread = std::mem::take(&mut observed.unread_rules[family]);
        if !was_unread && observed.rules[family] == rules {
            return;
        }
        if !was_unread {
            self.reporter.rules_differ(family, &observed.rules[family], &rules);
        }
        observed.rules[family] = rules;
        self.rules[family] = None;
        self.takeover.review(observed, self.settings.shares_node);
        // The first reading of the rules shows no drift.
        if was_unread {
            self.pending.common = true;
        } else {
            self.found.get_or_insert_with(Changes::default);
        }
    }

    fn finish_op(&mut self, subject: &Subject, result: &Result<(), OpError>, now: Duration) {
        let Some(op) = self.retries.finish(subject, result, now, &mut self.pending) else { return };
        let repairs = self.repairing.remove(subject);
        self.reporting.metrics.ended(&op, result);
        let (Subject::Rules(family) | Subject::Leftovers(family)) = *subject else { return };
        self.rules[family] = None;
        self.pending.common = true;
        match result {
            Ok(()) => {
                if let Some(observed) = self.mirror.observed_mut() {
                    observed.record(&op);
                }
                if repairs {
                    self.reporting.metrics.work.repaired(op.kind());
                    self.reporter.repaired(&[&op], now);
                }
            }
            Err(error) if error.uncertain => self.recheck.add(subject),
            Err(_) => {}
        }
    }
}
