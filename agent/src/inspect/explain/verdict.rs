// SPDX-License-Identifier: Apache-2.0
//! What the way of a packet means for its client.

use std::collections::BTreeSet;

use super::path::{PathReport, Way};
use super::search;
use crate::core::model::RsKey;
use crate::core::model::real_servers::{MASQUERADE, TUNNEL};
use crate::core::rules::walk::Packet;

/// The end of a packet's way.
pub(super) enum PathOutcome {
    /// IPVS sends it to one of these.
    Served {
        serving: Vec<RsKey>,
        masqueraded: bool,
    },
    NoEndpoint,
    NoServer,
    Dropped,
    Rejected,
    Elsewhere,
}

impl PathOutcome {
    /// Whether the client is refused at once, and why nobody answers.
    fn refusal(&self) -> Option<(bool, &'static str)> {
        match self {
            PathOutcome::Served { .. } => None,
            PathOutcome::Dropped => Some((
                false,
                "the source is outside of loadBalancerSourceRanges (--from ADDRESS tells about another client)",
            )),
            PathOutcome::Rejected => {
                Some((true, "no Service has this port, and the access filter protects the address"))
            }
            PathOutcome::NoEndpoint => Some((true, "IPVS has no real server that takes connections")),
            PathOutcome::NoServer => {
                Some((true, "no program of the node is known to serve this address and port"))
            }
            PathOutcome::Elsewhere => {
                Some((false, "this node does not serve the address and routes the packet to another host"))
            }
        }
    }
}

/// What oddities follow from.
pub(super) struct Oddity {
    pub kind: &'static str,
    pub wants_local: bool,
    /// The real servers are those of policy Local.
    pub is_local: bool,
    pub has_others: bool,
}

impl PathReport {
    pub(super) fn add_oddity(&mut self, of: &Oddity) {
        if self.oddity.is_some() || !of.wants_local || of.is_local {
            return;
        }
        self.oddity = Some(match of.kind {
            search::CLUSTER_IP if of.has_others => {
                "the policy Local is not applied, because the Service also has a node port, an external IP or a load \
                 balancer, and no endpoint is on this node"
            }
            _ => "the policy is Local and no endpoint is on this node: as in kube-proxy's ipvs mode, endpoints of other \
                  nodes are used"
        }
        .to_owned());
    }
}

impl PathReport {
    fn nobody(&mut self, refused: bool, why: &str) {
        self.answers = "nobody".to_owned();
        self.refused = Some(refused);
        let how = if refused { "refused at once" } else { "no answer until the client's timeout" };
        self.result = format!("{how}: {why}");
    }
}

impl Way<'_> {
    /// Fills in the result. `is_pod`, `is_node`: the client is a pod of this node, or the node itself.
    pub(super) fn tell(
        &self,
        report: &mut PathReport,
        outcome: &PathOutcome,
        packet: &Packet,
        (is_pod, is_node): (bool, bool),
    ) {
        if let Some((refused, why)) = outcome.refusal() {
            return report.nobody(refused, why);
        }
        let PathOutcome::Served { serving, masqueraded } = outcome else { return };
        if let Some(is_tunnel) = self.direct(serving) {
            return self.tell_direct(report, packet, serving, is_tunnel);
        }
        let seen = if *masqueraded || self.observed.is_own(packet.source) {
            "node"
        } else if packet.source == self.key.addr {
            "VIP"
        } else {
            "client"
        };
        // The reply must come back through this node.
        let reachable = self.places(serving, seen == "node" || is_pod);
        if reachable.is_empty() {
            let why = match seen {
                "VIP" => "the pod replies to the VIP, which is unknown or local on its node",
                _ => {
                    "the pod replies to the client directly, from an address that the client did not contact"
                }
            };
            report.oddity = Some(why.to_owned());
            return report.nobody(false, why);
        }
        if seen == "VIP" && is_node {
            report.oddity = Some("the client's socket has the VIP as its source address".to_owned());
        }
        report.answers = reachable.into_iter().collect::<Vec<_>>().join(" or ");
        report.source_seen = Some(seen.to_owned());
        let seen = match seen {
            "node" if *masqueraded => {
                "an address of this node as the client, because the packet is masqueraded"
            }
            "node" => "an address of this node as the client",
            "VIP" => "the VIP as the client",
            _ => "the client's address",
        };
        report.result = format!("a {} endpoint answers; it sees {seen}", report.answers);
        if self.is_hairpin(packet, serving) {
            let step =
                "if IPVS chooses the client itself, KUBE-POSTROUTING masquerades by the set KUBE-LOOP-BACK";
            report.steps.push(step.to_owned());
        }
    }

    /// Whether the real servers get packets in a tunnel (`true`) or by their route (`false`), and answer the client
    /// directly; `None`: they answer through this node.
    fn direct(&self, serving: &[RsKey]) -> Option<bool> {
        let server = self.observed.virtual_servers.get(&self.key)?;
        let state = server.real_servers.get(serving.first()?)?;
        (state.forward != MASQUERADE).then_some(state.forward == TUNNEL)
    }

    fn tell_direct(&self, report: &mut PathReport, packet: &Packet, serving: &[RsKey], is_tunnel: bool) {
        let places = self.places(serving, is_tunnel);
        if packet.source == self.key.addr || places.is_empty() {
            let why = match places.is_empty() {
                true => "packets reach an endpoint of another node only in a tunnel",
                false => "the endpoint has the VIP itself, which is the source of this client",
            };
            return report.nobody(false, why);
        }
        report.answers = places.into_iter().collect::<Vec<_>>().join(" or ");
        report.source_seen = Some("client".to_owned());
        let how = if is_tunnel { "through a tunnel" } else { "by its route" };
        report.result = format!(
            "a {} endpoint gets the packet {how} and answers the client directly, if it has the VIP on an interface; it \
             sees the client's address",
            report.answers
        );
    }

    /// Where the real servers are that can reply to the client. `returns`: those of other nodes can.
    fn places(&self, serving: &[RsKey], returns: bool) -> BTreeSet<&'static str> {
        let is_local = |rs: &RsKey| self.all.iter().any(|endpoint| endpoint.target == *rs && endpoint.local);
        let places = serving.iter().map(|rs| if is_local(rs) { "local" } else { "remote" });
        places.filter(|place| *place == "local" || returns).collect()
    }
}
