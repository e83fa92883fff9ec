// SPDX-License-Identifier: Apache-2.0
//! One pass: plans, applies the plan, and updates the mirror by the acknowledged ops.

use crate::core::plan::outcome::{Cause, Outcome, Report};
use crate::core::plan::pass::{Due, Pass};
use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use super::{PassScope, Reconciler};
use crate::core::mirror::Observed;
use crate::core::model::changes::Changes;
use crate::core::model::map::Set;
use crate::core::model::sets::SetId;
use crate::core::model::{Family, ObjectName, PerFamily, VsKey};
use crate::core::plan::drain;
use crate::core::plan::op::{Op, Plan};
use crate::core::plan::subject::Subject;
use crate::core::plan::{PlanInput, RulesBasis, all_keys, build_plan};
use crate::kernel::{Applied, Kernel, RunContext, apply};
use crate::notices;

/// How long new addresses wait for the `iptables-restore` that writes their filter: as long as it normally takes. If it
/// takes longer, the addresses are bound by a later pass.
pub(super) const RULES_TIMEOUT: Duration = Duration::from_millis(50);
/// The same limit in the first pass. It is longer, because no other work waits for that pass.
const FIRST_RULES_TIMEOUT: Duration = Duration::from_secs(2);

impl<K: Kernel> Reconciler<K> {
    pub(super) fn pass(&mut self, due: Due, scope: PassScope, now: Duration) -> Pass {
        let first = matches!(scope, PassScope::Everything);
        let mut changes = self.take_changes(&scope, now);
        if first {
            self.mirror.begin_sync();
        }
        let Some(mut observed) = self.mirror.lend() else {
            self.pending.append(changes);
            return Pass::default();
        };
        if first {
            self.fill_limits(&mut observed, now);
        }
        let turn = self.postponed_schedulers.take();
        changes.virtual_servers.extend(&turn);
        let mut retried = Changes::default();
        self.retries.begin(now, &mut retried);
        if matches!(due, Due::Drains | Due::Audit) {
            changes.virtual_servers.append(&mut self.drains.virtual_servers());
        }
        let audit = !matches!(scope, PassScope::Changes | PassScope::Priority);
        let mut keys = if first {
            Changes { flows: changes.flows.clone(), ..all_keys(&self.desired, &observed) }
        } else {
            changes.clone()
        };
        if let PassScope::Found(found) = scope {
            keys.append(found);
        }
        keys.append(retried.clone());
        // A real server of weight 0 drains without an op when it is no longer wanted.
        self.drains.adopt(&self.desired, &observed, &keys.virtual_servers, now);
        self.read_connections(&mut observed, &keys, now);
        let stuck = self.stuck_sets(&observed);
        let mut plan = self.plan(&observed, &keys, audit, &stuck, now);
        self.postpone_schedulers(&mut plan, &observed, &turn);
        self.retries.expedite(&plan);
        let rules_timeout = if first || !self.is_whole() { FIRST_RULES_TIMEOUT } else { RULES_TIMEOUT };
        let Applied { mut report, finished } = self.apply(&plan, &observed, now, rules_timeout);
        let drift = if audit && !first { self.drift(&plan, &report, &changes, &retried) } else { Vec::new() };
        if first {
            self.report_foreign_servers(&plan, &report, &observed);
        }
        self.follow(&plan, &report, &mut observed, now);
        self.learn_schedulers(&plan, &mut report, now);
        self.retries.record(&keys, &plan, &report, now, &mut self.pending);
        // The set was replaced: rules match it again.
        self.pending.common |= stuck.iter().any(|set| !self.retries.fails(&Subject::Set(*set)));
        let read = (audit, observed.unread_rules);
        self.takeover.follow(&plan, &report, read, |subject| self.retries.tries(subject));
        self.share_lists(&keys, &mut observed);
        self.update_rules_basis(&plan, &report, &observed, &stuck);
        // Connections are read again when they are needed.
        observed.busy = Set::default();
        self.reporting.metrics.applied(&plan, &report, &self.desired, &observed);
        self.mirror.put_back(observed);
        self.take_finished(finished, now);
        self.report_changes(&changes);
        if audit || !changes.noticed.is_empty() {
            self.report_shadowed(&changes);
        }
        let services = std::mem::take(&mut self.touched);
        let (synced, incomplete) = self.report_health();
        Pass { plan, report, drift, services, synced, incomplete, unreadable: None }
    }

    pub(super) fn plan(
        &mut self,
        observed: &Observed,
        keys: &Changes,
        audit: bool,
        stuck: &BTreeSet<SetId>,
        now: Duration,
    ) -> Plan {
        const UNKNOWN: PerFamily<Option<RulesBasis>> = PerFamily::new(None, None);
        let expired = self.drains.expired(now, &self.desired, self.settings.drain_deadline);
        let (desired, settings) = (&self.desired, &self.settings);
        let takeover_pending = self.takeover.waits();
        let installed = if audit { &UNKNOWN } else { &self.rules };
        let (expired, later) = (&expired, &self.later.batch);
        let input =
            PlanInput { desired, observed, settings, expired, takeover_pending, later, stuck, installed };
        build_plan(input, keys, &keys.flows)
    }

    /// Sets of another type that could not be destroyed because they are in use.
    fn stuck_sets(&self, observed: &Observed) -> BTreeSet<SetId> {
        let misfits = observed.sets.iter().filter(|(_, set)| set.misfit).map(|(id, _)| *id);
        misfits.filter(|id| self.retries.cause(&Subject::Set(*id)) == Some(Cause::WrongKind)).collect()
    }

    pub(super) fn apply(
        &mut self,
        plan: &Plan,
        observed: &Observed,
        now: Duration,
        rules_timeout: Duration,
    ) -> Applied {
        let unread = Family::ALL.into_iter().filter(|family| observed.unread_rules[family]).collect();
        let health = self.reporting.health.clone();
        let progress = || health.beat();
        let context = RunContext { retries: &self.retries, now, unread, rules_timeout, progress: &progress };
        apply(&mut self.kernel, plan, context)
    }

    /// Updates the mirror by the acknowledged ops. Objects in an uncertain state are read again.
    pub(super) fn follow(&mut self, plan: &Plan, report: &Report, observed: &mut Observed, now: Duration) {
        self.forget_flows_of_bound(plan, report);
        for (op, outcome) in plan.ops.iter().zip(&report.outcomes) {
            match outcome {
                Outcome::Done => {
                    self.reporting.metrics.objects.done(op, observed);
                    observed.record(op);
                    self.drains.record(op, now);
                    // An address with a shorter prefix is removed: the wanted one can be bound now.
                    if let Op::Unbind(net) = op
                        && self.desired.wants_address(net.addr())
                    {
                        self.pending.addresses.insert(net.addr());
                    }
                    // Without connections it is removed by the next pass.
                    if let Op::DrainRealServer(vs, _) = op {
                        self.pending.virtual_servers.insert(*vs);
                    }
                }
                Outcome::Failed(error) if error.uncertain => self.recheck.add(&op.subject()),
                _ => {}
            }
        }
    }

    /// Before a VIP is bound, the node routes its datagrams elsewhere, and conntrack keeps these flows: the next pass
    /// deletes them, unless this pass has done so.
    fn forget_flows_of_bound(&mut self, plan: &Plan, report: &Report) {
        let done = || plan.ops.iter().zip(&report.outcomes).filter(|(_, outcome)| **outcome == Outcome::Done);
        let net = |op: &Op| match op {
            Op::Bind(addr) => Some(IpNet::from(*addr)),
            Op::AddRoute(net) => Some(*net),
            _ => None,
        };
        let nets = done().filter_map(|(op, _)| net(op));
        let mut services: BTreeSet<ObjectName> =
            nets.flat_map(|net| self.desired.udp_services_in(net)).cloned().collect();
        if services.is_empty() {
            return;
        }
        for (op, _) in done() {
            if let Op::ForgetFlows(flows) = op {
                services.retain(|service| !flows.services.contains(service));
            }
        }
        self.pending.flows.append(&mut services);
    }

    /// Shares the lists of real servers between the wanted state and the mirror where they are equal.
    fn share_lists(&self, keys: &Changes, observed: &mut Observed) {
        for key in &keys.virtual_servers {
            if let (Some(server), Some(wanted)) =
                (observed.virtual_servers.get_mut(key), self.desired.virtual_server(key))
            {
                server.real_servers.share(&wanted.real_servers);
            }
        }
    }

    /// Keeps the inputs of the rules that are in place: they are compared again only if an input changes.
    fn update_rules_basis(
        &mut self,
        plan: &Plan,
        report: &Report,
        observed: &Observed,
        stuck: &BTreeSet<SetId>,
    ) {
        for family in Family::ALL {
            let rules = [Subject::Rules(family), Subject::Leftovers(family)];
            let open =
                |(op, outcome): (&Op, &Outcome)| *outcome != Outcome::Done && rules.contains(&op.subject());
            let in_place = !observed.unread_rules[family] && !plan.ops.iter().zip(&report.outcomes).any(open);
            let (desired, mode) = (&self.desired, self.settings.rules);
            // Without a set that is stuck the rules are not whole.
            let is_whole = in_place && stuck.iter().all(|set| set.family != family);
            self.rules[family] = is_whole.then(|| RulesBasis::build(family, desired, observed, mode));
        }
    }

    /// Reads which draining real servers have connections. If that fails, all of them keep draining.
    pub(super) fn read_connections(&mut self, observed: &mut Observed, changes: &Changes, now: Duration) {
        let servers = drain::with_drains(&self.desired, observed, &changes.virtual_servers);
        if servers.is_empty() {
            return;
        }
        let busy = self.kernel.busy(&servers).unwrap_or_else(|error| {
            self.reporter.connections_unknown(&error, now);
            let all = |vs: &VsKey| {
                let real_servers = observed.virtual_servers.get(vs).map(|s| s.real_servers.keys());
                real_servers.into_iter().flatten().map(|rs| (*vs, rs)).collect::<Vec<_>>()
            };
            servers.iter().flat_map(all).collect()
        });
        let read: Set<VsKey> = servers.into_iter().collect();
        observed.busy.retain(|(vs, _)| !read.contains(vs));
        observed.busy.extend(busy);
    }

    /// Reports new conflicts and notices.
    fn report_changes(&self, changes: &Changes) {
        notices::log_own_addresses(&self.desired, changes);
        self.reporting.events.send(notices::build(&self.desired, changes));
        self.reporting.metrics.changed(&self.desired, changes, self.drains.len());
    }
}
