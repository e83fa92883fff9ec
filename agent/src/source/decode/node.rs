// SPDX-License-Identifier: Apache-2.0
//! Nodes.

use ipnet::IpNet;
use serde::Deserialize;

use super::tape::{Tape, UsedField, plain};
use super::{METADATA, label};
use crate::core::model::address;
use crate::core::model::{Family, Node, ObjectName, PerFamily};
use crate::store::Object;

/// A taint of the cluster autoscaler on a node that it is about to delete, with any value and effect.
const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
pub(super) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

pub(super) const FIELDS: &[UsedField] = &[
    METADATA,
    UsedField("spec", &[plain("podCIDR"), plain("podCIDRs"), UsedField("taints", &[plain("key")])]),
    UsedField("status", &[UsedField("addresses", &[plain("type"), plain("address")])]),
];

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RawNode<'a> {
    #[serde(borrow)]
    spec: RawNodeSpec<'a>,
    #[serde(borrow)]
    status: RawNodeStatus<'a>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawNodeSpec<'a> {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<&'a str>,
    #[serde(rename = "podCIDRs", borrow)]
    pod_cidrs: Option<Vec<&'a str>>,
    #[serde(borrow)]
    taints: Option<Vec<RawTaint<'a>>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawTaint<'a> {
    key: &'a str,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawNodeStatus<'a> {
    #[serde(borrow)]
    addresses: Option<Vec<RawAddress<'a>>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawAddress<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    address: &'a str,
}

pub(super) fn decode(name: &ObjectName, tape: &Tape<'_>) -> Result<Object, String> {
    let RawNode { spec, status } = tape.decode()?;
    let texts = spec.pod_cidrs.or_else(|| spec.pod_cidr.map(|cidr| vec![cidr])).unwrap_or_default();
    let mut pod_cidrs = PerFamily::default();
    for text in &texts {
        let net: IpNet =
            address::parse_net(text).ok_or_else(|| format!("spec.podCIDRs: {text:?} is not a CIDR"))?;
        let cidr: &mut Option<IpNet> = &mut pod_cidrs[Family::of_net(&net)];
        cidr.get_or_insert(net);
    }
    let given = status.addresses.unwrap_or_default();
    // Host names among the addresses are ignored.
    let of_kind = |kind: &'static str| {
        given.iter().filter(move |a| a.kind == kind).filter_map(|a| address::parse_ip(a.address))
    };
    Ok(Object::Node(Node {
        name: name.name.clone(),
        zone: label(tape, ZONE_LABEL).map(Into::into),
        addresses: of_kind("InternalIP").chain(of_kind("ExternalIP")).collect(),
        pod_cidrs,
        leaving: tape.at(&["metadata", "deletionTimestamp"]).is_some_and(|time| !time.is_null())
            || spec.taints.unwrap_or_default().iter().any(|taint| taint.key == DELETION_TAINT),
    }))
}
