// SPDX-License-Identifier: Apache-2.0
//! Objects from the Kubernetes API: one watch for each kind, with the selectors of kube-proxy.

use std::sync::Arc;

use kube::api::ListParams;

use super::client::ApiClient;
use super::decode::PROXY_NAME_LABEL;
use super::node_addresses::NodeAddressSource;
use super::outage_log::OutageLog;
use super::reflector::Reflector;
use super::resource::{Nodes, Services, Slices};
use super::service_cidrs::ServiceCidrSource;
use super::timing::Timing;
use super::{Source, api_servers, priority};
use crate::store::Store;

/// Selects Services with an address.
pub(super) const WITH_ADDRESS: &str = "spec.clusterIP!=None";
/// Selects the slices of such Services.
pub(super) const NOT_HEADLESS: &str = "!service.kubernetes.io/headless";

pub struct ApiSource {
    api: ApiClient,
    node: String,
    /// The label selector of Services.
    services: String,
    runtime: tokio::runtime::Handle,
    timing: Timing,
    follows_service_cidrs: bool,
}

impl ApiSource {
    /// Watches the API with a client on `runtime`; of the Nodes only `node`.
    pub fn new(api: ApiClient, node: &str, runtime: tokio::runtime::Handle) -> Self {
        let services = format!("!{PROXY_NAME_LABEL}");
        let (timing, node) = (Timing::default(), node.to_owned());
        Self { api, node, services, runtime, timing, follows_service_cidrs: false }
    }

    /// Watches the Services whose label requests the proxy of this name; `None`: the Services without that label.
    #[must_use]
    pub fn for_proxy(self, name: Option<&str>) -> Self {
        let services =
            name.map_or_else(|| self.services.clone(), |name| format!("{PROXY_NAME_LABEL}={name}"));
        Self { services, ..self }
    }

    /// Reads the ranges of ClusterIPs, too.
    #[must_use]
    pub fn with_service_cidrs(self, follows_service_cidrs: bool) -> Self {
        Self { follows_service_cidrs, ..self }
    }

    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }
}

impl Source for ApiSource {
    fn start(self: Box<Self>, store: Arc<Store>) -> anyhow::Result<()> {
        let node = ListParams::default().fields(&format!("metadata.name={}", self.node));
        let services = ListParams::default().labels(&self.services).fields(WITH_ADDRESS);
        let slices = ListParams::default().labels(NOT_HEADLESS);
        let log = OutageLog::default();
        let node = Reflector::<Nodes>::new(&self.api, node, &store, &log, self.timing);
        let services = Reflector::<Services>::new(&self.api, services, &store, &log, self.timing);
        let slices = Reflector::<Slices>::new(&self.api, slices, &store, &log, self.timing);
        store.update(|update| update.await_nodes());
        let runtime = self.runtime.clone();
        if self.follows_service_cidrs {
            store.update(|update| update.await_service_cidrs());
            runtime.spawn(ServiceCidrSource::new(self.api.clone(), store.clone(), self.timing).run());
        }
        runtime.spawn(api_servers::follow(self.api.route.hosts(), store.clone(), self.timing));
        runtime.spawn(NodeAddressSource::new(self.api.clone(), store.clone(), self.timing).run());
        runtime.spawn(node.run());
        runtime.spawn(async move {
            let (limit, lists) =
                (self.timing.priority, priority::fetch(&self.api.client, &store, &self.services));
            if tokio::time::timeout(limit, lists).await.is_err() {
                tracing::debug!("the priority Services were not received in {limit:?}");
            }
            self.runtime.spawn(services.run());
            self.runtime.spawn(slices.run());
        });
        Ok(())
    }
}
