// SPDX-License-Identifier: Apache-2.0
//! Decodes the JSON of a Kubernetes object to the compact model: types with only the used fields, and checks that name
//! what is wrong.

mod endpoint_weights;
mod intern;
mod node;
pub mod selected_labels;
mod service;
mod slice;
mod tape;
mod untyped;
mod used_fields;
mod wrong_value;

use std::fmt::Display;

use jiff::Timestamp;
use serde::Deserializer;

use crate::config::annotations;
use crate::core::model::{ObjectName, Protocol};
use crate::store::{Decoded, Kind, Object};
use tape::{Tape, UsedField, plain};
pub use untyped::UntypedObject;
use used_fields::{UsedFields, used_fields};

/// The label of a Service for another proxy than the node's usual one.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// The fields of the metadata of all kinds.
const METADATA: UsedField = UsedField(
    "metadata",
    &[
        plain("name"),
        plain("namespace"),
        plain("resourceVersion"),
        plain("creationTimestamp"),
        plain("deletionTimestamp"),
        UsedField(
            "labels",
            &[
                plain(PROXY_NAME_LABEL),
                plain(service::DNS_LABEL),
                plain(slice::HEADLESS_LABEL),
                plain(slice::SERVICE_NAME_LABEL),
                plain(node::ZONE_LABEL),
            ],
        ),
        UsedField("annotations", &ANNOTATIONS),
    ],
);

/// Those of EndpointSlices come last.
const ANNOTATIONS: [UsedField; annotations::NAMES.len() + 2] = {
    let mut all = [plain(slice::TRIGGER_ANNOTATION); annotations::NAMES.len() + 2];
    all[annotations::NAMES.len()] = plain(endpoint_weights::WEIGHT);
    let mut i = 0;
    while i < annotations::NAMES.len() {
        all[i] = plain(annotations::NAMES[i]);
        i += 1;
    }
    all
};

used_fields! {
    /// A port of a Service or of an EndpointSlice.
    RawPort<'a> {
        name "name": Option<&'a str>,
        protocol "protocol": Option<&'a str>,
        port "port": Option<u32>,
        node_port "nodePort": Option<u32>,
    }
}

/// An object of a known kind that is read but not decoded yet.
#[derive(Debug)]
pub struct RawObject<'de> {
    kind: Kind,
    tape: Tape<'de>,
}

impl<'de> RawObject<'de> {
    /// Reads an object, also a malformed one.
    ///
    /// # Errors
    /// It is not in the format of the deserializer.
    pub fn read<D: Deserializer<'de>>(kind: Kind, deserializer: D) -> Result<Self, D::Error> {
        let fields = match kind {
            Kind::Service => selected_labels::service_fields(),
            Kind::EndpointSlice => slice::RawSlice::FIELDS,
            Kind::Node => node::RawNode::FIELDS,
        };
        Ok(Self { kind, tape: Tape::read(deserializer, fields)? })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Namespace and name, also of a malformed object. As in kubectl the default namespace is `default`.
    pub fn name(&self) -> ObjectName {
        let field = |name| self.tape.text(&["metadata", name]).unwrap_or_default();
        let namespace = match (self.kind, field("namespace")) {
            (Kind::Node, _) => "",
            (_, "") => "default",
            (_, namespace) => namespace,
        };
        intern::name(namespace, field("name"))
    }

    /// The version that the API server gave it.
    pub fn version(&self) -> Option<&str> {
        self.tape.text(&["metadata", "resourceVersion"])
    }

    /// The proxy that the object requests by label, if any.
    pub fn proxy(&self) -> Option<&str> {
        label(&self.tape, PROXY_NAME_LABEL)
    }

    /// Decodes the object of this [`Self::name`]. The caller checks the proxy: API servers select by its label.
    pub fn decode(&self, name: &ObjectName) -> Decoded {
        let mut ignored = Vec::new();
        let object = match self.kind {
            _ if name.name.is_empty() => Err("metadata.name is missing".to_owned()),
            Kind::Service => service::decode(name.clone(), &self.tape, &mut ignored),
            Kind::EndpointSlice => slice::decode(name.clone(), &self.tape, &mut ignored),
            Kind::Node => node::decode(name, &self.tape),
        };
        Decoded { object, ignored }
    }
}

/// Decodes an object of a known kind.
///
/// # Errors
/// A sentence that names the field and what is wrong with it.
pub fn decode(kind: Kind, value: &serde_json::Value) -> Result<Object, String> {
    let object = RawObject::read(kind, value).map_err(|error| error.to_string())?;
    object.decode(&object.name()).object
}

fn label<'a>(tape: &'a Tape<'_>, key: &str) -> Option<&'a str> {
    tape.text(&["metadata", "labels", key])
}

/// The time at a path, if it is one in RFC 3339.
fn time(tape: &Tape<'_>, path: &[&str]) -> Option<Timestamp> {
    tape.text(path)?.parse().ok()
}

fn protocol(field: impl Display, text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{field}.protocol: {other:?} is not TCP, UDP or SCTP")),
    }
}

/// A port number; 0 if absent.
fn port_or_zero(field: impl Display, number: Option<u32>) -> Result<u16, String> {
    u16::try_from(number.unwrap_or(0)).map_err(|_| format!("{field} is not in 0-65535"))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;

#[cfg(test)]
mod field_tests;
