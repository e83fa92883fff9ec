// SPDX-License-Identifier: Apache-2.0
//! Why packets to an address are for this node, or not.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::core::loop_state::LoopState;
use crate::core::service::node_facts::Binding;

/// Where an address is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AddressReport {
    /// `kube-ipvs0`, `route`, `link` (an address of another interface of the node), `elsewhere`, or `unknown`.
    pub place: String,
    /// The same as a sentence.
    pub text: String,
    pub check: String,
}

impl AddressReport {
    pub(super) fn build(state: &LoopState<'_>, addr: IpAddr) -> Self {
        let report = |place: &str, text: String, check: String| Self { place: place.to_owned(), text, check };
        let Some(observed) = state.observed else {
            return report("unknown", "the kernel has not been read yet".to_owned(), String::new());
        };
        let show = format!("ip addr show to {addr}");
        if observed.addresses.contains(&IpNet::from(addr)) {
            return report("kube-ipvs0", format!("{addr} is bound to kube-ipvs0"), show);
        }
        if let Some(net) = observed.node.routes.iter().find(|net| net.contains(&addr)) {
            let text = format!("{addr} is local by the route of {net}");
            return report("route", text, format!("ip route show table local {net}"));
        }
        if observed.is_own(addr) {
            return report("link", format!("{addr} is an address of an interface of this node"), show);
        }
        let why = match (state.desired.wants_address(addr), state.node.binding(addr, false)) {
            (true, Binding::Unknown) => ": the addresses of other Nodes are not known yet".to_owned(),
            (true, _) => ": it is not bound yet".to_owned(),
            (false, Binding::Protected(protection)) => format!(": it is {protection}"),
            (false, Binding::Special) => ": such an address cannot be a VIP".to_owned(),
            (false, _) => String::new(),
        };
        let text =
            format!("{addr} is not an address of this node{why}; packets to it go where the routes lead");
        report("elsewhere", text, format!("ip route get {addr}"))
    }
}
