// SPDX-License-Identifier: Apache-2.0
//! The agent's loop in this process on a real kernel.

use kube_ipvs::core::model::PerFamily;
use kube_ipvs::core::plan::outcome::{ObserveError, OpError, Progress};
use kube_ipvs::core::plan::pass::Due;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_ipvs::config::host;
use kube_ipvs::core::mirror::ObservedServer;
use kube_ipvs::core::mirror::comparison::{Piece, ReadStep};
use kube_ipvs::core::model::map::Set;
use kube_ipvs::core::model::sets::ProbedSet;
use kube_ipvs::core::model::settings::Settings;
use kube_ipvs::core::model::*;
use kube_ipvs::core::plan::op::{Op, Plan, Subsystem};
use kube_ipvs::core::plan::outcome::Finished;
use kube_ipvs::core::plan::subject::Part;
use kube_ipvs::inbox::Inbox;
use kube_ipvs::kernel::linux::{KernelCounters, LinuxKernel};
use kube_ipvs::kernel::{Kernel, ProbeResult, Runner};
use kube_ipvs::metrics::Metrics;
use kube_ipvs::reconcile::{Reconciler, Reporting};
use kube_ipvs::store::{Object, Store, Update};

use super::mode::Mode;
use super::process::LOCAL;

/// Limit for a run of iptables.
const PROGRAMS: Duration = Duration::from_secs(30);
/// Most endpoints of a Service; each has its own address.
const MAX_ENDPOINTS: u32 = 1024;

/// The size of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.services, self.endpoints)
    }
}

/// A kernel that records the calls of the agent.
pub struct Watched {
    /// The kernel.
    pub kernel: LinuxKernel,
    /// Whether addresses are really bound. An endpoint needs none, and tens of thousands take minutes.
    binds: bool,
    /// When a virtual server was last changed.
    changed: Arc<Mutex<HashMap<VsKey, Instant>>>,
    /// Whether an audit is reading the kernel.
    auditing: Arc<AtomicBool>,
    writes: Writes,
}

/// When the first write began and the last one was acknowledged.
#[derive(Clone, Copy, Debug, Default)]
struct Writes(Option<(Instant, Instant)>);

impl Writes {
    fn note(&mut self, began: Instant) {
        let now = Instant::now();
        let (_, last) = self.0.get_or_insert((began, now));
        *last = now;
    }

    fn took(self) -> Duration {
        self.0.map_or(Duration::ZERO, |(first, last)| last - first)
    }
}

/// A first sync.
pub struct FirstSync {
    /// Its ops.
    pub plan: Plan,
    /// From the full store to the end.
    pub whole: Duration,
    /// From the first write to the last acknowledgement.
    pub writing: Duration,
}

impl Kernel for Watched {
    fn read(&mut self, step: ReadStep) -> Result<Option<Piece>, ObserveError> {
        let piece = self.kernel.read(step);
        let more = matches!(piece, Ok(Some(_)));
        self.auditing.store(more && step != ReadStep::Fill, Ordering::Relaxed);
        piece
    }

    fn read_servers(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError> {
        self.kernel.read_servers(servers)
    }

    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError> {
        self.kernel.busy(servers)
    }

    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>)) {
        let (binds, began) = (self.binds, Instant::now());
        self.kernel.beside(&mut |ipvs, addresses| {
            work(ipvs, &mut |ops| if binds { addresses(ops) } else { vec![Ok(Progress::Done); ops.len()] });
        });
        self.writes.note(began);
    }

    fn read_part(&mut self, part: Part) -> Result<Piece, ObserveError> {
        self.kernel.read_part(part)
    }

    fn read_rules(&mut self, families: &[Family], afresh: bool) {
        self.kernel.read_rules(families, afresh);
    }

    fn finished(&mut self, limit: Duration) -> Vec<Finished> {
        let (began, finished) = (Instant::now(), self.kernel.finished(limit));
        if finished.iter().any(|finished| matches!(finished, Finished::Op(..))) {
            self.writes.note(began);
        }
        finished
    }

    fn probe(&mut self, servers: &[VsKey], sets: &[ProbedSet]) -> ProbeResult {
        self.kernel.probe(servers, sets)
    }

    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        if !self.binds && ops.iter().all(|op| matches!(op, Op::Bind(_))) {
            return vec![Ok(Progress::Done); ops.len()];
        }
        let began = Instant::now();
        let results = self.kernel.execute(ops);
        self.writes.note(began);
        if ops.first().is_some_and(|op| op.subsystem() == Subsystem::Ipvs) {
            let now = Instant::now();
            let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
            for op in ops {
                if let Op::AddRealServer(vs, ..) | Op::RemoveRealServer(vs, _) = op {
                    changed.insert(*vs, now);
                }
            }
        }
        results
    }
}

/// A node: store and loop.
pub struct Node {
    /// Objects.
    pub store: Arc<Store>,
    /// The inbox of the loop.
    pub inbox: Arc<Inbox>,
    /// The loop.
    pub reconciler: Reconciler<Watched>,
    /// When a virtual server was last changed.
    pub changed: Arc<Mutex<HashMap<VsKey, Instant>>>,
    /// Whether an audit is reading the kernel.
    pub auditing: Arc<AtomicBool>,
    metrics: Metrics,
}

impl Node {
    /// A node of the namespace of this thread; `binds`: addresses are really bound.
    ///
    /// # Errors
    /// When the kernel lacks something.
    pub fn new(mode: Mode, binds: bool) -> Result<Self> {
        let settings = mode.set(Settings {
            families: host::families(),
            sysctls: host::sysctls(host::kernel_version()?, false),
            ..Settings::default()
        });
        let inbox = Arc::new(Inbox::default());
        let store = Arc::new(Store::new(inbox.clone()));
        let (changed, auditing) = (Arc::default(), Arc::default());
        let kernel = LinuxKernel::open(&settings)?;
        let kernel = Watched {
            kernel,
            binds,
            changed: Arc::clone(&changed),
            auditing: Arc::clone(&auditing),
            writes: Writes::default(),
        };
        let reporting = Reporting::log_only()?;
        let metrics = reporting.metrics.clone();
        let reconciler = Reconciler::new(kernel, store.clone(), settings, "node-a", false, reporting);
        Ok(Self { store, inbox, reconciler, changed, auditing, metrics })
    }

    /// Fills the store.
    pub fn fill(&self, size: Size) {
        self.store.update(|update| (0..size.services).for_each(|n| put_service(update, n, size.endpoints)));
    }

    /// The first sync, from a full store to a programmed kernel.
    ///
    /// # Errors
    /// When something could not be programmed.
    pub fn cold(&mut self) -> Result<FirstSync> {
        let start = Instant::now();
        let pass = self.reconciler.sync_and_wait(Due::Audit, Duration::ZERO, PROGRAMS);
        if !pass.is_clean() {
            // Addresses wait for the programs that write their filter, but not for long.
            self.follow()?;
        }
        let whole = start.elapsed();
        Ok(FirstSync { plan: pass.plan, whole, writing: self.reconciler.kernel().writes.took() })
    }

    /// Sends to the kernel so far.
    pub fn traffic(&mut self) -> KernelCounters {
        self.reconciler.kernel().kernel.traffic()
    }

    /// Number of syncs of the running loop.
    ///
    /// # Errors
    /// When the metrics cannot be read.
    pub fn passes(&self) -> Result<u64> {
        Ok(sum(&self.metrics.render()?, "kube_ipvs_passes_total{"))
    }

    /// A sync of changes.
    ///
    /// # Errors
    /// When something could not be programmed.
    pub fn follow(&mut self) -> Result<Plan> {
        let pass = self.reconciler.sync_and_wait(Due::Changes, Duration::ZERO, PROGRAMS);
        ensure!(pass.is_clean(), "not everything was programmed:\n{}", pass.plan);
        Ok(pass.plan)
    }
}

/// The sum of all metrics whose lines begin with this text.
pub fn sum(text: &str, start: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(start));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

/// The name of Service `n`.
pub fn name(n: u32) -> ObjectName {
    ObjectName::new("bench", &format!("svc-{n}"))
}

/// The virtual server of Service `n`.
pub fn virtual_server(n: u32) -> VsKey {
    VsKey { protocol: Protocol::Tcp, addr: IpAddr::from((0x0a00_0001 + n).to_be_bytes()), port: 80 }
}

/// Service `n` with its endpoints.
pub fn put_service(update: &mut Update<'_>, n: u32, endpoints: u32) {
    update.put(Object::Service(Service {
        name: name(n),
        cluster_ips: PerFamily::new(Some(virtual_server(n).addr), None),
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        ..Service::default()
    }));
    update.put(slice(n, 0, 0..endpoints));
}

/// A slice of Service `n` with these of its endpoints.
pub fn slice(n: u32, slice: u32, endpoints: std::ops::Range<u32>) -> Object {
    let [here, there] = ["node-a", "node-b"].map(Place::on);
    let endpoint = |e: u32| Endpoint {
        addr: IpAddr::from((0x6400_0000 + n * MAX_ENDPOINTS + e).to_be_bytes()),
        ready: true,
        serving: true,
        terminating: false,
        weight: 1,
        place: Some(if e == 0 && n.is_multiple_of(LOCAL) { here.clone() } else { there.clone() }),
    };
    Object::EndpointSlice(EndpointSlice {
        wrong_weights: None,
        name: ObjectName::new("bench", &format!("svc-{n}-{slice}")),
        service: name(n),
        family: Family::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints.map(endpoint).collect(),
    })
}
