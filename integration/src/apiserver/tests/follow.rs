// SPDX-License-Identifier: Apache-2.0
//! The agent's client against this server: its requests and their number.

use std::sync::Arc;

use kube_ipvs::inbox::Inbox;
use kube_ipvs::metrics::Metrics;
use kube_ipvs::source::api::ApiSource;
use kube_ipvs::source::client::ApiAccess;
use kube_ipvs::source::{Source, Timing};
use kube_ipvs::store::Store;

use super::*;

/// Long pauses, so that a second request is counted and not timed.
pub(super) fn patient() -> Timing {
    let long = Duration::from_secs(600);
    Timing {
        priority: long,
        stall: long,
        list: long,
        no_streaming: long,
        answer: long,
        silence: long,
        uncertain: long,
        min_pause: long,
        max_pause: long,
        reset: long,
    }
}

pub(super) fn eager() -> Timing {
    let short = Duration::from_millis(20);
    let wait = Duration::from_millis(300);
    Timing {
        priority: wait,
        stall: wait,
        list: wait * 2,
        answer: wait,
        silence: wait * 10,
        uncertain: short * 5,
        min_pause: short,
        max_pause: short,
        reset: short,
        ..patient()
    }
}

pub(super) async fn follow(server: &ApiServer, timing: Timing) -> Arc<Store> {
    follow_with(server, timing, |source| source).await
}

/// As [`follow`], with a source that `set_up` changes.
pub(super) async fn follow_with(
    server: &ApiServer,
    timing: Timing,
    set_up: impl FnOnce(ApiSource) -> ApiSource,
) -> Arc<Store> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let access = ApiAccess { kubeconfig: None, master: Some(server.url()) };
    let client = access.client(Arc::new(()), timing.answer).await.unwrap();
    let store = Arc::new(Store::new(Arc::new(Inbox::default())));
    let source = ApiSource::new(client, "n1", tokio::runtime::Handle::current());
    Box::new(set_up(source.with_timing(timing))).start(store.clone()).unwrap();
    store
}

/// Watches and lists of a resource in all namespaces so far.
fn asked(server: &ApiServer, plural: &str) -> (usize, usize) {
    let is_one =
        |r: &RequestRecord| r.path.ends_with(plural) && r.method == "GET" && !r.path.contains("/namespaces/");
    let all: Vec<RequestRecord> = server.requests().into_iter().filter(is_one).collect();
    let watches = all.iter().filter(|r| r.is_watch()).count();
    (watches, all.len() - watches)
}

fn failing(plural: &str, code: u16) -> Faults {
    Faults { status: Some((plural.to_owned(), code, usize::MAX)), ..Faults::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_streamed_where_the_server_can() {
    let server = start();
    let store = follow(&server, patient()).await;
    until("in sync", || store.is_synced()).await;
    assert_eq!(store.all().len(), 5);
    for plural in ["services", "endpointslices", "nodes"] {
        assert_eq!(asked(&server, plural), (1, 0), "{plural}: one watch is all");
    }
    server.apply(object("s9", 80));
    until("the new one", || store.all().len() == 6).await;
    assert_eq!(asked(&server, "services"), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_stream_is_asked_once_and_then_in_pages() {
    let server = start();
    server.set_faults(Faults { streaming: Streaming::Refused, ..Faults::default() });
    let store = follow(&server, patient()).await;
    until("in sync", || store.is_synced()).await;
    until("the watch", || asked(&server, "services") == (2, 1)).await;
    let is_list = |r: &RequestRecord| r.path == "/api/v1/services" && !r.is_watch();
    let list = server.requests().into_iter().find(is_list).unwrap();
    assert!(list.query.contains("limit=500"), "{}", list.query);
    assert_eq!(store.all().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_before_1_31_is_asked_again_without_the_fields_of_services() {
    let old = || Faults { streaming: Streaming::Refused, no_service_fields: true, ..Faults::default() };
    let headless = || {
        let mut headless = object("headless", 80);
        headless["spec"]["clusterIP"] = json!("None");
        headless
    };
    let server = start();
    server.set_faults(old());
    server.apply(headless());
    let store = follow(&server, patient()).await;
    until("in sync", || store.is_synced()).await;
    until("the watch", || asked(&server, "services") == (2, 2)).await;
    assert!(!names(&store.all()).iter().any(|name| name.contains("headless")), "{:?}", names(&store.all()));
    server.apply(object("s9", 80));
    until("the new one", || names(&store.all()).len() == 6).await;

    // A server that is replaced by an older one: the watch goes on.
    let server = start();
    let store = follow(&server, eager()).await;
    until("in sync", || store.is_synced()).await;
    server.set_faults(old());
    server.cut_watches(false);
    server.apply(headless());
    server.apply(object("s9", 80));
    until("the new one", || names(&store.all()).len() == 6).await;

    // The next list tries the fields again: a proxy may have been at fault.
    server.set_faults(Faults::default());
    let before = server.requests().len();
    server.compact();
    server.cut_watches(false);
    let is_selected = |r: &RequestRecord| r.path == "/api/v1/services" && r.query.contains("spec.clusterIP");
    until("a list with fields", || server.requests().iter().skip(before).any(is_selected)).await;
    server.apply(object("s10", 80));
    until("another", || names(&store.all()).len() == 7).await;
}

/// An object of a namespace, with labels.
fn placed(kind: &str, namespace: &str, name: &str, labels: Value) -> Value {
    let metadata = json!({"name": name, "namespace": namespace, "labels": labels});
    match kind {
        "Service" => json!({"apiVersion": "v1", "kind": kind, "metadata": metadata,
                            "spec": {"clusterIP": "10.0.0.2", "ports": [{"port": 443}]}}),
        _ => json!({"apiVersion": "discovery.k8s.io/v1", "kind": kind, "metadata": metadata,
                    "addressType": "IPv4", "endpoints": [], "ports": []}),
    }
}

fn first_objects(server: &ApiServer) {
    let of = |service: &str| json!({"kubernetes.io/service-name": service});
    for object in [
        placed("Service", "default", "kubernetes", json!({})),
        placed("Service", "default", "web", json!({})),
        placed("EndpointSlice", "default", "kubernetes", of("kubernetes")),
        placed("EndpointSlice", "default", "web-1", of("web")),
        placed("Service", "kube-system", "kube-dns", json!({"k8s-app": "kube-dns"})),
        placed("EndpointSlice", "kube-system", "kube-dns-1", of("kube-dns")),
        placed("Service", "kube-system", "metrics", json!({})),
        placed("Service", "kube-system", "theirs", json!({"service.kubernetes.io/service-proxy-name": "x"})),
        json!({"kind": "Node", "metadata": {"name": "n1"}}),
    ] {
        server.apply(object);
    }
}

fn names(all: &[kube_ipvs::store::Dirty]) -> Vec<String> {
    let mut names: Vec<String> = all.iter().map(|d| format!("{} {}", d.name, d.slices.len())).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_services_are_known_before_the_large_lists() {
    let server = start();
    first_objects(&server);
    server.set_faults(Faults { held: Some("services".to_owned()), ..Faults::default() });
    let store = follow(&server, patient()).await;
    until("the first Services", || store.has_priority()).await;
    assert!(!store.is_synced());
    assert_eq!(names(&store.priority()), ["default/kubernetes 1", "kube-system/kube-dns 1"]);
    let known = names(&store.all());
    assert_eq!(known, ["default/kubernetes 1", "kube-system/kube-dns 1", "kube-system/metrics 0"]);
    server.delete("Service", "kube-system", "kube-dns");
    server.set_faults(Faults::default());
    until("in sync", || store.is_synced()).await;
    assert_eq!(store.all().len(), 5 + 3, "the complete lists decide");
    assert_eq!(names(&store.priority()), ["default/kubernetes 1"]);
    let ahead: Vec<RequestRecord> =
        server.requests().into_iter().filter(|r| r.path.contains("/namespaces/")).collect();
    assert_eq!(ahead.len(), 4, "{ahead:?}");
    assert!(ahead.iter().all(|r| r.query.contains("resourceVersion=0")), "from the cache: {ahead:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_give_the_first_services_early_is_no_trouble() {
    for faults in [
        Faults { status: Some(("endpointslices".to_owned(), 403, 1)), ..Faults::default() },
        Faults { delay: Some(Duration::from_millis(100)), ..Faults::default() },
    ] {
        let server = start();
        first_objects(&server);
        server.set_faults(faults.clone());
        let store = follow(&server, Timing { priority: Duration::from_millis(50), ..patient() }).await;
        until("in sync", || store.is_synced()).await;
        assert!(!store.has_priority(), "{faults:?}");
        assert_eq!(store.all().len(), 5 + 4, "{faults:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_no_storm_and_loses_nothing() {
    const PAUSE: Duration = Duration::from_millis(10);
    let timing = Timing { min_pause: PAUSE, ..patient() };
    for code in [500, 403, 401, 404, 410] {
        let server = start();
        let store = follow(&server, timing).await;
        until("in sync", || store.is_synced()).await;
        server.set_faults(failing("services", code));
        server.cut_watches(false);
        let start = Instant::now();
        let refused = || server.requests().iter().filter(|r| r.status == code).count();
        until("six refusals", || refused() >= 6).await;
        // Each pause is at least half of twice the one before.
        assert!(start.elapsed() >= PAUSE * (1 + 2 + 4 + 8 + 16) / 2, "{code}: {:?}", start.elapsed());
        assert_eq!(store.all().len(), 5, "{code}: what was known stays");
        server.apply(json!({"kind": "Node", "metadata": {"name": "n1"}}));
        until("the node", || store.node().is_some()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_a_pause_gets_it() {
    let server = start();
    let store = follow(&server, eager()).await;
    until("in sync", || store.is_synced()).await;
    server.set_faults(Faults { retry_after: Some(1), ..failing("services", 429) });
    server.cut_watches(false);
    let refused = || server.requests().iter().filter(|r| r.status == 429).count();
    until("a refusal", || refused() >= 1).await;
    let start = Instant::now();
    until("another", || refused() >= 3).await;
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "two pauses, of which one may have begun: {:?}",
        start.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_heals() {
    let server = start();
    let store = follow(&server, eager()).await;
    until("in sync", || store.is_synced()).await;
    let mut count = 5;
    for faults in [
        failing("", 500),
        failing("", 410),
        Faults { half_open: true, ..Faults::default() },
        Faults { gone_as_status: true, ..Faults::default() },
        Faults { truncate_list_body: true, streaming: Streaming::Refused, ..Faults::default() },
    ] {
        let asked_before = server.requests().len();
        server.set_faults(faults.clone());
        server.compact();
        server.cut_watches(true);
        until("the next try", || server.requests().len() > asked_before + 2).await;
        server.apply(object(&format!("late{count}"), 80));
        count += 1;
        server.set_faults(Faults::default());
        until(&format!("{count} Services after {faults:?}"), || store.all().len() == count).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_given_up_and_asked_again() {
    let server = start();
    server.set_faults(Faults { half_open: true, ..Faults::default() });
    let store = follow(&server, eager()).await;
    until("more than one try", || {
        let (watches, lists) = asked(&server, "services");
        watches + lists >= 3
    })
    .await;
    assert!(!store.is_synced());
    server.set_faults(Faults::default());
    until("in sync", || store.is_synced()).await;
    assert_eq!(store.all().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_heard_of_streaming_is_listed_in_pages() {
    let server = start();
    server.set_faults(Faults { streaming: Streaming::Unknown, ..Faults::default() });
    let store = follow(&server, eager()).await;
    until("in sync", || store.is_synced()).await;
    assert_eq!(store.all().len(), 5);
    assert_eq!(asked(&server, "services").1, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_streamed_list_that_fails_lists_come_in_pages() {
    for streaming in [Streaming::NoProgress, Streaming::BreaksOff, Streaming::Endless, Streaming::Unknown] {
        let server = start();
        server.set_faults(Faults { streaming, ..Faults::default() });
        let store = follow(&server, eager()).await;
        until(&format!("in sync in spite of {streaming:?}"), || store.is_synced()).await;
        assert_eq!(store.all().len(), 5, "{streaming:?}");
        until("the watch", || asked(&server, "services").0 == 2).await;
        assert_eq!(asked(&server, "services"), (2, 1), "{streaming:?}: a streamed list, a page, the watch");
        server.apply(object("s9", 80));
        until("the new one", || store.all().len() == 6).await;
        // The next list is not retried so soon.
        server.compact();
        server.cut_watches(false);
        server.apply(object("s10", 80));
        until("another", || store.all().len() == 7).await;
        let streamed =
            |r: &&RequestRecord| r.path.ends_with("services") && r.query.contains("sendInitialEvents");
        assert_eq!(server.requests().iter().filter(streamed).count(), 1, "{streaming:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_streamed_again_after_a_long_time() {
    let server = start();
    server.set_faults(Faults { streaming: Streaming::NoProgress, ..Faults::default() });
    let timing = Timing { no_streaming: Duration::from_millis(50), ..eager() };
    let store = follow(&server, timing).await;
    until("in sync", || store.is_synced()).await;
    server.set_faults(Faults::default());
    tokio::time::sleep(timing.no_streaming).await;
    server.compact();
    server.cut_watches(false);
    server.apply(object("s9", 80));
    until("the new one", || store.all().len() == 6).await;
    let last = server.requests().into_iter().rfind(|r| r.path.ends_with("services")).unwrap();
    assert!(last.query.contains("sendInitialEvents"), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_server_is_listed_again_although_its_versions_are_older() {
    for streaming in [Streaming::Works, Streaming::Refused] {
        let server = start();
        server.set_faults(Faults { streaming, ..Faults::default() });
        for port in 100..200 {
            server.apply(object("s0", port));
        }
        let store = follow(&server, eager()).await;
        until("in sync", || store.is_synced()).await;
        server.restore(vec![object("old", 80)], 7);
        until("the restored state", || names(&store.all()) == ["d/old 0"]).await;
        server.apply(object("new", 80));
        until("what comes after", || store.all().len() == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_restored_between_a_list_and_its_watch_is_listed_again() {
    let server = start();
    let delay = Some(Duration::from_millis(200));
    server.set_faults(Faults { streaming: Streaming::Refused, delay, ..Faults::default() });
    for port in 100..200 {
        server.apply(object("s0", port));
    }
    // Without `uncertain` only the silence of a watch, much later, would show it.
    let store = follow(&server, Timing { silence: patient().silence, ..eager() }).await;
    until("a complete list", || store.is_synced()).await;
    server.restore(vec![object("old", 80)], 7);
    until("the restored state", || names(&store.all()) == ["d/old 0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_an_older_version_means_a_new_list() {
    let server = start();
    let store = follow(&server, eager()).await;
    until("in sync", || store.is_synced()).await;
    let (watches, lists) = asked(&server, "services");
    let metadata = json!({"resourceVersion": "1"});
    let bookmark =
        json!({"type": "BOOKMARK", "object": {"kind": "Service", "apiVersion": "v1", "metadata": metadata}});
    server.inject_watch_line("Service", &bookmark.to_string());
    until("a new list", || asked(&server, "services") == (watches + 1, lists)).await;
    assert_eq!(store.all().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_falls_silent_is_looked_into() {
    let server = start();
    server.set_bookmark_interval(Duration::from_secs(600));
    let store = follow(&server, Timing { silence: Duration::from_millis(50), ..eager() }).await;
    until("in sync", || store.is_synced()).await;
    let small = |r: &&RequestRecord| r.path.ends_with("services") && r.query.contains("limit=1");
    until("two small lists", || {
        server.requests().iter().filter(|r| r.query.contains("limit=1&") || small(r)).count() >= 2
    })
    .await;
    assert_eq!(store.all().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_the_kubeconfig_is_used() {
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cluster = json!({"server": "https://192.0.2.1:6443",
                         "proxy-url": format!("http://{}", proxy.local_addr().unwrap())});
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let access = ApiAccess { kubeconfig: Some(path.to_str().unwrap().to_owned()), master: None };
    let api = access.client(Arc::new(()), LIMIT).await.unwrap();
    let asking = tokio::spawn(async move { api.client.apiserver_version().await.is_ok() });
    let (mut stream, _) = tokio::time::timeout(LIMIT, proxy.accept()).await.unwrap().unwrap();
    let mut line = [0; 28];
    stream.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"CONNECT 192.0.2.1:6443 HTTP/");
    drop(stream);
    assert!(!asking.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_api_server_is_told_in_few_words() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let page = format!("<html>{}</html>", "sign in ".repeat(5000));
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
                page.len()
            );
            let _ = stream.write_all((head + &page).as_bytes()).await;
        }
    });
    let _ = rustls::crypto::ring::default_provider().install_default();
    let metrics = Metrics::new().unwrap();
    let access = ApiAccess { kubeconfig: None, master: Some(url) };
    let api = access.client(Arc::new(metrics.clone()), LIMIT).await.unwrap();
    let store = Arc::new(Store::new(Arc::new(Inbox::default())));
    let source = ApiSource::new(api, "n1", tokio::runtime::Handle::current());
    Box::new(source.with_timing(eager())).start(store.clone()).unwrap();
    let failures = "kube_ipvs_watch_failures_total{kind=\"Service\"} ";
    until("failures in the metrics", || {
        let text = metrics.render().unwrap();
        text.lines().filter_map(|l| l.strip_prefix(failures)).any(|count| count != "0")
    })
    .await;
    assert!(!store.is_synced());
}
