// SPDX-License-Identifier: Apache-2.0
//! Screens of `kube-ipvs top`, whole.

use std::net::SocketAddr;
use std::time::Duration;

use ratatui_core::backend::TestBackend;
use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::Color;
use ratatui_core::terminal::Terminal;

use super::draw_top::draw;
use super::keyboard::TopKey;
use super::rate_meter::{RateMeter, ServiceLoad};
use super::table_reading::{RealReading, TableReading, TrafficCounters, VirtualReading};
use super::top_state::Top;
use super::traffic_order::SortOrder;
use crate::core::model::{Protocol, VsKey};
use crate::testing::golden;

fn counted([connections, packets, bytes]: [u64; 3]) -> TrafficCounters {
    TrafficCounters { connections, packets, bytes }
}

pub(super) fn real(addr: &str, weight: u32, [active, inactive]: [u32; 2], counters: [u64; 3]) -> RealReading {
    RealReading { addr: addr.parse().unwrap(), weight, active, inactive, counters: counted(counters) }
}

fn server(
    protocol: Protocol,
    addr: &str,
    owner: Option<&str>,
    counters: [u64; 3],
    real_servers: Vec<RealReading>,
) -> VirtualReading {
    let addr: SocketAddr = addr.parse().unwrap();
    let key = VsKey { protocol, addr: addr.ip(), port: addr.port() };
    VirtualReading {
        key: Some(key),
        name: key.to_string(),
        owner: owner.map(str::to_owned),
        scheduler: "rr".to_owned(),
        counters: counted(counters),
        real_servers,
    }
}

pub(super) fn virtual_server(
    addr: &str,
    owner: Option<&str>,
    counters: [u64; 3],
    reals: Vec<RealReading>,
) -> VirtualReading {
    server(Protocol::Tcp, addr, owner, counters, reals)
}

pub(super) fn reading(at: u64, virtual_servers: Vec<VirtualReading>) -> TableReading {
    TableReading { at: Duration::from_secs(at), virtual_servers }
}

/// A cluster with a ClusterIP and an external IP for each Service.
pub(super) fn many(at: u64, services: u32) -> TableReading {
    let servers = (0..services).flat_map(|n| {
        let counters = [u64::from(n) * at, u64::from(n * 7 % 1000) * at, u64::from(n * 13 % 1000) * at];
        let owner = format!("ns/service-{n}");
        [10, 172].map(|net| {
            let addr = |last: u32| format!("{net}.{}.{}.{last}:80", n >> 8, n & 255);
            let reals = (1..4).map(|last| real(&addr(last), 1, [n % 9, 1], counters)).collect();
            virtual_server(&addr(0), Some(&owner), counters, reals)
        })
    });
    reading(at, servers.collect())
}

/// Four Services, with the counters of `seconds` of traffic.
fn sample_reading(seconds: u64) -> TableReading {
    let n = |connections: u64, packets: u64, bytes: u64| {
        [1000 + connections * seconds, 50_000 + packets * seconds, 9_000_000 + bytes * seconds]
    };
    let web = |addr: &str, reals: Vec<RealReading>| {
        virtual_server(addr, Some("shop/web:http"), n(15, 650, 630_000), reals)
    };
    let dns = |protocol, port: &str, load, reals: [[u32; 2]; 2]| {
        let reals = vec![
            real("10.244.0.4:53", 1, reals[0], n(60, 125, 16_000)),
            real("10.244.1.9:53", 1, reals[1], n(65, 125, 16_000)),
        ];
        server(protocol, "10.96.0.10:53", Some(&format!("kube-system/kube-dns:{port}")), load, reals)
    };
    let api = ["192.168.7.1:6443", "192.168.7.2:6443", "192.168.7.3:6443"];
    let api = api.iter().map(|addr| real(addr, 1, [7, 0], n(0, 15, 4_000))).collect();
    let mut servers = vec![
        virtual_server("10.96.0.1:443", Some("default/kubernetes:https"), n(0, 45, 12_345), api),
        dns(Protocol::Tcp, "dns-tcp", n(0, 0, 0), [[0, 0], [1, 0]]),
        dns(Protocol::Udp, "dns", n(250, 500, 64_000), [[0, 3], [0, 5]]),
        web(
            "203.0.113.10:80",
            vec![
                real("10.244.1.7:8080", 1, [40, 10], n(8, 325, 315_000)),
                real("10.244.2.7:8080", 1, [50, 12], n(7, 325, 315_000)),
            ],
        ),
        web(
            "10.96.0.100:80",
            vec![
                real("10.244.1.7:8080", 1, [100, 20], n(8, 300, 300_000)),
                real("10.244.2.7:8080", 1, [120, 30], n(7, 300, 300_000)),
                real("10.244.3.8:8080", 0, [43, 0], n(0, 50, 30_000)),
            ],
        ),
    ];
    if seconds > 0 {
        servers.push(server(Protocol::Udp, "192.0.2.77:5000", None, n(9, 9, 9), Vec::new()));
    }
    reading(seconds, servers)
}

pub(super) fn sample() -> Vec<ServiceLoad> {
    let mut meter = RateMeter::default();
    meter.add(sample_reading(0));
    meter.add(sample_reading(2))
}

pub(super) fn sample_top() -> Top {
    let mut top = Top::new("worker-1".to_owned(), None, 2, SortOrder::Connections);
    top.time = "12:34:56 UTC".to_owned();
    top.update(sample());
    top
}

fn screen(top: &mut Top, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(top, false, frame.area(), frame.buffer_mut())).unwrap();
    let cells: Vec<&str> = terminal.backend().buffer().content().iter().map(|cell| cell.symbol()).collect();
    let lines = cells.chunks(width.into()).map(|line| line.concat().trim_end().to_owned() + "\n");
    lines.collect()
}

fn check(name: &str, found: &str) {
    golden::compare(&format!("agent/src/inspect/top/screens/{name}"), found);
}

#[test]
fn whole_screens() {
    for (width, height) in [(80, 24), (200, 50), (40, 8)] {
        let size = format!("{width}x{height}.txt");
        let mut top = sample_top();
        check(&format!("list-{size}"), &screen(&mut top, width, height));
        top.key(TopKey::Enter);
        check(&format!("detail-{size}"), &screen(&mut top, width, height));
    }
}

#[test]
fn what_is_not_usual_is_shown() {
    let mut top = sample_top();
    top.namespace = Some("shop".to_owned());
    top.problems.push("Services are not shown: no kube-ipvs agent runs in this network namespace".to_owned());
    for key in " dr/web".chars() {
        top.key(TopKey::Char(key));
    }
    let text = screen(&mut top, 100, 12);
    for part in
        ["paused", "by drains, reversed", "namespace shop", "Services are not", "1 of 4 Services", "/web_"]
    {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    top.key(TopKey::Enter);
    assert!(screen(&mut top, 80, 24).contains("filter: web"));
    top.key(TopKey::Char('h'));
    let text = screen(&mut top, 80, 24);
    assert!(
        text.contains("Enter or Right") && text.contains("DRAINING:") && text.contains("any key"),
        "{text}"
    );
    top.key(TopKey::Escape);
    top.key(TopKey::Enter);
    top.update(Vec::new());
    assert!(screen(&mut top, 80, 24).contains("no virtual servers any more"));
    top.key(TopKey::Escape);
    assert!(screen(&mut top, 80, 24).contains("no virtual servers"));
    let mut empty = Top::default();
    assert!(screen(&mut empty, 80, 24).contains("no reading yet"));
}

#[test]
fn any_size_is_drawn() {
    let mut top = sample_top();
    top.problems.push("cannot list the virtual servers".to_owned());
    for key in
        [TopKey::End, TopKey::Enter, TopKey::Escape, TopKey::Char('h'), TopKey::Escape, TopKey::Char('/')]
    {
        top.key(key);
        for width in (0..12).chain([39, 40, 57, 58, 79, 80, 300]) {
            for height in (0..12).chain([60]) {
                // Not at the origin, to find arithmetic that takes it for granted.
                let area = Rect::new(3, 2, width, height);
                draw(&mut top, true, area, &mut Buffer::empty(area));
            }
        }
    }
}

#[test]
fn colours_are_optional() {
    let has_color = |color| {
        let area = Rect::new(0, 0, 80, 24);
        let mut buffer = Buffer::empty(area);
        draw(&mut sample_top(), color, area, &mut buffer);
        buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(has_color(true));
    assert!(!has_color(false));
}
