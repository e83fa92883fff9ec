// SPDX-License-Identifier: Apache-2.0
//! Parses a file to objects: JSON values or YAML documents, including lists.

use std::fmt;
use std::net::IpAddr;

use anyhow::anyhow;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use crate::core::model::ObjectName;
use crate::source::decode::UntypedObject;
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
///
/// # Errors
/// What is wrong with the text, or with an object of unknown kind. No object of the file can be used then.
pub fn parse(text: &str, filter: &ObjectFilter) -> anyhow::Result<Vec<FileItem>> {
    // An empty file may be about to be written; a list without items is not empty.
    anyhow::ensure!(!text.trim().is_empty(), "the file is empty");
    let mut found = Vec::new();
    let mut documents = Documents { filter, found: &mut found };
    if text.trim_start().starts_with('{') {
        let mut json = serde_json::Deserializer::from_str(text);
        while json.end().is_err() {
            documents.read(&mut json).map_err(|error| match error.classify() {
                Category::Data => anyhow!("{error}"),
                _ => anyhow!("it is not valid JSON: {error}"),
            })?;
        }
    } else {
        let values = yaml::read_all(text).map_err(|error| anyhow!("it is not valid YAML: {error}"))?;
        for value in &values {
            documents.read(value)?;
        }
    }
    Ok(found)
}

/// Takes objects as they are read: a tree of a large list would take several times its size.
struct Documents<'a> {
    filter: &'a ObjectFilter,
    found: &'a mut Vec<FileItem>,
}

impl Documents<'_> {
    fn read<'de, D: Deserializer<'de>>(&mut self, deserializer: D) -> Result<(), D::Error> {
        match (Document(self)).deserialize(deserializer)? {
            Some(object) => self.take_by_kind(object).map_err(D::Error::custom),
            None => Ok(()),
        }
    }

    /// Takes an object with kind and version, or a list. Returns another object: its list may name its kind.
    fn take<'de>(
        &mut self,
        object: UntypedObject<'de>,
        items: Option<Vec<UntypedObject<'de>>>,
    ) -> Result<Option<UntypedObject<'de>>, String> {
        let (kind, version) = (object.kind(), object.api_version());
        let Some(of_items) = kind.strip_suffix("List") else {
            if kind.is_empty() || version.is_empty() {
                return Ok(Some(object));
            }
            self.take_by_kind(object)?;
            return Ok(None);
        };
        let items = items.ok_or_else(|| format!("a {kind} has no items"))?;
        if of_items.is_empty() {
            items.into_iter().try_for_each(|item| self.take_by_kind(item))?;
        } else if let Some(kind) = known_kind(of_items, version) {
            items.into_iter().for_each(|item| self.take_object(item, kind));
        }
        Ok(None)
    }

    fn take_by_kind(&mut self, object: UntypedObject<'_>) -> Result<(), String> {
        if object.kind().is_empty() {
            return Err("an object has no kind: is this the output of `kubectl get -o yaml`?".to_owned());
        }
        if let Some(kind) = known_kind(object.kind(), object.api_version()) {
            self.take_object(object, kind);
        }
        Ok(())
    }

    fn take_object(&mut self, object: UntypedObject<'_>, kind: Kind) {
        let object = object.of_kind(kind);
        let name = object.name();
        let decoded = object.decode(&name);
        match kind {
            Kind::Node if *name.name != *self.filter.node => {
                if let Ok(Object::Node(node)) = decoded.object {
                    self.found.push(FileItem::Peer(node.addresses));
                }
            }
            Kind::Service if object.proxy() != self.filter.proxy.as_deref() => {}
            _ => self.found.push(FileItem::Object(kind, name, Box::new(decoded))),
        }
    }
}

/// The kind, if the agent uses it. Other API groups have kinds of the same name, e.g. the Knative Service. An object
/// without a version is accepted.
fn known_kind(kind: &str, version: &str) -> Option<Kind> {
    let is_known =
        |known: &Kind| <&str>::from(known) == kind && (version.is_empty() || version == known.api_version());
    let known = Kind::ALL.into_iter().find(is_known);
    if known.is_none() {
        tracing::debug!(
            kind,
            version,
            "ignored: not a v1 Service or Node or discovery.k8s.io/v1 EndpointSlice"
        );
    }
    known
}

/// A document, or an item of a list. The value is an object that [`Documents::take`] did not take.
struct Document<'a, 'b>(&'a mut Documents<'b>);

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = Option<UntypedObject<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = Option<UntypedObject<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a kind, as `kubectl get -o yaml` prints it")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let (object, items) = UntypedObject::read(map, Items(self.0))?;
        self.0.take(object, items.flatten()).map_err(A::Error::custom)
    }
}

/// The field `items`, which only lists have as a list. The value are the items that were not taken.
struct Items<'a, 'b>(&'a mut Documents<'b>);

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = Option<Vec<UntypedObject<'de>>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! no_list {
    ($($visit:ident($type:ty))*) => {$(
        fn $visit<E>(self, _: $type) -> Result<Self::Value, E> {
            Ok(None)
        }
    )*};
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = Option<Vec<UntypedObject<'de>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    no_list! { visit_bool(bool) visit_u64(u64) visit_i64(i64) visit_f64(f64) visit_str(&str) }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut rest = Vec::new();
        while let Some(item) = list.next_element_seed(Document(self.0))? {
            rest.extend(item);
        }
        Ok(Some(rest))
    }
}
