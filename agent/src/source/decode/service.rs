// SPDX-License-Identifier: Apache-2.0
//! Services.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::tape::{Field, Tape, plain};
use super::{METADATA, RawPort, intern, label, port_or_zero, protocol};
use crate::core::model::address;
use crate::core::model::{Family, ObjectName, Service, ServicePort};
use crate::store::{Kind, Object};

pub(super) const DNS_LABEL: &str = "k8s-app";
/// What the API server sets where `sessionAffinityConfig` is left out.
const DEFAULT_AFFINITY: u32 = 10800;

/// What is read of a Service.
pub(super) const FIELDS: &[Field] = &[
    METADATA,
    Field(
        "spec",
        &[
            Field("ports", RawPort::FIELDS),
            plain("clusterIP"),
            plain("clusterIPs"),
            plain("type"),
            plain("sessionAffinity"),
            plain("ipFamilies"),
            plain("internalTrafficPolicy"),
            plain("externalTrafficPolicy"),
            plain("externalIPs"),
            plain("healthCheckNodePort"),
            plain("loadBalancerSourceRanges"),
            Field("sessionAffinityConfig", &[Field("clientIP", &[plain("timeoutSeconds")])]),
        ],
    ),
    Field("status", &[Field("loadBalancer", &[Field("ingress", &[plain("ip"), plain("ipMode")])])]),
];

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawService<'a> {
    #[serde(borrow)]
    spec: RawSpec<'a>,
    #[serde(borrow)]
    status: RawStatus<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawSpec<'a> {
    #[serde(rename = "type")]
    service_type: Option<&'a str>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<&'a str>,
    #[serde(rename = "clusterIPs", borrow)]
    cluster_ips: Option<Vec<&'a str>>,
    #[serde(borrow)]
    ip_families: Option<Vec<&'a str>>,
    #[serde(rename = "externalIPs", borrow)]
    external_ips: Option<Vec<&'a str>>,
    #[serde(borrow)]
    load_balancer_source_ranges: Option<Vec<&'a str>>,
    external_traffic_policy: Option<&'a str>,
    internal_traffic_policy: Option<&'a str>,
    health_check_node_port: Option<u32>,
    session_affinity: Option<&'a str>,
    session_affinity_config: Option<RawAffinity>,
    #[serde(borrow)]
    ports: Option<Vec<RawPort<'a>>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawAffinity {
    #[serde(rename = "clientIP")]
    client_ip: Option<RawClientIp>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawClientIp {
    timeout_seconds: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawStatus<'a> {
    #[serde(borrow)]
    load_balancer: Option<RawLoadBalancer<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawLoadBalancer<'a> {
    #[serde(borrow)]
    ingress: Option<Vec<RawIngress<'a>>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawIngress<'a> {
    ip: Option<&'a str>,
    ip_mode: Option<&'a str>,
}

pub(super) fn decode(name: ObjectName, tape: &Tape<'_>, ignored: &mut Vec<String>) -> Result<Object, String> {
    let not_ours = |name, why| Ok(Object::NotOurs(Kind::Service, name, why));
    let RawService { spec, status } = tape.decode()?;
    let cluster_ip = spec.cluster_ip.unwrap_or_default();
    if cluster_ip.is_empty() || cluster_ip == "None" {
        return not_ours(name, "headless");
    }
    if spec.service_type == Some("ExternalName") {
        return not_ours(name, "ExternalName");
    }
    let ports = spec.ports.as_deref().unwrap_or_default().iter().enumerate();
    let mut ports = ports.map(|(i, port)| decode_port(i, port)).collect::<Result<Vec<_>, _>>()?;
    ports.shrink_to_fit();
    let external_local = external_local(&spec);
    Ok(Object::Service(Service {
        created: created(tape),
        first: is_priority(&name, tape),
        cluster_ips: [
            family_cluster_ip(Family::V4, cluster_ip, &spec)?,
            family_cluster_ip(Family::V6, cluster_ip, &spec)?,
        ],
        external_ips: addresses("spec.externalIPs", spec.external_ips.iter().flatten().copied(), ignored),
        load_balancer_ips: load_balancer_ips(&status, ignored),
        source_ranges: source_ranges(
            spec.load_balancer_source_ranges.as_deref().unwrap_or_default(),
            ignored,
        )?,
        external_local,
        internal_local: spec.internal_traffic_policy == Some("Local"),
        affinity: affinity(&spec),
        health_check_node_port: health_check_node_port(&spec, external_local)?,
        ports,
        name,
    }))
}

/// What every pod needs before anything else: the API server, and the cluster's DNS by the label
/// and name that every distribution keeps.
fn is_priority(name: &ObjectName, tape: &Tape<'_>) -> bool {
    match (&*name.namespace, &*name.name) {
        ("default", "kubernetes") | ("kube-system", "kube-dns" | "coredns") => true,
        ("kube-system", _) => label(tape, DNS_LABEL) == Some("kube-dns"),
        _ => false,
    }
}

/// Seconds since the epoch of `metadata.creationTimestamp`; an object without one is the youngest.
fn created(tape: &Tape<'_>) -> i64 {
    tape.text(&["metadata", "creationTimestamp"])
        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
        .map_or(i64::MAX, jiff::Timestamp::as_second)
}

/// The ClusterIP of a family: the entry of `clusterIPs` beside it in `ipFamilies`, or `clusterIP`
/// where no families are given.
fn family_cluster_ip(family: Family, cluster_ip: &str, spec: &RawSpec<'_>) -> Result<Option<IpAddr>, String> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let text = if families.is_empty() {
        cluster_ip
    } else {
        let at = families.iter().position(|f| *f == family.to_string());
        match at.and_then(|i| spec.cluster_ips.as_deref().unwrap_or_default().get(i)) {
            Some(text) => text,
            None => return Ok(None),
        }
    };
    let ip =
        address::parse_ip(text).ok_or_else(|| format!("spec.clusterIPs: {text:?} is not an IP address"))?;
    if let Some(what) = address::useless(ip) {
        return Err(format!("spec.clusterIPs: {ip} is {what}: no Service can have it"));
    }
    Ok((Family::of(ip) == family).then_some(ip))
}

/// Valid addresses; what is none, or can be none of a Service, is left out, and the others serve.
fn addresses<'a>(
    field: &str,
    texts: impl Iterator<Item = &'a str>,
    ignored: &mut Vec<String>,
) -> Vec<IpAddr> {
    let mut valid = Vec::new();
    for text in texts.map(str::trim).filter(|text| !text.is_empty()) {
        let Some(ip) = address::parse_ip(text) else {
            ignored.push(format!("{field}: {text:?} is not an IP address"));
            continue;
        };
        match address::useless(ip) {
            Some(what) => ignored.push(format!("{field}: {ip} is {what}: no Service can have it")),
            None => valid.push(ip),
        }
    }
    valid.shrink_to_fit();
    valid
}

/// Addresses that nodes are to serve: with ipMode `Proxy` something else does.
fn load_balancer_ips(status: &RawStatus<'_>, ignored: &mut Vec<String>) -> Vec<IpAddr> {
    let ingress = status.load_balancer.iter().filter_map(|lb| lb.ingress.as_deref()).flatten();
    let vips = ingress.filter(|i| i.ip_mode.unwrap_or("VIP") == "VIP");
    addresses("status.loadBalancer.ingress", vips.filter_map(|i| i.ip), ignored)
}

/// Networks, as kube-proxy reads them: blanks around are fine, and so are host bits and leading
/// zeros. A bad one is left out, unless nothing would be left of the restriction.
fn source_ranges(texts: &[&str], ignored: &mut Vec<String>) -> Result<Vec<IpNet>, String> {
    let mut ranges = Vec::new();
    let mut bad = Vec::new();
    for text in texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        match address::parse_net(text) {
            Some(net) => ranges.push(net),
            None => bad.push(format!("spec.loadBalancerSourceRanges: {text:?} is not a CIDR")),
        }
    }
    ranges.shrink_to_fit();
    if ranges.is_empty() && !bad.is_empty() {
        return Err(format!("spec.loadBalancerSourceRanges: none of {texts:?} is a CIDR"));
    }
    ignored.append(&mut bad);
    Ok(ranges)
}

/// `externalTrafficPolicy` counts only where the Service can be reached from outside.
fn external_local(spec: &RawSpec<'_>) -> bool {
    let outside = match spec.service_type {
        Some("LoadBalancer" | "NodePort") => true,
        _ => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
    };
    outside && spec.external_traffic_policy == Some("Local")
}

fn affinity(spec: &RawSpec<'_>) -> Option<u32> {
    if spec.session_affinity != Some("ClientIP") {
        return None;
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    Some(client_ip.and_then(|c| c.timeout_seconds).unwrap_or(DEFAULT_AFFINITY))
}

fn health_check_node_port(spec: &RawSpec<'_>, external_local: bool) -> Result<u16, String> {
    let port = port_or_zero("spec.healthCheckNodePort", spec.health_check_node_port)?;
    let has_one = external_local && spec.service_type == Some("LoadBalancer");
    Ok(if has_one { port } else { 0 })
}

fn decode_port(index: usize, port: &RawPort<'_>) -> Result<ServicePort, String> {
    let field = format!("spec.ports[{index}]");
    let number = port.port.ok_or_else(|| format!("{field}.port is missing"))?;
    let number = u16::try_from(number).ok().filter(|n| *n > 0);
    Ok(ServicePort {
        name: intern::text(port.name.unwrap_or_default()),
        protocol: protocol(&field, port.protocol)?,
        port: number.ok_or_else(|| format!("{field}.port is not in 1-65535"))?,
        node_port: port_or_zero(&format!("{field}.nodePort"), port.node_port)?,
    })
}
