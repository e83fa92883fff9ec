// SPDX-License-Identifier: Apache-2.0
//! EndpointSlices.

use std::fmt;
use std::net::IpAddr;

use super::endpoint_weights::Weights;
use super::tape::Tape;
use super::used_fields::used_fields;
use super::{METADATA, RawPort, intern, label, protocol, time};
use crate::core::model::address;
use crate::core::model::trigger::Trigger;
use crate::core::model::{Endpoint, EndpointSlice, Family, Hints, ObjectName, SlicePort};
use crate::store::{Kind, Object};

/// Written by the EndpointSlice controller; RFC 3339.
pub(super) const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
pub(super) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
pub(super) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

used_fields! {
    RawSlice<'a> {
        + METADATA,
        address_type "addressType": Option<&'a str>,
        ports "ports": Option<Vec<RawPort<'a>>>,
        endpoints "endpoints": Option<Vec<RawEndpoint<'a>>>,
    }

    RawEndpoint<'a> {
        addresses "addresses": Option<Vec<&'a str>>,
        conditions "conditions": Option<RawConditions>,
        node_name "nodeName": Option<&'a str>,
        hints "hints": Option<RawHints<'a>>,
    }

    RawConditions {
        ready "ready": Option<bool>,
        serving "serving": Option<bool>,
        terminating "terminating": Option<bool>,
    }

    RawHints<'a> {
        for_zones "forZones": Option<Vec<RawHint<'a>>>,
        for_nodes "forNodes": Option<Vec<RawHint<'a>>>,
    }

    RawHint<'a> {
        name "name": &'a str,
    }
}

pub(super) fn decode(name: ObjectName, tape: &Tape<'_>, ignored: &mut Vec<String>) -> Result<Object, String> {
    let is_headless = label(tape, HEADLESS_LABEL).is_some();
    let service = label(tape, SERVICE_NAME_LABEL).filter(|service| !is_headless && !service.is_empty());
    match service {
        Some(service) => decode_slice(name, service, tape, ignored),
        // Nothing is served with it, but no VIP may be bound that one of its endpoints has.
        None => Ok(decode_slice(name.clone(), "", tape, &mut Vec::new())
            .unwrap_or(Object::NotOurs(Kind::EndpointSlice, name))),
    }
}

fn decode_slice(
    name: ObjectName,
    service: &str,
    tape: &Tape<'_>,
    ignored: &mut Vec<String>,
) -> Result<Object, String> {
    let slice = tape.decode::<RawSlice<'_>>()?;
    let family = match slice.address_type {
        Some("IPv4") => Family::V4,
        Some("IPv6") => Family::V6,
        // Endpoints that are names are not supported.
        Some("FQDN") => return Ok(Object::NotOurs(Kind::EndpointSlice, name)),
        other => return Err(format!("addressType: {:?} is not IPv4 or IPv6", other.unwrap_or_default())),
    };
    let ports = slice.ports.unwrap_or_default();
    let ports = usable(ports.iter().enumerate().map(|(i, port)| decode_port(i, port)), ignored)?;
    let endpoints = slice.endpoints.unwrap_or_default();
    let mut useless = Vec::new();
    let (weights, wrong_weights) = Weights::decode(tape);
    let decoded = endpoints.iter().enumerate();
    let decoded = decoded.map(|(i, endpoint)| decode_endpoint(i, endpoint, family, &weights, &mut useless));
    let endpoints = usable(decoded, ignored)?;
    ignored.append(&mut useless);
    let service = ObjectName { namespace: name.namespace.clone(), name: service.into() };
    let slice = EndpointSlice { name, service, family, ports, endpoints, wrong_weights };
    // When the pod or Service changed that caused the change of the slice. Only metrics use it: an invalid time is ignored.
    Ok(match time(tape, &["metadata", "annotations", TRIGGER_ANNOTATION]) {
        Some(at) => Object::TriggeredSlice(slice, Trigger { family, at: at.into() }),
        None => Object::EndpointSlice(slice),
    })
}

/// The valid parts of a slice; invalid ones are ignored. The slice is malformed if it has invalid parts and no valid one.
fn usable<T>(
    parts: impl Iterator<Item = Result<Option<T>, String>>,
    ignored: &mut Vec<String>,
) -> Result<Box<[T]>, String> {
    let mut good = Vec::with_capacity(parts.size_hint().0);
    let mut bad = Vec::new();
    for part in parts {
        match part {
            Ok(part) => good.extend(part),
            Err(error) => bad.push(error),
        }
    }
    if good.is_empty()
        && let Some(error) = bad.first()
    {
        return Err(error.clone());
    }
    ignored.append(&mut bad);
    Ok(good.into())
}

/// A slice port without a name or a number is ignored.
fn decode_port(index: usize, port: &RawPort<'_>) -> Result<Option<SlicePort>, String> {
    let field = fmt::from_fn(|f| write!(f, "ports[{index}]"));
    let (Some(name), Some(number)) = (port.name, port.port.filter(|n| *n > 0)) else {
        return Ok(None);
    };
    Ok(Some(SlicePort {
        name: intern::text(name),
        protocol: protocol(&field, port.protocol)?,
        port: u16::try_from(number).map_err(|_| format!("{field}.port is not in 1-65535"))?,
    }))
}

/// The endpoint of the first address. An endpoint without address is ignored, and so is an address that no endpoint can
/// have.
fn decode_endpoint(
    index: usize,
    endpoint: &RawEndpoint<'_>,
    family: Family,
    weights: &Weights,
    useless: &mut Vec<String>,
) -> Result<Option<Endpoint>, String> {
    let Some(text) = endpoint.addresses.as_deref().unwrap_or_default().first() else {
        return Ok(None);
    };
    let addr: Option<IpAddr> = address::parse_ip(text).filter(|ip| Family::of(*ip) == family);
    let addr =
        addr.ok_or_else(|| format!("endpoints[{index}].addresses[0]: {text:?} is not an {family} address"))?;
    if let Some(what) = address::useless(addr) {
        useless.push(format!("endpoints[{index}].addresses[0]: {addr} is {what}: no endpoint can have it"));
        return Ok(None);
    }
    let conditions = endpoint.conditions.as_ref();
    Ok(Some(Endpoint {
        addr,
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        weight: weights.of(addr),
        place: intern::place(
            endpoint.node_name,
            endpoint.hints.as_ref().map(decode_hints).unwrap_or_default(),
        ),
    }))
}

fn decode_hints(hints: &RawHints<'_>) -> Hints {
    let names =
        |list: &Option<Vec<RawHint<'_>>>| list.iter().flatten().map(|hint| intern::text(hint.name)).collect();
    Hints { zones: names(&hints.for_zones), nodes: names(&hints.for_nodes) }
}
