// SPDX-License-Identifier: Apache-2.0
//! From conflicts and remarks to sentences for the operator.

use crate::core::desired::{Changes, Desired};
use crate::core::fragment::{Remark, VirtualServer};
use crate::core::model::ObjectName;
use crate::core::node::Binding;
use crate::events::{About, Notice, Reason};

/// What the operator should hear about these changes.
pub fn build(desired: &Desired, changes: &Changes) -> Vec<Notice> {
    let mut notices = Vec::new();
    for key in &changes.contested {
        let Some(winner) = desired.virtual_server(key) else { continue };
        notices.extend(desired.losers(key).map(|loser| conflict(winner, loser)));
    }
    for name in &changes.remarked {
        notices.extend(desired.remarks(name).iter().map(|r| remark(name, r)));
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

fn remark(name: &ObjectName, remark: &Remark) -> Notice {
    let (reason, message) = match remark {
        Remark::ExternalIpRefused(ip) => (
            Reason::ExternalIPRefused,
            format!(
                "external IP {ip} of Service {name} is not served: it is outside of the networks in \
                 kubeIPVS.externalIPs.allow of the configuration"
            ),
        ),
        Remark::SpecialVip(ip, binding) => (
            Reason::NodeAddressAsVIP,
            format!("{ip} of Service {name} {}; the node's other ports stay reachable", fate(*binding)),
        ),
    };
    Notice { about: About::Service(name.clone()), reason, message }
}

fn fate(binding: Binding) -> &'static str {
    match binding {
        Binding::Guarded => "is an ordinary VIP",
        Binding::Translated => {
            "is an address of this node outside of its links: bound to kube-ipvs0 without its filter"
        }
        Binding::OnLink => "is an address on a link of this node: served there, not bound to kube-ipvs0",
        Binding::NextHop => "is a gateway of this node: served for the node itself, not bound to kube-ipvs0",
        Binding::Special => "cannot be a VIP (loopback, multicast or link-local): not bound to kube-ipvs0",
    }
}
