// SPDX-License-Identifier: Apache-2.0
//! The Services that every pod needs, asked for in four small lists before the large ones, so that a node
//! that starts with nothing need not wait for all objects of the cluster before it can reach them.

use kube::api::ListParams;
use kube::{Api, Client, Resource};

use super::api::{Followed, Guarded};
use crate::store::{Object, Store};

/// Where the API server's own Service is.
const API_NAMESPACE: &str = "default";
/// Where the cluster's DNS is.
const DNS_NAMESPACE: &str = "kube-system";

/// Which objects are asked for.
#[derive(Clone, Debug)]
pub(super) struct Ahead {
    /// The label selector of Services, for this proxy.
    pub services: String,
    /// The label selector of EndpointSlices.
    pub slices: String,
    /// The field selector of Services.
    pub with_address: &'static str,
}

impl Ahead {
    /// Puts the Services and their slices into the store. When any list fails nothing is put: the
    /// followers, which ask the same server, report what is wrong with it.
    pub async fn fetch(self, client: Client, store: &Store) {
        let Self { services, slices, with_address } = &self;
        let named = format!("{with_address},metadata.name=kubernetes");
        let of_api = format!("{slices},kubernetes.io/service-name=kubernetes");
        let lists = tokio::try_join!(
            list::<super::api::Service>(&client, API_NAMESPACE, services, &named),
            list::<super::api::EndpointSlice>(&client, API_NAMESPACE, &of_api, ""),
            list::<super::api::Service>(&client, DNS_NAMESPACE, services, with_address),
            list::<super::api::EndpointSlice>(&client, DNS_NAMESPACE, slices, ""),
        );
        match lists {
            Ok((api, api_slices, dns, dns_slices)) => store.update(|update| {
                let all = [api, api_slices, dns, dns_slices].into_iter().flatten();
                all.for_each(|object| update.put(object));
                update.set_priority_known();
            }),
            Err(error) => tracing::debug!("the first Services are not known before all others: {error}"),
        }
    }
}

/// The well-formed objects of a list. Any version that the server has at hand will do: a complete list follows.
async fn list<K: Followed<Scope = kube::core::NamespaceResourceScope>>(
    client: &Client,
    namespace: &str,
    labels: &str,
    fields: &str,
) -> kube::Result<Vec<Object>>
where
    Guarded<K>: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    let api: Api<Guarded<K>> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default().labels(labels).fields(fields).match_any()).await?;
    Ok(list.items.into_iter().filter_map(|guarded| guarded.decoded.object.ok()).collect())
}
