// SPDX-License-Identifier: Apache-2.0
//! For tests only: named scenarios, random clusters, and an agent on a fake kernel.

pub mod cluster;
pub mod exposition;
pub mod golden;
mod properties;
pub mod random;
pub mod scenarios;
mod sweep;

use crate::core::model::PerFamily;
use crate::core::plan::outcome::Report;
use crate::core::plan::pass::{Due, Pass};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::core::model::Node;
use crate::core::model::settings::{LocalTraffic, RulesMode, Settings, Sysctl, Timeouts};
use crate::core::plan::op::Plan;
use crate::core::plan::retries::Retries;
use crate::inbox::Inbox;
use crate::kernel::fake::FakeKernel;
use crate::kernel::{Kernel, RunContext, apply};
use crate::reconcile::schedule::Schedule;
use crate::reconcile::{Reconciler, Reporting};
use crate::serve::health::SharedHealth;
use crate::store::Store;
use cluster::Cluster;

/// The sysctl in the settings of tests.
pub const SYSCTL: &str = "/proc/sys/net/ipv4/vs/conntrack";
/// The drain deadline of tests.
pub const DEADLINE: Duration = Duration::from_secs(600);

/// Labels that tests select by: the same in all tests, because a process learns them once.
pub const LABEL_KEYS: [&str; 2] = ["app.example/team", "tier"];

/// Settings that together with the scenarios need every kind of op.
pub fn settings() -> Settings {
    Settings {
        sysctls: vec![Sysctl::exactly(SYSCTL, 1)],
        timeouts: Timeouts { tcp: 0, tcp_fin: 20, udp: 0 },
        local: LocalTraffic::Cidrs(PerFamily::new(Some("10.244.0.0/16".parse().unwrap()), None)),
        drain_deadline: Some(DEADLINE),
        ..Settings::default()
    }
}

/// Reports only to the log.
pub fn reporting() -> Reporting {
    Reporting::log_only().unwrap()
}

/// This node.
pub fn node() -> Node {
    Node {
        name: "n1".into(),
        zone: Some("za".into()),
        addresses: vec!["192.168.50.2".parse().unwrap(), "fd00:50::2".parse().unwrap()],
        leaving: false,
        pod_cidrs: PerFamily::new(None, None),
    }
}

/// The kernel of a new node.
pub fn kernel() -> FakeKernel {
    let mut kernel = FakeKernel::new(&[SYSCTL]);
    let ips = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
    kernel.state.node_addresses = ips(&["10.77.0.5", "192.168.50.2", "fd00:50::2"]);
    kernel.state.node.next_hops = ips(&["192.168.50.1"]);
    kernel
}

/// Runs a plan as an agent without earlier failures does.
pub fn run_plan(kernel: &mut dyn Kernel, plan: &Plan) -> Report {
    let terms = RunContext {
        retries: &Retries::default(),
        now: Duration::ZERO,
        unread: Vec::new(),
        rules_timeout: Duration::ZERO,
        progress: &|| {},
    };
    apply(kernel, plan, terms).report
}

/// A reconciler with its store.
pub struct Agent {
    pub store: Arc<Store>,
    pub reconciler: Reconciler<FakeKernel>,
    /// Advances by half a minute with every sync, so that every failed op is due for a retry.
    pub now: Duration,
}

impl Agent {
    /// Starts an agent on `kernel`.
    pub fn start(kernel: FakeKernel, cluster: &Cluster) -> Self {
        let (routed, rules) = (cluster.routed.clone(), cluster.rules);
        Self::with_settings(kernel, cluster, Settings { routed, rules, ..settings() })
    }

    /// Starts an agent with these settings.
    pub fn with_settings(mut kernel: FakeKernel, cluster: &Cluster, settings: Settings) -> Self {
        kernel.sets_grow = settings.rules == RulesMode::Nftables;
        let store = Arc::new(Store::new(Arc::new(Inbox::default())));
        cluster.put(&store);
        let reconciler = Reconciler::new(kernel, store.clone(), settings, "n1", false, reporting());
        Self { store, reconciler, now: Duration::ZERO }
    }

    pub fn health(&self) -> SharedHealth {
        self.reconciler.health()
    }

    pub fn kernel(&mut self) -> &mut FakeKernel {
        self.reconciler.kernel()
    }

    /// Stops the agent; the kernel keeps its state.
    pub fn kill(mut self) -> FakeKernel {
        std::mem::take(self.reconciler.kernel())
    }

    /// One sync.
    pub fn sync(&mut self, due: Due) -> Pass {
        self.now += Duration::from_secs(31);
        self.reconciler.sync(due, self.now)
    }

    /// Syncs until everything is programmed, at most `limit` times.
    pub fn converge(&mut self, due: Due, limit: usize) {
        let mut due = due;
        let mut last = String::new();
        for _ in 0..limit {
            let mut pass = self.sync(due);
            // A further sync reads the connections of real servers that began to drain, or changes more schedulers.
            while pass.is_clean() && (pass.plan.begins_drain() || self.reconciler.has_postponed()) {
                pass = self.sync(Due::Changes);
            }
            if pass.is_clean() {
                return;
            }
            last = format!("{}\n{:?}", pass.plan, pass.report);
            let audit = pass.report.is_uncertain() || pass.unreadable.is_some();
            due = if audit { Due::Audit } else { Due::Changes };
        }
        panic!("not clean after {limit} syncs: {last}");
    }
}

/// An agent with a schedule and a clock.
pub struct Clocked {
    pub agent: Agent,
    pub schedule: Schedule,
    pub now: Cell<Duration>,
    pub turns: usize,
}

impl Clocked {
    /// The clock starts at 0.
    pub fn new(agent: Agent) -> Self {
        let schedule = Schedule::new(Duration::ZERO, Duration::from_secs(30));
        Self { agent, schedule, now: Cell::default(), turns: 0 }
    }

    /// Runs one turn of the loop. Returns the time until the next one.
    pub fn turn(&mut self) -> Duration {
        self.turns += 1;
        let now = &self.now;
        self.agent.reconciler.run_once(&|| now.get(), &mut self.schedule)
    }

    /// Runs the loop for `time`.
    pub fn pass_time(&mut self, time: Duration) {
        let end = self.now.get() + time;
        let mut idle = 0;
        while self.now.get() < end {
            let pause = self.turn();
            idle = if pause.is_zero() { idle + 1 } else { 0 };
            assert!(idle < 200, "the loop never waits, at {:?}", self.now);
            self.now.set((self.now.get() + pause).min(end));
        }
    }
}

/// The lines that `work` logs at the default level.
pub fn lines(work: impl FnOnce()) -> Vec<String> {
    lines_at(0, work)
}

/// As [`lines`], at another level (`-v`).
pub fn lines_at(level: u32, work: impl FnOnce()) -> Vec<String> {
    lines_of(crate::log::targets(level), work)
}

/// As [`lines`], but only lines of these targets.
pub fn lines_of(targets: Targets, work: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    let subscriber = tracing_subscriber::registry().with(log.clone().with_filter(targets));
    tracing::subscriber::with_default(subscriber, work);
    std::mem::take(&mut log.0.lock().unwrap())
}

#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let line = format!("{} {}", event.metadata().level(), crate::log::render_text(event));
        self.0.lock().unwrap().push(line);
    }
}
