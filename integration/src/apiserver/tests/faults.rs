// SPDX-License-Identifier: Apache-2.0
//! Injected faults.

use super::*;

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
        assert_eq!(lists(&server), 1, "{:?}", server.requests());
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
    let error = client(&server).request::<Value>(request).await.unwrap_err();
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

#[tokio::test]
async fn too_many_requests_say_when_to_come_again() {
    let server = start();
    let all = |code, retry_after| Faults {
        status: Some((String::new(), code, 1)),
        retry_after,
        ..Faults::default()
    };
    for (code, wanted, header) in [(429, None, Some("1")), (503, Some(7), Some("7")), (500, None, None)] {
        server.set_faults(all(code, wanted));
        let answer = raw(&server, "/api/v1/services", LIMIT).await.to_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {code} ")), "{answer}");
        assert_eq!(answer.contains("retry-after"), header.is_some());
        assert!(header.is_none_or(|seconds| answer.contains(&format!("retry-after: {seconds}\r\n"))));
    }
    server.set_faults(all(503, None));
    let mut events = pin!(watcher(api(&server), Config::default()));
    let mut seen = vec![next(&mut events).await];
    while seen.last().map(String::as_str) != Some("done") {
        seen.push(next(&mut events).await);
    }
    assert!(seen.contains(&"error".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn a_server_without_streaming_lists_refuses_them() {
    let server = start();
    server.set_faults(Faults { streaming: Streaming::Refused, ..Faults::default() });
    let mut events = pin!(watcher(api(&server), Config::default().streaming_lists()));
    match events.next().await {
        Some(Err(Error::WatchStartFailed(kube::Error::Api(status)))) => {
            assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
            assert!(status.message.contains("sendInitialEvents: Forbidden"), "{}", status.message);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn watches_end_in_all_ways() {
    let server = start();
    let path = format!("/api/v1/services?watch=true&resourceVersion={}", server.version());
    let proper = raw(&server, &format!("{path}&timeoutSeconds=1"), LIMIT).await;
    assert!(proper.ends_with("0\r\n\r\n"), "{proper}");
    for (torn, half_open) in [(false, false), (true, false), (true, true)] {
        server.set_faults(Faults::default());
        let cut = async {
            until("a watch", || server.open_watches() == 1).await;
            server.set_faults(Faults { half_open, ..Faults::default() });
            server.cut_watches(torn);
        };
        let (answer, ()) = tokio::join!(raw(&server, &path, LIMIT), cut);
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
        assert_eq!(answer.contains("{\"type\":\"MODIFIED\""), torn, "{answer}");
        until("the watch is closed", || server.open_watches() == 0).await;
    }
}

#[tokio::test]
async fn a_silent_watch_speaks_again_and_a_client_that_goes_is_noticed() {
    let server = start();
    {
        let mut events = pin!(watcher(api(&server), Config::default()));
        while next(&mut events).await != "done" {}
        opened(&server, 1, &mut events).await;
        server.set_faults(Faults { half_open: true, ..Faults::default() });
        server.apply(object("s1", 81));
        let silent = tokio::time::timeout(Duration::from_millis(200), events.next()).await;
        assert!(silent.is_err());
        server.set_faults(Faults::default());
        assert_eq!(next(&mut events).await, "=s1");
        assert_eq!(server.open_watches(), 1);
    }
    until("the watch is closed", || server.open_watches() == 0).await;
}

#[tokio::test]
async fn broken_lists_and_lines_are_errors_that_heal() {
    let server = start();
    server.set_faults(Faults { truncate_list_body: true, ..Faults::default() });
    assert!(api(&server).list(&ListParams::default()).await.is_err());
    let half = raw(&server, "/api/v1/services", LIMIT).await;
    assert!(half.contains("\"items\":[") && !half.ends_with('}'), "{half}");
    server.set_faults(Faults::default());
    let mut events = pin!(watcher(api(&server), Config::default()));
    while next(&mut events).await != "done" {}
    opened(&server, 1, &mut events).await;
    server.inject_watch_line("Node", "not for this watch");
    server.inject_watch_line("Service", "no JSON at all");
    server.apply(object("s1", 81));
    let (mut seen, mut errors) = (next(&mut events).await, 0);
    while seen == "error" {
        errors += 1;
        seen = next(&mut events).await;
    }
    assert_eq!((seen.as_str(), errors), ("=s1", 1));
}
