// SPDX-License-Identifier: Apache-2.0
//! The settings of one Service: what its annotations choose, and else the configuration.

use super::fragment::Notice;
use super::node_facts::NodeFacts;
use crate::core::model::options::{self, Scheduler, ServiceOptions};
use crate::core::model::settings::Settings;
use crate::core::model::{PERSISTENT, Service, VsSpec};

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

/// Whether the traffic of a pod of the Service to itself is masqueraded.
pub fn is_hairpin(service: &Service) -> bool {
    service.options.as_ref().and_then(|options| options.hairpin).unwrap_or(true)
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
