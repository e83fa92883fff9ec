// SPDX-License-Identifier: Apache-2.0
//! Reports of the loop: log lines, Events, and the list in `/readyz?verbose`.
//!
//! At the default level the log has one line when the node is ready, one when a failure begins and one when it ends, one
//! a minute about changes, and drift. Repeated conditions are counted and logged at growing intervals.

use crate::core::plan::pass::{Due, Pass, Touched};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::Reconciler;
use super::drift::describe_difference;
use super::minute::{Minute, milliseconds};
use crate::core::model::{Family, ObjectName, VsKey};
use crate::core::plan::history::History;
use crate::core::plan::op::Op;
use crate::core::plan::outcome::{Cause, ObserveError};
use crate::core::plan::retries::{Failing, News, Retries};
use crate::core::plan::services_of::services_of;
use crate::core::plan::subject::{Subject, SubjectKind};
use crate::core::rules::save::ObservedRules;
use crate::events::{About, EventRequest, EventSink, Reason};
use crate::kernel::Kernel;
use crate::pace::Pace;
use crate::words;

/// Objects named in one line.
const NAMED: usize = 3;
/// Kinds of failures with a separate line after one pass.
const KINDS: usize = 4;
/// Services with an Event after one pass.
const EVENTS: usize = 20;
/// Virtual servers named in one line.
const SERVERS: usize = 100;
/// Objects that `/readyz?verbose` lists.
const LISTED: usize = 100;
/// How often the list of failures is updated.
const LISTING: Duration = Duration::from_secs(1);
pub use crate::log::{CHANGES, READY};

/// State of the reports, see the module.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    pub(super) ready: bool,
    minute: Minute,
    /// The summary of continuing failures.
    failing: Pace,
    drift: Pace,
    flushes: Pace,
    connections: Pace,
    /// The time of the last list of failures, and whether the list had entries.
    listed: Duration,
    lists: bool,
    /// Differences of rules that another program changed, as text.
    rules: Vec<String>,
    /// Whether the Node object existed at the last check.
    node: Option<bool>,
    pub(super) history: History,
}

impl Reporter {
    /// Reports changes of whether the Node object exists.
    pub fn node(&mut self, name: &str, exists: bool) {
        match (self.node.replace(exists), exists) {
            (None, false) => tracing::warn!(
                "there is no Node {name}: its zone, addresses and pod CIDRs are unknown, and /healthz answers 503, so \
                 that load balancers send no traffic to this node; set hostnameOverride (--hostname-override) to \
                 the name that `kubectl get nodes` shows"
            ),
            (Some(true), false) => tracing::warn!(
                "the Node {name} was deleted: its last zone, addresses and pod CIDRs stay in force until it exists \
                 again"
            ),
            (Some(false), true) => tracing::info!("the Node {name} exists now"),
            _ => {}
        }
    }

    /// Reports that the priority Services were programmed before the lists were complete.
    pub fn programmed_early(&self, pass: &Pass) {
        tracing::info!(
            ops = pass.report.done(),
            "programmed the API server's and the DNS Service early; waiting for the full lists"
        );
    }

    /// Reports a pass.
    fn pass(&mut self, pass: &Pass, due: Due, took: Duration, now: Duration) {
        let (ops, done) = (pass.plan.ops.len(), pass.report.done());
        if ops == 0 {
            return tracing::debug!(due = ?due, took_ms = milliseconds(took), "in sync, nothing to do");
        }
        let services = words::some(&pass.services.names, Touched::NAMED, pass.services.count);
        let of = if services.is_empty() { String::new() } else { format!(" of {services}") };
        tracing::debug!(
            target: CHANGES,
            due = ?due,
            ops,
            done,
            took_ms = milliseconds(took),
            "sync: {}{of} in {}",
            words::count(ops, "operation"),
            words::time(took)
        );
        tracing::trace!("plan:\n{}", pass.plan);
        if !pass.drift.is_empty() {
            self.repaired(&pass.repairs().collect::<Vec<_>>(), now);
        }
        // The first pass is in the line about the start.
        if self.ready {
            self.minute.add(pass, took, now);
        }
    }

    /// Reports drift that these ops repaired.
    pub fn repaired(&mut self, ops: &[&Op], now: Duration) {
        self.history.repaired(ops.iter().copied(), now);
        let count = ops.len();
        let rules = std::mem::take(&mut self.rules);
        if !self.drift.happened(count, now) {
            return;
        }
        let mut kinds: BTreeMap<SubjectKind, Vec<Subject>> = BTreeMap::new();
        for op in ops {
            let subject = op.subject();
            kinds.entry(subject.kind()).or_default().push(subject);
        }
        let mut parts: Vec<String> = kinds
            .into_iter()
            .map(|(kind, subjects)| {
                format!("{} ({})", kind.count(subjects.len()), words::some(&subjects, NAMED, subjects.len()))
            })
            .collect();
        if !rules.is_empty() {
            parts.push(rules.join("; "));
        }
        tracing::warn!(
            repaired = count,
            "restored {} that another program changed: {}",
            words::count(count, "object"),
            parts.join(", ")
        );
    }

    /// Keeps the difference of rules for the report of their repair.
    pub fn rules_differ(&mut self, family: Family, mirror: &ObservedRules, read: &ObservedRules) {
        self.rules.push(format!("{family}: {}", describe_difference(mirror, read)));
    }

    /// Reports ranges of ClusterIPs that get no route.
    pub fn unroutable(&self, nets: &[(IpNet, IpAddr, &str)]) {
        for (net, addr, why) in nets {
            tracing::error!(
                "no local route for the ClusterIPs of {net}: {addr} is {why}, and the route would cut the node off \
                 from its network; the ClusterIPs of {net} are bound to kube-ipvs0 instead"
            );
        }
    }

    /// Reports that a probe found objects missing.
    pub fn flushed(&mut self, now: Duration) {
        if self.flushes.happened(1, now) {
            tracing::warn!(
                "another program removed virtual servers or set entries: an audit reads the kernel and restores them"
            );
        }
    }

    /// Reports that connections cannot be read.
    pub fn connections_unknown(&mut self, error: &ObserveError, now: Duration) {
        // Every pass that removes endpoints tries the reading again.
        if self.connections.happened(1, now) {
            tracing::warn!(
                "cannot read the connections of removed endpoints: {}; they stay with weight 0 and are retried",
                error.error
            );
        }
    }

    /// Reports removed virtual servers of other programs.
    pub fn removed_foreign_servers(&mut self, servers: &BTreeSet<VsKey>, events: &EventSink) {
        let servers: Vec<&VsKey> = servers.iter().collect();
        for some in servers.chunks(SERVERS) {
            tracing::warn!(
                removed = some.len(),
                "removed virtual servers of another program: {}; to keep such servers, list their networks in \
                 ipvs.excludeCIDRs",
                words::some(some, SERVERS, some.len())
            );
        }
        if !servers.is_empty() {
            let message = format!(
                "removed {} of another program: {}; to keep such servers, list their networks in \
                 ipvs.excludeCIDRs",
                words::count(servers.len(), "virtual server"),
                words::some(&servers, NAMED, servers.len())
            );
            events.send([EventRequest {
                about: About::Node,
                reason: Reason::RemovedForeignServers,
                message,
            }]);
        }
    }

    /// Reports failures that began or ended.
    fn news(
        &mut self,
        news: &News,
        retries: &Retries,
        services: &BTreeMap<Subject, ObjectName>,
        now: Duration,
    ) {
        let began = group_failures(retries.failing().filter(|(subject, _)| news.began.contains(subject)));
        let kinds = began.len();
        for ((kind, cause, message), subjects) in began.into_iter().take(KINDS) {
            let service = subjects.first().and_then(|one| services.get(one));
            let waiting = retries.blocked().filter(|(_, cause)| subjects.contains(cause)).count();
            let waiting = match waiting {
                0 => String::new(),
                1 => "; 1 other object waits for it".to_owned(),
                count => format!("; {} wait for it", words::count(count, "other object")),
            };
            tracing::error!(
                kind = kind.label(),
                reason = cause.label(),
                count = subjects.len(),
                "{}: {message}{waiting}",
                describe(kind, &subjects, service)
            );
        }
        if kinds > KINDS {
            tracing::error!(
                kinds,
                "{} more kinds of objects cannot be programmed; see /readyz?verbose",
                kinds - KINDS
            );
        }
        if !news.ended.is_empty() {
            self.ended(&news.ended, now);
        }
        if !news.began.is_empty() {
            self.failing.happened(0, now);
        }
    }

    /// Whether the list of failures must be updated.
    fn listing_is_due(&mut self, retries: &Retries, now: Duration) -> bool {
        let due = now >= self.listed.saturating_add(LISTING) && (self.lists || !retries.is_empty());
        if due {
            (self.listed, self.lists) = (now, !retries.is_empty());
        }
        due
    }

    fn ended(&mut self, ended: &[(Subject, Failing)], now: Duration) {
        let longest = ended.iter().map(|(_, failing)| now.saturating_sub(failing.since)).max();
        let tries: u32 = ended.iter().map(|(_, failing)| failing.tries).max().unwrap_or(0);
        tracing::info!(
            count = ended.len(),
            "no longer failing: {} (after {}, {})",
            words::some(ended.iter().map(|(subject, _)| subject), NAMED, ended.len()),
            words::time(longest.unwrap_or_default()),
            words::count(tries as usize, "failure")
        );
    }

    /// Logs the summaries that are due.
    pub fn tick(&mut self, retries: &Retries, now: Duration) {
        if retries.failing().next().is_some() {
            self.failing.happened(1, now);
        }
        if self.failing.due(now).is_some() {
            still_failing(retries, now);
        }
        if let Some((count, time)) = self.drift.due(now) {
            tracing::warn!(
                repaired = count,
                "restored {} in {} that another program keeps changing; find and stop it: kube-proxy, or a script \
                 on this node that flushes rules, sets or IPVS",
                words::count(count, "object"),
                words::time(time)
            );
        }
        self.flushes.due(now);
        self.connections.due(now);
        self.minute.tick(now);
    }
}

/// Failed subjects by kind, cause and message.
pub(super) type FailureGroups<'a> = BTreeMap<(SubjectKind, Cause, &'a str), Vec<&'a Subject>>;

/// Groups failures by kind, cause and message.
pub(super) fn group_failures<'a>(
    failing: impl Iterator<Item = (&'a Subject, &'a Failing)>,
) -> FailureGroups<'a> {
    let mut groups = FailureGroups::new();
    for (subject, failing) in failing {
        let error = &failing.error;
        groups.entry((subject.kind(), error.cause, &error.message)).or_default().push(subject);
    }
    groups
}

/// `cannot program 34 sets (A, B, C and 31 more)`; for a single subject with its Service.
pub(super) fn describe(kind: SubjectKind, subjects: &[&Subject], service: Option<&ObjectName>) -> String {
    let verb = if kind == SubjectKind::Reading { "failed:" } else { "cannot program" };
    match (subjects, service) {
        ([one], Some(service)) => format!("{verb} {one} of Service {service}"),
        ([one], None) => format!("{verb} {one}"),
        _ => {
            let names = words::some(subjects, NAMED, subjects.len());
            format!("{verb} {} ({names})", kind.count(subjects.len()))
        }
    }
}

fn still_failing(retries: &Retries, now: Duration) {
    let mut kinds: BTreeMap<SubjectKind, usize> = BTreeMap::new();
    retries.failing().for_each(|(subject, _)| *kinds.entry(subject.kind()).or_default() += 1);
    let counts: Vec<String> = kinds.iter().map(|(kind, count)| kind.count(*count)).collect();
    let blocked = retries.blocked().count();
    let blocked = match blocked {
        0 => String::new(),
        count => format!(", and {} wait for them", words::count(count, "object")),
    };
    let Some((subject, failing)) = retries.failing().min_by_key(|(_, failing)| failing.since) else { return };
    tracing::error!(
        failing = retries.failing().count(),
        "still failing: {}{blocked}; the oldest, after {}: {subject}: {} (next try in {})",
        counts.join(", "),
        words::time(now.saturating_sub(failing.since)),
        failing.error,
        words::time(failing.pause(now))
    );
}

/// Objects that are not programmed: the first of them as lines, and the number of all.
fn describe_unprogrammed(retries: &Retries, now: Duration) -> (Vec<String>, usize) {
    let failing = retries.failing().map(|(subject, failing)| {
        let (since, next) = (now.saturating_sub(failing.since), failing.pause(now));
        format!(
            "{subject}: {} ({} in {}; next try in {})",
            failing.error,
            words::count(failing.tries as usize, "failure"),
            words::time(since),
            words::time(next)
        )
    });
    let blocked = retries.blocked().map(|(subject, cause)| format!("{subject}: waits for {cause}"));
    let count = retries.failing().count() + retries.blocked().count();
    (failing.chain(blocked).take(LISTED).collect(), count)
}

impl<K: Kernel> Reconciler<K> {
    /// Reports a pass in the log, as metrics and as Events.
    pub(super) fn report(&mut self, pass: &Pass, due: Due, took: Duration, now: Duration) {
        self.reporting.metrics.pass(pass, due, took);
        self.reporter.history.passed(pass, due, took, now);
        match &pass.unreadable {
            Some(error) => self.retries.fail_reading(error.part, &error.error, now),
            None => self.reporter.pass(pass, due, took, now),
        }
        self.report_unprogrammed(now);
        if !self.reporter.ready && self.is_whole() {
            self.report_ready(pass, now);
        }
    }

    /// Reports objects that are not programmed: new failures at once, the list once a second.
    pub(super) fn report_unprogrammed(&mut self, now: Duration) {
        let news = self.retries.take_news();
        if news.is_empty() && !self.reporter.listing_is_due(&self.retries, now) {
            return;
        }
        let services: BTreeMap<Subject, ObjectName> =
            services_of(&self.desired, &news.began).into_iter().collect();
        self.reporter.news(&news, &self.retries, &services, now);
        let event = |(subject, service): (&Subject, &ObjectName)| {
            let failing = self.retries.failing().find(|(failing, _)| *failing == subject)?.1;
            Some(EventRequest {
                about: About::Service(service.clone()),
                reason: Reason::NotProgrammed,
                message: format!("cannot program {subject}: {}", failing.error),
            })
        };
        self.reporting.events.send(services.iter().take(EVENTS).filter_map(event));
        self.report_shared_failures();
        self.reporting.metrics.work.set_unprogrammed(&self.retries.counts());
        let (lines, count) = describe_unprogrammed(&self.retries, now);
        self.reporting.health.with(|health| health.unprogrammed = (lines, count));
    }

    /// Reports the end of the start.
    fn report_ready(&mut self, pass: &Pass, now: Duration) {
        let Some(observed) = self.mirror.observed() else { return };
        let all = self.settings.families.iter().all(|family| pass.synced.contains(family));
        let families: Vec<String> = pass.synced.iter().map(ToString::to_string).collect();
        let (services, virtual_servers) = (self.desired.service_count(), observed.virtual_servers.len());
        let real_servers: usize =
            observed.virtual_servers.values().map(|server| server.real_servers.len()).sum();
        if (!all && self.retries.is_running()) || self.awaits_nodes() {
            return;
        }
        self.reporter.ready = true;
        let what = format!(
            "{}, {}, {}",
            words::count(services, "Service"),
            words::count(virtual_servers, "virtual server"),
            words::count(real_servers, "real server")
        );
        if all {
            tracing::info!(
                target: READY,
                services,
                virtual_servers,
                real_servers,
                "ready: {what}, {}, in {}",
                families.join(" and "),
                words::time(now)
            );
        } else {
            tracing::warn!(
                target: READY,
                services,
                virtual_servers,
                real_servers,
                "started, but not everything works: {what}; see the errors above and /readyz?verbose"
            );
        }
    }
}
