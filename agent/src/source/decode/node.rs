// SPDX-License-Identifier: Apache-2.0
//! Nodes.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{label, raw};
use crate::core::model::{Family, Node, ObjectName};
use crate::store::Object;

/// Set by the cluster autoscaler before it deletes a node, whatever value and effect it has.
const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawNode {
    spec: RawSpec,
    status: RawStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<RawTaint>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawTaint {
    key: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawStatus {
    addresses: Option<Vec<RawAddress>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

pub(super) fn decode(name: &ObjectName, value: &Value) -> Result<Object, String> {
    let RawNode { spec, status } = raw(value)?;
    let texts = spec.pod_cidrs.or_else(|| spec.pod_cidr.map(|cidr| vec![cidr])).unwrap_or_default();
    let mut pod_cidrs = [None, None];
    for text in &texts {
        let net: IpNet = text.parse().map_err(|_| format!("spec.podCIDRs: {text:?} is not a CIDR"))?;
        pod_cidrs[Family::of_net(&net).index()].get_or_insert(net.trunc());
    }
    let given = status.addresses.unwrap_or_default();
    // Host names stand among the addresses, too; they are passed over.
    let of_kind = |kind: &'static str| {
        given.iter().filter(move |a| a.kind == kind).filter_map(|a| a.address.parse::<IpAddr>().ok())
    };
    Ok(Object::Node(Node {
        name: name.name.clone(),
        zone: label(value, ZONE_LABEL).map(Into::into),
        addresses: of_kind("InternalIP").chain(of_kind("ExternalIP")).collect(),
        pod_cidrs,
        leaving: value.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null())
            || spec.taints.unwrap_or_default().iter().any(|taint| taint.key == DELETION_TAINT),
    }))
}
