// SPDX-License-Identifier: Apache-2.0
//! Nodes.

use super::tape::Tape;
use super::used_fields::used_fields;
use super::{METADATA, label};
use crate::core::model::address;
use crate::core::model::{Family, Node, ObjectName, PerFamily};
use crate::store::Object;

/// A taint of the cluster autoscaler on a node that it is about to delete, with any value and effect.
const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
pub(super) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

used_fields! {
    RawNode<'a> {
        + METADATA,
        spec "spec": RawNodeSpec<'a>,
        status "status": RawNodeStatus<'a>,
    }

    RawNodeSpec<'a> {
        pod_cidr "podCIDR": Option<&'a str>,
        pod_cidrs "podCIDRs": Option<Vec<&'a str>>,
        taints "taints": Option<Vec<RawTaint<'a>>>,
    }

    RawTaint<'a> {
        key "key": &'a str,
    }

    RawNodeStatus<'a> {
        addresses "addresses": Option<Vec<RawAddress<'a>>>,
    }

    RawAddress<'a> {
        kind "type": &'a str,
        address "address": &'a str,
    }
}

pub(super) fn decode(name: &ObjectName, tape: &Tape<'_>) -> Result<Object, String> {
    let RawNode { spec, status } = tape.decode()?;
    let texts = spec.pod_cidrs.or_else(|| spec.pod_cidr.map(|cidr| vec![cidr])).unwrap_or_default();
    let mut pod_cidrs: PerFamily<Option<ipnet::IpNet>> = PerFamily::default();
    for text in &texts {
        let net = address::parse_net(text);
        let net = net.ok_or_else(|| format!("spec.podCIDRs: {text:?} is not a CIDR"))?;
        pod_cidrs[Family::of(net.addr())].get_or_insert(net);
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
