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

/// Moves an object to another namespace, with more labels.
pub fn placed(mut object: Value, namespace: &str, labels: Value) -> Value {
    object["metadata"]["namespace"] = json!(namespace);
    if let (Some(all), Value::Object(more)) = (object["metadata"]["labels"].as_object_mut(), labels.clone()) {
        all.extend(more);
    } else {
        object["metadata"]["labels"] = labels;
    }
    object
}

/// The conditions of an endpoint, as the controller writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes traffic.
    Ready,
    /// Fails its readiness probe.
    NotReady,
    /// Is being deleted, and still serves.
    Terminating,
}

/// An EndpointSlice whose endpoints, written as for [`slice()`], have these conditions.
pub fn slice_of(service: &str, endpoints: &[(&str, State)], ports: &[Port<'_>]) -> Value {
    let addresses: Vec<&str> = endpoints.iter().map(|(address, _)| *address).collect();
    let mut slice = slice(service, &addresses, ports);
    for (index, (_, state)) in endpoints.iter().enumerate() {
        slice["endpoints"][index]["conditions"] = json!({
            "ready": *state == State::Ready, "serving": *state != State::NotReady,
            "terminating": *state == State::Terminating,
        });
    }
    slice
}

/// A builder of a Service in namespace `test`, starting from [`service()`].
#[derive(Clone, Debug)]
pub struct ServiceBuilder {
    object: Value,
}

impl ServiceBuilder {
    /// A Service of type ClusterIP.
    pub fn new(name: &str, cluster_ips: &[&str], ports: &[Port<'_>]) -> Self {
        let mut object = service(name, cluster_ips, &[], ports);
        object["spec"]["type"] = json!("ClusterIP");
        Self { object }
    }

    fn spec(mut self, field: &str, value: Value) -> Self {
        self.object["spec"][field] = value;
        self
    }

    /// Type NodePort, with one number for each port; 0: no node port.
    pub fn node_ports(mut self, numbers: &[u16]) -> Self {
        for (index, number) in numbers.iter().enumerate().filter(|(_, number)| **number != 0) {
            self.object["spec"]["ports"][index]["nodePort"] = json!(number);
        }
        if self.object["spec"]["type"] == "LoadBalancer" {
            self
        } else {
            self.spec("type", json!("NodePort"))
        }
    }

    /// Annotations, as a map.
    pub fn annotations(mut self, annotations: &Value) -> Self {
        self.object["metadata"]["annotations"] = annotations.clone();
        self
    }

    /// `externalIPs`.
    pub fn external_ips(self, addresses: &[&str]) -> Self {
        self.spec("externalIPs", json!(addresses))
    }

    /// Type LoadBalancer with these addresses of the load balancer, which nodes serve
    /// (`ipMode: VIP`).
    pub fn load_balancer(self, addresses: &[&str]) -> Self {
        addresses.iter().fold(self, |service, address| service.ingress(address, Some("VIP")))
    }

    /// Type LoadBalancer with one more address and its `ipMode`.
    pub fn ingress(mut self, address: &str, ip_mode: Option<&str>) -> Self {
        let entry = match ip_mode {
            Some(mode) => json!({"ip": address, "ipMode": mode}),
            None => json!({"ip": address}),
        };
        let ingress = &mut self.object["status"]["loadBalancer"]["ingress"];
        match ingress.as_array_mut() {
            Some(entries) => entries.push(entry),
            None => *ingress = json!([entry]),
        }
        self.spec("type", json!("LoadBalancer"))
    }

    /// `externalTrafficPolicy`.
    pub fn external_policy(self, policy: &str) -> Self {
        self.spec("externalTrafficPolicy", json!(policy))
    }

    /// `internalTrafficPolicy`.
    pub fn internal_policy(self, policy: &str) -> Self {
        self.spec("internalTrafficPolicy", json!(policy))
    }

    /// `sessionAffinity: ClientIP` with this timeout in seconds.
    pub fn affinity(self, seconds: u32) -> Self {
        self.spec("sessionAffinity", json!("ClientIP"))
            .spec("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}))
    }

    /// `loadBalancerSourceRanges`.
    pub fn source_ranges(self, ranges: &[&str]) -> Self {
        self.spec("loadBalancerSourceRanges", json!(ranges))
    }

    /// `healthCheckNodePort`.
    pub fn health_check_node_port(self, port: u16) -> Self {
        self.spec("healthCheckNodePort", json!(port))
    }

    /// The object.
    pub fn build(self) -> Value {
        self.object
    }
}

/// A Node with these internal addresses.
pub fn node(name: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {}, "status": {"addresses": addresses},
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

/// A KubeProxyConfiguration for `node`, with the additional fields `more`.
pub fn config(node: &str, more: &Value) -> Value {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "ipvs", "hostnameOverride": node, "clusterCIDR": "10.244.0.0/16,fd00:244::/32",
        // Some of these sysctls are read-only in a network namespace: the agent must not set them.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
        config.extend(more.clone());
    }
    if let Some(mode) = rules_mode()
        && config["kubeIPVS"]["rules"].is_null()
    {
        config["kubeIPVS"]["rules"] = mode.into();
    }
    config
}

/// The rules mode that the tests are run in (`KUBE_IPVS_RULES`); `None`: that of the configuration.
pub fn rules_mode() -> Option<String> {
    std::env::var("KUBE_IPVS_RULES").ok()
}

/// Whether the tests are run in rules mode `nftables`.
pub fn in_nftables() -> bool {
    rules_mode().is_some_and(|mode| mode == "nftables")
}
