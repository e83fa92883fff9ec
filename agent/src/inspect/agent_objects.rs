// SPDX-License-Identifier: Apache-2.0
//! The objects of a running agent as a source: commands that look at a node need neither the API server nor its
//! credentials.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::answers::{AgentRequest, Page, Surroundings};
use super::socket::{AskError, ask};
use crate::core::model::{EndpointSlice, ObjectName, Service};
use crate::store::{Kind, Object, Store};

/// Fills the store with the objects that the agent has now. False: the agent's own lists are not complete.
///
/// # Errors
/// No agent answers.
pub fn fill(store: &Store) -> Result<bool, AskError> {
    let around: Surroundings = ask(&AgentRequest::Surroundings)?;
    store.update(|update| Kind::ALL.into_iter().for_each(|kind| update.begin_list(kind)));
    pages(|after| AgentRequest::Services { after }, |service: Service| Object::Service(service), store)?;
    pages(
        |after| AgentRequest::Slices { after },
        |slice: EndpointSlice| Object::EndpointSlice(slice),
        store,
    )?;
    store.update(|update| {
        if let Some(node) = around.node {
            update.put(Object::Node(node));
        }
        update.set_nodes(around.peers.nodes);
        update.set_api_servers(around.peers.api_servers);
        if let Some(ranges) = around.service_cidrs {
            update.set_service_cidrs(Arc::from(ranges));
        }
        Kind::ALL.into_iter().for_each(|kind| update.finish_list(kind));
    });
    Ok(around.synced)
}

fn pages<T: DeserializeOwned>(
    request: impl Fn(Option<ObjectName>) -> AgentRequest,
    object: impl Fn(T) -> Object,
    store: &Store,
) -> Result<(), AskError> {
    let mut after = None;
    loop {
        let Page { objects, last } = ask(&request(after))?;
        store.update(|update| objects.into_iter().for_each(|one| update.put(object(one))));
        match last {
            Some(last) => after = Some(last),
            None => return Ok(()),
        }
    }
}
