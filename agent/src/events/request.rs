// SPDX-License-Identifier: Apache-2.0
//! What an Event is about.

use std::fmt;

use crate::core::model::ObjectName;

/// An Event to create: something an operator should act on, about one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventRequest {
    pub about: About,
    /// The problem, for machines.
    pub reason: Reason,
    /// The problem and the remedy, for people.
    pub message: String,
}

/// The object of an Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum About {
    Service(ObjectName),
    /// The node that this agent runs on.
    Node,
}

/// `Service NAMESPACE/NAME`, `Node`.
impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            About::Service(name) => write!(f, "Service {name}"),
            About::Node => f.write_str("Node"),
        }
    }
}

/// The reason of an Event; the field `reason` has the name of the variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, strum::Display)]
pub enum Reason {
    /// Two Services claim the same address and port.
    AddressConflict,
    /// An annotation of a Service has no effect.
    AnnotationIgnored,
    /// A setting of the configuration has no effect on Services.
    SettingIgnored,
    /// The kernel lacks a scheduler that `kubeIPVS.serviceDefaults` choose.
    SchedulerMissing,
    /// A scheduler looks for no other endpoint if the one that it chose by a hash gets no new connections.
    SchedulerRefusesClients,
    /// An external IP is not served.
    ExternalIPRefused,
    /// An address of the node is an address of a Service.
    NodeAddressAsVIP,
    /// An address of a Service is not bound, because the node needs the host that has it.
    AddressNotBound,
    /// A program of the node listens at the address and port of a Service and gets no traffic.
    ListenerShadowed,
    /// The kernel rejects an object that the Service, or all Services of the node, need.
    NotProgrammed,
    /// Virtual servers that another program made were removed.
    RemovedForeignServers,
    /// A health-check node port cannot be opened.
    FailedToStartServiceHealthcheck,
    /// The health server cannot be opened.
    FailedToStartProxierHealthcheck,
    /// The metrics server cannot be opened.
    FailedToStartMetricServer,
    /// A kernel module or a privilege is missing.
    KernelNotUsable,
}

impl EventRequest {
    /// Logs the message as a warning.
    pub(super) fn log(&self) {
        let Self { about, reason, message } = self;
        // A failure that all Services of the node share has a log line with the same words already.
        if (about, reason) == (&About::Node, &Reason::NotProgrammed) {
            return;
        }
        // Most messages name the Service themselves.
        if message.contains(&about.to_string()) {
            tracing::warn!("{reason}: {message}");
        } else {
            tracing::warn!("{about}: {reason}: {message}");
        }
    }
}
