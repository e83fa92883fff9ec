// SPDX-License-Identifier: Apache-2.0
//! Fuzzing targets for objects of an API server and of files.

#![allow(clippy::unwrap_used, reason = "a panic is how a target reports a failure")]

use kube::core::{ObjectList, Status, WatchEvent};
use serde_json::Value;

use super::decode::RawObject;
use super::failure::ApiFailure;
use super::files::parse::{ObjectFilter, parse};
use super::resource::{ApiObject, ApiResource, Nodes, Services, Slices};
use super::watch_events::sort;
use super::{node_list, version};
use crate::core::model::ObjectName;
use crate::core::model::address;
use crate::fuzzing::{Target, text_of};
use crate::store::{Decoded, Kind, Object};

pub(crate) const TARGETS: &[Target] = &[
    ("files", files),
    ("nodes", nodes),
    ("object", object),
    ("page", page),
    ("status", status),
    ("watch", watch),
];

/// The first byte chooses the kind; the rest is the input.
fn kind_of(bytes: &[u8]) -> Option<(Kind, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    Some((Kind::ALL[usize::from(first % 3)], rest))
}

/// An object of an API server decodes to the same as in a file, whose values are parsed first.
fn object(bytes: &[u8]) {
    let Some((kind, json)) = kind_of(bytes) else { return };
    let read = RawObject::read(kind, &mut serde_json::Deserializer::from_slice(json));
    if let Ok(object) = &read {
        let name = object.name();
        check(kind, &name, &object.decode(&name), json.len());
        let _ = (object.version(), object.proxy());
    }
    let Ok(value) = serde_json::from_slice::<Value>(json) else { return };
    assert!(read.is_ok(), "JSON that is refused");
    // A parsed value has no field twice.
    let text = value.to_string();
    let of_text = RawObject::read(kind, &mut serde_json::Deserializer::from_str(&text)).unwrap();
    let of_value = RawObject::read(kind, &value).unwrap();
    let name = of_text.name();
    assert_eq!(name, of_value.name());
    let (of_text, of_value) = (of_text.decode(&name), of_value.decode(&name));
    assert_eq!(of_text.object.ok(), of_value.object.ok());
    assert_eq!(of_text.ignored, of_value.ignored);
}

/// Rules for every decoded object.
fn check(kind: Kind, name: &ObjectName, decoded: &Decoded, length: usize) {
    let useful = |ip| assert_eq!(address::useless(ip), None);
    match &decoded.object {
        Ok(Object::Service(service)) => {
            assert!(kind == Kind::Service && service.name == *name);
            let vips = service.cluster_ips.iter().flatten();
            vips.chain(&service.external_ips).chain(&service.load_balancer_ips).copied().for_each(useful);
            assert!(service.ports.iter().all(|port| port.port > 0));
            assert!(service.ports.len() + service.external_ips.len() <= length);
        }
        Ok(Object::EndpointSlice(slice) | Object::TriggeredSlice(slice, _)) => {
            assert!(kind == Kind::EndpointSlice && slice.name == *name);
            slice.endpoints.iter().map(|endpoint| endpoint.addr).for_each(useful);
            assert!(slice.ports.iter().all(|port| port.port > 0));
            assert!(slice.endpoints.len() + slice.ports.len() <= length);
        }
        Ok(Object::Node(node)) => {
            assert!(kind == Kind::Node && node.name == name.name);
            assert!(node.addresses.len() <= length);
        }
        Ok(Object::NotOurs(of, about)) => assert!(*of == kind && about == name),
        Err(error) => assert!(!error.is_empty()),
    }
    assert!(decoded.ignored.len() <= length && decoded.ignored.iter().all(|text| !text.contains('\n')));
}

/// A list, in one page or many.
fn page(bytes: &[u8]) {
    fn read<K: ApiResource>(json: &[u8]) {
        let Ok(list) = serde_json::from_slice::<ObjectList<ApiObject<K>>>(json) else { return };
        for item in &list.items {
            check(K::KIND, &item.name, &item.decoded, json.len());
        }
    }
    match kind_of(bytes) {
        Some((Kind::Service, json)) => read::<Services>(json),
        Some((Kind::EndpointSlice, json)) => read::<Slices>(json),
        Some((Kind::Node, json)) => read::<Nodes>(json),
        None => {}
    }
}

/// Events of a watch, one in a line. A group of events gives the same as the events one by one.
fn watch(bytes: &[u8]) {
    fn read<K: ApiResource>(lines: &[u8]) {
        let lines = lines.split(|byte| *byte == b'\n');
        let events: Vec<WatchEvent<ApiObject<K>>> =
            lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let (mut at_once, mut stepwise) = ("5".to_owned(), "5".to_owned());
        let (sorted, end) = sort(events.clone(), &mut at_once);
        let mut count = 0;
        let mut step_end = None;
        for event in events {
            let before = stepwise.clone();
            let (one, ended) = sort(vec![event], &mut stepwise);
            assert!(!version::is_older(&stepwise, &before), "{stepwise} after {before}");
            count += one.len();
            step_end = ended;
            if step_end.is_some() {
                break;
            }
        }
        assert_eq!((sorted.len(), at_once, end.is_some()), (count, stepwise, step_end.is_some()));
    }
    match kind_of(bytes) {
        Some((Kind::Service, lines)) => read::<Services>(lines),
        Some((Kind::EndpointSlice, lines)) => read::<Slices>(lines),
        Some((Kind::Node, lines)) => read::<Nodes>(lines),
        None => {}
    }
}

/// An error status of an API server is one line in the log.
fn status(bytes: &[u8]) {
    let Ok(status) = serde_json::from_slice::<Status>(bytes) else { return };
    let failure = ApiFailure::of_status(&status);
    let _ = (failure.is_expired(), failure.may_stream_again());
    assert!(!failure.text().contains('\n'), "{:?}", failure.text());
}

/// The addresses of Nodes, from a table or from objects.
fn nodes(bytes: &[u8]) {
    let Ok(answer) = serde_json::from_slice::<node_list::NodeList>(bytes) else { return };
    let addresses: Vec<_> = answer.addresses().collect();
    assert!(addresses.iter().all(|ip| *ip == ip.to_canonical()));
}

/// Files of objects, in JSON or YAML.
fn files(bytes: &[u8]) {
    let text = text_of(bytes);
    let filter = ObjectFilter { node: "node-a".to_owned(), proxy: None };
    if let Ok(items) = parse(&text, &filter) {
        assert!(items.len() <= text.len());
    }
}
