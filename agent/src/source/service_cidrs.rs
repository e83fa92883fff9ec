// SPDX-License-Identifier: Apache-2.0
//! The ranges of ClusterIPs from the ServiceCIDR objects (KEP-1880). There are few of them and they seldom change, so a
//! watch only says when to list them again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use ipnet::IpNet;
use kube::api::{ListParams, WatchParams};
use kube::core::{ListMeta, Request, WatchEvent};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::client::ApiClient;
use super::failure::ApiFailure;
use super::resource::WATCH_SECONDS;
use super::timing::{RetryPauses, Timing, wait_patiently};
use crate::core::model::address;
use crate::store::Store;
use crate::words;

const PATH: &str = "/apis/networking.k8s.io/v1/servicecidrs";
/// The pause after a change: several objects may change together.
const CHANGED: Duration = Duration::from_millis(100);
/// The pause before the next list of a server that has no ServiceCIDRs.
const ABSENT: Duration = Duration::from_secs(600);

/// Keeps the ranges in the store up to date.
pub(super) struct ServiceCidrSource {
    api: ApiClient,
    store: Arc<Store>,
    timing: Timing,
    pauses: RetryPauses,
    started: Instant,
    failing: bool,
}

/// A list of ServiceCIDRs, as far as it is used.
#[derive(Deserialize)]
struct ServiceCidrList {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<ServiceCidr>,
}

#[derive(Deserialize)]
struct ServiceCidr {
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    cidrs: Vec<String>,
}

impl ServiceCidrList {
    /// The ranges, sorted and merged. Texts that are no CIDR are ignored. A range that is being deleted still has
    /// ClusterIPs until its object is gone.
    fn ranges(&self) -> Vec<IpNet> {
        let texts = self.items.iter().flat_map(|item| &item.spec.cidrs);
        let nets = texts.filter_map(|text| address::parse_net(text));
        let usable: Vec<IpNet> = nets.filter(|net| net.prefix_len() > 0).map(|net| net.trunc()).collect();
        IpNet::aggregate(&usable)
    }
}

impl ServiceCidrSource {
    pub fn new(api: ApiClient, store: Arc<Store>, timing: Timing) -> Self {
        let pauses = RetryPauses::new(timing);
        Self { api, store, timing, pauses, started: Instant::now(), failing: false }
    }

    pub async fn run(mut self) {
        loop {
            let patience = self.timing.patience().saturating_sub(self.started.elapsed());
            let skip = || self.store.update(|update| update.skip_service_cidrs());
            let listed = wait_patiently(patience, self.list(), skip).await;
            let watched = match listed {
                Ok(version) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("the ranges of ClusterIPs are known again");
                    }
                    self.watch(version).await
                }
                Err(failure) => Err(failure),
            };
            let pause = match watched {
                Ok(()) => CHANGED,
                Err(failure) => self.failed(&failure),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Lists once. Returns the version of the list.
    async fn list(&self) -> Result<String, ApiFailure> {
        let request = Request::new(PATH).list(&ListParams::default()).map_err(kube::Error::BuildRequest);
        let request = request.map_err(|error| self.failure(&error))?;
        let limit = self.timing.stall;
        let list: ServiceCidrList = tokio::time::timeout(limit, self.api.client.request(request))
            .await
            .map_err(|_| ApiFailure::stalled(limit))?
            .map_err(|error| self.failure(&error))?;
        let ranges = list.ranges();
        tracing::debug!(ranges = %words::some(&ranges, ranges.len(), ranges.len()), "the ranges of ClusterIPs");
        self.store.update(|update| update.set_service_cidrs(ranges.into()));
        Ok(list.metadata.resource_version.unwrap_or_default())
    }

    /// Watches from this version until something changed, the version has expired, or nothing arrived for long.
    async fn watch(&mut self, mut version: String) -> Result<(), ApiFailure> {
        let params = WatchParams { timeout: Some(WATCH_SECONDS), ..WatchParams::default() };
        loop {
            let request = Request::new(PATH).watch(&params, &version).map_err(kube::Error::BuildRequest);
            let request = request.map_err(|error| self.failure(&error))?;
            let began = Instant::now();
            let events = self.api.client.request_events::<IgnoredAny>(request).await;
            let mut events = std::pin::pin!(events.map_err(|error| self.failure(&error))?);
            loop {
                match tokio::time::timeout(self.timing.silence, events.next()).await {
                    // A server that went back to an older state sends nothing.
                    Err(_) => return Ok(()),
                    Ok(None) if began.elapsed() < self.timing.min_pause => {
                        return Err(ApiFailure::short_watch());
                    }
                    Ok(None) => break,
                    Ok(Some(Ok(WatchEvent::Bookmark(mark)))) => version = mark.metadata.resource_version,
                    Ok(Some(Ok(WatchEvent::Error(status)))) if status.code == 410 => return Ok(()),
                    Ok(Some(Ok(WatchEvent::Error(status)))) => return Err(ApiFailure::of_status(&status)),
                    Ok(Some(Ok(_))) => return Ok(()),
                    Ok(Some(Err(error))) => return Err(self.failure(&error)),
                }
            }
        }
    }

    fn failure(&self, error: &kube::Error) -> ApiFailure {
        ApiFailure::of(error, &self.api.route)
    }

    /// Reports the first of several failures. A start no longer waits for the ranges. Returns the pause before the next
    /// list.
    fn failed(&mut self, failure: &ApiFailure) -> Duration {
        let now = Instant::now();
        let is_absent = failure.code == Some(404);
        let pause = if is_absent { ABSENT } else { self.pauses.next(now, self.api.retry_after.left(now)) };
        if is_absent {
            self.store.update(|update| update.set_service_cidrs(Arc::default()));
        } else if self.started.elapsed() >= self.timing.patience() || failure.code.is_some() {
            self.store.update(|update| update.skip_service_cidrs());
        }
        if std::mem::replace(&mut self.failing, true) {
            return pause;
        }
        if is_absent {
            tracing::error!(
                "the API server has no ServiceCIDR objects (networking.k8s.io/v1), which kubeIPVS.clusterIPs: route needs: \
                 list the ranges of ClusterIPs in kubeIPVS.serviceCIDRs; until then each ClusterIP is bound to kube-ipvs0"
            );
        } else {
            tracing::warn!(
                "cannot read the ranges of ClusterIPs (ServiceCIDR): {}; the local routes on the node stay, and it is retried",
                failure.text()
            );
        }
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranges_are_merged_and_texts_that_are_no_range_are_ignored() {
        let list = json!({"metadata": {"resourceVersion": "7"}, "items": [
            {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00:96::/112"]}},
            {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.112.0.0/12", "10.100.0.0/16"]}},
            {"metadata": {"name": "odd"}, "spec": {"cidrs": ["::/0", "x", ""]}},
            {"metadata": {"name": "none"}},
        ]});
        let list: ServiceCidrList = serde_json::from_value(list).unwrap();
        let texts: Vec<String> = list.ranges().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.96.0.0/11", "fd00:96::/112"]);
    }
}
