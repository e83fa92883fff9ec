// SPDX-License-Identifier: Apache-2.0
//! What the sync loop knows, lent to a question. A question only reads: it can change neither the kernel nor the loop.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use super::mirror::Observed;
use super::model::settings::Settings;
use super::model::{PerFamily, RsKey};
use super::plan::drain::Drains;
use super::plan::history::History;
use super::plan::retries::Retries;
use super::service::desired::Desired;
use super::service::node_facts::NodeFacts;

/// The state of the loop. Times are durations since its start.
#[derive(Clone, Copy)]
pub struct LoopState<'a> {
    pub settings: &'a Settings,
    pub node: &'a NodeFacts,
    /// The networks of the pods of this node, as its Node object has them.
    pub pod_cidrs: PerFamily<Option<IpNet>>,
    pub desired: &'a Desired,
    /// The mirror of the kernel; `None` before the first reading.
    pub observed: Option<&'a Observed>,
    pub retries: &'a Retries,
    pub drains: &'a Drains,
    pub history: &'a History,
    /// Endpoints that do not answer the TCP checks of this node.
    pub dead: &'a BTreeSet<RsKey>,
    /// Whether every list is complete and a sync has tried everything.
    pub is_whole: bool,
    pub now: Duration,
}

/// A question to the loop. It must take less than 5 ms, because changes wait for it.
pub type Question = Box<dyn FnOnce(&LoopState<'_>) + Send>;
