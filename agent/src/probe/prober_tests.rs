// SPDX-License-Identifier: Apache-2.0
//! Tests of the checks with real connects on loopback.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use super::{ProbeCounters, ProbeSpec, ProbeTarget, Prober, TargetChanges};
use crate::core::model::RsKey;
use crate::lock::lock;

/// No connect takes its source from this address, so that a port of it stays free after its listener is closed.
const FREE: &str = "127.0.83.1:0";

fn key(address: SocketAddr) -> RsKey {
    RsKey { addr: address.ip(), port: address.port() }
}

/// New targets with a short interval.
fn targets(addresses: &[SocketAddr], timeout: Duration, threshold: u32) -> TargetChanges {
    let spec = ProbeSpec { interval: Duration::from_millis(20), timeout, threshold };
    addresses.iter().map(|address| (key(*address), Some(ProbeTarget { spec, is_dead: false }))).collect()
}

/// The end of a target.
fn no_target(address: SocketAddr) -> TargetChanges {
    vec![(key(address), None)]
}

const LONG: Duration = Duration::from_secs(60);

/// A prober, and the last that it reported of each endpoint.
struct Reports {
    prober: Prober,
    dead: Arc<Mutex<BTreeMap<RsKey, bool>>>,
}

impl Reports {
    fn start() -> Self {
        let dead = Arc::<Mutex<BTreeMap<RsKey, bool>>>::default();
        let shared = dead.clone();
        let prober = Prober::start(move |changes| lock(&shared).extend(changes));
        Self { prober, dead }
    }

    fn of(&self, address: SocketAddr) -> Option<bool> {
        lock(&self.dead).get(&key(address)).copied()
    }

    async fn wait_for(&self, what: &str, is_so: impl Fn(&ProbeCounters) -> bool) {
        eventually(what, || is_so(&self.prober.counters())).await;
    }
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {what}");
}

/// Accepts and counts connects until it is aborted.
async fn serve(address: SocketAddr, accepted: Arc<AtomicU64>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            accepted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (address, task)
}

async fn close(server: JoinHandle<()>) {
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn a_closed_listener_is_dead_after_the_threshold_and_a_reopened_one_is_alive() {
    for wanted in [FREE, "[::1]:0"] {
        let accepted = Arc::<AtomicU64>::default();
        let (address, server) = serve(wanted.parse().unwrap(), accepted.clone()).await;
        let reports = Reports::start();
        reports.prober.change_targets(targets(&[address], LONG, 3));
        eventually("connects", || accepted.load(Ordering::Relaxed) >= 5).await;
        assert_eq!((reports.of(address), reports.prober.counters().failures), (None, 0));
        close(server).await;
        eventually("a report of death", || {
            let before = reports.of(address);
            let ProbeCounters { failures, dead, .. } = reports.prober.counters();
            assert_eq!(dead, usize::from(failures >= 3), "dead with the third failure, {failures}");
            before == Some(true)
        })
        .await;
        let (again, server) = serve(address, accepted.clone()).await;
        assert_eq!(again, address);
        eventually("a report of life", || reports.of(address) == Some(false)).await;
        assert_eq!(reports.prober.counters().dead, 0);

        reports.prober.change_targets(no_target(address));
        reports.wait_for("no targets", |numbers| numbers.targets == 0).await;
        let numbers = reports.prober.counters();
        eventually("one accepted connect for each answered check", || {
            accepted.load(Ordering::Relaxed) == numbers.connects - numbers.failures
        })
        .await;
        close(server).await;
        assert_eq!(reports.prober.counters(), numbers, "nothing is checked any more");
    }
}

#[tokio::test]
async fn a_removed_target_is_no_longer_dead_and_an_endpoint_that_never_answered_is_not() {
    let (address, server) = serve(FREE.parse().unwrap(), Arc::default()).await;
    let (never, closed) = serve(FREE.parse().unwrap(), Arc::default()).await;
    close(closed).await;
    let reports = Reports::start();
    reports.prober.change_targets(targets(&[address, never], LONG, 1));
    reports.wait_for("an answer and failures", |n| n.failures >= 5 && n.connects > n.failures + 5).await;
    close(server).await;
    eventually("a report of death", || reports.of(address) == Some(true)).await;
    let before = reports.prober.counters().failures;
    reports.wait_for("failures of both", |numbers| numbers.failures >= before + 10).await;
    assert_eq!((reports.of(never), reports.prober.counters().dead), (None, 1));
    reports.prober.change_targets(no_target(address));
    eventually("the removed one is reported", || reports.of(address) == Some(false)).await;
    assert_eq!(reports.prober.counters().targets, 1);
}

/// The kernel answers for a program that hangs until the queue of its listener is full.
#[tokio::test]
async fn a_program_that_accepts_nothing_is_dead_until_it_accepts() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(FREE.parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let reports = Reports::start();
    // Only the first check needs an answer within the timeout.
    reports.prober.change_targets(targets(&[address], Duration::from_millis(200), 2));
    eventually("a report of death", || reports.of(address) == Some(true)).await;
    assert!(reports.prober.counters().failures >= 2);
    let server = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    eventually("a report of life", || reports.of(address) == Some(false)).await;
    close(server).await;
}

#[tokio::test]
async fn a_check_ends_with_a_reset() {
    let listener = TcpListener::bind(FREE).await.unwrap();
    let reports = Reports::start();
    reports.prober.change_targets(targets(&[listener.local_addr().unwrap()], LONG, 3));
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn without_the_handle_the_checks_end() {
    let accepted = Arc::<AtomicU64>::default();
    let (address, _server) = serve(FREE.parse().unwrap(), accepted.clone()).await;
    let Reports { prober, dead } = Reports::start();
    prober.change_targets(targets(&[address], LONG, 3));
    eventually("connects", || accepted.load(Ordering::Relaxed) >= 2).await;
    drop(prober);
    eventually("the task ends", || Arc::strong_count(&dead) == 1).await;
}
