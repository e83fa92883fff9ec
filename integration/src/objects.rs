// SPDX-License-Identifier: Apache-2.0
//! Kubernetes objects for tests and benches, as JSON.

use serde_json::{Value, json};

/// A named port: name, protocol, number.
pub type Port<'a> = (&'a str, &'a str, u16);

/// A Service in namespace `test`.
pub fn service(name: &str, cluster_ips: &[&str], external_ips: &[&str], ports: &[Port<'_>]) -> Value {
    let families: Vec<&str> =
        cluster_ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "test", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "clusterIP": cluster_ips.first(), "clusterIPs": cluster_ips, "ipFamilies": families,
            "externalIPs": external_ips, "ports": json_ports(ports),
        },
    })
}

/// An EndpointSlice of a Service in namespace `test`; all endpoints are ready. An address may be
/// followed by `@` and the name of its node.
pub fn slice(service: &str, addresses: &[&str], ports: &[Port<'_>]) -> Value {
    let v6 = addresses.first().is_some_and(|a| a.contains(':'));
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|text| match text.split_once('@') {
            Some((address, node)) => json!({"addresses": [address], "nodeName": node}),
            None => json!({"addresses": [text]}),
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}", if v6 { "v6" } else { "v4" }), "namespace": "test",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": json_ports(ports), "endpoints": endpoints,
    })
}

fn json_ports(ports: &[Port<'_>]) -> Vec<Value> {
    ports
        .iter()
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
        .collect()
}

/// A `v1.List`.
pub fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// A KubeProxyConfiguration for `node`, with the fields of `more` on top.
pub fn config(node: &str, more: &Value) -> Value {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "ipvs", "hostnameOverride": node, "clusterCIDR": "10.244.0.0/16,fd00:244::/32",
    });
    if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
        config.extend(more.clone());
    }
    config
}
