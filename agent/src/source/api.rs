// SPDX-License-Identifier: Apache-2.0
//! Objects from the Kubernetes API: one watch per kind, with the selectors of kube-proxy.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Source;
use super::decode::{PROXY_NAME_LABEL, decode, object_name};
use crate::core::model::ObjectName;
use crate::store::{Kind, Object, Store};

/// Pause before a list that replaces a watch which cannot go on.
const NEW_LIST_PAUSE: Duration = Duration::from_secs(1);

/// How to reach the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiAccess {
    /// A kubeconfig file; without it and without `master` the pod's service account is used.
    pub kubeconfig: Option<String>,
    /// A URL that replaces the kubeconfig's server.
    pub master: Option<String>,
}

impl ApiAccess {
    /// Reads the credentials. The server itself is not contacted.
    ///
    /// # Errors
    /// Names the file or variable that is missing or wrong.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let mut config = match (&self.kubeconfig, &self.master) {
            (Some(path), _) => {
                let kubeconfig = Kubeconfig::read_from(Path::new(path))
                    .with_context(|| format!("cannot use the kubeconfig {path}"))?;
                kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .with_context(|| format!("the kubeconfig {path} is incomplete"))?
            }
            (None, Some(master)) => kube::Config::new(master.parse().context("--master")?),
            (None, None) => kube::Config::incluster().context(
                "no API server is configured and this is no pod: set clientConnection.kubeconfig in \
                 the configuration file, or --kubeconfig, or use --objects",
            )?,
        };
        if let Some(master) = &self.master {
            config.cluster_url = master.parse().with_context(|| format!("--master {master:?} is no URL"))?;
        }
        tracing::info!(server = %config.cluster_url, "following the Kubernetes API");
        Client::try_from(config).context("cannot set up the API client")
    }
}

/// Ties a Rust type to a resource path.
trait Followed: Clone + fmt::Debug + Send + 'static {
    type Scope;
    const KIND: Kind;
    const GROUP: &'static str;
    const PLURAL: &'static str;
}

macro_rules! followed {
    ($type:ident, $scope:ident, $group:literal, $plural:literal) => {
        #[derive(Clone, Debug)]
        struct $type;
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
struct Guarded<K> {
    metadata: ObjectMeta,
    name: ObjectName,
    object: Result<Object, String>,
    kind: PhantomData<K>,
}

impl<'de, K: Followed> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = |field| value.pointer(field).and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            // Only what the watcher itself reads.
            metadata: ObjectMeta {
                name: text("/metadata/name"),
                namespace: text("/metadata/namespace"),
                resource_version: text("/metadata/resourceVersion"),
                ..ObjectMeta::default()
            },
            name: object_name(K::KIND, &value),
            object: decode(K::KIND, &value),
            kind: PhantomData,
        })
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

/// Objects from the API.
pub struct ApiSource {
    client: Client,
    node: String,
    /// The label selector of Services.
    services: String,
    runtime: tokio::runtime::Handle,
}

impl ApiSource {
    /// Follows the API with `client` on `runtime`: of the Nodes only `node`, and the Services that are
    /// for the proxy of this name, or for none in particular.
    pub fn new(client: Client, node: &str, proxy: Option<&str>, runtime: tokio::runtime::Handle) -> Self {
        let services = match proxy {
            Some(name) => format!("{PROXY_NAME_LABEL}={name}"),
            None => format!("!{PROXY_NAME_LABEL}"),
        };
        Self { client, node: node.to_owned(), services, runtime }
    }
}

impl Source for ApiSource {
    fn start(self: Box<Self>, store: Arc<Store>) -> anyhow::Result<()> {
        let services = watcher::Config::default().labels(&self.services).fields("spec.clusterIP!=None");
        let slices = watcher::Config::default().labels("!service.kubernetes.io/headless");
        let node = watcher::Config::default().fields(&format!("metadata.name={}", self.node));
        self.runtime.spawn(follow::<Service>(self.client.clone(), services, store.clone()));
        self.runtime.spawn(follow::<EndpointSlice>(self.client.clone(), slices, store.clone()));
        self.runtime.spawn(follow::<Node>(self.client, node, store));
        Ok(())
    }
}

async fn follow<K: Followed>(client: Client, config: watcher::Config, store: Arc<Store>)
where
    Guarded<K>: Resource<DynamicType = ()>,
{
    let api: Api<Guarded<K>> = Api::all(client);
    let mut trouble: Option<String> = None;
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // The watcher announces a list before it asks for it.
                    if !matches!(event, Event::Init) && trouble.take().is_some() {
                        tracing::info!(kind = %K::KIND, "the API answers again");
                    }
                    store_event(event, &store);
                }
                Err(error) if is_gone(&error) => break,
                Err(error) => report_trouble(K::KIND, &error, &mut trouble),
            }
        }
        // The watcher keeps asking for a version that is gone when the refusal is the status of the
        // answer and not an event: start anew, with a list, and not in a hurry.
        tracing::debug!(kind = %K::KIND, "the version is too old, listing again");
        tokio::time::sleep(NEW_LIST_PAUSE).await;
    }
}

fn is_gone(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

fn store_event<K: Followed>(event: Event<Guarded<K>>, store: &Store) {
    store.update(|update| match event {
        Event::Init => update.begin_list(K::KIND),
        Event::InitDone => update.finish_list(K::KIND),
        Event::InitApply(guarded) | Event::Apply(guarded) => match guarded.object {
            Ok(object) => update.put(object),
            Err(error) => update.malformed(K::KIND, &guarded.name, &error),
        },
        Event::Delete(guarded) => update.remove(K::KIND, &guarded.name),
    });
}

/// One line per new trouble, not one per try.
fn report_trouble(kind: Kind, error: &watcher::Error, last: &mut Option<String>) {
    let text = error_chain(error);
    if last.as_ref() == Some(&text) {
        tracing::debug!(%kind, "still: {text}");
        return;
    }
    // A watch that only timed out or expired heals by itself.
    if text.contains("too old resource version") || text.contains("Expired") {
        tracing::debug!(%kind, "listing again: {text}");
        return;
    }
    tracing::warn!(%kind, "cannot follow the API: {text}; {}; trying again", remedy(&text));
    *last = Some(text);
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

fn remedy(error: &str) -> &'static str {
    if error.contains("403") || error.contains("Forbidden") || error.contains("forbidden") {
        "the service account needs get, list and watch on services, endpointslices and nodes"
    } else if error.contains("401") || error.contains("Unauthorized") {
        "check the token or client certificate"
    } else {
        "check that the server's address is right and reachable from this node without a ClusterIP"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_object_still_has_its_name_and_version() {
        let text = r#"{"metadata":{"name":"a","namespace":"d","resourceVersion":"7"},"spec":{"ports":5}}"#;
        let guarded: Guarded<Service> = serde_json::from_str(text).unwrap();
        assert_eq!(guarded.name.to_string(), "d/a");
        assert_eq!(guarded.metadata.resource_version.as_deref(), Some("7"));
        assert!(guarded.object.is_err());
    }

    #[test]
    fn the_resource_paths_are_kubernetes() {
        let path = |group: &str, plural: &str| format!("{group}/{plural}");
        assert_eq!(path(Service::GROUP, Service::PLURAL), "/services");
        assert_eq!(Guarded::<EndpointSlice>::url_path(&(), None), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(Guarded::<Node>::url_path(&(), None), "/api/v1/nodes");
    }
}
