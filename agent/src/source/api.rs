// SPDX-License-Identifier: Apache-2.0
//! Objects from the Kubernetes API: one watch per kind, with the selectors of kube-proxy.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{ListParams, WatchParams};
use serde::{Deserialize, Deserializer};

use super::Source;
use super::api_servers;
use super::client::ApiClient;
use super::decode::{PROXY_NAME_LABEL, RawObject};
use super::follow::Follower;
use super::nodes::NodeWatch;
use super::outage::Outage;
use super::pauses::Limits;
use super::priority::Ahead;
use crate::core::model::ObjectName;
use crate::metrics::Metrics;
use crate::store::{Decoded, Kind, Store};

/// Services that have an address.
const WITH_ADDRESS: &str = "spec.clusterIP!=None";
/// Slices of such Services.
const NOT_HEADLESS: &str = "!service.kubernetes.io/headless";

/// Ties a Rust type to a resource path.
pub(super) trait Followed: Clone + fmt::Debug + Send + 'static {
    type Scope: Send + 'static;
    const KIND: Kind;
    const GROUP: &'static str;
    const PLURAL: &'static str;
}

macro_rules! followed {
    ($type:ident, $scope:ident, $group:literal, $plural:literal) => {
        #[derive(Clone, Debug)]
        pub(super) struct $type;
        impl Followed for $type {
            type Scope = kube::core::$scope;
            const KIND: Kind = Kind::$type;
            const GROUP: &'static str = $group;
            const PLURAL: &'static str = $plural;
        }
    };
}

followed!(Service, NamespaceResourceScope, "", "services");
followed!(EndpointSlice, NamespaceResourceScope, "discovery.k8s.io", "endpointslices");
followed!(Node, ClusterResourceScope, "", "nodes");

/// An object as far as it could be decoded. A malformed one is no error of the watch.
#[derive(Clone, Debug)]
pub(super) struct Guarded<K> {
    metadata: ObjectMeta,
    pub name: ObjectName,
    pub decoded: Decoded,
    kind: PhantomData<K>,
}

impl<'de, K: Followed> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = RawObject::read(K::KIND, deserializer)?;
        let name = object.name();
        Ok(Self {
            // Only what the watcher itself reads.
            metadata: ObjectMeta {
                resource_version: object.version().map(str::to_owned),
                ..ObjectMeta::default()
            },
            decoded: object.decode(&name),
            name,
            kind: PhantomData,
        })
    }
}

impl<K> Guarded<K> {
    /// The version that the API server gave it.
    pub fn version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref()
    }
}

impl<K: Followed> Resource for Guarded<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(_: &()) -> Cow<'_, str> {
        K::KIND.to_string().into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// After so long a watch is to end, to go on at its last version.
pub(super) const WATCH_SECONDS: u32 = 290;

/// Which objects of a kind are followed.
#[derive(Clone, Debug, Default)]
pub(super) struct Selectors {
    pub labels: Option<String>,
    pub fields: Option<String>,
}

impl Selectors {
    /// For lists.
    pub fn list(&self) -> ListParams {
        let (label_selector, field_selector) = (self.labels.clone(), self.fields.clone());
        ListParams { label_selector, field_selector, ..ListParams::default() }
    }

    /// For watches.
    pub fn watch(&self) -> WatchParams {
        let (label_selector, field_selector) = (self.labels.clone(), self.fields.clone());
        let timeout = Some(WATCH_SECONDS);
        WatchParams { label_selector, field_selector, timeout, ..WatchParams::default() }
    }
}

/// Objects from the API.
pub struct ApiSource {
    api: ApiClient,
    node: String,
    /// The label selector of Services.
    services: String,
    runtime: tokio::runtime::Handle,
    metrics: Metrics,
    limits: Limits,
}

impl ApiSource {
    /// Follows the API with a client on `runtime`; of the Nodes only `node`.
    pub fn new(api: ApiClient, node: &str, runtime: tokio::runtime::Handle, metrics: Metrics) -> Self {
        let services = format!("!{PROXY_NAME_LABEL}");
        Self { api, node: node.to_owned(), services, runtime, metrics, limits: Limits::default() }
    }

    /// Follows the Services that are for the proxy of this name; without one, those that are for none in
    /// particular.
    #[must_use]
    pub fn for_proxy(self, name: Option<&str>) -> Self {
        let services =
            name.map_or_else(|| self.services.clone(), |name| format!("{PROXY_NAME_LABEL}={name}"));
        Self { services, ..self }
    }

    /// With other limits than the usual ones.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    fn follower<K: Followed>(&self, selectors: Selectors, store: &Arc<Store>, outage: &Outage) -> Follower<K>
    where
        Guarded<K>: Resource<DynamicType = ()>,
    {
        let told = (self.metrics.api_watch(K::KIND), outage.clone());
        Follower::<K>::new(self.api.clone(), selectors, store.clone(), told, self.limits)
    }
}

impl Source for ApiSource {
    fn start(self: Box<Self>, store: Arc<Store>) -> anyhow::Result<()> {
        let own = |text: &str| Some(text.to_owned());
        let node = Selectors { fields: Some(format!("metadata.name={}", self.node)), labels: None };
        let services = Selectors { labels: own(&self.services), fields: own(WITH_ADDRESS) };
        let slices = Selectors { labels: own(NOT_HEADLESS), fields: None };
        let outage = Outage::default();
        let node = self.follower::<Node>(node, &store, &outage);
        let services = self.follower::<Service>(services, &store, &outage);
        let slices = self.follower::<EndpointSlice>(slices, &store, &outage);
        let ahead = Ahead {
            services: self.services.clone(),
            slices: NOT_HEADLESS.to_owned(),
            with_address: WITH_ADDRESS,
        };
        store.update(|update| update.await_nodes());
        self.runtime.spawn(api_servers::follow(self.api.route.hosts(), store.clone(), self.limits));
        self.runtime.spawn(NodeWatch::new(self.api.clone(), store.clone(), self.limits).run());
        let (client, limit, runtime) = (self.api.client.clone(), self.limits.ahead, self.runtime.clone());
        self.runtime.spawn(node.run());
        self.runtime.spawn(async move {
            if tokio::time::timeout(limit, ahead.fetch(client, &store)).await.is_err() {
                tracing::debug!("the first Services did not come in {limit:?}");
            }
            runtime.spawn(services.run());
            runtime.spawn(slices.run());
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::WatchEvent;

    #[test]
    fn a_malformed_object_still_has_its_name_and_version() {
        let text = r#"{"metadata":{"name":"a","namespace":"d","resourceVersion":"7"},"spec":{"ports":5}}"#;
        let guarded: Guarded<Service> = serde_json::from_str(text).unwrap();
        assert_eq!(guarded.name.to_string(), "d/a");
        assert_eq!(guarded.metadata.resource_version.as_deref(), Some("7"));
        assert!(guarded.decoded.object.is_err());
    }

    #[test]
    fn an_event_may_say_its_type_first_or_last_and_its_object_may_be_malformed() {
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
                let event: WatchEvent<Guarded<Service>> = serde_json::from_str(&text).unwrap();
                let WatchEvent::Added(guarded) = event else { panic!("{text}") };
                assert_eq!(guarded.name.to_string(), "d/a-1");
                assert_eq!(guarded.metadata.resource_version.as_deref(), Some("7"));
                assert_eq!(guarded.decoded.object.err().as_deref(), error, "{text}");
            }
        }
        for no_object in ["5", "[]", "null", r#"{"metadata":[],"spec":null}"#] {
            let text = format!(r#"{{"type":"ADDED","object":{no_object}}}"#);
            let event: WatchEvent<Guarded<Node>> = serde_json::from_str(&text).unwrap();
            assert!(matches!(event, WatchEvent::Added(guarded) if guarded.decoded.object.is_err()), "{text}");
        }
    }

    #[test]
    fn the_resource_paths_are_kubernetes() {
        let path = |group: &str, plural: &str| format!("{group}/{plural}");
        assert_eq!(path(Service::GROUP, Service::PLURAL), "/services");
        assert_eq!(Guarded::<EndpointSlice>::url_path(&(), None), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(Guarded::<Node>::url_path(&(), None), "/api/v1/nodes");
    }
}
