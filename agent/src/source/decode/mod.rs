// SPDX-License-Identifier: Apache-2.0
//! From the JSON of a Kubernetes object to the compact model: slim types that read only what is
//! used, and checks that name what is wrong. The translator on the Kubernetes side.

mod node;
mod service;
mod slice;

use serde::Deserialize;
use serde_json::Value;

use crate::core::model::{ObjectName, Protocol};
use crate::store::{Kind, Object};

/// A port of a Service or of an EndpointSlice.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u32>,
    node_port: Option<u32>,
}

/// Namespace and name of any object, even a malformed one. A namespaced object without a
/// namespace is in `default`, as for kubectl.
pub fn object_name(kind: Kind, value: &Value) -> ObjectName {
    let field = |name: &str| value.pointer(name).and_then(Value::as_str).unwrap_or_default();
    let namespace = match (kind, field("/metadata/namespace")) {
        (Kind::Node, _) => "",
        (_, "") => "default",
        (_, namespace) => namespace,
    };
    ObjectName::new(namespace, field("/metadata/name"))
}

/// Names the proxy that is to serve a Service; without it every node's usual proxy does.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// The proxy that an object is for, if it is for one in particular.
pub fn proxy_name(value: &Value) -> Option<&str> {
    label(value, PROXY_NAME_LABEL)
}

/// Decodes an object of a known kind. Which proxy it is for is not looked at: API servers select by that.
///
/// # Errors
/// A sentence that names the field and what is wrong with it.
pub fn decode(kind: Kind, value: &Value) -> Result<Object, String> {
    let name = object_name(kind, value);
    if name.name.is_empty() {
        return Err("metadata.name is missing".to_owned());
    }
    match kind {
        Kind::Service => service::decode(name, value),
        Kind::EndpointSlice => slice::decode(name, value),
        Kind::Node => node::decode(&name, value),
    }
}

fn label<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get("metadata")?.get("labels")?.get(key)?.as_str()
}

fn raw<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| error.to_string())
}

fn protocol(field: &str, text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{field}.protocol: {other:?} is not TCP, UDP or SCTP")),
    }
}

/// A port number; 0 when absent.
fn port_or_zero(field: &str, number: Option<u32>) -> Result<u16, String> {
    u16::try_from(number.unwrap_or(0)).map_err(|_| format!("{field} is not in 0-65535"))
}

#[cfg(test)]
mod tests;
