// SPDX-License-Identifier: Apache-2.0
//! Four small lists before the large ones: the Services of the API server and of DNS, so that an empty node can reach
//! both before it has read every object of the cluster.

use kube::Client;
use kube::api::ListParams;
use kube::core::{ObjectList, Request};

use super::api::{NOT_HEADLESS, WITH_ADDRESS};
use super::resource::{ApiObject, ApiResource, Services, Slices};
use crate::store::{Object, Store};

const API_NAMESPACE: &str = "default";
const DNS_NAMESPACE: &str = "kube-system";

/// Puts the Services that `services`, a label selector, selects and their slices into the store. Puts nothing if a list
/// fails: the reflectors send requests to the same server and report the failure.
pub(super) async fn fetch(client: &Client, store: &Store, services: &str) {
    let mut lists = lists(client, services, &[WITH_ADDRESS]).await;
    if matches!(&lists, Err(kube::Error::Api(status)) if status.code == 400) {
        // Kubernetes before 1.31 does not select Services by their address.
        lists = self::lists(client, services, &[]).await;
    }
    match lists {
        Ok(lists) => store.update(|update| {
            lists.into_iter().flatten().for_each(|object| update.put(object));
            update.set_priority_known();
        }),
        Err(error) => tracing::debug!("cannot list the priority Services: {error}"),
    }
}

/// The lists, of Services that have these fields.
async fn lists(client: &Client, services: &str, fields: &[&str]) -> kube::Result<[Vec<Object>; 4]> {
    let named = [fields, &["metadata.name=kubernetes"]].concat().join(",");
    let fields = fields.join(",");
    let of_api = format!("{NOT_HEADLESS},kubernetes.io/service-name=kubernetes");
    let (api, api_slices, dns, dns_slices) = tokio::try_join!(
        list::<Services>(client, API_NAMESPACE, services, &named),
        list::<Slices>(client, API_NAMESPACE, &of_api, ""),
        list::<Services>(client, DNS_NAMESPACE, services, &fields),
        list::<Slices>(client, DNS_NAMESPACE, NOT_HEADLESS, ""),
    )?;
    Ok([api, api_slices, dns, dns_slices])
}

/// The well-formed objects of a list, of any version that the server has cached: a complete list follows.
async fn list<K: ApiResource>(
    client: &Client,
    namespace: &str,
    labels: &str,
    fields: &str,
) -> kube::Result<Vec<Object>> {
    let params = ListParams::default().labels(labels).fields(fields).match_any();
    let request = Request::new(K::path(Some(namespace))).list(&params).map_err(kube::Error::BuildRequest)?;
    let list: ObjectList<ApiObject<K>> = client.request(request).await?;
    Ok(list.items.into_iter().filter_map(|received| received.decoded.object.ok()).collect())
}
