// SPDX-License-Identifier: Apache-2.0
//! Parses a file to objects: JSON values or YAML documents, including lists.

use std::net::IpAddr;

use anyhow::{Context, anyhow};
use serde_json::Value;

use crate::core::model::ObjectName;
use crate::source::decode::RawObject;
use crate::store::{Decoded, Kind, Object};
use crate::yaml;

#[derive(Clone, Debug)]
pub enum FileItem {
    Object(Kind, ObjectName, Box<Decoded>),
    /// The addresses of another Node.
    Peer(Vec<IpAddr>),
}

#[derive(Debug)]
pub struct ObjectFilter {
    pub node: String,
    /// The name of the proxy that a Service requests by label; `None`: Services without that label.
    pub proxy: Option<String>,
}

/// Parses a file; a list contributes its items.
pub fn parse(text: &str, filter: &ObjectFilter) -> anyhow::Result<Vec<FileItem>> {
    // An empty file may be about to be written; a list without items is not empty.
    anyhow::ensure!(!text.trim().is_empty(), "the file is empty");
    let documents: Vec<Value> = if text.trim_start().starts_with('{') {
        let values = serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>();
        values.context("it is not valid JSON")?
    } else {
        yaml::read_all(text).map_err(|error| anyhow!("it is not valid YAML: {error}"))?
    };
    let mut items = Vec::new();
    for document in &documents {
        collect(document, filter, &mut items)?;
    }
    Ok(items)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn collect(value: &Value, filter: &ObjectFilter, items: &mut Vec<FileItem>) -> anyhow::Result<()> {
    if value.is_null() {
        return Ok(());
    }
    let (kind, version) = (text(value, "kind"), text(value, "apiVersion"));
    if let Some(of_items) = kind.strip_suffix("List") {
        let list = value.get("items").and_then(Value::as_array);
        let list = list.with_context(|| format!("a {kind} has no items"))?;
        // Items of a typed list (ServiceList) have no kind of their own.
        for item in list {
            match of_items {
                "" => collect(item, filter, items)?,
                of_items => collect_object(item, (of_items, version), filter, items)?,
            }
        }
        return Ok(());
    }
    anyhow::ensure!(!kind.is_empty(), "an object has no kind: is this the output of `kubectl get -o yaml`?");
    collect_object(value, (kind, version), filter, items)
}

fn collect_object(
    value: &Value,
    (kind, version): (&str, &str),
    filter: &ObjectFilter,
    items: &mut Vec<FileItem>,
) -> anyhow::Result<()> {
    // Other API groups have kinds of the same name, e.g. the Knative Service. An object without a version is accepted.
    let is_known =
        |known: &Kind| known.to_string() == kind && (version.is_empty() || version == known.api_version());
    let Some(kind) = Kind::ALL.into_iter().find(is_known) else {
        tracing::debug!(
            kind,
            version,
            "ignored: not a v1 Service or Node or discovery.k8s.io/v1 EndpointSlice"
        );
        return Ok(());
    };
    let object = RawObject::read(kind, value)?;
    let name = object.name();
    let decoded = object.decode(&name);
    match kind {
        Kind::Node if *name.name != *filter.node => {
            if let Ok(Object::Node(node)) = decoded.object {
                items.push(FileItem::Peer(node.addresses));
            }
        }
        Kind::Service if object.proxy() != filter.proxy.as_deref() => {}
        _ => items.push(FileItem::Object(kind, name, Box::new(decoded))),
    }
    Ok(())
}
