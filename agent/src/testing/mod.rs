// SPDX-License-Identifier: Apache-2.0
//! For tests only: named scenarios and random clusters, and a loop to play them to.

pub mod cluster;
pub mod exposition;
mod properties;
pub mod random;
mod scenarios;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use crate::core::model::Node;
use crate::core::settings::{LocalTraffic, Settings, Sysctl, Timeouts};
use crate::inbox::Inbox;
use crate::kernel::fake::FakeKernel;
use crate::reconcile::{Outlets, Pass, Reconciler};
use crate::schedule::Due;
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
pub fn outlets() -> Outlets {
    Outlets::log_only().unwrap()
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

/// A loop and what it follows.
pub struct Agent {
    pub store: Arc<Store>,
    pub reconciler: Reconciler<FakeKernel>,
}

impl Agent {
    /// A process that has just started on `kernel`.
    pub fn start(kernel: FakeKernel, cluster: &Cluster) -> Self {
        let store = Arc::new(Store::new(Arc::new(Inbox::default())));
        cluster.put(&store);
        let reconciler = Reconciler::new(kernel, store.clone(), settings(), "n1", false, outlets());
        Self { store, reconciler }
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
        self.reconciler.sync(due, Duration::ZERO)
    }

    /// Passes until nothing is left to do, at most `limit`.
    pub fn converge(&mut self, due: Due, limit: usize) {
        let mut due = due;
        let mut last = String::new();
        for _ in 0..limit {
            let pass = self.sync(due);
            if pass.is_clean() {
                return;
            }
            last = format!("{}\n{:?}", pass.plan, pass.report);
            let audit = pass.report.in_doubt() || pass.unreadable.is_some();
            due = if audit { Due::Audit } else { Due::Changes };
        }
        panic!("not clean after {limit} passes: {last}");
    }
}
