// SPDX-License-Identifier: Apache-2.0
//! Keys of `kube-ipvs top`.

use std::time::Instant;

use super::keyboard::TopKey;
use super::rate_meter::RateMeter;
use super::top_state::{Top, TopAction};
use super::top_tests::{many, sample, sample_top};
use super::traffic_order::SortOrder;

fn press(top: &mut Top, keys: &[TopKey]) {
    for key in keys {
        assert_eq!(top.key(*key), TopAction::Draw, "{key:?}");
    }
}

fn write(top: &mut Top, text: &str) {
    let keys: Vec<TopKey> = text.chars().map(TopKey::Char).collect();
    press(top, &keys);
}

fn shown(top: &Top) -> Vec<&str> {
    top.shown_services().map(|service| service.name.as_str()).collect()
}

fn cursor(top: &Top) -> &str {
    shown(top).get(top.list.cursor).copied().unwrap_or_default()
}

#[test]
fn keys_that_end_the_program() {
    let mut top = sample_top();
    assert_eq!(top.key(TopKey::Repaint), TopAction::Repaint);
    assert_eq!(top.key(TopKey::Char('q')), TopAction::Quit);
    assert_eq!(top.key(TopKey::Interrupt), TopAction::Quit);
    write(&mut top, "h");
    assert!(top.is_help);
    write(&mut top, "q");
    assert!(!top.is_help, "any key leaves the help");
    write(&mut top, "?");
    press(&mut top, &[TopKey::Escape]);
    assert!(!top.is_help);
    write(&mut top, "/q");
    assert_eq!(top.filter, "q", "a letter of the filter");
    assert_eq!(top.key(TopKey::Interrupt), TopAction::Quit, "Ctrl-C ends the program everywhere");
}

#[test]
fn keys_sort_and_the_cursor_follows_its_service() {
    let mut top = sample_top();
    assert_eq!(shown(&top)[0], "shop/web");
    for (key, order) in [
        ("p", SortOrder::Packets),
        ("b", SortOrder::Bytes),
        ("d", SortOrder::Drains),
        ("n", SortOrder::Name),
        ("c", SortOrder::Connections),
    ] {
        write(&mut top, key);
        assert_eq!((top.order, top.is_reversed), (order, false));
        assert_eq!(top.list.cursor, 0, "the cursor stays at the top");
    }
    press(&mut top, &[TopKey::Down]);
    assert_eq!(cursor(&top), "default/kubernetes");
    write(&mut top, "nr");
    assert_eq!((top.order, top.is_reversed), (SortOrder::Name, true));
    assert_eq!(cursor(&top), "default/kubernetes");
    let mut services = sample();
    services.retain(|service| service.name != "default/kubernetes");
    top.update(services);
    assert!(top.list.cursor < 3, "its Service is gone, the place stays");
    top.update(Vec::new());
    assert_eq!((top.list.cursor, top.list.first), (0, 0));
    press(&mut top, &[TopKey::Down, TopKey::Enter]);
    assert!(top.opened.is_none(), "there is nothing to open");
}

#[test]
fn keys_move() {
    let mut meter = RateMeter::default();
    let mut top = Top::new("n".to_owned(), None, 2, SortOrder::Name);
    top.update(meter.add(many(0, 100)));
    top.fit(10);
    let place = |top: &Top| (top.list.first, top.list.cursor);
    press(&mut top, &[TopKey::Up]);
    assert_eq!(place(&top), (0, 0));
    press(&mut top, &[TopKey::Down; 9]);
    assert_eq!(place(&top), (0, 9));
    press(&mut top, &[TopKey::Down]);
    assert_eq!(place(&top), (1, 10));
    press(&mut top, &[TopKey::PageDown]);
    assert_eq!(place(&top), (11, 20));
    press(&mut top, &[TopKey::Up, TopKey::PageUp]);
    assert_eq!(place(&top), (9, 9));
    press(&mut top, &[TopKey::End]);
    assert_eq!(place(&top), (90, 99));
    press(&mut top, &[TopKey::Down, TopKey::PageDown]);
    assert_eq!(place(&top), (90, 99));
    top.fit(40);
    assert_eq!(place(&top), (60, 99), "a larger screen is filled");
    top.fit(0);
    press(&mut top, &[TopKey::PageUp]);
    assert_eq!(top.list.cursor, 98, "a screen without a line for the table");
    press(&mut top, &[TopKey::Home]);
    assert_eq!(place(&top), (0, 0));
}

#[test]
fn a_service_opens_and_closes() {
    for (open, close) in [(TopKey::Enter, TopKey::Escape), (TopKey::Right, TopKey::Left)] {
        let mut top = sample_top();
        top.fit(4);
        press(&mut top, &[open]);
        assert_eq!(top.opened.as_deref(), Some("shop/web"));
        write(&mut top, "/");
        assert!(!top.is_typing, "the filter is for the list");
        press(&mut top, &[TopKey::End]);
        assert_eq!((top.detail.first, top.detail.cursor), (3, 6), "2 virtual servers, 5 real servers");
        press(&mut top, &[TopKey::PageUp, open]);
        assert_eq!(top.detail.cursor, 2);
        top.update(Vec::new());
        assert_eq!(top.opened.as_deref(), Some("shop/web"), "it stays open without virtual servers");
        top.fit(4);
        assert_eq!(top.detail.cursor, 0);
        top.update(sample());
        press(&mut top, &[close]);
        assert_eq!((top.opened.as_deref(), top.list.cursor), (None, 0));
    }
}

#[test]
fn the_filter_is_typed() {
    let mut top = sample_top();
    write(&mut top, "/kubx");
    assert!(top.is_typing && shown(&top).is_empty());
    press(&mut top, &[TopKey::Backspace, TopKey::Down, TopKey::Enter]);
    assert!(!top.is_typing);
    assert_eq!((top.filter.as_str(), shown(&top).len(), top.list.cursor), ("kub", 2, 1));
    top.update(sample());
    assert_eq!(shown(&top).len(), 2, "a filter stays for the next reading");
    press(&mut top, &[TopKey::Escape]);
    assert_eq!((top.filter.as_str(), shown(&top).len()), ("", 4));
    write(&mut top, "/web");
    press(&mut top, &[TopKey::Escape]);
    assert_eq!((top.filter.as_str(), top.is_typing), ("", false));
    write(&mut top, "/");
    write(&mut top, &"x".repeat(100));
    assert_eq!(top.filter.len(), 64);
    press(&mut top, &[TopKey::Backspace; 70]);
    assert_eq!(top.filter, "");
}

#[test]
fn interval_and_pause() {
    let mut top = sample_top();
    write(&mut top, "+++");
    assert_eq!(top.interval, 5);
    write(&mut top, "-------");
    assert_eq!(top.interval, 1);
    write(&mut top, " ");
    assert!(top.is_paused);
    write(&mut top, " ");
    assert!(!top.is_paused);
}

/// A test of time, because `top` must not lag on a large cluster. The best of three tries: the machine has other work.
#[test]
fn ten_thousand_services_take_less_than_a_second() {
    let tries = (0..3).map(|_| {
        let mut meter = RateMeter::default();
        let mut top = sample_top();
        top.update(meter.add(many(0, 10_000)));
        let second = many(2, 10_000);
        let began = Instant::now();
        top.update(meter.add(second));
        write(&mut top, "pbdncr/service-99");
        assert_eq!(shown(&top).len(), 111);
        began.elapsed()
    });
    let best = tries.min().unwrap();
    assert!(best.as_secs_f64() < 1.0, "{best:?}");
}
