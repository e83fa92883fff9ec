// SPDX-License-Identifier: Apache-2.0
//! Which conntrack entries of UDP flows are stale.
//!
//! While a UDP client keeps sending from one port, its conntrack entry keeps the endpoint that was chosen
//! first, even if that endpoint no longer exists. As in kube-proxy, an entry is stale if a Service owns its
//! destination and its reply source is not an endpoint of that Service.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::core::model::{Family, RsKey};

/// Selects the stale UDP flows of one family: flows to a Service whose reply source is not one of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowFilter {
    /// Flows of the other family are never stale.
    pub family: Family,
    /// VIP and port of UDP Services → the endpoints (sorted) that may answer there.
    pub frontends: BTreeMap<(IpAddr, u16), Vec<RsKey>>,
    /// UDP node ports, on any address → the endpoints (sorted) that may answer there.
    pub node_ports: BTreeMap<u16, Vec<RsKey>>,
}

/// One UDP flow in the connection-tracking table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The destination of the client's packets, before any translation.
    pub orig_dst: IpAddr,
    pub orig_dst_port: u16,
    /// The source of replies: the endpoint, or `orig_dst` if there is no translation.
    pub reply_src: IpAddr,
    pub reply_src_port: u16,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = SocketAddr::new(self.orig_dst, self.orig_dst_port);
        write!(f, "to {to}, answered by {}", SocketAddr::new(self.reply_src, self.reply_src_port))
    }
}

impl FlowFilter {
    /// Whether the flow is stale. A VIP with its port is more specific than a node port, so it is looked up first.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        if Family::of(flow.orig_dst) != self.family {
            return false;
        }
        let endpoints = self.frontends.get(&(flow.orig_dst, flow.orig_dst_port));
        let Some(endpoints) = endpoints.or_else(|| self.node_ports.get(&flow.orig_dst_port)) else {
            return false;
        };
        let answers = RsKey { addr: flow.reply_src, port: flow.reply_src_port };
        endpoints.binary_search(&answers).is_err()
    }

    /// True when no flow can be stale: the conntrack table need not be read.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.node_ports.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(endpoints: &[&str]) -> Vec<RsKey> {
        let parse = |text: &&str| text.parse::<SocketAddr>().unwrap();
        let mut keys: Vec<RsKey> =
            endpoints.iter().map(parse).map(|a| RsKey { addr: a.ip(), port: a.port() }).collect();
        keys.sort();
        keys
    }

    fn filter() -> FlowFilter {
        FlowFilter {
            family: Family::V4,
            frontends: [
                (("10.96.0.10".parse().unwrap(), 53), keys(&["10.244.2.7:5353", "10.244.1.5:5353"])),
                (("10.96.0.11".parse().unwrap(), 53), vec![]),
                (("192.168.50.2".parse().unwrap(), 30053), keys(&["10.244.1.9:9"])),
            ]
            .into(),
            node_ports: [(30053, keys(&["10.244.1.5:5353"]))].into(),
        }
    }

    fn is_stale(orig: &str, reply: &str) -> bool {
        let (orig, reply): (SocketAddr, SocketAddr) = (orig.parse().unwrap(), reply.parse().unwrap());
        filter().is_stale(&Flow {
            orig_dst: orig.ip(),
            orig_dst_port: orig.port(),
            reply_src: reply.ip(),
            reply_src_port: reply.port(),
        })
    }

    #[test]
    fn a_flow_is_stale_when_its_endpoint_is_gone() {
        for (orig, reply, stale, why) in [
            ("10.96.0.10:53", "10.244.1.5:5353", false, "an endpoint answers"),
            ("10.96.0.10:53", "10.244.2.7:5353", false, "the other endpoint answers"),
            ("10.96.0.10:53", "10.244.1.6:5353", true, "the pod was replaced"),
            ("10.96.0.10:53", "10.244.1.5:53", true, "the same pod on another port"),
            ("10.96.0.10:53", "10.96.0.10:53", true, "made before the Service existed: not translated"),
            ("10.96.0.11:53", "10.244.1.5:5353", true, "the Service has no endpoints any more"),
        ] {
            assert_eq!(is_stale(orig, reply), stale, "{why}");
        }
    }

    #[test]
    fn flows_to_other_destinations_are_not_stale() {
        for (orig, reply) in [
            ("10.96.0.10:54", "10.96.0.10:54"),
            ("10.96.0.12:53", "10.244.1.6:5353"),
            ("8.8.8.8:53", "8.8.8.8:53"),
            ("10.244.1.5:5353", "10.244.1.5:5353"),
        ] {
            assert!(!is_stale(orig, reply), "{orig}");
        }
    }

    #[test]
    fn a_node_port_is_on_every_address() {
        for node in ["192.168.50.3:30053", "10.77.0.5:30053", "127.0.0.1:30053"] {
            assert!(!is_stale(node, "10.244.1.5:5353"), "{node}");
            assert!(is_stale(node, "10.244.1.6:5353"), "{node}");
            assert!(is_stale(node, node), "{node}");
        }
        assert!(is_stale("192.168.50.2:30053", "10.244.1.5:5353"), "a VIP with this port is looked up first");
        assert!(!is_stale("192.168.50.2:30053", "10.244.1.9:9"));
    }

    #[test]
    fn flows_of_the_other_family_are_not_stale() {
        assert!(!is_stale("[fd00::1]:30053", "[fd00::1]:30053"));
    }

    #[test]
    fn without_services_nothing_is_stale() {
        let empty = FlowFilter { family: Family::V4, frontends: [].into(), node_ports: [].into() };
        assert!(empty.is_empty());
        assert!(!FlowFilter { node_ports: filter().node_ports, ..empty.clone() }.is_empty());
        assert!(!FlowFilter { frontends: filter().frontends, ..empty }.is_empty());
    }
}
