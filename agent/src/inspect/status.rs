// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs status`: the state of one agent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answers::Setup;
use crate::core::loop_state::LoopState;
use crate::core::mirror::Observed;
use crate::core::model::sets::SetId;
use crate::core::model::{Family, PerFamily};
use crate::core::plan::history::EndedSync;
use crate::core::plan::services_of::services_of;
use crate::core::plan::subject::Subject;
use crate::metrics::WatchReport;
use crate::serve::health::LoopLag;
use crate::store::Kind;

/// The version of the JSON: a field that is removed or means something else gets the next one.
pub const SCHEMA_VERSION: u32 = 1;
/// Objects of a list.
const LISTED: usize = 100;

/// The state of one agent. Times are in seconds unless their names say otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub schema_version: u32,
    /// Whether the first sync has ended and the device, sets and rules of every family are in place.
    pub ready: bool,
    /// Whether something is not as it should be; `problems` says what.
    pub degraded: bool,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    pub node: String,
    pub versions: Versions,
    /// What sets and rules are made of: `iptables` or `nftables`.
    pub rules_mode: String,
    /// Where objects come from.
    pub source: String,
    pub uptime: u64,
    /// Number of Services.
    pub services: usize,
    pub families: Vec<FamilyCounts>,
    /// The last sync that changed something.
    pub last_sync: Option<SyncReport>,
    /// The last comparison of the whole kernel state.
    pub last_audit: Option<SyncReport>,
    /// Age in seconds of the oldest change that the agent has not taken; null when there is none.
    pub oldest_pending_change: Option<f64>,
    pub not_programmed: NotProgrammed,
    pub drains: DrainReport,
    /// Objects that another program changed and the agent restored in the last hour, by kind.
    pub drift: BTreeMap<String, u64>,
    pub watches: Vec<WatchReport>,
    /// Number of objects received that could not be decoded, by kind; only kinds with any.
    pub malformed: BTreeMap<String, u64>,
}

/// Versions of programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    pub agent: String,
    /// Of the API server, as far as it is known.
    pub kubernetes: Option<String>,
    pub kernel: String,
    /// Of IPVS in the kernel.
    pub ipvs: Option<String>,
    /// Of the iptables program that the agent runs, if it runs one.
    pub iptables: Option<String>,
}

/// What exists in the kernel, of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FamilyCounts {
    /// `IPv4` or `IPv6`.
    pub family: String,
    pub virtual_servers: usize,
    pub real_servers: usize,
    /// Addresses on `kube-ipvs0`.
    pub addresses: usize,
    /// Networks of ClusterIPs with a local route.
    pub routes: usize,
    pub set_entries: usize,
}

/// A sync that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SyncReport {
    /// `changes`, `retry`, `drains`, `recheck` or `audit`.
    pub reason: String,
    /// Since its end.
    pub ago: f64,
    pub milliseconds: f64,
    pub operations: usize,
    /// Operations that failed, or that wait for one that failed.
    pub failed: usize,
}

/// Objects that are not in the kernel as they should be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NotProgrammed {
    pub count: usize,
    /// At most 100.
    pub objects: Vec<Unprogrammed>,
}

/// An object that is not in the kernel as it should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Unprogrammed {
    pub object: String,
    /// `NAMESPACE/NAME`, if it belongs to one Service.
    pub service: Option<String>,
    /// The label `reason` of metrics; null while it waits for another object.
    pub reason: Option<String>,
    /// What happened and the remedy, or what it waits for.
    pub message: String,
    pub since: Option<f64>,
    pub tries: u32,
    pub next_try: Option<f64>,
}

/// Real servers that get no new connections and keep their old ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DrainReport {
    pub count: usize,
    /// `kubeIPVS.drainDeadline`; null: until the last connection ends.
    pub deadline: Option<u64>,
    /// At most 100, the longest first.
    pub real_servers: Vec<Draining>,
}

/// A draining real server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Draining {
    pub virtual_server: String,
    pub real_server: String,
    /// `NAMESPACE/NAME`.
    pub service: Option<String>,
    /// How long the agent has seen it drain.
    pub since: f64,
}

/// What a status needs besides the state of the loop.
#[derive(Clone, Debug)]
pub struct StatusInput {
    pub is_ready: bool,
    pub readiness: String,
    /// Why the agent cannot use the kernel.
    pub kernel_problem: Option<String>,
    pub is_eligible: bool,
    pub lag: LoopLag,
    pub setup: Setup,
    pub waiting_for: Vec<Kind>,
    pub watches: Vec<WatchReport>,
    pub kubernetes: Option<String>,
    pub malformed: [u64; Kind::ALL.len()],
    /// Virtual servers and real servers in the kernel.
    pub servers: PerFamily<[usize; 2]>,
    pub uptime: Duration,
}

impl Status {
    /// Builds the status in the loop.
    pub fn build(state: &LoopState<'_>, input: StatusInput) -> Self {
        let not_programmed = unprogrammed(state);
        let problems = problems(state, &input, &not_programmed);
        let waiting = input.lag.waiting;
        let malformed = Kind::ALL.into_iter().zip(input.malformed).filter(|(_, count)| *count > 0);
        let drift = state.history.drift(state.now);
        Self {
            schema_version: SCHEMA_VERSION,
            ready: input.is_ready,
            degraded: !problems.is_empty(),
            problems,
            node: input.setup.node,
            versions: Versions {
                agent: input.setup.version,
                kubernetes: input.kubernetes,
                ..Versions::default()
            },
            rules_mode: input.setup.rules.to_string(),
            source: input.setup.source,
            uptime: input.uptime.as_secs(),
            services: state.desired.service_count(),
            families: state
                .observed
                .map(|observed| families(state, observed, &input.servers))
                .unwrap_or_default(),
            last_sync: state.history.sync.map(|ended| report(&ended, state.now)),
            last_audit: state.history.audit.map(|ended| report(&ended, state.now)),
            oldest_pending_change: (!waiting.is_zero()).then_some(waiting.as_secs_f64()),
            not_programmed,
            drains: drains(state),
            drift: drift.into_iter().map(|(kind, count)| (kind.label().to_owned(), count)).collect(),
            watches: input.watches,
            malformed: malformed.map(|(kind, count)| (kind.to_string(), count)).collect(),
        }
    }

    /// The code of `kube-ipvs status`: 0 well, 1 not ready or degraded.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.ready || self.degraded)
    }
}

fn problems(state: &LoopState<'_>, input: &StatusInput, not_programmed: &NotProgrammed) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(why) = &input.kernel_problem {
        problems.push(format!("Services are not served on this node: {why}"));
    }
    if !input.waiting_for.is_empty() {
        let kinds: Vec<String> = input.waiting_for.iter().map(ToString::to_string).collect();
        problems.push(format!(
            "the first list of {} is not complete: nothing is programmed yet",
            kinds.join(", ")
        ));
    } else if !state.is_whole {
        problems.push("the first sync has not ended".to_owned());
    }
    let failed = input.readiness.lines().filter_map(|line| line.strip_prefix("[-]"));
    problems.extend(failed.filter(|_| state.is_whole).map(|line| format!("/readyz: {line}")));
    if state.is_whole && !input.is_eligible {
        problems.push(
            "/healthz answers 503: the Node does not exist or is being removed, so load balancers send no traffic to \
             this node"
                .to_owned(),
        );
    }
    if !input.lag.waiting.is_zero() && input.lag.waiting > Duration::from_secs(5) {
        let age = crate::words::time(input.lag.waiting);
        problems.push(format!("a change has waited for {age}: the sync loop does not follow"));
    }
    if not_programmed.count > 0 {
        problems.push(format!("{} not programmed", crate::words::count(not_programmed.count, "object")));
    }
    let failing = input.watches.iter().filter(|watch| watch.state == "failing");
    problems.extend(
        failing.map(|watch| {
            format!("the API server does not answer for {}: changes are not followed", watch.kind)
        }),
    );
    problems
}

fn families(
    state: &LoopState<'_>,
    observed: &Observed,
    servers: &PerFamily<[usize; 2]>,
) -> Vec<FamilyCounts> {
    let mut addresses = PerFamily::<usize>::default();
    observed.addresses.iter().for_each(|net| addresses[Family::of(net.addr())] += 1);
    let count = |family: &Family| FamilyCounts {
        family: family.to_string(),
        virtual_servers: servers[family][0],
        real_servers: servers[family][1],
        addresses: addresses[family],
        routes: observed.node.routes.iter().filter(|net| Family::of(net.addr()) == *family).count(),
        set_entries: SetId::all(*family)
            .filter_map(|set| observed.sets.get(&set))
            .map(|set| set.members.len())
            .sum(),
    };
    state.settings.families.iter().map(count).collect()
}

fn report(ended: &EndedSync, now: Duration) -> SyncReport {
    SyncReport {
        reason: <&str>::from(ended.due).to_owned(),
        ago: seconds(now.saturating_sub(ended.at)),
        milliseconds: (ended.took.as_secs_f64() * 1e6).round() / 1e3,
        operations: ended.ops,
        failed: ended.failed,
    }
}

fn unprogrammed(state: &LoopState<'_>) -> NotProgrammed {
    let retries = state.retries;
    let count = retries.failing().count() + retries.blocked().count();
    let failing = retries.failing().take(LISTED).map(|(subject, failing)| {
        let unprogrammed = Unprogrammed {
            object: subject.to_string(),
            service: None,
            reason: Some(failing.error.cause.label().to_owned()),
            message: failing.error.to_string(),
            since: Some(seconds(state.now.saturating_sub(failing.since))),
            tries: failing.tries,
            next_try: Some(seconds(failing.pause(state.now))),
        };
        (*subject, unprogrammed)
    });
    let blocked = retries.blocked().map(|(subject, cause)| {
        let unprogrammed = Unprogrammed {
            object: subject.to_string(),
            service: None,
            reason: None,
            message: format!("waits for {cause}"),
            since: None,
            tries: 0,
            next_try: None,
        };
        (*subject, unprogrammed)
    });
    let mut listed: Vec<(Subject, Unprogrammed)> = failing.chain(blocked).take(LISTED).collect();
    let subjects: BTreeSet<Subject> = listed.iter().map(|(subject, _)| *subject).collect();
    let services: BTreeMap<_, _> = services_of(state.desired, &subjects).into_iter().collect();
    for (subject, unprogrammed) in &mut listed {
        unprogrammed.service = services.get(subject).map(ToString::to_string);
    }
    NotProgrammed { count, objects: listed.into_iter().map(|(_, unprogrammed)| unprogrammed).collect() }
}

fn drains(state: &LoopState<'_>) -> DrainReport {
    let mut since: Vec<_> = state.drains.iter().collect();
    since.sort_by_key(|(key, since)| (*since, *key));
    let draining = |((vs, rs), since): ((_, _), Duration)| Draining {
        service: state.desired.virtual_server(&vs).map(|wanted| wanted.service.to_string()),
        virtual_server: vs.to_string(),
        real_server: crate::core::model::RsKey::to_string(&rs),
        since: seconds(state.now.saturating_sub(since)),
    };
    DrainReport {
        count: since.len(),
        deadline: state.settings.drain_deadline.map(|deadline| deadline.as_secs()),
        real_servers: since.into_iter().take(LISTED).map(draining).collect(),
    }
}

/// Seconds, rounded to milliseconds.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}
