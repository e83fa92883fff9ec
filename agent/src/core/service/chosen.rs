// SPDX-License-Identifier: Apache-2.0
//! The settings of one Service: what its annotations choose, else `kubeIPVS.serviceDefaults`, and else the rest of the
//! configuration.

use std::sync::Arc;

use super::fragment::Notice;
use super::node_facts::NodeFacts;
use crate::core::model::options::{self, Scheduler, ServiceOptions};
use crate::core::model::settings::Settings;
use crate::core::model::{PERSISTENT, Service, VsSpec};

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

/// Scheduler, flags and persistence of all virtual servers of a Service with these [`options`].
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
