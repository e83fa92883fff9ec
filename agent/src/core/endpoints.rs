// SPDX-License-Identifier: Apache-2.0
//! Which endpoints belong to a Service port, and which of them serve.

use std::collections::BTreeMap;

use super::model::{Endpoint, EndpointSlice, Family, RsKey, ServicePort};

/// An endpoint of one Service port, merged over all slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEndpoint {
    /// Where it listens.
    pub target: RsKey,
    /// Takes new traffic in the ordinary case.
    pub ready: bool,
    /// Is going away.
    pub terminating: bool,
    /// Runs on this node.
    pub local: bool,
}

/// The endpoints of `port` in `family`, one per address and port, sorted.
///
/// A slice port matches by name **and** protocol. Where slices repeat an endpoint, one that stays
/// beats one that terminates, a ready one beats one that is not, and else the later slice wins.
pub fn build_endpoints<'a>(
    port: &ServicePort,
    family: Family,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &str,
) -> Vec<PortEndpoint> {
    let mut merged: BTreeMap<RsKey, PortEndpoint> = BTreeMap::new();
    for slice in slices {
        if slice.family != family {
            continue;
        }
        for slice_port in &slice.ports {
            if slice_port.name != port.name || slice_port.protocol != port.protocol {
                continue;
            }
            for endpoint in &slice.endpoints {
                let target = RsKey { addr: endpoint.addr, port: slice_port.port };
                let new = build_port_endpoint(target, endpoint, node);
                let keep_old = merged.get(&target).is_some_and(|old| rank(old) < rank(&new));
                if !keep_old {
                    merged.insert(target, new);
                }
            }
        }
    }
    merged.into_values().collect()
}

fn build_port_endpoint(target: RsKey, endpoint: &Endpoint, node: &str) -> PortEndpoint {
    PortEndpoint {
        target,
        ready: endpoint.ready,
        terminating: endpoint.terminating,
        local: endpoint.node.as_deref() == Some(node) && !node.is_empty(),
    }
}

/// Lower is better among duplicates.
fn rank(endpoint: &PortEndpoint) -> (bool, bool) {
    (endpoint.terminating, !endpoint.ready)
}

/// The endpoints that take new connections.
pub fn serving(endpoints: &[PortEndpoint]) -> Vec<RsKey> {
    endpoints.iter().filter(|e| e.ready).map(|e| e.target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{ObjectName, Protocol, SlicePort};

    fn port() -> ServicePort {
        ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }
    }

    fn endpoint(addr: &str, ready: bool, terminating: bool, node: Option<&str>) -> Endpoint {
        Endpoint {
            addr: addr.parse().unwrap(),
            ready,
            serving: true,
            terminating,
            node: node.map(Into::into),
        }
    }

    fn slice(port: (&str, Protocol, u16), endpoints: Vec<Endpoint>) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("ns", "s"),
            service: ObjectName::new("ns", "svc"),
            family: Family::V4,
            ports: vec![SlicePort { name: port.0.into(), protocol: port.1, port: port.2 }],
            endpoints,
        }
    }

    #[test]
    fn only_ready_endpoints_serve_but_all_are_known() {
        let s = slice(
            ("http", Protocol::Tcp, 8080),
            vec![
                endpoint("10.0.0.2", true, false, Some("n1")),
                endpoint("10.0.0.1", false, false, Some("n1")),
                endpoint("10.0.0.3", true, false, None),
            ],
        );
        let all = build_endpoints(&port(), Family::V4, [&s], "n1");
        assert_eq!(all.len(), 3);
        assert_eq!(all.iter().map(|e| e.local).collect::<Vec<_>>(), [true, true, false]);
        let serving: Vec<String> = serving(&all).iter().map(ToString::to_string).collect();
        assert_eq!(serving, ["10.0.0.2:8080", "10.0.0.3:8080"]);
    }

    #[test]
    fn name_protocol_and_family_must_match() {
        for p in [("http", Protocol::Udp, 80), ("https", Protocol::Tcp, 80)] {
            let s = slice(p, vec![endpoint("10.0.0.1", true, false, None)]);
            assert!(build_endpoints(&port(), Family::V4, [&s], "n1").is_empty());
        }
        let s = slice(("http", Protocol::Tcp, 80), vec![endpoint("10.0.0.1", true, false, None)]);
        assert!(build_endpoints(&port(), Family::V6, [&s], "n1").is_empty());
    }

    #[test]
    fn an_endpoint_that_stays_beats_its_terminating_twin_in_any_order() {
        let going = slice(("http", Protocol::Tcp, 80), vec![endpoint("10.0.0.1", false, true, None)]);
        let ready = slice(("http", Protocol::Tcp, 80), vec![endpoint("10.0.0.1", true, false, None)]);
        for order in [[&going, &ready], [&ready, &going]] {
            let all = build_endpoints(&port(), Family::V4, order, "n1");
            assert_eq!(all.len(), 1);
            assert!(all[0].ready && !all[0].terminating);
        }
    }

    #[test]
    fn two_port_numbers_under_one_name_are_two_real_servers() {
        let a = slice(("http", Protocol::Tcp, 80), vec![endpoint("10.0.0.1", true, false, None)]);
        let b = slice(("http", Protocol::Tcp, 8080), vec![endpoint("10.0.0.1", true, false, None)]);
        assert_eq!(build_endpoints(&port(), Family::V4, [&a, &b], "n1").len(), 2);
    }

    #[test]
    fn a_nameless_node_has_no_local_endpoints() {
        let s = slice(("http", Protocol::Tcp, 80), vec![endpoint("10.0.0.1", true, false, Some(""))]);
        assert!(!build_endpoints(&port(), Family::V4, [&s], "")[0].local);
    }
}
