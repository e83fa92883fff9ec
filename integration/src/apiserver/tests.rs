// SPDX-License-Identifier: Apache-2.0
//! Tests of the server with the real client library.

mod events;
mod faults;
mod follow;
mod peers;
mod service_cidrs;

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use kube::runtime::watcher::{Config, Error, Event, InitialListStrategy, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{ApiServer, Faults, RequestRecord, Streaming};

const LIMIT: Duration = Duration::from_secs(5);

fn object(name: &str, port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "d"},
           "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": port}]}})
}

fn start() -> ApiServer {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = ApiServer::start(listener).unwrap();
    server.replace_all((0..5).map(|n| object(&format!("s{n}"), 80)).collect());
    server
}

fn client(server: &ApiServer) -> Client {
    let mut config = kube::Config::new(server.url().parse().unwrap());
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn api(server: &ApiServer) -> Api<Service> {
    Api::all(client(server))
}

/// Requests for lists so far.
fn lists(server: &ApiServer) -> usize {
    server.requests().iter().filter(|r| !r.is_watch()).count()
}

/// The query of the latest watch.
fn last_watch(server: &ApiServer) -> String {
    server.requests().into_iter().rfind(RequestRecord::is_watch).unwrap().query
}

/// What a plain GET is answered with, up to the end of the connection or `limit`: all of it, as text.
async fn raw(server: &ApiServer, path: &str, limit: Duration) -> String {
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(limit, stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The next event as text: `init`, `+name`, `done`, `=name`, `-name`, `error`.
async fn next<K: ResourceExt>(events: &mut (impl Stream<Item = Result<Event<K>, Error>> + Unpin)) -> String {
    let event = tokio::time::timeout(LIMIT, events.next()).await;
    match event.expect("an event in time").expect("no end") {
        Ok(Event::Init) => "init".to_owned(),
        Ok(Event::InitApply(o)) => format!("+{}", o.name_any()),
        Ok(Event::InitDone) => "done".to_owned(),
        Ok(Event::Apply(o)) => format!("={}", o.name_any()),
        Ok(Event::Delete(o)) => format!("-{}", o.name_any()),
        Err(_) => "error".to_owned(),
    }
}

/// Waits until this number of watches is open. It polls this watch, because a watch opens only when it is polled.
async fn opened(server: &ApiServer, watches: usize, events: &mut (impl Stream + Unpin)) {
    tokio::select! {
        _ = events.next() => panic!("nothing has changed"),
        () = until("an open watch", || server.open_watches() == watches) => {}
    }
}

#[tokio::test]
async fn lists_whole_paged_and_selected() {
    let server = start();
    let api = api(&server);
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 5);
    let page = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(page.items.len(), 2);
    let token = page.metadata.continue_.unwrap();
    let rest = api.list(&ListParams::default().continue_token(&token)).await.unwrap();
    assert_eq!(rest.items.len(), 3);
    let one = api.list(&ListParams::default().fields("metadata.name=s3")).await.unwrap();
    assert_eq!(one.items.len(), 1);
}

#[tokio::test]
async fn watches_see_everything_with_both_kinds_of_first_list() {
    for strategy in [InitialListStrategy::ListWatch, InitialListStrategy::StreamingList] {
        let server = start();
        let config = Config { initial_list_strategy: strategy, ..Config::default().page_size(2) };
        let mut events = pin!(watcher(api(&server), config));
        for expected in ["init", "+s0", "+s1", "+s2", "+s3", "+s4", "done"] {
            assert_eq!(next(&mut events).await, expected);
        }
        server.apply(object("s1", 81));
        assert_eq!(next(&mut events).await, "=s1");
        server.delete("Service", "d", "s2");
        assert_eq!(next(&mut events).await, "-s2");
        assert_eq!(server.open_watches(), 1);
    }
}

#[tokio::test]
async fn pages_are_of_one_moment() {
    let server = start();
    let api = api(&server);
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(3));
    server.delete("Service", "d", "s0");
    server.apply(object("s9", 80));
    let token = first.metadata.continue_.unwrap();
    let rest = api.list(&ListParams::default().continue_token(&token)).await.unwrap();
    let names: Vec<String> = rest.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["s2", "s3", "s4"]);
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
    server.compact();
    let error = api.list(&ListParams::default().continue_token(&token)).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(status) if status.code == 410));
}

#[tokio::test]
async fn items_have_no_kind_and_paths_have_their_answers() {
    let server = start();
    let answer = raw(&server, "/api/v1/namespaces/d/services", LIMIT).await;
    let list: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(list["kind"], "ServiceList");
    assert_eq!(list["items"][4]["metadata"]["name"], "s4");
    assert!(list["items"][4].get("kind").is_none() && list["items"][4].get("apiVersion").is_none());
    let answer = raw(&server, "/api/v1/namespaces/d/services/s1", LIMIT).await;
    assert!(answer.contains("application/json") && answer.contains("\"kind\":\"Service\""), "{answer}");
    for path in ["/version", "/readyz", "/api/v1/nodes", "/apis/networking.k8s.io/v1/servicecidrs"] {
        assert!(raw(&server, path, LIMIT).await.starts_with("HTTP/1.1 200 "), "{path}");
    }
    for path in ["/api/v1/pods", "/api/v1/namespaces/d/services/x", "/apis/apps/v1/services"] {
        let answer = raw(&server, path, LIMIT).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("\"NotFound\""), "{answer}");
    }
    assert!(kube::config::Kubeconfig::from_yaml(&server.kubeconfig()).is_ok());
    let last = server.requests().pop().unwrap();
    assert_eq!(
        (last.method.as_str(), last.path.as_str(), last.status),
        ("GET", "/apis/apps/v1/services", 404)
    );
}

#[tokio::test]
async fn a_selector_makes_changes_come_and_go() {
    let server = start();
    let labelled = |value: Value| {
        let mut object = object("s1", 80);
        object["metadata"]["labels"] = value;
        object
    };
    let config = Config::default().labels("!proxy").fields("spec.clusterIP!=None");
    let mut events = pin!(watcher(api(&server), config));
    while next(&mut events).await != "done" {}
    server.apply(labelled(json!({"proxy": "x"})));
    assert_eq!(next(&mut events).await, "-s1");
    server.apply(labelled(json!({"proxy": "y"})));
    server.apply(labelled(json!({"other": "y"})));
    assert_eq!(next(&mut events).await, "=s1");
    server.replace_all(vec![labelled(json!({"other": "y"})), object("s2", 99)]);
    for expected in ["-s0", "-s3", "-s4", "=s2"] {
        assert_eq!(next(&mut events).await, expected, "s1 is as it was");
    }
}

#[tokio::test]
async fn bookmarks_carry_an_idle_watch_over_lost_history() {
    let server = start();
    server.set_bookmark_interval(Duration::from_millis(20));
    let mut events = pin!(watcher(api(&server), Config::default()));
    while next(&mut events).await != "done" {}
    let listed = server.version();
    opened(&server, 1, &mut events).await;
    // Only objects of another kind change: the watch gets their versions from bookmarks.
    server.set_history(1);
    server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}));
    let quiet = tokio::time::timeout(Duration::from_millis(300), events.next()).await;
    assert!(quiet.is_err(), "bookmarks are no events of the watcher");
    server.cut_watches(false);
    server.apply(object("s1", 81));
    let mut seen = next(&mut events).await;
    while seen == "error" {
        seen = next(&mut events).await;
    }
    assert_eq!(seen, "=s1");
    let version = listed + 1;
    let query = last_watch(&server);
    assert!(query.contains(&format!("resourceVersion={version}")), "{query}");
    assert_eq!(lists(&server), 1);
}
