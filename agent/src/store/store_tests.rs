// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::core::model::trigger::{MAX_TRIGGERS, Trigger};
use crate::core::model::{EndpointSlice, Family, PerFamily, Protocol, Service, SlicePort};
use std::time::{Duration, SystemTime};

fn service(name: &str, vip: &str) -> Object {
    Object::Service(Service {
        name: ObjectName::new("d", name),
        cluster_ips: PerFamily::new(Some(vip.parse().unwrap()), None),
        ..Service::default()
    })
}

fn slice(name: &str, service: &str) -> Object {
    Object::EndpointSlice(EndpointSlice {
        wrong_weights: None,
        name: ObjectName::new("d", name),
        service: ObjectName::new("d", service),
        family: Family::V4,
        ports: Box::default(),
        endpoints: Box::default(),
    })
}

fn store() -> Store {
    Store::new(Arc::new(Inbox::default()))
}

fn dirty(store: &Store) -> Vec<String> {
    store
        .take_dirty(|| false)
        .iter()
        .map(|d| format!("{} {} {}", d.name, d.service.is_some(), d.slices.len()))
        .collect()
}

#[test]
fn an_equal_object_is_no_change() {
    let store = store();
    store.update(|u| {
        u.put(service("a", "10.0.0.1"));
        u.put(slice("a-1", "a"));
    });
    assert_eq!(dirty(&store), ["d/a true 1"]);
    store.update(|u| {
        u.put(service("a", "10.0.0.1"));
        u.put(slice("a-1", "a"));
    });
    assert!(dirty(&store).is_empty());
}

#[test]
fn a_new_list_drops_what_it_does_not_name_but_keeps_the_malformed() {
    let store = store();
    store.update(|u| {
        for name in ["a", "b", "c"] {
            u.put(service(name, "10.0.0.1"));
        }
    });
    store.take_dirty(|| false);
    store.update(|u| {
        u.begin_list(Kind::Service);
        u.put(service("a", "10.0.0.1"));
        u.put_decoded(
            Kind::Service,
            &ObjectName::new("d", "b"),
            Decoded { object: Err("port is not a number".to_owned()), ignored: Vec::new() },
        );
        u.finish_list(Kind::Service);
    });
    assert_eq!(dirty(&store), ["d/c false 0"]);
    assert_eq!(store.malformed(), 1);
}

#[test]
fn a_slice_that_moves_changes_both_services() {
    let store = store();
    store.update(|u| u.put(slice("s", "a")));
    store.take_dirty(|| false);
    store.update(|u| u.put(slice("s", "b")));
    assert_eq!(dirty(&store), ["d/a false 0", "d/b false 1"]);
}

fn triggered(number: u8, at: SystemTime) -> Object {
    let Object::EndpointSlice(mut slice) = slice("a-1", "a") else { panic!() };
    slice.ports = [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: number.into() }].into();
    Object::TriggeredSlice(slice, Trigger { family: Family::V4, at })
}

#[test]
fn triggers_of_slices_are_kept_until_they_are_taken() {
    let (store, later) = (store(), |s| SystemTime::now() + Duration::from_secs(s));
    let triggers =
        |store: &Store| store.take_dirty(|| false).iter().map(|d| d.triggers.len()).collect::<Vec<_>>();
    store.update(|u| {
        u.put(triggered(1, later(1)));
        u.put(triggered(1, later(2)));
        u.put(triggered(2, later(3)));
        u.put(triggered(3, SystemTime::UNIX_EPOCH));
    });
    assert_eq!(triggers(&store), [2], "neither an equal slice nor one from before the start");
    store.update(|u| u.put(slice("a-1", "a")));
    assert_eq!(triggers(&store), [0], "they are taken once");
    store.update(|u| {
        u.put(triggered(4, later(4)));
        u.remove(Kind::EndpointSlice, &ObjectName::new("d", "a-1"));
    });
    assert_eq!(triggers(&store), [0], "the removal of a slice is not measured");
    store.update(|u| (0..=255).for_each(|n| u.put(triggered(n, later(5)))));
    assert_eq!(triggers(&store), [MAX_TRIGGERS]);
}

#[test]
fn changes_are_counted_and_pending_until_they_are_taken() {
    let store = store();
    store.update(|u| {
        u.put(service("a", "10.0.0.1"));
        u.put(service("a", "10.0.0.1"));
        u.put(service("a", "10.0.0.2"));
        u.put(slice("a-1", "a"));
        u.put_decoded(
            Kind::Service,
            &ObjectName::new("d", "b"),
            Decoded { object: Err("no".to_owned()), ignored: Vec::new() },
        );
    });
    let tally = store.tally();
    assert_eq!((tally.services, tally.slices, tally.malformed), (2, PerFamily::new(1, 0), [1, 0, 0]));
    assert_eq!((tally.pending_services.len(), tally.pending_slices), (1, 1));
    assert_eq!(store.waiting_since(), tally.waiting_since);
    assert!(tally.waiting_since.is_some());
    store.take_dirty(|| false);
    let tally = store.tally();
    assert_eq!((tally.services, tally.slices), (2, PerFamily::new(1, 0)), "totals stay");
    assert_eq!((tally.pending_services.len(), tally.pending_slices, tally.waiting_since), (0, 0, None));
    store.update(|u| u.remove(Kind::Service, &ObjectName::new("d", "a")));
    store.update(|u| u.remove(Kind::Service, &ObjectName::new("d", "a")));
    assert_eq!(store.tally().services, 3, "a Service that is not there is not counted");
}

#[test]
fn the_loop_is_woken_once_every_kind_is_listed() {
    let inbox = Arc::new(Inbox::default());
    let store = Store::new(inbox.clone());
    let woken = || inbox.is_woken();
    store.update(|u| u.begin_list(Kind::Service));
    store.update(|u| u.put(service("a", "10.0.0.1")));
    store.update(|u| Kind::ALL[1..].iter().for_each(|kind| u.finish_list(*kind)));
    assert!(!woken(), "the loop cannot use it yet");
    store.update(|u| u.finish_list(Kind::Service));
    assert!(woken());
    inbox.wait(None);
    store.update(|u| u.put(service("a", "10.0.0.2")));
    assert!(woken());
}

#[test]
fn the_loop_is_woken_when_the_priority_services_and_the_node_are_known() {
    let inbox = Arc::new(Inbox::default());
    let store = Store::new(inbox.clone());
    let Object::Service(dns) = service("dns", "10.0.0.10") else { panic!() };
    store.update(|u| {
        u.put(Object::Service(Service { priority: true, ..dns }));
        u.put(slice("dns-1", "dns"));
        u.put(service("a", "10.0.0.1"));
        u.set_priority_known();
    });
    assert!(!inbox.is_woken() && !store.has_priority(), "topology needs the Node");
    store.update(|u| u.finish_list(Kind::Node));
    assert!(inbox.is_woken() && store.has_priority() && !store.is_synced());
    let priority = |store: &Store| {
        store.priority().iter().map(|d| format!("{} {}", d.name, d.slices.len())).collect::<Vec<_>>()
    };
    assert_eq!(priority(&store), ["d/dns 1"]);
    assert_eq!(store.take_dirty(|| false).len(), 2, "priority Services stay pending");
    inbox.wait(None);
    store.update(|u| u.put(service("b", "10.0.0.2")));
    assert!(!inbox.is_woken());
}

#[test]
fn in_sync_needs_every_kind() {
    let store = store();
    for kind in Kind::ALL {
        assert!(!store.is_synced());
        assert!(store.waiting_for().contains(&kind));
        store.update(|u| {
            u.begin_list(kind);
            u.finish_list(kind);
        });
    }
    assert!(store.is_synced());
}

#[test]
fn a_changed_node_makes_the_store_dirty_once() {
    let store = store();
    let node = |zone: &str| Node { zone: Some(zone.into()), ..Node::default() };
    for (zone, dirty) in [("za", true), ("za", false), ("zb", true)] {
        store.update(|u| u.put(Object::Node(node(zone))));
        assert_eq!(store.is_dirty(), dirty, "{zone}");
        store.take_dirty(|| false);
    }
    store.update(|u| u.remove(Kind::Node, &ObjectName::new("", "")));
    assert!(store.is_dirty());
}

#[test]
fn an_object_that_stops_being_ours_is_removed() {
    let store = store();
    store.update(|u| u.put(service("a", "10.0.0.1")));
    store.take_dirty(|| false);
    store.update(|u| u.put(Object::NotOurs(Kind::Service, ObjectName::new("d", "a"))));
    assert_eq!(dirty(&store), ["d/a false 0"]);
}

#[test]
fn a_defect_of_an_object_is_reported_once() {
    let lines = crate::testing::lines(|| {
        let store = store();
        let name = ObjectName::new("d", "a");
        let put = |object: Result<Object, &str>, ignored: &[&str]| {
            let object = object.map_err(str::to_owned);
            let ignored = ignored.iter().map(|text| (*text).to_owned()).collect();
            store.update(|u| u.put_decoded(Kind::Service, &name, Decoded { object, ignored }));
        };
        let good = || Ok(service("a", "10.0.0.1"));
        put(good(), &[]);
        for _ in 0..3 {
            put(Err("no port"), &[]);
        }
        for _ in 0..3 {
            put(good(), &["x is no address", "y is no address"]);
        }
        put(good(), &[]);
        put(good(), &[]);
        store.update(|u| u.remove(Kind::Service, &name));
        assert_eq!(store.malformed(), 3);
        assert!(store.lock().reported.is_empty());
    });
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].contains("malformed: no port; its last good version stays in force"), "{}", lines[0]);
    assert!(lines[1].contains("ignored: x is no address, y is no address; the rest"), "{}", lines[1]);
    assert!(lines[2].contains("valid now"), "{}", lines[2]);
}

#[test]
fn the_age_of_pending_changes_counts_from_the_first_sync() {
    let store = store();
    store.update(|update| Kind::ALL.into_iter().for_each(|kind| update.begin_list(kind)));
    store.update(|update| update.put(service("a", "10.0.0.1")));
    assert_eq!(store.waiting_for_loop(), None, "the loop takes nothing before every list is complete");
    store.update(|update| Kind::ALL.into_iter().for_each(|kind| update.finish_list(kind)));
    let first = store.waiting_for_loop().unwrap();
    std::thread::sleep(Duration::from_millis(2));
    store.update(|update| update.put(service("b", "10.0.0.2")));
    assert!(store.waiting_for_loop().unwrap() > first, "the oldest change counts");
    store.take_dirty(|| false);
    assert_eq!(store.waiting_for_loop(), None);
    // A slice of no Service is no pending change.
    let Object::EndpointSlice(came) = slice("x", "") else { panic!() };
    let changed = EndpointSlice { family: Family::V6, ..came.clone() };
    for slice in [came, changed] {
        store.update(|update| update.put(Object::EndpointSlice(slice)));
        assert_eq!((store.waiting_for_loop(), store.is_dirty()), (None, false));
    }
    store.update(|update| update.remove(Kind::EndpointSlice, &ObjectName::new("d", "x")));
    assert_eq!((store.waiting_for_loop(), store.is_dirty()), (None, false));
}
