// SPDX-License-Identifier: Apache-2.0
//! How the agent follows the ranges of ClusterIPs.

use std::sync::Arc;

use kube_ipvs::source::Timing;
use kube_ipvs::store::Store;

use super::follow::{eager, follow_with, patient};
use super::*;

fn ranges(name: &str, cidrs: &[&str]) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
           "spec": {"cidrs": cidrs}})
}

async fn follow(server: &ApiServer, timing: Timing) -> Arc<Store> {
    follow_with(server, timing, |source| source.with_service_cidrs(true)).await
}

/// The known ranges; `None`: they are not known.
fn known(store: &Store) -> Option<Vec<String>> {
    Some(store.service_cidrs().unwrap()?.iter().map(ToString::to_string).collect())
}

fn requests(server: &ApiServer) -> usize {
    server.requests().iter().filter(|r| r.path.ends_with("/servicecidrs")).count()
}

fn refused(code: u16) -> Faults {
    Faults { status: Some(("servicecidrs".to_owned(), code, usize::MAX)), ..Faults::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_come_and_go_are_followed_with_one_watch() {
    let server = start();
    server.apply(ranges("kubernetes", &["10.96.0.0/16", "fd00:96::/112"]));
    let store = follow(&server, patient()).await;
    until("in sync", || store.is_synced()).await;
    assert_eq!(known(&store).unwrap(), ["10.96.0.0/16", "fd00:96::/112"], "the first sync has them");
    store.take_dirty(|| false);
    server.apply(ranges("more", &["10.200.0.0/16"]));
    until("the new range", || known(&store).unwrap().len() == 3).await;
    assert!(store.is_dirty(), "the loop learns of it");
    server.delete("ServiceCIDR", "", "kubernetes");
    until("one range", || known(&store).unwrap() == ["10.200.0.0/16"]).await;
    // A list and a watch at first, and after each change.
    until("the last watch", || requests(&server) == 6).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(requests(&server), 6, "an open watch needs no further request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_service_cidrs_is_asked_seldom() {
    let server = start();
    server.set_faults(refused(404));
    let store = follow(&server, eager()).await;
    until("in sync", || store.is_synced()).await;
    assert_eq!(known(&store), Some(Vec::new()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(requests(&server), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_not_wait_for_a_server_that_refuses_or_hangs() {
    for faults in [refused(403), Faults { held: Some("servicecidrs".to_owned()), ..Faults::default() }] {
        let server = start();
        server.set_faults(faults);
        let store = follow(&server, eager()).await;
        until("in sync", || store.is_synced()).await;
        assert_eq!(known(&store), None, "routes of an earlier run stay");
        server.set_faults(Faults::default());
        server.apply(ranges("kubernetes", &["10.96.0.0/16"]));
        until("the range after all", || known(&store).is_some_and(|ranges| !ranges.is_empty())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_followed_over_cut_watches_and_expired_versions() {
    let server = start();
    server.apply(ranges("kubernetes", &["10.96.0.0/16"]));
    let store = follow(&server, eager()).await;
    until("in sync", || store.is_synced()).await;
    for n in 0..5 {
        server.cut_watches(n % 2 == 0);
        server.apply(ranges("kubernetes", &[&format!("10.{n}.0.0/16")]));
        server.compact();
        until("the changed range", || known(&store).unwrap() == [format!("10.{n}.0.0/16")]).await;
    }
}
