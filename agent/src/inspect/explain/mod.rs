// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs explain`: what a packet to an address meets on this node, and why. The answer follows from the wanted state
//! and from the kernel state as the agent knows it: our rules are walked as they are in the kernel.

mod address_report;
mod endpoint_report;
pub mod explain_text;
mod path;
mod search;
mod verdict;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::search::{FoundServices, find};
use self::{address_report::AddressReport, endpoint_report::EndpointReport, path::PathReport};
use super::filter::QueryTarget;
use crate::core::loop_state::LoopState;
use crate::core::model::options::ServiceOptions;
use crate::core::model::{Family, Service, VsKey};
use crate::core::plan::subject::Subject;
use crate::core::service::chosen as options;
use crate::core::service::endpoints::{self, Role};
use crate::core::service::fragment::{Notice, VirtualServer, build_fragment};
use crate::notices::refusal;
use crate::store::Dirty;
use crate::words;

/// The version of the JSON: a field that is removed or means something else gets the next one.
pub const SCHEMA_VERSION: u32 = 1;
/// Endpoints of one frontend that are listed.
const LISTED: usize = 200;
/// Frontends that are listed.
const FRONTENDS: usize = 100;

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainRequest {
    pub target: String,
    /// `pod`, `node`, `outside`, or an address; `None`: the first three.
    pub from: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub schema_version: u32,
    pub target: String,
    /// What the target is, a sentence each.
    pub summary: Vec<String>,
    pub frontends: Vec<Frontend>,
    /// Frontends that are not listed.
    pub more_frontends: usize,
}

/// An address, protocol and port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub address: String,
    pub port: u16,
    /// `ClusterIP`, `external IP`, `load-balancer IP` or `node port`; null: no Service has it.
    pub kind: Option<String>,
    /// `NAMESPACE/NAME[:PORT]` that the target names.
    pub claimant: Option<String>,
    /// The one that serves here: another one if the claimant lost a conflict.
    pub service: Option<String>,
    /// Services that claim the same address and port, and lose: the oldest Service wins, then the first name.
    pub losers: Vec<String>,
    /// `Cluster` or `Local`: the traffic policy that applies.
    pub policy: Option<String>,
    pub local_address: AddressReport,
    /// Scheduler of the virtual server in the kernel; null: the kernel has none.
    pub scheduler: Option<String>,
    /// Seconds for which a client keeps its real server.
    pub affinity: Option<u32>,
    /// What annotations of the Service choose, a phrase each.
    pub chosen: Vec<String>,
    /// What the configuration chooses for the Service, a phrase each with the entry of `kubeIPVS.serviceDefaults`.
    pub defaults: Vec<String>,
    pub endpoints: Vec<EndpointReport>,
    pub more_endpoints: usize,
    pub paths: Vec<PathReport>,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// Commands that show the kernel's own evidence.
    pub checks: Vec<String>,
}

/// Answers a request. The Services of `found` are those that the target names.
pub fn explain(state: &LoopState<'_>, found: &FoundServices, request: &ExplainRequest) -> Explanation {
    let mut frontends = Vec::new();
    for dirty in &found.services {
        frontends.extend(of_service(state, dirty, found, request));
    }
    if let (true, QueryTarget::Vip(addr, Some(port))) = (frontends.is_empty(), &found.target) {
        frontends.push(unclaimed(state, *addr, *port, request));
    }
    let more_frontends = frontends.len().saturating_sub(FRONTENDS);
    frontends.truncate(FRONTENDS);
    Explanation {
        schema_version: SCHEMA_VERSION,
        target: request.target.clone(),
        summary: summary(state, found, &frontends),
        frontends,
        more_frontends,
    }
}

/// The frontends of a Service that the target names.
fn of_service(
    state: &LoopState<'_>,
    dirty: &Dirty,
    found: &FoundServices,
    request: &ExplainRequest,
) -> Vec<Frontend> {
    let Some(service) = &dirty.service else { return Vec::new() };
    let slices = dirty.slices.iter().map(|slice| &**slice);
    let fragment = build_fragment(service, slices.clone(), &dirty.of_endpoints, state.node, state.settings);
    let mut frontends = Vec::new();
    for server in fragment.virtual_servers.iter().filter(|server| found.has(server)) {
        let port = service.ports.iter().find(|port| {
            port.name == server.port_name
                && port.protocol == server.key.protocol
                && [port.port, port.node_port].contains(&server.key.port)
        });
        let Some(port) = port else { continue };
        let family = server.key.family();
        let all = endpoints::build_endpoints(port, family, slices.clone(), &state.node.name);
        let kind = search::kind_of(service, server, state.node);
        let wants_local =
            if kind == search::CLUSTER_IP { service.internal_local } else { service.external_local };
        let is_local = wants_local
            && (all.iter().any(|e| e.local && server.real_servers.contains(&e.target))
                || server.real_servers.is_empty());
        let roles = endpoints::roles(&all, server.real_servers.keys(), is_local, state.node);
        let mut frontend = frontend(state, server.key, Some(server), request, &all);
        frontend.kind = Some(kind.to_owned());
        frontend.claimant = Some(server.owner());
        (frontend.chosen, frontend.defaults) = origins(service, state);
        if frontend.service != frontend.claimant {
            // What the kernel has here belongs to the winner.
            frontends.push(frontend);
            continue;
        }
        frontend.policy = Some(if wants_local { "Local" } else { "Cluster" }.to_owned());
        let oddity = verdict::Oddity { kind, wants_local, is_local, has_others: service.has_other_vips() };
        frontend.paths.iter_mut().for_each(|path| path.add_oddity(&oddity));
        let reports = all.iter().zip(&roles).filter(|(endpoint, _)| found.has_endpoint(endpoint.target.addr));
        let mut reports: Vec<EndpointReport> = reports
            .map(|(endpoint, role)| EndpointReport::build(state, server.key, endpoint, *role))
            .collect();
        reports.extend(EndpointReport::left_over(state, server.key, &all));
        if !all.is_empty() && !roles.iter().any(|role| Role::serves(*role)) {
            frontend.problems.push("no endpoint serves: see the reasons below".to_owned());
        } else if all.is_empty() {
            frontend
                .problems
                .push("the Service has no endpoint in this family: check its selector".to_owned());
        }
        frontend.more_endpoints = reports.len().saturating_sub(LISTED);
        reports.truncate(LISTED);
        frontend.endpoints = reports;
        frontend.problems.extend(fragment.notices.iter().filter_map(|notice| about(notice, server.key.addr)));
        frontends.push(frontend);
    }
    frontends
}

/// An address and port that no Service has.
fn unclaimed(state: &LoopState<'_>, addr: IpAddr, port: u16, request: &ExplainRequest) -> Frontend {
    let key = VsKey { protocol: crate::core::model::Protocol::Tcp, addr, port };
    frontend(state, key, None, request, &[])
}

fn frontend(
    state: &LoopState<'_>,
    key: VsKey,
    server: Option<&VirtualServer>,
    request: &ExplainRequest,
    all: &[endpoints::PortEndpoint<'_>],
) -> Frontend {
    let observed = state.observed.and_then(|observed| observed.virtual_servers.get(&key));
    let winner = state.desired.virtual_server(&key);
    let mut problems = Vec::new();
    if let (Some(winner), Some(server)) = (winner, server)
        && winner.service != server.service
    {
        problems.push(format!(
            "Service {} is older and has this address and port: {} is not served here; give one of them another \
             address or port",
            winner.service, server.service
        ));
    }
    let failing = state.retries.failing().filter(|(subject, _)| concerns(subject, key));
    problems.extend(failing.map(|(subject, failing)| format!("cannot program {subject}: {}", failing.error)));
    if server.is_some() && observed.is_none() && state.observed.is_some() {
        problems.push("the kernel has no virtual server here yet".to_owned());
    }
    let losers = state.desired.losers(&key).map(|loser| loser.owner()).collect();
    Frontend {
        protocol: key.protocol.to_string(),
        address: key.addr.to_string(),
        port: key.port,
        service: winner.map(|winner| winner.owner()),
        losers,
        local_address: AddressReport::build(state, key.addr),
        scheduler: observed.map(|server| server.spec.scheduler.to_string()),
        affinity: server.filter(|server| server.spec.timeout > 0).map(|server| server.spec.timeout),
        paths: path::paths(state, key, request.from.as_deref(), all),
        problems,
        checks: checks(state, key),
        ..Frontend::default()
    }
}

/// Whether a failure of the subject concerns the virtual server.
fn concerns(subject: &Subject, key: VsKey) -> bool {
    match subject {
        Subject::VirtualServer(vs) => *vs == key,
        Subject::Address(addr) => *addr == key.addr,
        Subject::Rules(family) => *family == key.family(),
        Subject::Device => true,
        Subject::Set(set) | Subject::Entry(set, _) => {
            set.family == key.family() && subject.to_string().contains(&key.addr.to_string())
        }
        // Those of real servers stand with their endpoints.
        _ => false,
    }
}

/// What annotations choose, and what the entries of `kubeIPVS.serviceDefaults`.
fn origins(service: &Service, state: &LoopState<'_>) -> (Vec<String>, Vec<String>) {
    let missing = &state.node.missing_schedulers;
    let (mut annotated, mut defaults) = (Vec::new(), Vec::new());
    let mut merged = ServiceOptions::default();
    for (entry, layer) in options::layers(service, state.settings) {
        let before = chosen(&merged, missing);
        merged = merged.or(layer);
        let new = chosen(&merged, missing).into_iter().filter(|phrase| !before.contains(phrase));
        match entry {
            None => annotated.extend(new),
            Some(index) => {
                defaults.extend(new.map(|phrase| format!("{phrase} by kubeIPVS.serviceDefaults[{index}]")));
            }
        }
    }
    (annotated, defaults)
}

/// What options choose.
fn chosen(options: &ServiceOptions, missing: &BTreeSet<Arc<str>>) -> Vec<String> {
    let scheduler = options.scheduler.as_ref().map(|scheduler| {
        let flags =
            if scheduler.flags == 0 { String::new() } else { format!(" with flags {:#x}", scheduler.flags) };
        let lacks = if missing.contains(&scheduler.name) { ", which the kernel does not have" } else { "" };
        format!("scheduler {}{flags}{lacks}", scheduler.name)
    });
    let drain = options.drain_deadline.map(|deadline| match deadline.is_zero() {
        true => "drains without a deadline".to_owned(),
        false => format!("drains end after {}", words::time(deadline)),
    });
    let hairpin = options.hairpin.map(|on| format!("hairpin {}", if on { "on" } else { "off" }));
    let slow_start = options.slow_start.map(|time| format!("slow start over {}", words::time(time)));
    let limits = options.max_connections.map(|limits| match limits.lower {
        0 => format!("at most {} connections to an endpoint", limits.upper),
        lower => format!("at most {} connections to an endpoint, and again below {lower}", limits.upper),
    });
    let direct = options.direct_return.map(|how| format!("direct return by {how}"));
    let probe = options.probe.map(|probe| format!("TCP checks every {}", words::time(probe.interval)));
    [scheduler, drain, hairpin, slow_start, limits, direct, probe].into_iter().flatten().collect()
}

fn about(notice: &Notice, addr: IpAddr) -> Option<String> {
    match notice {
        Notice::AnnotationIgnored(why) | Notice::SettingIgnored { why, .. } => Some(why.to_string()),
        Notice::SchedulerMissing(scheduler) | Notice::DefaultSchedulerMissing(scheduler) => Some(format!(
            "the kernel has no scheduler {scheduler}: that of ipvs.scheduler, or its weighted form, is used"
        )),
        Notice::RefusesClients { scheduler, flags, settings, is_own } => {
            Some(refusal(scheduler, *flags, settings, *is_own))
        }
        Notice::ApiServerPort(key) if key.addr == addr => {
            Some(format!("{key} is the address of the API server for this node: it gets no virtual server"))
        }
        _ => None,
    }
}

/// Commands that show what the kernel has.
fn checks(state: &LoopState<'_>, key: VsKey) -> Vec<String> {
    let server = std::net::SocketAddr::new(key.addr, key.port);
    let mut checks = vec![
        format!("kube-ipvs list {server}"),
        format!("ip route get {}", key.addr),
        format!("conntrack -L -p {} -d {}", key.protocol.lower(), key.addr),
    ];
    let (ipt, nft) = match key.family() {
        Family::V4 => ("iptables", "ip"),
        Family::V6 => ("ip6tables", "ip6"),
    };
    checks.push(match state.settings.rules {
        crate::core::model::settings::RulesMode::Iptables => format!("{ipt}-save | grep KUBE-"),
        crate::core::model::settings::RulesMode::Nftables => format!("nft list table {nft} kube-ipvs"),
    });
    checks
}

fn summary(state: &LoopState<'_>, found: &FoundServices, frontends: &[Frontend]) -> Vec<String> {
    let mut lines = Vec::new();
    if !state.is_whole {
        lines.push("the first sync has not ended: what follows may change".to_owned());
    }
    match &found.target {
        QueryTarget::Vip(addr, None) if frontends.is_empty() => {
            let address = AddressReport::build(state, *addr);
            lines
                .push(format!("no Service has the address {addr}, and no endpoint either; {}", address.text));
        }
        QueryTarget::Vip(addr, Some(port)) if frontends.iter().all(|frontend| frontend.service.is_none()) => {
            lines.push(format!("no Service has {}", std::net::SocketAddr::new(*addr, *port)));
        }
        QueryTarget::Vip(addr, None) if found.is_pod => {
            lines.push(format!("{addr} is an endpoint of {}", names(found)));
        }
        QueryTarget::Service { .. } if frontends.is_empty() => {
            lines.push(format!(
                "{} has nothing to program on this node: it has no ClusterIP of a family of this node, or no port of \
                 that name",
                names(found)
            ));
        }
        _ => {}
    }
    lines
}

fn names(found: &FoundServices) -> String {
    let names: Vec<String> = found.services.iter().map(|dirty| format!("Service {}", dirty.name)).collect();
    names.join(", ")
}
