// SPDX-License-Identifier: Apache-2.0
//! The settings of one Service: what its annotations choose, else `kubeIPVS.serviceDefaults`, and else the rest of the
//! configuration.

use std::sync::Arc;

use super::endpoints::Selection;
use super::fragment::Notice;
use super::node_facts::NodeFacts;
use super::slow_start;
use crate::core::model::options::{self, DirectReturn, Scheduler, ServiceOptions};
use crate::core::model::real_servers::{RsState, WantedServers};
use crate::core::model::settings::Settings;
use crate::core::model::{EndpointSlice, Family, PERSISTENT, Protocol, RsKey, Service, VsKey, VsSpec};

/// What annotations and defaults choose together. Services of one default share its options.
pub fn options(service: &Service, settings: &Settings) -> Option<Arc<ServiceOptions>> {
    layers(service, settings).fold(None, |chosen, (_, layer)| {
        let Some(chosen) = chosen else { return Some(layer.clone()) };
        let both = chosen.or(layer);
        Some(if both == *chosen { chosen } else { Arc::new(both) })
    })
}

/// What chooses settings of the Service, the first one first: its annotations (`None`), and the entries of
/// `kubeIPVS.serviceDefaults` that select it, with their index.
pub fn layers<'a>(
    service: &'a Service,
    settings: &'a Settings,
) -> impl Iterator<Item = (Option<usize>, &'a Arc<ServiceOptions>)> {
    let own = service.own_options.iter().map(|options| (None, options));
    let defaults = settings.service_defaults.iter().enumerate();
    let selecting = defaults.filter(|(_, default)| default.selects(service));
    own.chain(selecting.map(|(index, default)| (Some(index), &default.options)))
}

/// The scheduler that is chosen, if the kernel has it.
fn scheduler<'a>(options: Option<&'a ServiceOptions>, node: &NodeFacts) -> Option<&'a Scheduler> {
    let scheduler = options?.scheduler.as_ref()?;
    (!node.missing_schedulers.contains(&scheduler.name)).then_some(scheduler)
}

/// Scheduler, flags and persistence of all virtual servers of a Service with these [`options()`].
pub fn spec(
    service: &Service,
    options: Option<&ServiceOptions>,
    node: &NodeFacts,
    settings: &Settings,
) -> VsSpec {
    let (scheduler, flags) = match scheduler(options, node) {
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
///
/// # Errors
/// The kernel lacks that scheduler.
pub fn weighted_spec(
    spec: &VsSpec,
    real_servers: &WantedServers,
    options: Option<&ServiceOptions>,
    node: &NodeFacts,
) -> Result<VsSpec, Notice> {
    let is_chosen = scheduler(options, node).is_some();
    let grows = options.is_some_and(|options| options.slow_start.is_some());
    let weighted =
        options::weighted(&spec.scheduler).filter(|_| !is_chosen && have_weights(real_servers, grows));
    match weighted {
        Some(name) if node.missing_schedulers.contains(name) => {
            Err(Notice::DefaultSchedulerMissing(name.into()))
        }
        Some(name) => Ok(VsSpec { scheduler: name.into(), ..*spec }),
        None => Ok(spec.clone()),
    }
}

/// What is wrong with the weights of a slice.
pub fn wrong_weights(slice: &EndpointSlice) -> Option<Notice> {
    let why = slice.wrong_weights.as_ref()?;
    let why = format!("EndpointSlice {}: annotation {why}; this part of it has no effect", slice.name);
    Some(Notice::SettingIgnored { why: why.into(), is_own: true })
}

/// Weights that differ, and a slow start, have no effect with a scheduler that ignores them.
pub fn ignored_weights(
    spec: &VsSpec,
    real_servers: &WantedServers,
    service: &Service,
    options: Option<&ServiceOptions>,
    node: &NodeFacts,
) -> Option<Notice> {
    let better = match &*spec.scheduler {
        // `ip_vs_dh.c` reads no weight but 0.
        "dh" => "sh or mh",
        // In place of a configured one, `weighted_spec` chooses the better one.
        name => options::weighted(name).filter(|_| scheduler(options, node).is_some())?,
    };
    let differ = have_weights(real_servers, false);
    let grow = options.is_some_and(|options| options.slow_start.is_some());
    let is_chosen = |own: &ServiceOptions| scheduler(Some(own), node).is_some() || own.slow_start.is_some();
    let is_own = differ || service.own_options.as_deref().is_some_and(is_chosen);
    (differ || grow).then(|| {
        let why = format!(
            "the scheduler {} takes no account of weights and slow start, only weight 0 has an effect; choose {better}",
            spec.scheduler
        );
        Notice::SettingIgnored { why: why.into(), is_own }
    })
}

/// Whether the weights of the real servers differ, or will. Weight 0 needs no scheduler.
fn have_weights(real_servers: &WantedServers, grow: bool) -> bool {
    if grow {
        return true;
    }
    let WantedServers::Other(_) = real_servers else { return false };
    let mut weights = real_servers.iter().map(|(_, state)| state.weight).filter(|weight| *weight > 0);
    let first = weights.next();
    weights.any(|weight| Some(weight) != first)
}

/// The settings that make the scheduler refuse clients, if any: it chooses by a hash and looks for no other real server if
/// the chosen one is full or has weight 0 (`schedule` of `ip_vs_dh.c`, `ip_vs_sh.c`, `ip_vs_mh.c`).
pub fn refused_clients(
    spec: &VsSpec,
    real_servers: &WantedServers,
    protocol: Protocol,
    service: &Service,
    options: Option<&ServiceOptions>,
    node: &NodeFacts,
) -> Option<Notice> {
    let looks_for_another = match &*spec.scheduler {
        "dh" => false,
        "sh" | "mh" => spec.flags & options::SCHED_FALLBACK != 0,
        _ => true,
    };
    if looks_for_another {
        return None;
    }
    let is_probed = protocol == Protocol::Tcp && options.is_some_and(|options| options.probe.is_some());
    let are_closed = real_servers.iter().any(|(_, state)| state.weight == 0);
    let settings = [
        ("max-connections", options.is_some_and(|options| options.max_connections.is_some())),
        ("probe", is_probed),
        ("weight 0", are_closed),
    ];
    let settings: Vec<&str> = settings.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| *name).collect();
    let is_chosen = |own: &ServiceOptions| {
        scheduler(Some(own), node).is_some()
            || own.max_connections.is_some()
            || (is_probed && own.probe.is_some())
    };
    (!settings.is_empty()).then(|| Notice::RefusesClients {
        scheduler: spec.scheduler.clone(),
        flags: spec.flags & options::SCHED_FLAGS,
        settings: settings.join(" and ").into(),
        is_own: are_closed || service.own_options.as_deref().is_some_and(is_chosen),
    })
}

/// The selected endpoints with the limits and the scale of weights of these options.
pub fn selection(options: Option<&ServiceOptions>, selected: Selection) -> Selection {
    let Some(options) = options else { return selected };
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

/// The real servers of an external or load-balancer IP, if the options let them answer clients directly. `local`: the
/// external policy is Local (first), and they run on this node (second).
///
/// # Errors
/// Why they cannot, and the client is answered through this node.
pub fn direct_return(
    options: Option<&ServiceOptions>,
    service: &Service,
    key: VsKey,
    real_servers: &WantedServers,
    (is_policy_local, are_local): (bool, bool),
    node: &NodeFacts,
) -> Result<Option<WantedServers>, Notice> {
    let Some(how) = options.and_then(|options| options.direct_return) else { return Ok(None) };
    // Without addresses and ports: endpoints come and go, and the Event about a default is one for all Services.
    let why = if real_servers.keys().iter().any(|rs| rs.port != key.port) {
        "endpoints have another port than the Service, and packets keep their port: set targetPort to the port of the \
         Service"
    } else if how == DirectReturn::Route && !is_policy_local {
        "packets reach endpoints of other nodes only in a tunnel: set externalTrafficPolicy: Local, or tunnel"
    } else if key.family() == Family::V4 && !node.accepts_local_sources {
        "this node would drop the answers of its pods, because the sysctl net.ipv4.conf.all.accept_local is 0: set it to 1 \
         on all nodes"
    } else {
        // Those of other nodes stand in while this node has none.
        let is_possible = how == DirectReturn::Tunnel || are_local;
        let forward = how.forward();
        return Ok(is_possible.then(|| real_servers.map(|_, state| RsState { forward, ..state })));
    };
    let is_own = service.own_options.as_ref().is_some_and(|own| own.direct_return.is_some());
    Err(match is_own {
        true => Notice::AnnotationIgnored(format!("kube-ipvs.io/direct-return: {why}").into()),
        false => Notice::SettingIgnored { why: format!("directReturn: {why}").into(), is_own },
    })
}

/// Whether the traffic of a pod of the Service to itself is masqueraded.
pub fn is_hairpin(options: Option<&ServiceOptions>) -> bool {
    options.and_then(|options| options.hairpin).unwrap_or(true)
}

/// What of the options has no effect.
pub fn notices(service: &Service, options: Option<&ServiceOptions>, node: &NodeFacts) -> Vec<Notice> {
    let Some(ServiceOptions { wrong, scheduler, .. }) = options else { return Vec::new() };
    let mut notices: Vec<Notice> = wrong.iter().cloned().map(Notice::AnnotationIgnored).collect();
    let missing = scheduler.iter().filter(|scheduler| node.missing_schedulers.contains(&scheduler.name));
    let is_own = service.own_options.as_ref().is_some_and(|own| own.scheduler.is_some());
    let notice = if is_own { Notice::SchedulerMissing } else { Notice::DefaultSchedulerMissing };
    notices.extend(missing.map(|scheduler| notice(scheduler.name.clone())));
    notices
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::model::service_defaults::{Namespaces, ServiceDefault};

    fn default(options: ServiceOptions) -> ServiceDefault {
        ServiceDefault { namespaces: Namespaces::All, requirements: Vec::new(), options: Arc::new(options) }
    }

    fn with_scheduler(name: &str, flags: u32) -> ServiceOptions {
        ServiceOptions {
            scheduler: Some(Scheduler { name: name.into(), flags }),
            ..ServiceOptions::default()
        }
    }

    fn settings(defaults: Vec<ServiceDefault>) -> Settings {
        Settings { service_defaults: defaults.into(), ..Settings::default() }
    }

    fn annotated(options: ServiceOptions) -> Service {
        Service { own_options: options.kept(), ..Service::default() }
    }

    #[test]
    fn the_first_one_that_has_a_setting_counts() {
        let deadline = |secs| Some(Duration::from_secs(secs));
        let settings = settings(vec![
            default(ServiceOptions { hairpin: Some(false), ..ServiceOptions::default() }),
            default(ServiceOptions { drain_deadline: deadline(1), ..with_scheduler("mh", 0x18) }),
            default(ServiceOptions {
                drain_deadline: deadline(2),
                hairpin: Some(true),
                ..with_scheduler("lc", 0)
            }),
        ]);
        let merged = options(&Service::default(), &settings).unwrap();
        assert_eq!((merged.hairpin, merged.drain_deadline), (Some(false), deadline(1)));
        assert_eq!(merged.scheduler, with_scheduler("mh", 0x18).scheduler);
        let own = ServiceOptions {
            hairpin: Some(true),
            wrong: vec!["a sentence".into()],
            ..with_scheduler("mh", 0x10)
        };
        let merged = options(&annotated(own.clone()), &settings).unwrap();
        assert_eq!(*merged, ServiceOptions { drain_deadline: deadline(1), ..own });
    }

    #[test]
    fn services_share_the_options_of_their_default() {
        let settings = settings(vec![default(with_scheduler("mh", 0x10)), default(with_scheduler("lc", 0))]);
        let merged = options(&Service::default(), &settings).unwrap();
        assert!(Arc::ptr_eq(&merged, &settings.service_defaults[0].options));
        let own = annotated(with_scheduler("sh", 0));
        assert!(Arc::ptr_eq(&options(&own, &settings).unwrap(), own.own_options.as_ref().unwrap()));
        assert_eq!(options(&Service::default(), &Settings::default()), None);
    }
}
