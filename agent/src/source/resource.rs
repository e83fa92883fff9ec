// SPDX-License-Identifier: Apache-2.0
//! The resources that the agent watches, and their objects as the API server sends them.

use std::fmt::Debug;
use std::marker::PhantomData;

use kube::api::{ListParams, WatchParams};
use serde::{Deserialize, Deserializer};

use super::decode::RawObject;
use crate::core::model::ObjectName;
use crate::store::{Decoded, Kind, Update};

/// A watch is to end after this time; the next one continues at its last version.
pub(super) const WATCH_SECONDS: u32 = 290;

pub(super) trait ApiResource: Clone + Debug + Send + Sync + 'static {
    const KIND: Kind;

    /// The path of the resource in a namespace, or in all.
    fn path(namespace: Option<&str>) -> String {
        let version = Self::KIND.api_version();
        let root = if version.contains('/') { "apis" } else { "api" };
        let namespace = namespace.map(|name| format!("/namespaces/{name}")).unwrap_or_default();
        format!("/{root}/{version}{namespace}/{}s", Self::KIND.to_string().to_lowercase())
    }
}

macro_rules! watched {
    ($type:ident, $kind:ident) => {
        #[derive(Clone, Debug)]
        pub(super) struct $type;
        impl ApiResource for $type {
            const KIND: Kind = Kind::$kind;
        }
    };
}

watched!(Services, Service);
watched!(Slices, EndpointSlice);
watched!(Nodes, Node);

/// An object from the API server. A malformed object is no error of the list or watch.
#[derive(Clone, Debug)]
pub(super) struct ApiObject<K> {
    pub name: ObjectName,
    /// Its `resourceVersion`.
    pub version: Option<Box<str>>,
    pub decoded: Decoded,
    kind: PhantomData<K>,
}

impl<'de, K: ApiResource> Deserialize<'de> for ApiObject<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = RawObject::read(K::KIND, deserializer)?;
        let name = object.name();
        let version = object.version().map(Into::into);
        Ok(Self { decoded: object.decode(&name), name, version, kind: PhantomData })
    }
}

impl<K: ApiResource> ApiObject<K> {
    pub fn put(self, update: &mut Update<'_>) {
        update.put_decoded(K::KIND, &self.name, self.decoded);
    }
}

/// A watch of what a list selects.
pub(super) fn watch_params(selected: &ListParams) -> WatchParams {
    let (label_selector, field_selector) = (selected.label_selector.clone(), selected.field_selector.clone());
    WatchParams { label_selector, field_selector, timeout: Some(WATCH_SECONDS), ..WatchParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::WatchEvent;

    #[test]
    fn a_malformed_object_still_has_its_name_and_version() {
        let text = r#"{"metadata":{"name":"a","namespace":"d","resourceVersion":"7"},"spec":{"ports":5}}"#;
        let object: ApiObject<Services> = serde_json::from_str(text).unwrap();
        assert_eq!(object.name.to_string(), "d/a");
        assert_eq!(object.version.as_deref(), Some("7"));
        assert!(object.decoded.object.is_err());
    }

    #[test]
    fn an_event_may_have_its_type_first_or_last_and_its_object_may_be_malformed() {
        const BAD: &str = "spec.ports[1].nodePort: \"\u{e4}\" is not a number without sign";
        let object = |port: &str| {
            format!(
                r#"{{"kind":"Service","metadata":{{"managedFields":[{{"f:spec":{{"f:x":[1,-1.5,null]}}}}],"name":"a\u002d1",
                "namespace":"d","resourceVersion":"7"}},"spec":{{"clusterIP":"10.0.0.1",
                "ports":[{{"port":80}},{{"port":81,"nodePort":{port}}}]}}}}"#
            )
        };
        for (port, error) in [("30080", None), (r#""\u00e4""#, Some(BAD))] {
            let object = object(port);
            for text in [
                format!(r#"{{"type":"ADDED","object":{object}}}"#),
                format!(r#"{{"object":{object},"type":"ADDED"}}"#),
            ] {
                let event: WatchEvent<ApiObject<Services>> = serde_json::from_str(&text).unwrap();
                let WatchEvent::Added(object) = event else { panic!("{text}") };
                assert_eq!(object.name.to_string(), "d/a-1");
                assert_eq!(object.version.as_deref(), Some("7"));
                assert_eq!(object.decoded.object.err().as_deref(), error, "{text}");
            }
        }
        for no_object in ["5", "[]", "null", r#"{"metadata":[],"spec":null}"#] {
            let text = format!(r#"{{"type":"ADDED","object":{no_object}}}"#);
            let event: WatchEvent<ApiObject<Nodes>> = serde_json::from_str(&text).unwrap();
            assert!(matches!(event, WatchEvent::Added(object) if object.decoded.object.is_err()), "{text}");
        }
    }

    #[test]
    fn the_paths_are_kubernetes() {
        assert_eq!(Services::path(Some("default")), "/api/v1/namespaces/default/services");
        assert_eq!(Slices::path(None), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(Nodes::path(None), "/api/v1/nodes");
    }
}
