// SPDX-License-Identifier: Apache-2.0
//! What the first packet of a client meets, hook by hook.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::verdict::PathOutcome;
use crate::core::loop_state::LoopState;
use crate::core::mirror::Observed;
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::settings::LocalTraffic;
use crate::core::model::{Family, RsKey, VsKey};
use crate::core::rules::nftables::build_rules;
use crate::core::rules::walk::{Fate, Hook, Matched, Packet, RuleEffect, RuleFacts, RuleWalk};
use crate::core::service::endpoints::PortEndpoint;

/// Where a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClientPlace {
    /// Any pod of this node.
    Pod,
    /// A process of this node.
    Node,
    /// A host outside of the cluster.
    Outside,
    Address(IpAddr),
}

impl ClientPlace {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "pod" => Ok(Self::Pod),
            "node" => Ok(Self::Node),
            "outside" => Ok(Self::Outside),
            address => address.parse().map(Self::Address).map_err(|_| {
                format!("--from: {address:?} is not pod, node, outside or an address of a client")
            }),
        }
    }
}

/// What happens to a client's connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PathReport {
    /// `a pod of this node`, `a process of this node`, `a host outside`, or an address.
    pub client: String,
    /// Source address of the example packet.
    pub source: String,
    /// `local`, `remote`, `local or remote`, or `nobody`.
    pub answers: String,
    /// What the endpoint sees: `client`, `node`, `VIP`; null when nobody answers.
    pub source_seen: Option<String>,
    /// When nobody answers: whether the client is refused at once. Otherwise it waits until its timeout.
    pub refused: Option<bool>,
    /// The result as a sentence.
    pub result: String,
    /// Each decision in order.
    pub steps: Vec<String>,
    /// A result of kube-proxy that is unexpected.
    pub oddity: Option<String>,
}

/// The paths of the clients that are asked for.
pub(super) fn paths(
    state: &LoopState<'_>,
    key: VsKey,
    from: Option<&str>,
    all: &[PortEndpoint<'_>],
) -> Vec<PathReport> {
    let Some(observed) = state.observed else { return Vec::new() };
    let clients = match from.map(ClientPlace::parse) {
        Some(Ok(client)) => vec![client],
        _ => vec![ClientPlace::Pod, ClientPlace::Node, ClientPlace::Outside],
    };
    clients.iter().filter_map(|client| Way { state, observed, key, all }.walk(client)).collect()
}

impl RuleFacts for Observed {
    fn has_entry(&self, set: SetId, entry: &Entry) -> bool {
        Observed::has_entry(self, set, entry)
    }

    fn is_local(&self, addr: IpAddr) -> bool {
        Observed::is_local(self, addr) || self.is_own(addr)
    }
}

/// A packet's way to one frontend.
pub(super) struct Way<'a> {
    state: &'a LoopState<'a>,
    pub observed: &'a Observed,
    pub key: VsKey,
    pub all: &'a [PortEndpoint<'a>],
}

impl Way<'_> {
    /// `None`: there is no such client in this family.
    fn walk(&self, client: &ClientPlace) -> Option<PathReport> {
        let family = self.key.family();
        let (source, is_pod, is_node) = self.source(client)?;
        let mut report = PathReport {
            client: match client {
                ClientPlace::Pod => "a pod of this node".to_owned(),
                ClientPlace::Node => "a process of this node".to_owned(),
                ClientPlace::Outside => "a host outside".to_owned(),
                ClientPlace::Address(addr) => addr.to_string(),
            },
            source: source.to_string(),
            ..PathReport::default()
        };
        let input = (!is_node).then(|| self.interface(is_pod));
        let mut packet = Packet {
            protocol: self.key.protocol,
            source,
            destination: self.key.addr,
            port: self.key.port,
            input,
            mark: 0,
        };
        let by_route = !self.observed.node.routes.is_empty() || !self.state.desired.routes.is_empty();
        let prefixes = self.state.desired.source_prefixes(family);
        let known = build_rules(family, self.state.settings, by_route, prefixes);
        let rules = &self.observed.rules[family];
        let walk = RuleWalk::new(family, self.state.settings.rules, rules, known, self.observed);
        let outcome = self.follow(walk, &mut packet, is_node, &mut report.steps);
        self.tell(&mut report, &outcome, &packet, (is_pod, is_node));
        Some(report)
    }

    /// An example of a client's address, and whether it is a pod of this node or the node itself.
    fn source(&self, client: &ClientPlace) -> Option<(IpAddr, bool, bool)> {
        let family = self.key.family();
        let pod = || self.pod_network(family).map(last_host);
        match client {
            ClientPlace::Node => Some((self.own_source(), false, true)),
            ClientPlace::Pod => Some((pod().unwrap_or_else(|| example(family)), true, false)),
            ClientPlace::Outside => Some((example(family), false, false)),
            ClientPlace::Address(addr) if Family::of(*addr) != family => None,
            ClientPlace::Address(addr) if RuleFacts::is_local(self.observed, *addr) => {
                Some((*addr, false, true))
            }
            ClientPlace::Address(addr) => {
                let is_pod = self.pod_network(family).is_some_and(|net| net.contains(addr))
                    || self.all.iter().any(|endpoint| endpoint.local && endpoint.target.addr == *addr);
                Some((*addr, is_pod, false))
            }
        }
    }

    /// The network of the pods of this node; that of all pods if it is not known.
    fn pod_network(&self, family: Family) -> Option<IpNet> {
        let cluster = match &self.state.settings.local {
            LocalTraffic::Cidrs(cidrs) => cidrs[family],
            LocalTraffic::Interface(_) => None,
        };
        self.state.pod_cidrs[family].or(cluster)
    }

    /// The source that the kernel chooses for the node's own packets: a local destination is its own source. Over an
    /// IPv6 route it is an address of an interface.
    fn own_source(&self) -> IpAddr {
        let family = self.key.family();
        let is_bound = self.observed.addresses.contains(&IpNet::from(self.key.addr));
        let is_on_link = self.observed.node_addresses.binary_search(&self.key.addr).is_ok();
        let own = || self.state.node.ips[family].filter(|ip| !ip.is_loopback());
        if is_bound || is_on_link || (family == Family::V4 && self.observed.is_local(self.key.addr)) {
            return self.key.addr;
        }
        own().unwrap_or(self.key.addr)
    }

    fn interface(&self, is_pod: bool) -> String {
        match &self.state.settings.local {
            LocalTraffic::Interface(name) if is_pod => name.replace('+', "0"),
            _ if is_pod => "a pod's interface".to_owned(),
            _ => "an interface".to_owned(),
        }
    }

    fn follow(
        &self,
        mut walk: RuleWalk<'_>,
        packet: &mut Packet,
        is_node: bool,
        steps: &mut Vec<String>,
    ) -> PathOutcome {
        let server = self.observed.virtual_servers.get(&self.key);
        let hook = if is_node { Hook::Output } else { Hook::Prerouting };
        walk.run(hook, packet);
        note(&mut walk, steps);
        if is_node {
            let fate = walk.run(Hook::OutputFilter, packet);
            note(&mut walk, steps);
            if fate == Some(Fate::Dropped) && server.is_some() {
                return PathOutcome::Dropped;
            }
        }
        if !RuleFacts::is_local(self.observed, self.key.addr) && (!is_node || server.is_none()) {
            return PathOutcome::Elsewhere;
        }
        // IPVS takes the node's own packets before the rules for incoming ones.
        if !is_node || server.is_none() {
            let fate = walk.run(Hook::Input, packet);
            note(&mut walk, steps);
            match fate {
                Some(Fate::Dropped) => return PathOutcome::Dropped,
                Some(Fate::Rejected) => return PathOutcome::Rejected,
                _ => {}
            }
        }
        let Some(server) = server else {
            steps.push(format!("IPVS has no virtual server {}", self.key));
            return PathOutcome::NoServer;
        };
        let serving: Vec<RsKey> =
            server.real_servers.iter().filter(|(_, state)| state.weight > 0).map(|(rs, _)| rs).collect();
        steps.push(format!(
            "IPVS: virtual server {} ({}), {}",
            self.key,
            server.spec.scheduler,
            crate::words::count(serving.len(), "real server")
        ));
        let Some(first) = serving.iter().find(|rs| rs.addr != packet.source).or(serving.first()) else {
            return PathOutcome::NoEndpoint;
        };
        let mut sent = Packet { destination: first.addr, port: first.port, ..packet.clone() };
        let fate = walk.run(Hook::Postrouting, &mut sent);
        note(&mut walk, steps);
        PathOutcome::Served { serving, masqueraded: fate == Some(Fate::Masqueraded) }
    }

    pub(super) fn is_hairpin(&self, packet: &Packet, serving: &[RsKey]) -> bool {
        let set = SetId { kind: SetKind::LoopBack, family: self.key.family() };
        serving.iter().any(|rs| {
            rs.addr == packet.source
                && Observed::has_entry(
                    self.observed,
                    set,
                    &Entry::IpPortIp(rs.addr, packet.protocol, rs.port, rs.addr),
                )
        })
    }
}

/// The last address of a network that a pod can have.
fn last_host(net: IpNet) -> IpAddr {
    match net.broadcast() {
        IpAddr::V4(last) if net.prefix_len() < 31 => Ipv4Addr::from_bits(last.to_bits() - 1).into(),
        last => last,
    }
}

/// An address of the documentation (RFC 5737, RFC 3849), which nobody has.
fn example(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
    }
}

/// Moves the rules that matched to the steps.
fn note(walk: &mut RuleWalk<'_>, steps: &mut Vec<String>) {
    for Matched { table, chain, rule, effect } in walk.matched.drain(..) {
        let what = match effect {
            RuleEffect::Jump(_) => continue,
            RuleEffect::Return => "returned".to_owned(),
            RuleEffect::End(Fate::Accepted) => "accepted".to_owned(),
            RuleEffect::End(Fate::Dropped) => "dropped".to_owned(),
            RuleEffect::End(Fate::Rejected) => "refused with \"port unreachable\"".to_owned(),
            RuleEffect::End(Fate::Masqueraded) => "masqueraded".to_owned(),
            RuleEffect::Mark(0) => "unmarked".to_owned(),
            RuleEffect::Mark(_) => "marked for masquerading".to_owned(),
            RuleEffect::Unknown => "not understood: a rule of another program".to_owned(),
        };
        steps.push(format!("{what} by {} {chain}: {rule}", table.name()));
    }
}
