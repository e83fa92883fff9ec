// SPDX-License-Identifier: Apache-2.0
//! The settings of one Service: what its annotations choose, and else the configuration.

use std::sync::Arc;

use super::endpoints::Selection;
use super::fragment::Notice;
use super::node_facts::NodeFacts;
use super::slow_start;
use crate::core::model::options::{self, DirectReturn, Scheduler, ServiceOptions};
use crate::core::model::real_servers::{RsState, WantedServers};
use crate::core::model::settings::Settings;
use crate::core::model::{Family, PERSISTENT, RsKey, Service, VsKey, VsSpec};

/// The scheduler that the annotations choose, if the kernel has it.
fn scheduler<'a>(service: &'a Service, node: &NodeFacts) -> Option<&'a Scheduler> {
    let scheduler = service.options.as_ref()?.scheduler.as_ref()?;
    (!node.missing_schedulers.contains(&scheduler.name)).then_some(scheduler)
}

/// Scheduler, flags and persistence of all virtual servers of a Service.
pub fn spec(service: &Service, node: &NodeFacts, settings: &Settings) -> VsSpec {
    let (scheduler, flags) = match scheduler(service, node) {
        // The same text as of the other virtual servers, if it is the same scheduler.
        Some(chosen) if chosen.name == settings.scheduler => (settings.scheduler.clone(), chosen.flags),
        Some(chosen) => (chosen.name.clone(), chosen.flags),
        None => (settings.scheduler.clone(), options::usual_flags(&settings.scheduler)),
    };
    let persistent = if service.affinity.is_some() { PERSISTENT } else { 0 };
    VsSpec { scheduler, flags: persistent | flags, timeout: service.affinity.unwrap_or(0) }
}

/// The spec for these real servers: a configured scheduler that ignores weights gives way to one that heeds them, if they
/// differ.
pub fn weighted_spec(
    spec: &VsSpec,
    real_servers: &WantedServers,
    service: &Service,
    node: &NodeFacts,
) -> Result<VsSpec, Notice> {
    let is_chosen = service.options.as_ref().is_some_and(|options| options.scheduler.is_some());
    let weighted =
        options::weighted(&spec.scheduler).filter(|_| !is_chosen && heeds_weights(service, real_servers));
    match weighted {
        Some(name) if node.missing_schedulers.contains(name) => Err(Notice::SchedulerMissing(name.into())),
        Some(name) => Ok(VsSpec { scheduler: name.into(), ..*spec }),
        None => Ok(spec.clone()),
    }
}

/// Whether the weights of the real servers differ, or will. Weight 0 needs no scheduler.
fn heeds_weights(service: &Service, real_servers: &WantedServers) -> bool {
    let WantedServers::Other(_) = real_servers else { return false };
    let mut weights = real_servers.iter().map(|(_, state)| state.weight).filter(|weight| *weight > 0);
    let first = weights.next();
    slow_start_of(service).is_some() || weights.any(|weight| Some(weight) != first)
}

fn slow_start_of(service: &Service) -> Option<std::time::Duration> {
    service.options.as_ref()?.slow_start
}

/// Whether the traffic of a pod of the Service to itself is masqueraded.
pub fn is_hairpin(service: &Service) -> bool {
    service.options.as_ref().and_then(|options| options.hairpin).unwrap_or(true)
}

/// The selected endpoints with the limits and the scale of weights that annotations choose.
pub fn selection(service: &Service, selected: Selection) -> Selection {
    let Some(options) = service.options.as_deref() else { return selected };
    if options.max_connections.is_none() && options.slow_start.is_none() {
        return selected;
    }
    let scale = if options.slow_start.is_some() { slow_start::FULL } else { 1 };
    let state = |_: &RsKey, state: RsState| RsState {
        weight: state.weight * scale,
        limits: options.max_connections.unwrap_or_default(),
        ..state
    };
    Selection { cluster: selected.cluster.map(state), local: selected.local.map(state) }
}

/// The real servers of an external or load-balancer IP: those that annotations let answer the client directly. `are_local`:
/// they run on this node.
///
/// # Errors
/// Why they cannot, and the client is answered through this node.
pub fn direct_return(
    service: &Service,
    key: VsKey,
    real_servers: &WantedServers,
    are_local: bool,
    node: &NodeFacts,
) -> Result<Option<WantedServers>, Notice> {
    let Some(how) = service.options.as_ref().and_then(|options| options.direct_return) else {
        return Ok(None);
    };
    if let Some(other) = real_servers.keys().iter().find(|rs| rs.port != key.port) {
        return Err(ignored(format!(
            "the endpoint {other} has another port than {key}, and its packets keep their port: set targetPort to {}",
            key.port
        )));
    }
    if how == DirectReturn::Route && !service.external_local {
        let why = "packets reach endpoints of other nodes only in a tunnel: set externalTrafficPolicy: Local, or tunnel";
        return Err(ignored(why.to_owned()));
    }
    if key.family() == Family::V4 && !node.accepts_local_sources {
        return Err(ignored(format!(
            "this node would drop the answers of its pods, because the sysctl net.ipv4.conf.all.accept_local is 0: set it to 1 on \
             all nodes"
        )));
    }
    // Those of other nodes stand in while this node has none.
    let is_possible = how == DirectReturn::Tunnel || are_local;
    Ok(is_possible.then(|| real_servers.map(|_, state| RsState { forward: how.forward(), ..state })))
}

fn ignored(why: String) -> Notice {
    Notice::AnnotationIgnored(Arc::from(format!("annotation kube-ipvs.io/direct-return: {why}")))
}

/// What of the annotations has no effect.
pub fn notices(service: &Service, node: &NodeFacts) -> Vec<Notice> {
    let Some(chosen) = service.options.as_deref() else { return Vec::new() };
    let ServiceOptions { wrong, scheduler, .. } = chosen;
    let mut notices: Vec<Notice> = wrong.iter().cloned().map(Notice::AnnotationIgnored).collect();
    let missing = scheduler.iter().filter(|scheduler| node.missing_schedulers.contains(&scheduler.name));
    notices.extend(missing.map(|scheduler| Notice::SchedulerMissing(scheduler.name.clone())));
    notices
}
