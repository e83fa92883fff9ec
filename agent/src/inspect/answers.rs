// SPDX-License-Identifier: Apache-2.0
//! What a running agent answers at its socket. What only the loop knows is asked from the loop, in questions of less than
//! 5 ms; the rest is read beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::explain::{self, ExplainRequest};
use super::owners::{OwnersOf, OwnersPage};
use super::status::{Status, StatusInput};
use crate::config::{Config, ConfigFlags};
use crate::core::loop_state::LoopState;
use crate::core::model::settings::RulesMode;
use crate::core::model::{EndpointSlice, Node, ObjectName, Service, VsKey};
use crate::core::service::protected::Peers;
use crate::inbox::Inbox;
use crate::log;
use crate::metrics::Metrics;
use crate::serve::health::SharedHealth;
use crate::store::Store;

/// Where objects come from, in words, if not from files.
pub const KUBERNETES_API: &str = "the Kubernetes API";
/// Objects of one page.
const PAGE: usize = 500;

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentRequest {
    /// A page of the Services of virtual servers: an [`OwnersPage`].
    Owners { after: Option<VsKey>, of: OwnersOf },
    /// A [`Status`].
    Status,
    /// An [`explain::Explanation`].
    Explain(ExplainRequest),
    /// How the agent was started: a [`Setup`].
    Setup,
    /// Names of schedulers that the kernel does not have, as far as a Service asked for them.
    MissingSchedulers,
    /// What the agent knows about the cluster besides Services: [`Surroundings`].
    Surroundings,
    /// A page of Services: a [`Page`].
    Services { after: Option<ObjectName> },
    /// A page of EndpointSlices: a [`Page`].
    Slices { after: Option<ObjectName> },
    /// The last lines of the log, a list of texts.
    Log,
    /// The metrics, a text in Prometheus' format.
    Metrics,
}

/// How an agent was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setup {
    pub node: String,
    /// The configuration in force, flags included: a KubeProxyConfiguration.
    pub config: Value,
    /// What sets and rules are made of.
    pub rules: RulesMode,
    /// Where objects come from: [`KUBERNETES_API`], or a path.
    pub source: String,
    pub version: String,
    pub pid: u32,
    pub started: SystemTime,
}

impl Setup {
    /// The configuration that the agent was started with.
    ///
    /// # Errors
    /// This version of the program does not understand it.
    pub fn config(&self) -> anyhow::Result<Config> {
        Config::parse(&self.config.to_string(), &ConfigFlags::default())
    }
}

/// What the agent knows about the cluster besides Services.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Surroundings {
    pub node: Option<Node>,
    pub peers: Peers,
    /// The ranges of ClusterIPs, if the agent reads them.
    pub service_cidrs: Option<Vec<ipnet::IpNet>>,
    /// Whether every list is complete.
    pub synced: bool,
}

/// Some objects, in the order of their names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    pub objects: Vec<T>,
    /// The last name; `None`: no page follows.
    pub last: Option<ObjectName>,
}

/// What answers need.
#[derive(Clone)]
pub struct Answers {
    pub inbox: Arc<Inbox>,
    pub store: Arc<Store>,
    pub health: SharedHealth,
    pub metrics: Metrics,
    pub setup: Setup,
    /// Microseconds that questions held up the loop.
    pub held: Arc<AtomicU64>,
}

impl Answers {
    /// The answer as JSON, or a sentence that says why there is none. The loop has up to `limit` for its part.
    pub fn answer(&self, request: &AgentRequest, limit: Duration) -> Result<String, String> {
        match request.clone() {
            AgentRequest::Owners { after, of } => {
                self.ask_loop("owners", limit, move |state| OwnersPage::build(state.desired, after, &of))
            }
            AgentRequest::Status => self.status(limit),
            AgentRequest::Explain(request) => {
                let subject = explain::find(&self.store, &request)?;
                let answer = move |state: &LoopState<'_>| explain::explain(state, &subject, &request);
                self.ask_loop("explain", limit, answer)
            }
            AgentRequest::Setup => to_json(&self.setup),
            AgentRequest::MissingSchedulers => self.ask_loop("schedulers", limit, |state| {
                state.node.missing_schedulers.iter().map(ToString::to_string).collect::<Vec<_>>()
            }),
            AgentRequest::Surroundings => to_json(&Surroundings {
                node: self.store.node(),
                peers: self.store.peers(),
                service_cidrs: self.store.service_cidrs().map(|ranges| ranges.unwrap_or_default().to_vec()),
                synced: self.store.is_synced(),
            }),
            AgentRequest::Services { after } => {
                let services: Vec<Arc<Service>> = self.store.services_after(after.as_ref(), PAGE);
                let last = services.last().filter(|_| services.len() == PAGE).map(|last| last.name.clone());
                to_json(&Page { objects: services, last })
            }
            AgentRequest::Slices { after } => {
                let slices: Vec<Arc<EndpointSlice>> = self.store.slices_after(after.as_ref(), PAGE);
                let last = slices.last().filter(|_| slices.len() == PAGE).map(|last| last.name.clone());
                to_json(&Page { objects: slices, last })
            }
            AgentRequest::Log => to_json(&log::recent()),
            AgentRequest::Metrics => to_json(&self.metrics.render().map_err(|error| error.to_string())?),
        }
    }

    /// How long questions have held up the loop since the last call.
    pub fn take_held(&self) -> Duration {
        Duration::from_micros(self.held.swap(0, Ordering::Relaxed))
    }

    fn status(&self, limit: Duration) -> Result<String, String> {
        let (is_ready, readiness) = self.health.with(|health| (health.is_ready(), health.readiness()));
        let input = StatusInput {
            is_ready,
            readiness,
            kernel_problem: self.health.with(|health| health.kernel_problem.clone()),
            is_eligible: self.health.with(|health| health.eligible),
            lag: self.health.lag(),
            setup: self.setup.clone(),
            waiting_for: self.store.waiting_for(),
            watches: self.metrics.watches(),
            kubernetes: self.metrics.kubernetes(),
            malformed: self.store.malformed_by_kind(),
            servers: self.metrics.objects.servers(),
            uptime: self.setup.started.elapsed().unwrap_or_default(),
        };
        self.ask_loop("status", limit, move |state| Status::build(state, input))
    }

    fn ask_loop<T, Q>(&self, what: &'static str, limit: Duration, question: Q) -> Result<String, String>
    where
        T: Serialize + Send + 'static,
        Q: FnOnce(&LoopState<'_>) -> T + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        // The receiver is gone when the loop was too slow.
        let held = self.held.clone();
        self.inbox.ask(Box::new(move |state| {
            let began = Instant::now();
            let answer = question(state);
            let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            held.fetch_add(took, Ordering::Relaxed);
            tracing::debug!("the question {what} held up the sync loop for {took} µs");
            drop(sender.send(answer));
        }));
        match receiver.recv_timeout(limit) {
            Ok(answer) => to_json(&answer),
            Err(_) => Err(format!(
                "the sync loop did not answer within {}: it works on a long step, or it is blocked; see /livez",
                crate::words::time(limit)
            )),
        }
    }
}

fn to_json<T: Serialize>(value: &T) -> Result<String, String> {
    serde_json::to_string(value).map_err(|error| error.to_string())
}
