// SPDX-License-Identifier: Apache-2.0
//! The objects that the store takes, and the changes that the reconcile loop takes from it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::core::model::trigger::Trigger;
use crate::core::model::{EndpointSlice, Node, ObjectName, Service};

/// The kinds of object that the agent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::Display, strum::IntoStaticStr)]
pub enum Kind {
    Service,
    EndpointSlice,
    /// `v1` Node; only the Node that the agent runs on.
    Node,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Service | Kind::Node => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Service(Service),
    EndpointSlice(EndpointSlice),
    /// An EndpointSlice with the time of the change that caused it.
    TriggeredSlice(EndpointSlice, Trigger),
    Node(Node),
    /// An object that this agent does not proxy. The store drops an earlier version of it.
    NotOurs(Kind, ObjectName),
}

#[derive(Clone, Debug)]
pub struct Decoded {
    /// The object, or a sentence that names the field and what is wrong with it.
    pub object: Result<Object, String>,
    /// Parts of the object that are ignored, a sentence each.
    pub ignored: Vec<String>,
}

/// A change of one Service: its new version and its slices.
#[derive(Clone, Debug)]
pub struct Dirty {
    pub name: ObjectName,
    /// Its current version; `None` when it was deleted.
    pub service: Option<Arc<Service>>,
    /// Its slices, sorted by name.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Its external and load-balancer IPs that are addresses of endpoints of any Service.
    pub of_endpoints: Box<[IpAddr]>,
    /// The changes in the cluster that caused the changes of its slices, as far as the slices name them.
    pub triggers: Vec<Trigger>,
}
