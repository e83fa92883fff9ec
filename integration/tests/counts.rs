// SPDX-License-Identifier: Apache-2.0
//! What the work costs, in sends, commands, dumps and processes, on a real kernel; and the suite that
//! every kernel passes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use kube_ipvs::core::model::PerFamily;
use kube_ipvs::core::plan::outcome::{ObserveError, OpError, Progress};
use kube_ipvs::core::plan::pass::Due;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use integration::lab::Netns;
use kube_ipvs::config::host;
use kube_ipvs::core::mirror::ObservedServer;
use kube_ipvs::core::mirror::comparison::{Piece, ReadStep};
use kube_ipvs::core::model::map::Set;
use kube_ipvs::core::model::sets::ProbedSet;
use kube_ipvs::core::model::settings::Settings;
use kube_ipvs::core::model::*;
use kube_ipvs::core::plan::op::{Op, Subsystem};
use kube_ipvs::core::plan::outcome::Finished;
use kube_ipvs::core::plan::subject::Part;
use kube_ipvs::inbox::Inbox;
use kube_ipvs::kernel::linux::{KernelCounters, LinuxKernel};
use kube_ipvs::kernel::{Kernel, ProbeResult, Runner};
use kube_ipvs::reconcile::{Reconciler, Reporting};
use kube_ipvs::store::{Object, Store};

const SERVICES: u16 = 1000;
const NOW: Duration = Duration::ZERO;
/// Limit for a run of iptables.
const PROGRAMS: Duration = Duration::from_secs(30);

fn settings() -> Settings {
    Settings {
        families: host::families(),
        sysctls: host::sysctls(host::kernel_version().unwrap(), false),
        ..Settings::default()
    }
}

fn name(n: u16) -> ObjectName {
    ObjectName::new("test", &format!("svc-{n}"))
}

fn service(n: u16) -> Object {
    Object::Service(Service {
        name: name(n),
        cluster_ips: PerFamily::new(Some(IpAddr::from([10, 96, (n / 250) as u8, (n % 250) as u8])), None),
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        ..Service::default()
    })
}

fn slice(n: u16, endpoints: u8) -> Object {
    let endpoint = |e| Endpoint {
        addr: IpAddr::from([10, 200 + e, (n / 250) as u8, (n % 250) as u8]),
        ready: true,
        serving: true,
        terminating: false,
        weight: 1,
        place: (e == 0).then(|| Place::on("node-a")),
    };
    Object::EndpointSlice(EndpointSlice {
        wrong_weights: None,
        name: name(n),
        service: name(n),
        family: Family::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (0..endpoints).map(endpoint).collect(),
    })
}

fn fill(store: &Store) {
    store.update(|update| {
        for n in 0..SERVICES {
            update.put(service(n));
            update.put(slice(n, 5));
        }
    });
}

/// Checks every group of ops, which is a phase of one subsystem, as it is executed.
struct Counting {
    kernel: LinuxKernel,
    groups: usize,
}

impl Kernel for Counting {
    fn read(&mut self, step: ReadStep) -> Result<Option<Piece>, ObserveError> {
        self.kernel.read(step)
    }

    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>)) {
        self.kernel.beside(work);
    }

    fn read_servers(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError> {
        self.kernel.read_servers(servers)
    }

    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError> {
        self.kernel.busy(servers)
    }

    fn read_part(&mut self, part: Part) -> Result<Piece, ObserveError> {
        self.kernel.read_part(part)
    }

    fn read_rules(&mut self, families: &[Family], afresh: bool) {
        self.kernel.read_rules(families, afresh);
    }

    fn finished(&mut self, limit: Duration) -> Vec<Finished> {
        self.kernel.finished(limit)
    }

    fn probe(&mut self, servers: &[VsKey], sets: &[ProbedSet]) -> ProbeResult {
        self.kernel.probe(servers, sets)
    }

    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        let before = self.kernel.traffic();
        let results = self.kernel.execute(ops);
        let cost = cost(before, self.kernel.traffic());
        for (sends, bytes) in cost.sends.iter().zip(cost.bytes) {
            // One request besides the commands: the index of the device.
            let asks = matches!(ops[0].subsystem(), Subsystem::Addresses | Subsystem::Device);
            let question = u64::from(asks && *sends > 0);
            let limit = bytes.div_ceil(64 * 1024) + question;
            assert!(*sends <= limit, "{:?}: {sends} sends for {bytes} bytes", ops[0].phase());
        }
        assert_eq!(cost.dumps, 0, "{:?}", ops[0].phase());
        self.groups += 1;
        results
    }
}

fn new_reconciler() -> (Arc<Store>, Reconciler<Counting>) {
    let store = Arc::new(Store::new(Arc::new(Inbox::default())));
    let settings = settings();
    let kernel = Counting { kernel: LinuxKernel::open(&settings).unwrap(), groups: 0 };
    (store.clone(), Reconciler::new(kernel, store, settings, "node-a", false, Reporting::log_only().unwrap()))
}

fn cost(before: KernelCounters, after: KernelCounters) -> KernelCounters {
    let each = |a: [u64; 3], b: [u64; 3]| std::array::from_fn(|i| b[i] - a[i]);
    KernelCounters {
        sends: each(before.sends, after.sends),
        bytes: each(before.bytes, after.bytes),
        commands: after.commands - before.commands,
        dumps: after.dumps - before.dumps,
        processes: after.processes - before.processes,
        tables: after.tables - before.tables,
    }
}

#[test]
fn a_thousand_services_cold_then_one_endpoint_then_a_restart() {
    let ns = Netns::new("counts").unwrap();
    ns.enter(|| {
        let (store, mut reconciler) = new_reconciler();
        fill(&store);
        let pass = reconciler.sync_and_wait(Due::Audit, NOW, PROGRAMS);
        assert!(pass.is_clean(), "{:?}", pass.report);
        let cold = reconciler.kernel().kernel.traffic();
        assert_eq!(cold.commands, u64::from(SERVICES) * 6);
        assert!(cold.processes <= 4, "{} processes", cold.processes);
        // Sysctls, device, sets, rules, servers, addresses.
        assert_eq!(reconciler.kernel().groups, 6, "each phase of a subsystem is one batch");

        store.update(|update| update.put(slice(500, 6)));
        let before = reconciler.kernel().kernel.traffic();
        let pass = reconciler.sync_and_wait(Due::Changes, NOW, PROGRAMS);
        assert!(pass.is_clean());
        let one = cost(before, reconciler.kernel().kernel.traffic());
        assert_eq!((one.commands, one.processes, one.dumps), (1, 0, 0));
        assert_eq!(one.sends, [1, 0, 0], "a remote endpoint needs no set entry");

        // One endpoint less: it gets weight 0. Then only the connections of its virtual server are read.
        store.update(|update| update.put(slice(501, 4)));
        for dumps in [0, 1] {
            let before = reconciler.kernel().kernel.traffic();
            assert!(reconciler.sync_and_wait(Due::Changes, NOW, PROGRAMS).is_clean());
            let one = cost(before, reconciler.kernel().kernel.traffic());
            assert_eq!((one.commands, one.processes, one.dumps, one.tables), (1, 0, dumps, 0));
        }

        // One read returns the connections of any number of draining real servers.
        let before = reconciler.kernel().kernel.traffic();
        let servers: Vec<VsKey> = reconciler.desired().virtual_servers().map(|vs| vs.key).collect();
        assert!(reconciler.kernel().busy(&servers).unwrap().is_empty());
        let many = cost(before, reconciler.kernel().kernel.traffic());
        // Dumps are needed for those that the table does not show beside the virtual servers of other tests.
        assert_eq!((many.commands, many.tables), (0, 1));

        let (again, mut second) = new_reconciler();
        fill(&again);
        again.update(|update| {
            update.put(slice(500, 6));
            update.put(slice(501, 4));
        });
        let pass = second.sync_and_wait(Due::Audit, NOW, PROGRAMS);
        assert!(pass.plan.is_empty(), "a restart must write nothing, but planned:\n{}", pass.plan);
        assert_eq!(second.kernel().kernel.traffic().commands, 0);

        let saved = ns.exec(&["ipvsadm", "-Sn"]).unwrap().stdout;
        assert_eq!(saved.lines().filter(|l| l.starts_with("-A")).count(), usize::from(SERVICES));
        assert_eq!(saved.lines().filter(|l| l.contains("-r ")).count(), usize::from(SERVICES) * 5);
    })
    .unwrap();
}

/// `/proc/net/ip_vs` then skips entries.
#[test]
fn connections_are_found_beside_another_namespace_with_virtual_servers() {
    let (other, ns) = (Netns::new("other").unwrap(), Netns::new("busy").unwrap());
    let addresses = |count: u8| (0..4).flat_map(move |a| (1..=count).map(move |b| [10, 96, a, b]));
    let add =
        |ip: [u8; 4]| format!("-A -t {0}:80 -s rr\n-a -t {0}:80 -r 192.0.2.9:80 -m\n", IpAddr::from(ip));
    for ns in [&other, &ns] {
        ns.exec_with(&["ipvsadm", "-R"], Some(&addresses(250).map(add).collect::<String>())).unwrap();
    }
    ns.ip("link set lo up\nlink add d0 type dummy\nlink set d0 up\naddr add 192.0.2.1/24 dev d0").unwrap();
    ns.ip("route add local 10.96.0.0/16 dev lo").unwrap();
    let key = |ip: [u8; 4]| VsKey { protocol: Protocol::Tcp, addr: ip.into(), port: 80 };
    let connected: Set<VsKey> = addresses(10).map(key).collect();
    ns.enter(|| {
        for ip in addresses(10) {
            // Nothing answers; the kernel remembers the connection for a minute.
            let _ = TcpStream::connect_timeout(&(ip, 80).into(), Duration::from_millis(5));
        }
        let mut kernel = LinuxKernel::open(&settings()).unwrap();
        let servers: Vec<VsKey> = addresses(250).map(key).collect();
        let busy: Set<VsKey> = kernel.busy(&servers).unwrap().into_iter().map(|(vs, _)| vs).collect();
        assert_eq!(busy, connected);
    })
    .unwrap();
}

#[test]
fn the_real_kernel_passes_the_suite() {
    let ns = Netns::new("suite").unwrap();
    ns.enter(|| integration::suite::run(&mut LinuxKernel::open(&settings()).unwrap())).unwrap();
}
