// SPDX-License-Identifier: Apache-2.0
//! From the JSON of a Kubernetes object to the compact model: slim types that read only what is
//! used, and checks that name what is wrong. The translator on the Kubernetes side.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::core::model::{
    Endpoint, EndpointSlice, Family, Node, ObjectName, Protocol, Service, ServicePort, SlicePort,
};
use crate::store::{Kind, Object};

const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawService {
    spec: RawServiceSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawServiceSpec {
    #[serde(rename = "type")]
    service_type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ip_families: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<RawPort>>,
}

/// A port of a Service or of an EndpointSlice.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawSlice {
    address_type: Option<String>,
    ports: Option<Vec<RawPort>>,
    endpoints: Option<Vec<RawEndpoint>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<RawConditions>,
    node_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawNode {
    spec: RawNodeSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawNodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

/// Namespace and name of any object, even a malformed one. A namespaced object without a
/// namespace is in `default`, as for kubectl.
pub fn object_name(kind: Kind, value: &Value) -> ObjectName {
    let field = |name: &str| value.pointer(name).and_then(Value::as_str).unwrap_or_default();
    let namespace = match (kind, field("/metadata/namespace")) {
        (Kind::Node, _) => "",
        (_, "") => "default",
        (_, namespace) => namespace,
    };
    ObjectName::new(namespace, field("/metadata/name"))
}

/// Decodes an object of a known kind.
///
/// # Errors
/// A sentence that names the field and what is wrong with it.
pub fn decode(kind: Kind, value: &Value) -> Result<Object, String> {
    let name = object_name(kind, value);
    if name.name.is_empty() {
        return Err("metadata.name is missing".to_owned());
    }
    match kind {
        Kind::Service => decode_service(name, value),
        Kind::EndpointSlice => decode_slice(name, value),
        Kind::Node => decode_node(&name, value),
    }
}

fn label<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get("metadata")?.get("labels")?.get(key)?.as_str()
}

fn raw<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| error.to_string())
}

fn decode_service(name: ObjectName, value: &Value) -> Result<Object, String> {
    let not_ours = |name, why| Ok(Object::NotOurs(Kind::Service, name, why));
    if label(value, PROXY_NAME_LABEL).is_some() {
        return not_ours(name, "another proxy serves it");
    }
    let spec = raw::<RawService>(value)?.spec;
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    if cluster_ip.is_empty() || cluster_ip == "None" {
        return not_ours(name, "headless");
    }
    if spec.service_type.as_deref() == Some("ExternalName") {
        return not_ours(name, "ExternalName");
    }
    let ports = spec.ports.unwrap_or_default();
    let ports = ports.iter().enumerate().map(|(i, port)| decode_service_port(i, port));
    Ok(Object::Service(Service {
        created: created(value),
        cluster_ips: [
            family_cluster_ip(Family::V4, cluster_ip, &spec.ip_families, &spec.cluster_ips)?,
            family_cluster_ip(Family::V6, cluster_ip, &spec.ip_families, &spec.cluster_ips)?,
        ],
        external_ips: external_ips(&name, &spec.external_ips.unwrap_or_default()),
        ports: ports.collect::<Result<_, _>>()?,
        name,
    }))
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
fn family_cluster_ip(
    family: Family,
    cluster_ip: &str,
    families: &Option<Vec<String>>,
    cluster_ips: &Option<Vec<String>>,
) -> Result<Option<IpAddr>, String> {
    let families = families.as_deref().unwrap_or_default();
    let text = if families.is_empty() {
        cluster_ip
    } else {
        let at = families.iter().position(|f| *f == family.to_string());
        match at.and_then(|i| cluster_ips.as_deref().unwrap_or_default().get(i)) {
            Some(text) => text,
            None => return Ok(None),
        }
    };
    let ip: IpAddr = text.parse().map_err(|_| format!("spec.clusterIPs: {text:?} is not an IP address"))?;
    Ok((Family::of(ip) == family).then_some(ip))
}

/// Valid external IPs; an invalid one is logged and left out, the others serve.
fn external_ips(name: &ObjectName, texts: &[String]) -> Vec<IpAddr> {
    let parse = |text: &String| match text.trim().parse() {
        Ok(ip) => Some(ip),
        Err(_) => {
            if !text.trim().is_empty() {
                tracing::warn!(service = %name, "spec.externalIPs: {text:?} is not an IP address, left out");
            }
            None
        }
    };
    texts.iter().filter_map(parse).collect()
}

fn protocol(field: &str, text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{field}.protocol: {other:?} is not TCP, UDP or SCTP")),
    }
}

fn decode_service_port(index: usize, port: &RawPort) -> Result<ServicePort, String> {
    let field = format!("spec.ports[{index}]");
    let number = port.port.ok_or_else(|| format!("{field}.port is missing"))?;
    let number = u16::try_from(number).ok().filter(|n| *n > 0);
    Ok(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(&field, port.protocol.as_deref())?,
        port: number.ok_or_else(|| format!("{field}.port is not in 1-65535"))?,
    })
}

fn decode_slice(name: ObjectName, value: &Value) -> Result<Object, String> {
    let not_ours = |name, why| Ok(Object::NotOurs(Kind::EndpointSlice, name, why));
    if label(value, HEADLESS_LABEL).is_some() {
        return not_ours(name, "headless");
    }
    let Some(service) = label(value, SERVICE_NAME_LABEL).filter(|s| !s.is_empty()) else {
        return not_ours(name, "it belongs to no Service");
    };
    let slice = raw::<RawSlice>(value)?;
    let family = match slice.address_type.as_deref() {
        Some("IPv4") => Family::V4,
        Some("IPv6") => Family::V6,
        Some("FQDN") => return not_ours(name, "FQDN endpoints are not supported"),
        other => return Err(format!("addressType: {:?} is not IPv4 or IPv6", other.unwrap_or_default())),
    };
    let mut ports = Vec::new();
    for (i, port) in slice.ports.unwrap_or_default().iter().enumerate() {
        ports.extend(decode_slice_port(i, port)?);
    }
    let mut endpoints = Vec::new();
    for (i, endpoint) in slice.endpoints.unwrap_or_default().iter().enumerate() {
        endpoints.extend(decode_endpoint(i, endpoint, family)?);
    }
    let service = ObjectName { namespace: name.namespace.clone(), name: service.into() };
    Ok(Object::EndpointSlice(EndpointSlice { name, service, family, ports, endpoints }))
}

/// A slice port without a name or a number serves nobody and is passed over.
fn decode_slice_port(index: usize, port: &RawPort) -> Result<Option<SlicePort>, String> {
    let field = format!("ports[{index}]");
    let (Some(name), Some(number)) = (&port.name, port.port.filter(|n| *n > 0)) else {
        return Ok(None);
    };
    Ok(Some(SlicePort {
        name: name.as_str().into(),
        protocol: protocol(&field, port.protocol.as_deref())?,
        port: u16::try_from(number).map_err(|_| format!("{field}.port is not in 1-65535"))?,
    }))
}

/// Only the first address counts. An endpoint without one is passed over.
fn decode_endpoint(index: usize, endpoint: &RawEndpoint, family: Family) -> Result<Option<Endpoint>, String> {
    let Some(text) = endpoint.addresses.as_deref().unwrap_or_default().first() else {
        return Ok(None);
    };
    let addr: Option<IpAddr> = text.parse().ok().filter(|ip| Family::of(*ip) == family);
    let addr =
        addr.ok_or_else(|| format!("endpoints[{index}].addresses[0]: {text:?} is not an {family} address"))?;
    let conditions = endpoint.conditions.as_ref();
    Ok(Some(Endpoint {
        addr,
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        node: endpoint.node_name.as_deref().map(Into::into),
    }))
}

fn decode_node(name: &ObjectName, value: &Value) -> Result<Object, String> {
    let spec = raw::<RawNode>(value)?.spec;
    let texts = spec.pod_cidrs.or_else(|| spec.pod_cidr.map(|cidr| vec![cidr])).unwrap_or_default();
    let mut pod_cidrs = [None, None];
    for text in &texts {
        let net: IpNet = text.parse().map_err(|_| format!("spec.podCIDRs: {text:?} is not a CIDR"))?;
        pod_cidrs[Family::of_net(&net).index()].get_or_insert(net.trunc());
    }
    Ok(Object::Node(Node { name: name.name.clone(), pod_cidrs }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(spec: Value) -> Result<Object, String> {
        decode(Kind::Service, &json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
    }

    fn slice(body: Value) -> Result<Object, String> {
        let mut value =
            json!({"metadata": {"name": "s", "namespace": "d", "labels": {SERVICE_NAME_LABEL: "web"}}});
        value.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        decode(Kind::EndpointSlice, &value)
    }

    #[test]
    fn dual_stack_takes_the_cluster_ip_beside_its_family() {
        let spec = json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.1"],
            "ipFamilies": ["IPv6", "IPv4"], "ports": [{"port": 80}]});
        let Ok(Object::Service(s)) = service(spec) else { panic!() };
        assert_eq!(s.cluster_ips, [Some("10.96.0.1".parse().unwrap()), Some("fd00::1".parse().unwrap())]);
        assert_eq!(s.ports[0].protocol, Protocol::Tcp);
        assert_eq!(s.created, i64::MAX);
    }

    #[test]
    fn services_of_others_are_told_apart_from_malformed_ones() {
        for spec in [
            json!({"clusterIP": "None"}),
            json!({}),
            json!({"clusterIP": "10.96.0.1", "type": "ExternalName"}),
        ] {
            assert!(matches!(service(spec.clone()), Ok(Object::NotOurs(..))), "{spec}");
        }
        let foreign = json!({"metadata": {"name": "w", "labels": {PROXY_NAME_LABEL: "x"}},
            "spec": {"clusterIP": "10.96.0.1"}});
        assert!(matches!(decode(Kind::Service, &foreign), Ok(Object::NotOurs(..))));
    }

    #[test]
    fn each_error_names_its_field() {
        let cases = [
            (service(json!({"clusterIP": "10.96.0"})), "spec.clusterIPs: \"10.96.0\""),
            (service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 70000}]})), "spec.ports[0].port"),
            (service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 0}]})), "spec.ports[0].port"),
            (service(json!({"clusterIP": "10.96.0.1", "ports": [{}]})), "spec.ports[0].port is missing"),
            (
                service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 1, "protocol": "HTTP"}]})),
                "spec.ports[0].protocol: \"HTTP\"",
            ),
            (
                service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": "http"}]})),
                "spec.ports[0].port: invalid type",
            ),
            (slice(json!({"addressType": "IPX"})), "addressType"),
            (
                slice(json!({"addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}]})),
                "endpoints[0].addresses[0]",
            ),
            (decode(Kind::Service, &json!({})), "metadata.name"),
            (
                decode(Kind::Node, &json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["x"]}})),
                "podCIDRs",
            ),
        ];
        for (result, field) in cases {
            let error = result.unwrap_err();
            assert!(error.contains(field), "{error:?} does not name {field}");
        }
    }

    #[test]
    fn a_bad_external_ip_leaves_the_others_in_force() {
        let spec = json!({"clusterIP": "10.96.0.1", "externalIPs": ["", "x", "198.51.100.1"], "ports": []});
        let Ok(Object::Service(s)) = service(spec) else { panic!() };
        assert_eq!(s.external_ips.len(), 1);
    }

    #[test]
    fn absent_conditions_mean_ready_and_useless_ports_are_passed_over() {
        let body = json!({"addressType": "IPv4",
            "ports": [{"name": "", "port": 80}, {"port": 1}, {"name": "x"}, {"name": "y", "port": 0}],
            "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.2"]}, {"addresses": []},
                          {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "terminating": true}}]});
        let Ok(Object::EndpointSlice(s)) = slice(body) else { panic!() };
        assert_eq!(s.ports.len(), 1);
        assert_eq!(s.endpoints.len(), 2);
        assert!(s.endpoints[0].ready && s.endpoints[0].serving && !s.endpoints[0].terminating);
        assert!(!s.endpoints[1].ready && s.endpoints[1].serving && s.endpoints[1].terminating);
    }

    #[test]
    fn slices_that_are_not_for_us() {
        let headless =
            json!({"metadata": {"name": "s", "labels": {SERVICE_NAME_LABEL: "w", HEADLESS_LABEL: ""}}});
        for value in [headless, json!({"metadata": {"name": "s"}})] {
            assert!(matches!(decode(Kind::EndpointSlice, &value), Ok(Object::NotOurs(..))));
        }
        assert!(matches!(slice(json!({"addressType": "FQDN"})), Ok(Object::NotOurs(..))));
    }

    #[test]
    fn a_node_has_one_pod_cidr_per_family() {
        let node = json!({"metadata": {"name": "n"},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64", "10.2.0.0/24"]}});
        let Ok(Object::Node(n)) = decode(Kind::Node, &node) else { panic!() };
        assert_eq!(n.pod_cidrs.map(|c| c.unwrap().to_string()), ["10.1.0.0/24", "fd00:1::/64"]);
    }
}
