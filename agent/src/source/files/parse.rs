// SPDX-License-Identifier: Apache-2.0
//! From the text of a file to objects: JSON values or YAML documents, lists among them.

use std::net::IpAddr;

use anyhow::{Context, anyhow};
use serde_json::Value;

use crate::core::model::ObjectName;
use crate::source::decode::RawObject;
use crate::store::{Decoded, Kind, Object};
use crate::yaml;

/// What a file held: objects, as far as they could be decoded, and addresses of other Nodes.
#[derive(Clone, Debug)]
pub(in crate::source) enum Item {
    Object(Kind, ObjectName, Box<Decoded>),
    Peer(Vec<IpAddr>),
}

/// Which objects count.
#[derive(Debug)]
pub(in crate::source) struct Ours {
    pub node: String,
    /// The name of this proxy, as Services ask for one; `None`: those that ask for none.
    pub proxy: Option<String>,
}

/// The `apiVersion` of a kind.
fn api_version(kind: Kind) -> &'static str {
    match kind {
        Kind::Service | Kind::Node => "v1",
        Kind::EndpointSlice => "discovery.k8s.io/v1",
    }
}

/// Parses a file; a list contributes its items.
pub(in crate::source) fn parse(text: &str, ours: &Ours) -> anyhow::Result<Vec<Item>> {
    // A file that was just cut to be written anew; a list without items says so.
    anyhow::ensure!(!text.trim().is_empty(), "the file is empty");
    let documents: Vec<Value> = if text.trim_start().starts_with('{') {
        let values = serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>();
        values.context("it is not valid JSON")?
    } else {
        yaml::read_all(text).map_err(|error| anyhow!("it is not valid YAML: {error}"))?
    };
    let mut items = Vec::new();
    for document in &documents {
        collect(document, ours, &mut items)?;
    }
    Ok(items)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn collect(value: &Value, ours: &Ours, items: &mut Vec<Item>) -> anyhow::Result<()> {
    if value.is_null() {
        return Ok(());
    }
    let (kind, version) = (text(value, "kind"), text(value, "apiVersion"));
    if let Some(of_items) = kind.strip_suffix("List") {
        let list = value.get("items").and_then(Value::as_array);
        let list = list.with_context(|| format!("a {kind} without items"))?;
        // Items of a typed list (ServiceList) carry no kind of their own.
        for item in list {
            match of_items {
                "" => collect(item, ours, items)?,
                of_items => collect_object(item, (of_items, version), ours, items)?,
            }
        }
        return Ok(());
    }
    anyhow::ensure!(
        !kind.is_empty(),
        "an object without a kind: is this the output of `kubectl get -o yaml`?"
    );
    collect_object(value, (kind, version), ours, items)
}

fn collect_object(
    value: &Value,
    (kind, version): (&str, &str),
    ours: &Ours,
    items: &mut Vec<Item>,
) -> anyhow::Result<()> {
    // Kinds of other groups have the same names, a Knative Service for one. An object without a version is
    // taken for one of ours.
    let is_ours =
        |known: &Kind| known.to_string() == kind && (version.is_empty() || version == api_version(*known));
    let Some(kind) = Kind::ALL.into_iter().find(is_ours) else {
        tracing::debug!(
            kind,
            version,
            "ignored: not a v1 Service or Node or discovery.k8s.io/v1 EndpointSlice"
        );
        return Ok(());
    };
    let object = RawObject::read(kind, value)?;
    let name = object.name();
    let for_others = match kind {
        Kind::Node => *name.name != *ours.node,
        Kind::Service => object.proxy() != ours.proxy.as_deref(),
        Kind::EndpointSlice => false,
    };
    if kind == Kind::Node
        && for_others
        && let Ok(Object::Node(node)) = object.decode(&name).object
    {
        items.push(Item::Peer(node.addresses));
    }
    if for_others {
        return Ok(());
    }
    let decoded = object.decode(&name);
    items.push(Item::Object(kind, name, Box::new(decoded)));
    Ok(())
}
