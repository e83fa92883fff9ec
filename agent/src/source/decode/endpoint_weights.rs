// SPDX-License-Identifier: Apache-2.0
//! Weights of endpoints, by an annotation of their EndpointSlice: the API of Kubernetes has none.

use std::net::IpAddr;

use super::tape::Tape;
use crate::config::annotations::beginning;
use crate::core::model::address;

/// A weight for all endpoints of the slice, or a list `ADDRESS=WEIGHT,…` for some.
pub(super) const WEIGHT: &str = "kube-ipvs.io/weight";

/// `wrr` walks through all weights from the largest one if servers are full (`ip_vs_wrr_schedule`), for each new connection.
const LARGEST: u16 = 100;

/// The weight of endpoints that the annotation does not name.
const USUAL: u16 = 1;

/// The weights that the annotation of a slice chooses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Weights {
    all: u16,
    some: Vec<(IpAddr, u16)>,
}

impl Weights {
    /// The weights of a slice, and what is wrong with them. A wrong part of the value is ignored.
    pub(super) fn decode(tape: &Tape<'_>) -> (Self, Option<Box<str>>) {
        let mut weights = Self { all: USUAL, some: Vec::new() };
        let Some(text) = tape.text(&["metadata", "annotations", WEIGHT]) else { return (weights, None) };
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if let [one] = parts[..]
            && let Some(all) = weight(one)
        {
            weights.all = all;
            return (weights, None);
        }
        let mut wrong = parts.is_empty().then_some(text);
        for part in parts {
            match weight_of_address(part) {
                Some(weight) => weights.some.push(weight),
                None => _ = wrong.get_or_insert(part),
            }
        }
        let why = |wrong| {
            format!(
                "{WEIGHT}: {:?} is not a weight from 0 to {LARGEST} and not ADDRESS=WEIGHT",
                beginning(wrong)
            )
        };
        (weights, wrong.map(|wrong| why(wrong).into()))
    }

    pub(super) fn of(&self, addr: IpAddr) -> u16 {
        self.some.iter().find(|(of, _)| *of == addr).map_or(self.all, |(_, weight)| *weight)
    }
}

fn weight(text: &str) -> Option<u16> {
    text.parse().ok().filter(|weight| *weight <= LARGEST)
}

fn weight_of_address(part: &str) -> Option<(IpAddr, u16)> {
    let (addr, text) = part.split_once('=')?;
    Some((address::parse_ip(addr.trim())?, weight(text.trim())?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::source::decode::RawObject;
    use crate::store::{Kind, Object};

    /// The weights of the endpoints 10.244.1.5 and 10.244.1.6, and what is wrong.
    fn read(value: &str) -> (Vec<u16>, Option<Box<str>>) {
        let endpoint = |addr: &str| json!({"addresses": [addr]});
        let slice = json!({
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
                "annotations": {"kube-ipvs.io/weight": value}},
            "addressType": "IPv4",
            "endpoints": [endpoint("10.244.1.5"), endpoint("10.244.1.6")],
            "ports": [{"name": "", "port": 80}],
        });
        let raw = RawObject::read(Kind::EndpointSlice, &slice).unwrap();
        let decoded = raw.decode(&raw.name());
        let Ok(Object::EndpointSlice(slice)) = decoded.object else { panic!("{decoded:?}") };
        (slice.endpoints.iter().map(|endpoint| endpoint.weight).collect(), slice.wrong_weights)
    }

    #[test]
    fn the_annotation_gives_weights_to_all_or_to_some_endpoints() {
        assert_eq!(read("7"), (vec![7, 7], None));
        assert_eq!(read("0"), (vec![0, 0], None));
        assert_eq!(read("10.244.1.6=0"), (vec![1, 0], None));
        assert_eq!(read("10.244.1.5=3, 10.244.1.6 = 100"), (vec![3, 100], None));
    }

    #[test]
    fn a_wrong_weight_is_named_and_the_others_hold() {
        for wrong in ["heavy", "-1", "101", "65536", "", "1,2"] {
            let (weights, why) = read(wrong);
            assert_eq!((weights, why.is_some()), (vec![1, 1], true), "{wrong}");
        }
        let (weights, why) = read("10.244.1.5=3,web-7=2");
        assert_eq!(weights, [3, 1]);
        assert!(why.as_ref().unwrap().contains("\"web-7=2\" is not a weight"), "{why:?}");
    }
}
