// SPDX-License-Identifier: Apache-2.0
//! The objects of a test cluster, built from Kubernetes JSON.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::node;
use crate::core::model::Node;
use crate::core::model::settings::RulesMode;
use crate::source::decode::decode;
use crate::store::{Kind, Object, Store};

/// All objects of a cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Services and EndpointSlices by kind and name.
    pub objects: BTreeMap<(Kind, String), Object>,
    /// This node.
    pub node: Node,
    /// The networks whose ClusterIPs are local by a route, which the agent learns when it starts.
    pub routed: Vec<IpNet>,
    /// The rules mode of the agent.
    pub rules: RulesMode,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), node: node(), routed: Vec::new(), rules: RulesMode::default() }
    }
}

impl Cluster {
    /// Puts a complete list of every kind into the store.
    pub fn put(&self, store: &Store) {
        store.update(|update| {
            for kind in Kind::ALL {
                update.begin_list(kind);
            }
            self.objects.values().for_each(|object| update.put(object.clone()));
            update.put(Object::Node(self.node.clone()));
            for kind in Kind::ALL {
                update.finish_list(kind);
            }
        });
    }

    /// Adds an object from Kubernetes JSON.
    pub fn with(mut self, kind: Kind, value: &Value) -> Self {
        let object = decode(kind, value).unwrap_or_else(|error| panic!("{error}: {value}"));
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.objects.insert((kind, name), object);
        self
    }

    /// Adds a Service from `spec` and the IPs of `status.loadBalancer.ingress`.
    pub fn service(self, name: &str, spec: Value, ingress: &[&str]) -> Self {
        let ingress: Vec<Value> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
        let number = name.bytes().map(u32::from).sum::<u32>() % 10;
        self.with(
            Kind::Service,
            &json!({
                "metadata": {
                    "name": name, "namespace": "d",
                    "creationTimestamp": format!("2026-01-0{}T00:00:00Z", number % 9 + 1),
                },
                "spec": spec,
                "status": {"loadBalancer": {"ingress": ingress}},
            }),
        )
    }

    /// As [`Self::service`], with annotations.
    pub fn annotated(self, name: &str, annotations: Value, spec: Value) -> Self {
        self.with(
            Kind::Service,
            &json!({"metadata": {"name": name, "namespace": "d", "annotations": annotations}, "spec": spec}),
        )
    }

    /// Adds a slice of a Service. Endpoints are `ADDRESS@NODE`, with a leading `-` if terminating or `!` if not ready;
    /// ports are `NAME/PROTOCOL/NUMBER`.
    pub fn slice(self, service: &str, endpoints: &[&str], ports: &[&str]) -> Self {
        self.slice_in("d", service, endpoints, ports)
    }

    /// As [`Self::slice`], in another namespace.
    pub fn slice_in(self, namespace: &str, service: &str, endpoints: &[&str], ports: &[&str]) -> Self {
        let v6 = endpoints.iter().any(|e| e.contains(':'));
        let ports: Vec<Value> = ports
            .iter()
            .map(|port| {
                let parts: Vec<&str> = port.split('/').collect();
                json!({"name": parts[0], "protocol": parts[1], "port": parts[2].parse::<u16>().unwrap()})
            })
            .collect();
        let name = format!("{service}-{}", if v6 { "v6" } else { "v4" });
        self.with(
            Kind::EndpointSlice,
            &json!({
                "metadata": {
                    "name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service},
                },
                "addressType": if v6 { "IPv6" } else { "IPv4" },
                "endpoints": endpoints.iter().map(|e| endpoint(e)).collect::<Vec<_>>(),
                "ports": ports,
            }),
        )
    }
}

fn endpoint(text: &str) -> Value {
    let terminating = text.starts_with('-');
    let unready = terminating || text.starts_with('!');
    let text = text.trim_start_matches(['-', '!']);
    let (address, node) = text.split_once('@').unwrap_or((text, ""));
    json!({
        "addresses": [address],
        "conditions": {"ready": !unready, "serving": terminating || !unready, "terminating": terminating},
        "nodeName": if node.is_empty() { Value::Null } else { json!(node) },
    })
}
