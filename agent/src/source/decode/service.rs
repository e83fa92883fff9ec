// SPDX-License-Identifier: Apache-2.0
//! Services.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use super::tape::Tape;
use super::used_fields::used_fields;
use super::{METADATA, RawPort, annotations, intern, label, port_or_zero, protocol, selected_labels, time};
use crate::core::model::address;
use crate::core::model::options::ServiceOptions;
use crate::core::model::{Family, ObjectName, PerFamily, Service, ServicePort};
use crate::store::{Kind, Object};

pub(super) const DNS_LABEL: &str = "k8s-app";
/// The API server's default for `sessionAffinityConfig`.
const DEFAULT_AFFINITY: u32 = 10800;

used_fields! {
    RawService<'a> {
        + METADATA,
        spec "spec": RawServiceSpec<'a>,
        status "status": RawServiceStatus<'a>,
    }

    RawServiceSpec<'a> {
        ports "ports": Option<Vec<RawPort<'a>>>,
        cluster_ip "clusterIP": Option<&'a str>,
        cluster_ips "clusterIPs": Option<Vec<&'a str>>,
        service_type "type": Option<&'a str>,
        session_affinity "sessionAffinity": Option<&'a str>,
        ip_families "ipFamilies": Option<Vec<&'a str>>,
        internal_traffic_policy "internalTrafficPolicy": Option<&'a str>,
        external_traffic_policy "externalTrafficPolicy": Option<&'a str>,
        external_ips "externalIPs": Option<Vec<&'a str>>,
        health_check_node_port "healthCheckNodePort": Option<u32>,
        source_ranges "loadBalancerSourceRanges": Option<Vec<&'a str>>,
        session_affinity_config "sessionAffinityConfig": Option<RawAffinity>,
    }

    RawAffinity {
        client_ip "clientIP": Option<RawClientIp>,
    }

    RawClientIp {
        timeout_seconds "timeoutSeconds": Option<u32>,
    }

    RawServiceStatus<'a> {
        load_balancer "loadBalancer": Option<RawLoadBalancer<'a>>,
    }

    RawLoadBalancer<'a> {
        ingress "ingress": Option<Vec<RawIngress<'a>>>,
    }

    RawIngress<'a> {
        ip "ip": Option<&'a str>,
        ip_mode "ipMode": Option<&'a str>,
    }
}

pub(super) fn decode(name: ObjectName, tape: &Tape<'_>, ignored: &mut Vec<String>) -> Result<Object, String> {
    let RawService { spec, status } = tape.decode()?;
    let cluster_ip = spec.cluster_ip.unwrap_or_default();
    // A headless Service, or another name of a host.
    if matches!(cluster_ip, "" | "None") || spec.service_type == Some("ExternalName") {
        return Ok(Object::NotOurs(Kind::Service, name));
    }
    let ports = spec.ports.as_deref().unwrap_or_default().iter().enumerate();
    let mut ports = ports.map(|(i, port)| decode_port(i, port)).collect::<Result<Vec<_>, _>>()?;
    ports.shrink_to_fit();
    let external_local = external_local(&spec);
    Ok(Object::Service(Service {
        // An object without this time is the youngest.
        created: time(tape, &["metadata", "creationTimestamp"]).map_or(i64::MAX, Timestamp::as_second),
        priority: is_priority(&name, tape),
        cluster_ips: PerFamily::new(
            family_cluster_ip(Family::V4, cluster_ip, &spec)?,
            family_cluster_ip(Family::V6, cluster_ip, &spec)?,
        ),
        external_ips: addresses("spec.externalIPs", spec.external_ips.iter().flatten().copied(), ignored),
        load_balancer_ips: load_balancer_ips(&status, ignored),
        source_ranges: source_ranges(spec.source_ranges.as_deref().unwrap_or_default(), ignored)?,
        external_local,
        internal_local: spec.internal_traffic_policy == Some("Local"),
        affinity: affinity(&spec),
        health_check_node_port: health_check_node_port(&spec, external_local)?,
        own_options: own_options(tape),
        labels: selected_labels::of_object(tape),
        ports,
        name,
    }))
}

fn own_options(tape: &Tape<'_>) -> Option<Arc<ServiceOptions>> {
    let all = tape.at(&["metadata", "annotations"])?;
    annotations::of_annotations(|name| all.get(name)?.text())
}

/// Whether every pod needs the Service first: the API server's, and that of DNS by the label and the names that all
/// distributions use.
fn is_priority(name: &ObjectName, tape: &Tape<'_>) -> bool {
    match (&*name.namespace, &*name.name) {
        ("default", "kubernetes") | ("kube-system", "kube-dns" | "coredns") => true,
        ("kube-system", _) => label(tape, DNS_LABEL) == Some("kube-dns"),
        _ => false,
    }
}

/// The ClusterIP of a family: the entry of `clusterIPs` at its index in `ipFamilies`, or `clusterIP` if there are no
/// `ipFamilies`.
fn family_cluster_ip(
    family: Family,
    cluster_ip: &str,
    spec: &RawServiceSpec<'_>,
) -> Result<Option<IpAddr>, String> {
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
    let ip = address("spec.clusterIPs", text)?;
    Ok((Family::of(ip) == family).then_some(ip))
}

fn address(field: &str, text: &str) -> Result<IpAddr, String> {
    let ip = address::parse_ip(text).ok_or_else(|| format!("{field}: {text:?} is not an IP address"))?;
    match address::useless(ip) {
        Some(what) => Err(format!("{field}: {ip} is {what}: no Service can have it")),
        None => Ok(ip),
    }
}

/// The valid addresses. Others are ignored: texts that are no address, and addresses that no Service can have.
fn addresses<'a>(
    field: &str,
    texts: impl Iterator<Item = &'a str>,
    ignored: &mut Vec<String>,
) -> Vec<IpAddr> {
    let mut valid = Vec::new();
    for text in texts.map(str::trim).filter(|text| !text.is_empty()) {
        match address(field, text) {
            Ok(ip) => valid.push(ip),
            Err(error) => ignored.push(error),
        }
    }
    valid.shrink_to_fit();
    valid
}

/// The addresses that nodes serve: those with ipMode `Proxy` are served by the load balancer.
fn load_balancer_ips(status: &RawServiceStatus<'_>, ignored: &mut Vec<String>) -> Vec<IpAddr> {
    let ingress = status.load_balancer.iter().filter_map(|lb| lb.ingress.as_deref()).flatten();
    let vips = ingress.filter(|i| i.ip_mode.unwrap_or("VIP") == "VIP");
    addresses("status.loadBalancer.ingress", vips.filter_map(|i| i.ip), ignored)
}

/// Networks, parsed as in kube-proxy: with blanks around, host bits and leading zeros. An invalid one is ignored, unless
/// no valid one is left: the Service would then be open to all.
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

/// `externalTrafficPolicy` has an effect only if the Service is reachable from outside.
fn external_local(spec: &RawServiceSpec<'_>) -> bool {
    let is_external = match spec.service_type {
        Some("LoadBalancer" | "NodePort") => true,
        _ => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
    };
    is_external && spec.external_traffic_policy == Some("Local")
}

fn affinity(spec: &RawServiceSpec<'_>) -> Option<u32> {
    if spec.session_affinity != Some("ClientIP") {
        return None;
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    Some(client_ip.and_then(|c| c.timeout_seconds).unwrap_or(DEFAULT_AFFINITY))
}

fn health_check_node_port(spec: &RawServiceSpec<'_>, external_local: bool) -> Result<u16, String> {
    let port = port_or_zero("spec.healthCheckNodePort", spec.health_check_node_port)?;
    let has_one = external_local && spec.service_type == Some("LoadBalancer");
    Ok(if has_one { port } else { 0 })
}

fn decode_port(index: usize, port: &RawPort<'_>) -> Result<ServicePort, String> {
    let field = fmt::from_fn(|f| write!(f, "spec.ports[{index}]"));
    let number = port.port.ok_or_else(|| format!("{field}.port is missing"))?;
    let number = u16::try_from(number).ok().filter(|n| *n > 0);
    Ok(ServicePort {
        name: intern::text(port.name.unwrap_or_default()),
        protocol: protocol(&field, port.protocol)?,
        port: number.ok_or_else(|| format!("{field}.port is not in 1-65535"))?,
        node_port: port_or_zero(format_args!("{field}.nodePort"), port.node_port)?,
    })
}
