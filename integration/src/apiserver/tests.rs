// SPDX-License-Identifier: Apache-2.0
//! The server, asked by the real client library.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use kube::runtime::watcher::{Config, Event, InitialListStrategy, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::{ApiServer, Faults};

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

fn api(server: &ApiServer) -> Api<Service> {
    let mut config = kube::Config::new(server.url().parse().unwrap());
    config.default_retry = false;
    Api::all(Client::try_from(config).unwrap())
}

/// The next event as text: `init`, `+name`, `done`, `=name`, `-name`, `error`.
async fn next(
    events: &mut (impl futures_util::Stream<Item = Result<Event<Service>, kube::runtime::watcher::Error>> + Unpin),
) -> String {
    let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
    match event.expect("an event in time").expect("no end") {
        Ok(Event::Init) => "init".to_owned(),
        Ok(Event::InitApply(o)) => format!("+{}", o.name_any()),
        Ok(Event::InitDone) => "done".to_owned(),
        Ok(Event::Apply(o)) => format!("={}", o.name_any()),
        Ok(Event::Delete(o)) => format!("-{}", o.name_any()),
        Err(_) => "error".to_owned(),
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
        let config = Config { initial_list_strategy: strategy, ..Config::default() };
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
async fn a_cut_watch_goes_on_without_a_new_list() {
    for torn in [false, true] {
        let server = start();
        let mut events = pin!(watcher(api(&server), Config::default()));
        while next(&mut events).await != "done" {}
        server.apply(object("s1", 81));
        assert_eq!(next(&mut events).await, "=s1");
        server.cut_watches(torn);
        server.apply(object("s1", 82));
        let mut seen = next(&mut events).await;
        while seen == "error" {
            seen = next(&mut events).await;
        }
        assert_eq!(seen, "=s1", "torn={torn}");
        let lists = server.requests().iter().filter(|r| !r.uri.contains("watch=true")).count();
        assert_eq!(lists, 1, "{:?}", server.requests());
    }
}

#[tokio::test]
async fn a_version_that_is_too_old_means_a_new_list() {
    let server = start();
    let mut events = pin!(watcher(api(&server), Config::default()));
    while next(&mut events).await != "done" {}
    server.compact();
    server.cut_watches(false);
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("done") {
        seen.push(next(&mut events).await);
    }
    assert!(seen.contains(&"init".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn a_version_that_is_too_old_can_be_a_status() {
    let server = start();
    server.set_faults(Faults { gone_as_status: true, ..Faults::default() });
    server.compact();
    let url = format!("{}/api/v1/services?watch=true&resourceVersion=1", server.url());
    let request = hyper::Request::get(url).body(Vec::new()).unwrap();
    let config = kube::Config::new(server.url().parse().unwrap());
    let error = Client::try_from(config).unwrap().request::<Value>(request).await.unwrap_err();
    assert!(error.to_string().contains("too old"), "{error}");
    assert_eq!(server.requests().last().unwrap().status, 410);
}

#[tokio::test]
async fn injected_failures_end_after_their_number() {
    let server = start();
    let api = api(&server);
    server.set_faults(Faults { status: Some(("services".to_owned(), 503, 2)), ..Faults::default() });
    for _ in 0..2 {
        assert!(api.list(&ListParams::default()).await.is_err());
    }
    assert!(api.list(&ListParams::default()).await.is_ok());
    let statuses: Vec<u16> = server.requests().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [503, 503, 200]);
    server.set_faults(Faults { half_open: true, ..Faults::default() });
    let params = ListParams::default();
    let silent = tokio::time::timeout(Duration::from_millis(300), api.list(&params)).await;
    assert!(silent.is_err(), "no answer at all");
}
