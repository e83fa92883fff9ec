// SPDX-License-Identifier: Apache-2.0
//! From conflicts and remarks to sentences for the operator.

use std::net::IpAddr;

use crate::core::model::changes::Changes;
use crate::core::model::{ObjectName, VsKey};
use crate::core::service::desired::Desired;
use crate::core::service::fragment::{self, VirtualServer};
use crate::core::service::node_facts::Binding;
use crate::events::{About, Notice, Reason};
use crate::words;

/// VIPs named in one line.
const NAMED: usize = 3;

/// Logs VIPs that are addresses on a link of this node, in one line. Load balancers of small clusters give
/// every node's own address: that works as with kube-proxy and needs nobody's attention.
pub fn log_own_addresses(desired: &Desired, changes: &Changes) {
    let own_addresses = |name| {
        desired.notices(name).iter().filter_map(move |remark| match remark {
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
            "{} are addresses on links of this node: {}; they are served there and not bound to kube-ipvs0; the \
             node's other ports stay reachable at them",
            words::count(own.len(), "VIP"),
            words::some(own.iter().map(|(name, ip)| format!("{ip} of Service {name}")), NAMED, own.len())
        ),
    }
}

/// What the operator should act on after these changes.
pub fn build(desired: &Desired, changes: &Changes) -> Vec<Notice> {
    let mut notices = Vec::new();
    for key in &changes.contested {
        let Some(winner) = desired.virtual_server(key) else { continue };
        notices.extend(desired.losers(key).map(|loser| conflict(winner, loser)));
    }
    for name in &changes.noticed {
        notices.extend(desired.notices(name).iter().filter_map(|r| remark(name, r)));
    }
    notices
}

fn conflict(winner: &VirtualServer, loser: &VirtualServer) -> Notice {
    let key = winner.key;
    Notice {
        about: About::Service(loser.service.clone()),
        reason: Reason::AddressConflict,
        message: format!(
            "{key} belongs to Service {}, which is older: Service {} is not served there; give one of them \
             another address or port",
            winner.service, loser.service
        ),
    }
}

fn remark(name: &ObjectName, remark: &fragment::Notice) -> Option<Notice> {
    let (reason, message) = match remark {
        fragment::Notice::SpecialVip(_, Binding::OnLink) => return None,
        fragment::Notice::SpecialVip(ip, binding @ Binding::Translated) => {
            (Reason::NodeAddressAsVIP, vip_message(name, *ip, *binding))
        }
        fragment::Notice::SpecialVip(ip, binding) => {
            (Reason::AddressNotBound, vip_message(name, *ip, *binding))
        }
        fragment::Notice::ApiServerPort(key) => (
            Reason::AddressNotBound,
            format!(
                "{key} of Service {name} is not served: this node reaches the API server at it; give the Service \
                 an address or a port of its own"
            ),
        ),
        fragment::Notice::ExternalIpRefused(ip) => (
            Reason::ExternalIPRefused,
            format!(
                "external IP {ip} of Service {name} is not served: it is outside of the networks in \
                 kubeIPVS.externalIPs.allow of the configuration"
            ),
        ),
    };
    Some(Notice { about: About::Service(name.clone()), reason, message })
}

fn vip_message(name: &ObjectName, ip: IpAddr, binding: Binding) -> String {
    let why = match binding {
        Binding::Guarded | Binding::Unknown => "is an ordinary VIP".to_owned(),
        Binding::Translated => {
            "is an address of this node outside of its links: it is bound to kube-ipvs0, and \
                                the node's other ports stay reachable at it"
                .to_owned()
        }
        Binding::OnLink => {
            "is an address on a link of this node: it is served there and not bound to kube-ipvs0; \
                            the node's other ports stay reachable at it"
                .to_owned()
        }
        Binding::Special => {
            "is not bound to kube-ipvs0: loopback, multicast, broadcast and link-local addresses \
                             cannot be VIPs; give the Service another address"
                .to_owned()
        }
        Binding::Protected(protection) => format!(
            "is not bound to kube-ipvs0: it is {protection}. This node reaches the Service at it, its pods and \
             others reach whoever has it; give the Service an address of its own"
        ),
    };
    format!("{ip} of Service {name} {why}")
}

/// A program of this node that a Service takes the traffic of.
pub fn shadowed(name: &ObjectName, key: &VsKey) -> Notice {
    let message = format!(
        "{key} is an address of this node at which one of its programs listens: Service {name} takes the traffic \
         of that program; give the Service another port or another address"
    );
    Notice { about: About::Service(name.clone()), reason: Reason::ListenerShadowed, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::service::fragment::Fragment;
    use crate::core::service::protected::Protection;

    #[test]
    fn only_what_needs_attention_is_a_notice() {
        let ip = |n: u8| IpAddr::from([198, 51, 100, n]);
        let remarks = vec![
            fragment::Notice::ExternalIpRefused(ip(1)),
            fragment::Notice::SpecialVip(ip(2), Binding::OnLink),
            fragment::Notice::SpecialVip(ip(3), Binding::Protected(Protection::Gateway)),
            fragment::Notice::SpecialVip(ip(4), Binding::Translated),
        ];
        let name = ObjectName::new("d", "a");
        let (mut desired, mut changes) = (Desired::default(), Changes::default());
        desired.update(
            &name,
            Some(Fragment { notices: remarks.into(), ..Fragment::default() }),
            &mut changes,
        );
        let notices = build(&desired, &changes);
        let reasons: Vec<Reason> = notices.iter().map(|n| n.reason).collect();
        assert_eq!(reasons, [Reason::ExternalIPRefused, Reason::AddressNotBound, Reason::NodeAddressAsVIP]);
        let message = &notices[1].message;
        let expected =
            "198.51.100.3 of Service d/a is not bound to kube-ipvs0: it is a gateway of this node.";
        assert!(message.starts_with(expected), "{message}");
        let mut again = Changes::default();
        desired.update(&name, None, &mut again);
        assert!(build(&desired, &again).is_empty(), "what is over is not told");
    }
}
