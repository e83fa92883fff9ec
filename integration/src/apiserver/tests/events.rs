// SPDX-License-Identifier: Apache-2.0
//! Events, posted by hand and by the agent's own sink.

use kube_ipvs::core::model::ObjectName;
use kube_ipvs::events::throttle::Limits;
use kube_ipvs::events::{About, EventRequest, EventSink, Reason};

use super::*;

#[tokio::test]
async fn events_are_taken_and_nothing_else() {
    let server = start();
    let client = client(&server);
    let post = |path: &str, body: &Value| {
        let request = hyper::Request::post(format!("{}{path}", server.url()));
        client.request::<Value>(request.body(body.to_string().into_bytes()).unwrap())
    };
    let event = json!({"kind": "Event", "metadata": {"name": "e", "namespace": "d"}, "message": "x"});
    post("/api/v1/namespaces/d/events", &event).await.unwrap();
    assert_eq!(server.events(), std::slice::from_ref(&event));
    let short = json!({"kind": "Event", "metadata": {"name": "short"}});
    assert!(post("/apis/events.k8s.io/v1/namespaces/d/events", &short).await.is_err(), "much is missing");
    assert!(post("/api/v1/namespaces/d/services", &event).await.is_err());
    let statuses: Vec<(String, u16)> = server.requests().into_iter().map(|r| (r.method, r.status)).collect();
    let expected = [201, 422, 405].map(|status| ("POST".to_owned(), status));
    assert_eq!(statuses, expected);
}

/// Short intervals, so that tests are fast.
fn quick() -> Limits {
    let (interval, retry) = (Duration::from_millis(1), Duration::from_millis(1));
    Limits { interval, retry, ..Limits::default() }
}

fn sink(server: &ApiServer, limits: Limits) -> EventSink {
    EventSink::to_api(client(server), "node-a", &tokio::runtime::Handle::current(), limits)
}

fn conflict(service: &str, message: &str) -> EventRequest {
    let about = About::Service(ObjectName::new("d", service));
    EventRequest { about, reason: Reason::AddressConflict, message: message.to_owned() }
}

/// The requests for Events: method and status.
fn posts(server: &ApiServer) -> Vec<(String, u16)> {
    let is_event = |r: &RequestRecord| r.path.contains("/events");
    server.requests().into_iter().filter(is_event).map(|r| (r.method, r.status)).collect()
}

/// The notes of the Events, in their order.
fn notes(server: &ApiServer) -> Vec<String> {
    server.events().iter().map(|event| event["note"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_notice_becomes_an_event() {
    let server = start();
    let mut service = object("s1", 80);
    service["metadata"]["uid"] = json!("7f3c");
    server.apply(service);
    let sink = sink(&server, Limits::default());
    let message = "node address";
    sink.send([
        conflict("s1", "10.0.0.1 port 80 belongs to d/s0"),
        EventRequest { about: About::Node, reason: Reason::NodeAddressAsVIP, message: message.to_owned() },
        conflict("gone", "x"),
    ]);
    until("three Events", || server.events().len() == 3).await;
    let [first, node, gone] = server.events().try_into().unwrap();
    let expected = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "type": "Warning", "action": "Sync",
        "reason": "AddressConflict", "note": "10.0.0.1 port 80 belongs to d/s0",
        "reportingController": "kube-ipvs", "reportingInstance": "node-a",
        "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "d", "name": "s1", "uid": "7f3c"},
        "eventTime": first["eventTime"], "metadata": first["metadata"],
    });
    assert_eq!(first, expected);
    assert_eq!(first["metadata"]["namespace"], "d");
    assert!(first["metadata"]["name"].as_str().unwrap().starts_with("s1."));
    assert_eq!(first["eventTime"].as_str().unwrap().len(), "2026-01-01T00:00:00.000000Z".len());
    assert_eq!(node["metadata"]["namespace"], "default");
    assert_eq!(
        node["regarding"],
        json!({"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "node-a"})
    );
    assert_eq!((&node["reason"], &node["note"]), (&json!("NodeAddressAsVIP"), &json!(message)));
    assert_eq!(gone["regarding"].get("uid"), None, "an Event all the same");
}

#[tokio::test]
async fn a_repeat_does_not_multiply() {
    let server = start();
    let sink = sink(&server, quick());
    for _ in 0..3 {
        sink.send([conflict("s1", "a"), conflict("s1", "b"), conflict("s2", "a")]);
    }
    sink.send([conflict("s1", "last")]);
    until("the last one", || notes(&server).last().is_some_and(|note| note == "last")).await;
    assert_eq!(notes(&server), ["a", "b", "a", "last"]);
    assert_eq!(posts(&server), vec![("POST".to_owned(), 201); 4]);
    assert_eq!(sink.dropped(), 0);
}

#[tokio::test]
async fn after_the_quiet_time_an_event_is_counted_up() {
    let server = start();
    let sink = sink(&server, Limits { quiet: Duration::ZERO, ..quick() });
    let counts = || -> Vec<Value> { server.events().iter().map(|e| e["series"]["count"].clone()).collect() };
    for expected in [Value::Null, json!(2), json!(3)] {
        sink.send([conflict("s1", "a")]);
        until("the count", || counts() == [expected.clone()]).await;
    }
    assert!(server.events()[0]["series"]["lastObservedTime"].is_string());
    server.forget_events();
    sink.send([conflict("s1", "a")]);
    until("a new one", || counts() == [Value::Null]).await;
    let expected = [("POST", 201), ("PATCH", 200), ("PATCH", 200), ("PATCH", 404), ("POST", 201)];
    assert_eq!(posts(&server), expected.map(|(method, status)| (method.to_owned(), status)));
}

#[tokio::test]
async fn a_refusal_does_not_stop_later_events() {
    let server = start();
    let sink = sink(&server, quick());
    server.set_faults(Faults { status: Some(("events".to_owned(), 403, 2)), ..Faults::default() });
    for message in ["a", "b", "c"] {
        sink.send([conflict("s1", message)]);
    }
    until("the third", || notes(&server) == ["c"]).await;
    let statuses: Vec<u16> = posts(&server).into_iter().map(|(_, status)| status).collect();
    assert_eq!(statuses, [403, 403, 201], "what is forbidden is not tried again");
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_three_times() {
    let server = start();
    let sink = sink(&server, quick());
    server.set_faults(Faults { status: Some(("events".to_owned(), 500, 5)), ..Faults::default() });
    for message in ["a", "b", "c"] {
        sink.send([conflict("s1", message)]);
    }
    until("two of three", || notes(&server).len() == 2).await;
    assert_eq!(notes(&server), ["b", "c"]);
    let statuses: Vec<u16> = posts(&server).into_iter().map(|(_, status)| status).collect();
    assert_eq!(statuses, [500, 500, 500, 500, 500, 201, 201]);
}

#[tokio::test]
async fn a_silent_server_holds_nobody_up() {
    let server = start();
    server.set_faults(Faults { half_open: true, ..Faults::default() });
    let sink = sink(&server, Limits { queue: 3, ..quick() });
    let begin = Instant::now();
    sink.send((0..100).map(|n| conflict("s1", &n.to_string())));
    assert!(begin.elapsed() < LIMIT);
    assert!(sink.dropped() >= 96, "{} of 100, three wait and one may be on its way", sink.dropped());
}
