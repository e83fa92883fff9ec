// SPDX-License-Identifier: Apache-2.0
//! For tests only: named scenarios and random clusters, and a loop to play them to.

pub mod cluster;
pub mod exposition;
mod properties;
pub mod random;
mod scenarios;
mod sweep;

use crate::core::plan::outcome::Report;
use crate::core::plan::pass::{Due, Pass};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::core::model::Node;
use crate::core::model::settings::{LocalTraffic, Settings, Sysctl, Timeouts};
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

/// A sysctl that the settings of tests ask for.
pub const SYSCTL: &str = "/proc/sys/net/ipv4/vs/conntrack";
/// How long a real server may drain in tests.
pub const DEADLINE: Duration = Duration::from_secs(600);

/// Settings that need every kind of op.
pub fn settings() -> Settings {
    Settings {
        sysctls: vec![Sysctl::exactly(SYSCTL, 1)],
        timeouts: Timeouts { tcp: 0, tcp_fin: 20, udp: 0 },
        local: LocalTraffic::Cidrs([Some("10.244.0.0/16".parse().unwrap()), None]),
        drain_deadline: Some(DEADLINE),
        ..Settings::default()
    }
}

/// Nobody listens.
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
        pod_cidrs: [None, None],
    }
}

/// A kernel of a node that has done nothing yet.
pub fn kernel() -> FakeKernel {
    let mut kernel = FakeKernel::new(&[SYSCTL]);
    let ips = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
    kernel.state.node_addresses = ips(&["10.77.0.5", "192.168.50.2", "fd00:50::2"]);
    kernel.state.next_hops = ips(&["192.168.50.1"]);
    kernel
}

/// Runs a plan as an agent does that has seen no failure yet.
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

/// A loop and what it follows.
pub struct Agent {
    pub store: Arc<Store>,
    pub reconciler: Reconciler<FakeKernel>,
    /// Goes on by half a minute with every pass: whatever failed is due again.
    pub now: Duration,
}

impl Agent {
    /// A process that has just started on `kernel`.
    pub fn start(kernel: FakeKernel, cluster: &Cluster) -> Self {
        let store = Arc::new(Store::new(Arc::new(Inbox::default())));
        cluster.put(&store);
        let reconciler = Reconciler::new(kernel, store.clone(), settings(), "n1", false, reporting());
        Self { store, reconciler, now: Duration::ZERO }
    }

    /// What the loop tells the health endpoints.
    pub fn health(&self) -> SharedHealth {
        self.reconciler.health()
    }

    /// The kernel.
    pub fn kernel(&mut self) -> &mut FakeKernel {
        self.reconciler.kernel()
    }

    /// The process is gone; what it did to the kernel stays.
    pub fn kill(mut self) -> FakeKernel {
        std::mem::take(self.reconciler.kernel())
    }

    /// One pass.
    pub fn sync(&mut self, due: Due) -> Pass {
        self.now += Duration::from_secs(31);
        self.reconciler.sync(due, self.now)
    }

    /// Passes until nothing is left to do, at most `limit`.
    pub fn converge(&mut self, due: Due, limit: usize) {
        let mut due = due;
        let mut last = String::new();
        for _ in 0..limit {
            let mut pass = self.sync(due);
            // Real servers that began to drain are looked at in a pass of their own.
            while pass.is_clean() && pass.plan.begins_drain() {
                pass = self.sync(Due::Changes);
            }
            if pass.is_clean() {
                return;
            }
            last = format!("{}\n{:?}", pass.plan, pass.report);
            let audit = pass.report.is_uncertain() || pass.unreadable.is_some();
            due = if audit { Due::Audit } else { Due::Changes };
        }
        panic!("not clean after {limit} passes: {last}");
    }
}

/// A loop and the clock that it goes by.
pub struct Clocked {
    pub agent: Agent,
    pub schedule: Schedule,
    pub now: Cell<Duration>,
    pub turns: usize,
}

impl Clocked {
    /// It begins at 0.
    pub fn new(agent: Agent) -> Self {
        let schedule = Schedule::new(Duration::ZERO, Duration::from_secs(30));
        Self { agent, schedule, now: Cell::default(), turns: 0 }
    }

    /// One turn; how long the loop would wait then.
    pub fn turn(&mut self) -> Duration {
        self.turns += 1;
        let now = &self.now;
        self.agent.reconciler.run_once(&|| now.get(), &mut self.schedule)
    }

    /// The loop runs for so long.
    pub fn pass_time(&mut self, time: Duration) {
        let end = self.now.get() + time;
        let mut idle = 0;
        while self.now.get() < end {
            let pause = self.turn();
            idle = if pause.is_zero() { idle + 1 } else { 0 };
            assert!(idle < 200, "the loop does not come to rest at {:?}", self.now);
            self.now.set((self.now.get() + pause).min(end));
        }
    }
}

/// What the log gets from `work` at the default level, one text for each line.
pub fn lines(work: impl FnOnce()) -> Vec<String> {
    lines_at(0, work)
}

/// As [`lines`], at another level (`-v`).
pub fn lines_at(level: u32, work: impl FnOnce()) -> Vec<String> {
    lines_of(crate::log::targets(level), work)
}

/// As [`lines`], but only these.
pub fn lines_of(targets: Targets, work: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    let subscriber = tracing_subscriber::registry().with(log.clone().with_filter(targets));
    tracing::subscriber::with_default(subscriber, work);
    std::mem::take(&mut log.0.lock().unwrap())
}

/// Keeps the messages of events.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let line = format!("{} {}", event.metadata().level(), crate::log::render_text(event));
        self.0.lock().unwrap().push(line);
    }
}
