// SPDX-License-Identifier: Apache-2.0
//! Parses a file to objects: JSON values or YAML documents, including lists.

use std::fmt;
use std::net::IpAddr;
use std::sync::mpsc;
use std::thread;

use anyhow::anyhow;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use crate::core::model::ObjectName;
use crate::lock::join;
use crate::source::decode::{RawObject, UntypedObject};
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

/// The length of a text in bytes from which on a second thread decodes.
const LARGE: usize = 1 << 20;
/// Objects that are decoded together.
const GROUP: usize = 256;

/// Parses a file; a list contributes its items.
///
/// # Errors
/// What is wrong with the text, or with an object of unknown kind. No object of the file can be used then.
pub fn parse(text: &str, filter: &ObjectFilter) -> anyhow::Result<Vec<FileItem>> {
    // An empty file may be about to be written; a list without items is not empty.
    anyhow::ensure!(!text.trim().is_empty(), "the file is empty");
    if text.trim_start().starts_with('{') {
        return decode_all(text.len(), filter, |documents| read_json(text, documents));
    }
    let values = yaml::read_all(text).map_err(|error| anyhow!("it is not valid YAML: {error}"))?;
    decode_all(text.len(), filter, |documents| {
        Ok(values.iter().try_for_each(|value| documents.read(value))?)
    })
}

fn read_json<'t>(text: &'t str, documents: &mut Documents<'_, 't>) -> anyhow::Result<()> {
    let mut json = serde_json::Deserializer::from_str(text);
    while json.end().is_err() {
        documents.read(&mut json).map_err(|error| match error.classify() {
            Category::Data => anyhow!("{error}"),
            _ => anyhow!("it is not valid JSON: {error}"),
        })?;
    }
    Ok(())
}

/// Decodes what `read` reads, in the order of the file.
fn decode_all<'t>(
    length: usize,
    filter: &ObjectFilter,
    read: impl FnOnce(&mut Documents<'_, 't>) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<FileItem>> {
    let decode =
        |objects: Vec<RawObject<'t>>| objects.into_iter().filter_map(|object| decode(object, filter));
    if length < LARGE {
        let mut found = Vec::new();
        Documents::read_all(read, &mut |objects| found.extend(decode(objects)))?;
        return Ok(found);
    }
    thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel(4);
        let decoder = scope.spawn(|| receive.into_iter().flat_map(decode).collect());
        // The receiver lives until the sender is dropped.
        let result = Documents::read_all(read, &mut |objects| _ = send.send(objects));
        drop(send);
        let found = join(decoder);
        result.map(|()| found)
    })
}

fn decode(object: RawObject<'_>, filter: &ObjectFilter) -> Option<FileItem> {
    let (kind, name) = (object.kind(), object.name());
    let decoded = object.decode(&name);
    match kind {
        Kind::Node if *name.name != *filter.node => match decoded.object {
            Ok(Object::Node(node)) => Some(FileItem::Peer(node.addresses)),
            _ => None,
        },
        Kind::Service if object.proxy() != filter.proxy.as_deref() => None,
        _ => Some(FileItem::Object(kind, name, Box::new(decoded))),
    }
}

/// Takes objects as they are read: a tree of a large list would take several times its size.
struct Documents<'a, 't> {
    group: Vec<RawObject<'t>>,
    take: &'a mut dyn FnMut(Vec<RawObject<'t>>),
}

impl<'a, 't> Documents<'a, 't> {
    fn read_all(
        read: impl FnOnce(&mut Documents<'_, 't>) -> anyhow::Result<()>,
        take: &'a mut dyn FnMut(Vec<RawObject<'t>>),
    ) -> anyhow::Result<()> {
        let mut documents = Documents { group: Vec::new(), take };
        read(&mut documents)?;
        documents.hand_over();
        Ok(())
    }

    fn hand_over(&mut self) {
        (self.take)(std::mem::take(&mut self.group));
    }

    fn read<D: Deserializer<'t>>(&mut self, deserializer: D) -> Result<(), D::Error> {
        match (Document(self)).deserialize(deserializer)? {
            Some(object) => self.take_by_kind(object).map_err(D::Error::custom),
            None => Ok(()),
        }
    }

    /// Takes an object with kind and version, or a list. Returns another object: its list may name its kind.
    fn take(
        &mut self,
        object: UntypedObject<'t>,
        items: Option<Vec<UntypedObject<'t>>>,
    ) -> Result<Option<UntypedObject<'t>>, String> {
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

    fn take_by_kind(&mut self, object: UntypedObject<'t>) -> Result<(), String> {
        if object.kind().is_empty() {
            return Err("an object has no kind: is this the output of `kubectl get -o yaml`?".to_owned());
        }
        if let Some(kind) = known_kind(object.kind(), object.api_version()) {
            self.take_object(object, kind);
        }
        Ok(())
    }

    fn take_object(&mut self, object: UntypedObject<'t>, kind: Kind) {
        self.group.push(object.of_kind(kind));
        if self.group.len() == GROUP {
            self.hand_over();
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
struct Document<'a, 'b, 't>(&'a mut Documents<'b, 't>);

impl<'t> DeserializeSeed<'t> for Document<'_, '_, 't> {
    type Value = Option<UntypedObject<'t>>;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'t> Visitor<'t> for Document<'_, '_, 't> {
    type Value = Option<UntypedObject<'t>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a kind, as `kubectl get -o yaml` prints it")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'t>>(self, map: A) -> Result<Self::Value, A::Error> {
        let (object, items) = UntypedObject::read(map, Items(self.0))?;
        self.0.take(object, items.flatten()).map_err(A::Error::custom)
    }
}

/// The field `items`, which only lists have as a list. The value are the items that were not taken.
struct Items<'a, 'b, 't>(&'a mut Documents<'b, 't>);

impl<'t> DeserializeSeed<'t> for Items<'_, '_, 't> {
    type Value = Option<Vec<UntypedObject<'t>>>;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
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

impl<'t> Visitor<'t> for Items<'_, '_, 't> {
    type Value = Option<Vec<UntypedObject<'t>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    no_list! { visit_bool(bool) visit_u64(u64) visit_i64(i64) visit_f64(f64) visit_str(&str) }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut rest = Vec::new();
        while let Some(item) = list.next_element_seed(Document(self.0))? {
            rest.extend(item);
        }
        Ok(Some(rest))
    }
}
