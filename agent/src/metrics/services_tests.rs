// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::core::model::Protocol;
use prometheus::TextEncoder;

fn vs(n: u8) -> VsKey {
    VsKey { protocol: Protocol::Tcp, addr: [10, 96, 0, n].into(), port: 80 }
}

fn counts(connections: u64) -> ServerCounters {
    ServerCounters {
        connections,
        packets: [connections * 10, connections * 9],
        bytes: [connections * 100, 7],
    }
}

fn owned(n: u8, service: &str) -> Change {
    (vs(n), Some(ObjectName::new("d", service)))
}

struct TestAccount {
    registry: Registry,
    account: Account,
}

impl TestAccount {
    fn new(limit: usize) -> Self {
        let registry = Registry::new();
        let account = Account::new(TrafficMetrics::register(&registry).unwrap(), limit);
        Self { registry, account }
    }

    /// Lines `namespace/service connections`, sorted.
    fn connections(&self) -> Vec<String> {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("kube_ipvs_service_connections_total{"));
        let mut lines: Vec<String> = lines
            .map(|line| line.replace("namespace=\"", "").replace("\",service=\"", "/").replace("\"}", ""))
            .collect();
        lines.sort();
        lines
    }
}

#[test]
fn virtual_servers_of_a_service_are_summed_in_both_directions() {
    let mut test = TestAccount::new(10);
    test.account.take(&[]);
    test.account.change(vec![owned(1, "web"), owned(2, "web"), owned(3, "dns")]);
    test.account.take(&[(vs(1), counts(5)), (vs(2), counts(2)), (vs(3), counts(1)), (vs(9), counts(99))]);
    assert_eq!(
        test.connections(),
        ["/other 0", "d/dns 1", "d/web 7"],
        "virtual servers without an owner are not counted"
    );
    let web: Vec<u64> =
        test.account.named[&ObjectName::new("d", "web")].iter().map(IntCounter::get).collect();
    assert_eq!(web, [7, 70, 63, 700, 14]);
}

#[test]
fn what_was_counted_before_the_start_is_a_base() {
    let mut test = TestAccount::new(10);
    test.account.take(&[(vs(1), counts(1000)), (vs(2), counts(50))]);
    test.account.change(vec![owned(1, "web")]);
    test.account.take(&[(vs(1), counts(1003)), (vs(2), counts(50))]);
    assert_eq!(test.connections(), ["/other 0", "d/web 3"]);
    test.account.change(vec![owned(2, "dns")]);
    test.account.take(&[(vs(1), counts(1003)), (vs(2), counts(51))]);
    assert_eq!(
        test.connections(),
        ["/other 0", "d/dns 1", "d/web 3"],
        "also for one that gets an owner later"
    );
}

#[test]
fn a_virtual_server_that_is_created_again_keeps_its_sum() {
    let mut test = TestAccount::new(10);
    test.account.take(&[]);
    test.account.change(vec![owned(1, "web")]);
    test.account.take(&[(vs(1), counts(8))]);
    test.account.take(&[(vs(1), counts(3))]);
    assert_eq!(test.connections(), ["/other 0", "d/web 11"], "created again between two readings");
    test.account.change(vec![owned(2, "web"), (vs(1), None)]);
    test.account.take(&[]);
    test.account.change(vec![owned(1, "web")]);
    test.account.take(&[(vs(1), counts(20))]);
    assert_eq!(test.connections(), ["/other 0", "d/web 31"], "removed, seen to be away, and added");
}

#[test]
fn a_reading_that_misses_or_repeats_a_virtual_server_counts_nothing_twice() {
    let mut test = TestAccount::new(10);
    test.account.take(&[]);
    test.account.change(vec![owned(1, "web"), owned(2, "web")]);
    test.account.take(&[(vs(1), counts(8)), (vs(2), counts(1)), (vs(1), counts(8))]);
    assert_eq!(test.connections(), ["/other 0", "d/web 9"]);
    test.account.take(&[(vs(2), counts(1))]);
    test.account.take(&[(vs(1), counts(10)), (vs(2), counts(1))]);
    assert_eq!(test.connections(), ["/other 0", "d/web 11"]);
}

#[test]
fn a_virtual_server_that_changes_its_owner_counts_for_the_new_one_from_then_on() {
    let mut test = TestAccount::new(10);
    test.account.take(&[]);
    test.account.change(vec![owned(1, "old"), owned(2, "old")]);
    test.account.take(&[(vs(1), counts(8)), (vs(2), counts(1))]);
    test.account.change(vec![owned(1, "young")]);
    test.account.take(&[(vs(1), counts(10)), (vs(2), counts(1))]);
    assert_eq!(test.connections(), ["/other 0", "d/old 9", "d/young 2"]);
}

#[test]
fn services_beyond_the_limit_are_summed_up_and_get_room_that_others_leave() {
    let mut test = TestAccount::new(2);
    test.account.take(&[]);
    test.account.change(vec![owned(4, "d"), owned(3, "c"), owned(2, "b"), owned(1, "a")]);
    let all = |n: u64| -> Vec<(VsKey, ServerCounters)> {
        (1..5).map(|i| (vs(i), counts(n * u64::from(i)))).collect()
    };
    test.account.take(&all(1));
    assert_eq!(test.connections(), ["/other 7", "d/a 1", "d/b 2"]);
    test.account.change(vec![(vs(1), None)]);
    test.account.take(&all(2));
    assert_eq!(test.connections(), ["/other 11", "d/b 4", "d/c 3"], "the total never falls");
    test.account.change(vec![(vs(4), None)]);
    assert_eq!(test.connections(), ["/other 11", "d/b 4", "d/c 3"]);
}

#[test]
fn a_scrape_gets_a_fresh_reading_and_many_scrapes_share_one() {
    let (registry, (sender, readings)) = (Registry::new(), std::sync::mpsc::channel());
    let mut n = 0;
    let reader: ReadCounters = Box::new(move || {
        n += 1;
        sender.send(n).unwrap();
        if n == 1 { Err("not yet".to_owned()) } else { Ok(vec![(vs(1), counts(n))]) }
    });
    let traffic = ServiceTraffic::start(&registry, 10, Duration::from_secs(3600), reader).unwrap();
    assert_eq!(readings.recv(), Ok(1), "read without being asked");
    traffic.own([owned(1, "web")].into_iter());
    // The first attempt may just be ending: a scrape then waits for the next.
    while lock(&traffic.0.state).readings < 2 {
        traffic.refresh();
    }
    assert_eq!(readings.recv(), Ok(2));
    (0..50).for_each(|_| traffic.refresh());
    assert!(readings.try_recv().is_err(), "recent enough");
    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in ["readings_total{result=\"done\"} 1", "readings_total{result=\"failed\"} 1"] {
        assert!(text.contains(line), "{text}");
    }
}
