// SPDX-License-Identifier: Apache-2.0
//! Services.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{RawPort, label, port_or_zero, protocol, raw};
use crate::core::model::{Family, ObjectName, Service, ServicePort};
use crate::store::{Kind, Object};

const DNS_LABEL: &str = "k8s-app";
/// What the API server sets where `sessionAffinityConfig` is left out.
const DEFAULT_AFFINITY: u32 = 10800;

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawService {
    spec: RawSpec,
    status: RawStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawSpec {
    #[serde(rename = "type")]
    service_type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ip_families: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    load_balancer_source_ranges: Option<Vec<String>>,
    external_traffic_policy: Option<String>,
    internal_traffic_policy: Option<String>,
    health_check_node_port: Option<u32>,
    session_affinity: Option<String>,
    session_affinity_config: Option<RawAffinity>,
    ports: Option<Vec<RawPort>>,
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
struct RawStatus {
    load_balancer: Option<RawLoadBalancer>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawLoadBalancer {
    ingress: Option<Vec<RawIngress>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawIngress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

pub(super) fn decode(name: ObjectName, value: &Value) -> Result<Object, String> {
    let not_ours = |name, why| Ok(Object::NotOurs(Kind::Service, name, why));
    let RawService { spec, status } = raw(value)?;
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    if cluster_ip.is_empty() || cluster_ip == "None" {
        return not_ours(name, "headless");
    }
    if spec.service_type.as_deref() == Some("ExternalName") {
        return not_ours(name, "ExternalName");
    }
    let ports = spec.ports.as_deref().unwrap_or_default().iter().enumerate();
    let ports = ports.map(|(i, port)| decode_port(i, port)).collect::<Result<_, _>>()?;
    let external_local = external_local(&spec);
    Ok(Object::Service(Service {
        created: created(value),
        first: is_first(&name, value),
        cluster_ips: [
            family_cluster_ip(Family::V4, cluster_ip, &spec)?,
            family_cluster_ip(Family::V6, cluster_ip, &spec)?,
        ],
        external_ips: addresses(&name, "spec.externalIPs", spec.external_ips.iter().flatten()),
        load_balancer_ips: load_balancer_ips(&name, &status),
        source_ranges: source_ranges(&name, spec.load_balancer_source_ranges.as_deref().unwrap_or_default())?,
        external_local,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        affinity: affinity(&spec),
        health_check_node_port: health_check_node_port(&spec, external_local)?,
        ports,
        name,
    }))
}

/// What every pod needs before anything else: the API server, and the cluster's DNS by the label
/// and name that every distribution keeps.
fn is_first(name: &ObjectName, value: &Value) -> bool {
    match (&*name.namespace, &*name.name) {
        ("default", "kubernetes") | ("kube-system", "kube-dns" | "coredns") => true,
        ("kube-system", _) => label(value, DNS_LABEL) == Some("kube-dns"),
        _ => false,
    }
}

/// Seconds since the epoch of `metadata.creationTimestamp`; an object without one is the youngest.
fn created(value: &Value) -> i64 {
    value
        .pointer("/metadata/creationTimestamp")
        .and_then(Value::as_str)
        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
        .map_or(i64::MAX, jiff::Timestamp::as_second)
}

/// The ClusterIP of a family: the entry of `clusterIPs` beside it in `ipFamilies`, or `clusterIP`
/// where no families are given.
fn family_cluster_ip(family: Family, cluster_ip: &str, spec: &RawSpec) -> Result<Option<IpAddr>, String> {
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
    let ip: IpAddr = text.parse().map_err(|_| format!("spec.clusterIPs: {text:?} is not an IP address"))?;
    Ok((Family::of(ip) == family).then_some(ip))
}

/// Valid addresses; an invalid one is logged and left out, the others serve.
fn addresses<'a>(name: &ObjectName, field: &str, texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    let parse = |text: &String| match text.trim().parse::<IpAddr>() {
        // An IPv4 address in IPv6 clothes is an IPv4 address.
        Ok(ip) => Some(ip.to_canonical()),
        Err(_) => {
            if !text.trim().is_empty() {
                tracing::warn!(service = %name, "{field}: {text:?} is not an IP address, left out");
            }
            None
        }
    };
    texts.filter_map(parse).collect()
}

/// Addresses that nodes are to serve: with ipMode `Proxy` something else does.
fn load_balancer_ips(name: &ObjectName, status: &RawStatus) -> Vec<IpAddr> {
    let ingress = status.load_balancer.iter().filter_map(|lb| lb.ingress.as_deref()).flatten();
    let vips = ingress.filter(|i| i.ip_mode.as_deref().unwrap_or("VIP") == "VIP");
    addresses(name, "status.loadBalancer.ingress", vips.filter_map(|i| i.ip.as_ref()))
}

/// Networks, as kube-proxy reads them: blanks around are fine, and so are host bits and leading
/// zeros. A bad one is logged and left out, unless nothing would be left of the restriction.
fn source_ranges(name: &ObjectName, texts: &[String]) -> Result<Vec<IpNet>, String> {
    let parse = |text: &String| {
        let net = parse_cidr(text.trim());
        if net.is_none() && !text.trim().is_empty() {
            tracing::warn!(
                service = %name,
                "spec.loadBalancerSourceRanges: {text:?} is not a CIDR, left out"
            );
        }
        net
    };
    let ranges: Vec<IpNet> = texts.iter().filter_map(parse).collect();
    if ranges.is_empty() && texts.iter().any(|text| !text.trim().is_empty()) {
        return Err(format!("spec.loadBalancerSourceRanges: none of {texts:?} is a CIDR"));
    }
    Ok(ranges)
}

fn parse_cidr(text: &str) -> Option<IpNet> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Some(net.trunc());
    }
    // `010.1.2.3/8`: what Kubernetes accepted long ago stays valid, decimal.
    let (addr, prefix) = text.split_once('/')?;
    let octets: Vec<u8> = addr.split('.').map(|o| o.parse().ok()).collect::<Option<_>>()?;
    let addr = IpAddr::from(<[u8; 4]>::try_from(octets).ok()?);
    Some(IpNet::new(addr, prefix.parse().ok()?).ok()?.trunc())
}

/// `externalTrafficPolicy` counts only where the Service can be reached from outside.
fn external_local(spec: &RawSpec) -> bool {
    let outside = match spec.service_type.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        _ => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
    };
    outside && spec.external_traffic_policy.as_deref() == Some("Local")
}

fn affinity(spec: &RawSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    Some(client_ip.and_then(|c| c.timeout_seconds).unwrap_or(DEFAULT_AFFINITY))
}

fn health_check_node_port(spec: &RawSpec, external_local: bool) -> Result<u16, String> {
    let port = port_or_zero("spec.healthCheckNodePort", spec.health_check_node_port)?;
    let has_one = external_local && spec.service_type.as_deref() == Some("LoadBalancer");
    Ok(if has_one { port } else { 0 })
}

fn decode_port(index: usize, port: &RawPort) -> Result<ServicePort, String> {
    let field = format!("spec.ports[{index}]");
    let number = port.port.ok_or_else(|| format!("{field}.port is missing"))?;
    let number = u16::try_from(number).ok().filter(|n| *n > 0);
    Ok(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(&field, port.protocol.as_deref())?,
        port: number.ok_or_else(|| format!("{field}.port is not in 1-65535"))?,
        node_port: port_or_zero(&format!("{field}.nodePort"), port.node_port)?,
    })
}
