// SPDX-License-Identifier: Apache-2.0
//! A strict parser of rendered manifests: every field must be in the schema of Kubernetes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// An object of a manifest.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "named after Kubernetes' kinds")]
pub enum Manifest {
    DaemonSet(Box<DaemonSet>),
    ConfigMap(ConfigMap),
    Service(Box<Service>),
    ServiceAccount(ServiceAccount),
    ClusterRole(ClusterRole),
    ClusterRoleBinding(ClusterRoleBinding),
    PodMonitor(Value),
    ServiceMonitor(Value),
    PrometheusRule(Value),
}

/// Reads all objects of a file.
///
/// # Errors
/// The object, and the field that is unknown or has a wrong type.
pub fn read(path: &Path) -> Result<Vec<Manifest>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let objects = parse(&text).with_context(|| path.display().to_string())?;
    ensure!(!objects.is_empty(), "no object in {}", path.display());
    Ok(objects)
}

fn parse(text: &str) -> Result<Vec<Manifest>> {
    // Text within objects is indented, so this separates objects and nothing else.
    text.split("\n---\n").map(|document| object(&serde_saphyr::from_str(document)?)).collect()
}

fn object(value: &Value) -> Result<Manifest> {
    let kind = (value["apiVersion"].as_str().unwrap_or_default(), value["kind"].as_str().unwrap_or_default());
    let read = match kind {
        ("apps/v1", "DaemonSet") => strict(value).map(|set| Manifest::DaemonSet(Box::new(set))),
        ("v1", "ConfigMap") => strict(value).map(Manifest::ConfigMap),
        ("v1", "Service") => strict(value).map(|service| Manifest::Service(Box::new(service))),
        ("v1", "ServiceAccount") => strict(value).map(Manifest::ServiceAccount),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => strict(value).map(Manifest::ClusterRole),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            strict(value).map(Manifest::ClusterRoleBinding)
        }
        ("monitoring.coreos.com/v1", "PodMonitor") => {
            strict::<PodMonitor>(value).map(|_| Manifest::PodMonitor(value.clone()))
        }
        ("monitoring.coreos.com/v1", "ServiceMonitor") => {
            strict::<ServiceMonitor>(value).map(|_| Manifest::ServiceMonitor(value.clone()))
        }
        ("monitoring.coreos.com/v1", "PrometheusRule") => {
            strict::<PrometheusRule>(value).map(|_| Manifest::PrometheusRule(value.clone()))
        }
        other => bail!("the kind {other:?} is not known here"),
    };
    read.with_context(|| format!("{} {}", kind.1, value["metadata"]["name"]))
}

/// Decodes a value. Unknown fields are errors.
fn strict<T: DeserializeOwned>(value: &Value) -> Result<T> {
    let mut unknown = Vec::new();
    let decoded = serde_ignored::deserialize(value, |path| unknown.push(path.to_string()))?;
    ensure!(unknown.is_empty(), "Kubernetes has no field {}", unknown.join(", "));
    Ok(decoded)
}

/// The parts of the Prometheus operator's types that the manifests use: there is no crate for them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "read to be checked")]
struct Custom<Spec> {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: Spec,
}

type PodMonitor = Custom<PodMonitorSpec>;
type ServiceMonitor = Custom<ServiceMonitorSpec>;
type PrometheusRule = Custom<RuleGroups>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "read to be checked")]
struct PodMonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    namespace_selector: Option<NamespaceSelector>,
    pod_metrics_endpoints: Vec<MetricsEndpoint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "read to be checked")]
struct ServiceMonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    namespace_selector: Option<NamespaceSelector>,
    endpoints: Vec<MetricsEndpoint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "read to be checked")]
struct NamespaceSelector {
    match_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "read to be checked")]
struct MetricsEndpoint {
    port: Option<String>,
    path: Option<String>,
    interval: Option<String>,
    relabelings: Option<Vec<Relabeling>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "read to be checked")]
struct Relabeling {
    source_labels: Option<Vec<String>>,
    regex: Option<String>,
    target_label: Option<String>,
    replacement: Option<String>,
    action: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "read to be checked")]
struct RuleGroups {
    groups: Vec<RuleGroup>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "read to be checked")]
struct RuleGroup {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "read to be checked")]
struct Rule {
    alert: String,
    expr: String,
    #[serde(rename = "for")]
    pending: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests;
