// SPDX-License-Identifier: Apache-2.0
//! Events and log lines about conflicts and VIPs.

use std::net::IpAddr;

use crate::core::model::changes::Changes;
use crate::core::model::options::SCHED_PORT;
use crate::core::model::{ObjectName, VsKey};
use crate::core::service::desired::Desired;
use crate::core::service::fragment::{self, VirtualServer};
use crate::core::service::node_facts::Binding;
use crate::events::{About, EventRequest, Reason};
use crate::words;

/// The number of VIPs named in one line.
const NAMED: usize = 3;

/// Logs VIPs that are addresses on a link of this node, in one line and without an Event: load balancers of small
/// clusters use the addresses of the nodes, which works as with kube-proxy.
pub fn log_own_addresses(desired: &Desired, changes: &Changes) {
    let own_addresses = |name| {
        desired.notices(name).iter().filter_map(move |notice| match notice {
            fragment::Notice::SpecialVip(ip, Binding::OnLink) => Some((name, *ip)),
            _ => None,
        })
    };
    let own: Vec<(&ObjectName, IpAddr)> = changes.noticed.iter().flat_map(own_addresses).collect();
    match own[..] {
        [] => {}
        [(name, ip)] => tracing::info!("{}", vip_message(name, ip, Binding::OnLink)),
        _ => tracing::info!(
            count = own.len(),
            "{} are addresses on links of this node: {}; they are served there and not bound to kube-ipvs0, and the \
             node's other ports stay reachable at them",
            words::count(own.len(), "VIP"),
            words::some(own.iter().map(|(name, ip)| format!("{ip} of Service {name}")), NAMED, own.len())
        ),
    }
}

/// The Events that these changes need.
pub fn build(desired: &Desired, changes: &Changes) -> Vec<EventRequest> {
    let mut requests = Vec::new();
    for key in &changes.contested {
        let Some(winner) = desired.virtual_server(key) else { continue };
        requests.extend(desired.losers(key).map(|loser| conflict(winner, loser)));
    }
    for name in &changes.noticed {
        requests.extend(desired.notices(name).iter().filter_map(|n| from_notice(name, n)));
    }
    requests
}

fn conflict(winner: &VirtualServer, loser: &VirtualServer) -> EventRequest {
    let key = winner.key;
    EventRequest {
        about: About::Service(loser.service.clone()),
        reason: Reason::AddressConflict,
        message: format!(
            "{key} belongs to Service {}, which is older, so Service {} is not served there; give one of them \
             another address or port",
            winner.service, loser.service
        ),
    }
}

fn from_notice(name: &ObjectName, notice: &fragment::Notice) -> Option<EventRequest> {
    let (reason, message) = match notice {
        fragment::Notice::SpecialVip(_, Binding::OnLink) => return None,
        fragment::Notice::SpecialVip(ip, binding) => {
            let is_bound = *binding == Binding::Translated;
            let reason = if is_bound { Reason::NodeAddressAsVIP } else { Reason::AddressNotBound };
            (reason, vip_message(name, *ip, *binding))
        }
        fragment::Notice::ApiServerPort(key) => (
            Reason::AddressNotBound,
            format!(
                "{key} of Service {name} is not served, because it is the address of the API server for this node; \
                 give the Service another address or port"
            ),
        ),
        fragment::Notice::AnnotationIgnored(why) => (
            Reason::AnnotationIgnored,
            format!("{why}; Service {name} is served as if the annotation were not there"),
        ),
        fragment::Notice::SettingIgnored { why, is_own: true } => {
            (Reason::AnnotationIgnored, format!("Service {name}: {why}"))
        }
        fragment::Notice::SettingIgnored { why, is_own: false } => return Some(ignored_default(why)),
        fragment::Notice::SchedulerMissing(scheduler) => (
            Reason::AnnotationIgnored,
            format!(
                "the kernel of this node has no scheduler {scheduler}: Service {name} is served with that of \
                 ipvs.scheduler, or its weighted form; load the module with `modprobe ip_vs_{scheduler}`"
            ),
        ),
        fragment::Notice::DefaultSchedulerMissing(scheduler) => return Some(no_default_scheduler(scheduler)),
        fragment::Notice::RefusesClients { scheduler, flags, settings, is_own } => {
            return Some(refused_clients(
                is_own.then_some(name),
                &refusal(scheduler, *flags, settings, *is_own),
            ));
        }
        fragment::Notice::ExternalIpRefused(ip) => (
            Reason::ExternalIPRefused,
            format!(
                "external IP {ip} of Service {name} is not served, because it is in none of the networks of \
                 kubeIPVS.externalIPs.allow in the configuration"
            ),
        ),
    };
    Some(EventRequest { about: About::Service(name.clone()), reason, message })
}

/// One Event for all Services of the default: the node has to change, not a Service.
fn no_default_scheduler(scheduler: &str) -> EventRequest {
    let message = format!(
        "the kernel of this node has no scheduler {scheduler}, which kubeIPVS.serviceDefaults or weights ask for: Services are \
         served with that of ipvs.scheduler, or its weighted form, instead; load the module with `modprobe ip_vs_{scheduler}`"
    );
    EventRequest { about: About::Node, reason: Reason::SchedulerMissing, message }
}

/// One Event for all Services of the default.
fn ignored_default(why: &str) -> EventRequest {
    let message =
        format!("a setting of kubeIPVS.serviceDefaults has no effect on Services of this node: {why}");
    EventRequest { about: About::Node, reason: Reason::SettingIgnored, message }
}

/// Without a Service: one Event for all whose annotations choose nothing of this.
fn refused_clients(name: Option<&ObjectName>, why: &str) -> EventRequest {
    let service = name.map_or_else(|| "Services of this node".to_owned(), |name| format!("Service {name}"));
    EventRequest {
        about: name.cloned().map_or(About::Node, About::Service),
        reason: Reason::SchedulerRefusesClients,
        message: format!("some clients of {service} will be refused: {why}"),
    }
}

/// Why a scheduler with these flags refuses clients, and the remedy: by annotation if it `is_own`, else by configuration.
pub fn refusal(scheduler: &str, flags: u32, settings: &str, is_own: bool) -> String {
    let port = if flags & SCHED_PORT == 0 { String::new() } else { format!("{scheduler}-port,") };
    let remedy = match (scheduler, is_own) {
        ("dh", _) => "choose another scheduler".to_owned(),
        (_, true) => format!("choose scheduler {scheduler} with scheduler-flags {port}{scheduler}-fallback"),
        (_, false) => format!(
            "set scheduler: {scheduler} and schedulerFlags: {port}{scheduler}-fallback in \
             kubeIPVS.serviceDefaults"
        ),
    };
    format!(
        "the scheduler {scheduler} looks for no other endpoint if the one it chose is closed by {settings}; {remedy}"
    )
}

fn vip_message(name: &ObjectName, ip: IpAddr, binding: Binding) -> String {
    let why = match binding {
        Binding::Guarded | Binding::Unknown => "is an ordinary VIP",
        Binding::Translated => {
            "is listed as an address of this Node but is on no interface: it is bound to kube-ipvs0, \
             and the node's other ports stay reachable at it"
        }
        Binding::OnLink => {
            "is an address on a link of this node: it is served there and not bound to kube-ipvs0, and \
             the node's other ports stay reachable at it"
        }
        Binding::Special => {
            "is not bound to kube-ipvs0: loopback, multicast, broadcast and link-local addresses \
             cannot be VIPs; give the Service another address"
        }
        Binding::Protected(protection) => &format!(
            "is not bound to kube-ipvs0: it is {protection}. Only this node reaches the Service at this address; pods \
             and other hosts reach the owner of the address. Give the Service another address"
        ),
    };
    format!("{ip} of Service {name} {why}")
}

/// A program of this node gets no traffic, because a Service has its address and port.
pub fn shadowed(name: &ObjectName, key: &VsKey) -> EventRequest {
    let message = format!(
        "{key} is an address of this node at which one of its programs listens: the traffic of that program goes to \
         Service {name}; give the Service another port or another address"
    );
    EventRequest { about: About::Service(name.clone()), reason: Reason::ListenerShadowed, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::service::fragment::Fragment;
    use crate::core::service::protected::Protection;

    #[test]
    fn own_addresses_on_a_link_get_no_event() {
        let ip = |n: u8| IpAddr::from([198, 51, 100, n]);
        let notices = vec![
            fragment::Notice::ExternalIpRefused(ip(1)),
            fragment::Notice::SpecialVip(ip(2), Binding::OnLink),
            fragment::Notice::SpecialVip(ip(3), Binding::Protected(Protection::Gateway)),
            fragment::Notice::SpecialVip(ip(4), Binding::Translated),
        ];
        let name = ObjectName::new("d", "a");
        let (mut desired, mut changes) = (Desired::default(), Changes::default());
        desired.update(
            &name,
            Some(Fragment { notices: notices.into(), ..Fragment::default() }),
            &mut changes,
        );
        let requests = build(&desired, &changes);
        let reasons: Vec<Reason> = requests.iter().map(|request| request.reason).collect();
        assert_eq!(reasons, [Reason::ExternalIPRefused, Reason::AddressNotBound, Reason::NodeAddressAsVIP]);
        let message = &requests[1].message;
        let expected =
            "198.51.100.3 of Service d/a is not bound to kube-ipvs0: it is a gateway of this node.";
        assert!(message.starts_with(expected), "{message}");
        let mut again = Changes::default();
        desired.update(&name, None, &mut again);
        assert!(build(&desired, &again).is_empty(), "a deleted Service gets no Event");
    }
}
