// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs trace`: steps of packets become packets, and what the kernel knows at the end completes them.

mod packet_head;
#[cfg(test)]
mod trace_tests;
mod trace_text;
mod tracked;

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::net::SocketAddr;

use serde::{Serialize, Serializer};

use self::packet_head::PacketHead;
pub use self::tracked::{TrackedConnection, silence_note};
use super::ipvs_conn::IpvsConnection;
use super::owners::ServiceOwners;
use crate::core::model::{Protocol, VsKey};
use crate::kernel::netfilter::conntrack_watch::ConntrackEvent;
use crate::kernel::netfilter::nft_trace::{
    HookedChain, NftFamily, Policy, RuleSummary, TRACE_TABLE, TraceEvent, TraceKind, TraceVerdict, Verdict,
};

/// The version of the JSON: a field that is removed or means something else gets the next one.
const SCHEMA_VERSION: u32 = 1;
/// Steps of one packet that are kept.
const STEPS: usize = 200;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TraceReport {
    pub schema_version: u32,
    pub target: String,
    pub seconds: u64,
    pub packets: Vec<TracedPacket>,
    /// What limits the trace, a sentence each.
    pub notes: Vec<String>,
}

/// A packet on its way through rules and IPVS.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TracedPacket {
    #[cfg_attr(test, schemars(with = "String"))]
    #[serde(serialize_with = "as_text")]
    pub protocol: Protocol,
    #[cfg_attr(test, schemars(with = "String"))]
    pub client: SocketAddr,
    #[cfg_attr(test, schemars(with = "String"))]
    pub destination: SocketAddr,
    pub service: Option<String>,
    /// The interface that it came in by; `None`: the node sent it.
    pub interface: Option<String>,
    pub steps: Vec<TraceStep>,
    /// Steps that are not kept.
    pub more_steps: usize,
    /// The real server that IPVS chose.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub real_server: Option<SocketAddr>,
    /// The state of the connection in IPVS.
    pub state: Option<String>,
    /// What connection tracking tells of the connection.
    pub conntrack: Option<TrackedConnection>,
    /// What became of it, in words.
    pub result: String,
}

/// What a packet met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TraceStep {
    /// `prerouting`, `input`, `forward`, `output` or `postrouting`, if known.
    pub hook: Option<String>,
    #[serde(serialize_with = "as_text")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub family: NftFamily,
    pub table: String,
    pub chain: String,
    /// The handle of the rule that matched; `None`: the end of the chain.
    pub rule: Option<u64>,
    /// What the rule does, as far as it is known.
    pub rule_text: Option<String>,
    pub action: StepAction,
    /// The chain of a jump.
    pub to: Option<String>,
    /// The new mark of the packet.
    pub mark: Option<u32>,
    /// Where the packet goes from this step on, if that is new.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub new_destination: Option<SocketAddr>,
}

/// What became of the packet at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum StepAction {
    /// The next rule sees it.
    Continue,
    Jump,
    Return,
    Accept,
    Drop,
    /// Dropped, with an answer to the client.
    Reject,
    /// Another verdict, such as that of a queue.
    Other,
}

/// What the kernel and the agent know beside the steps.
#[derive(Clone, Debug, Default)]
pub struct TraceFacts {
    pub owners: ServiceOwners,
    pub connections: Vec<IpvsConnection>,
    pub tracked: VecDeque<ConntrackEvent>,
    /// The virtual servers, and how many real servers of each take new connections.
    /// `None`: IPVS could not be read.
    pub servers: Option<HashMap<VsKey, usize>>,
    pub rules: Vec<RuleSummary>,
    /// Names of interfaces by index.
    pub interfaces: HashMap<u32, String>,
}

/// A packet whose steps are still coming in.
#[derive(Debug)]
struct SeenPacket {
    id: u32,
    head: PacketHead,
    iif: Option<u32>,
    /// Where it goes now.
    destination: SocketAddr,
    mark: u32,
    hook: Option<&'static str>,
    steps: Vec<TraceStep>,
    more_steps: usize,
}

/// Puts steps together to packets. Its memory is bounded by the number of packets.
#[derive(Debug)]
pub struct PacketCollector {
    hooks: Vec<HookedChain>,
    limit: usize,
    packets: Vec<SeenPacket>,
}

impl PacketCollector {
    /// Takes at most `limit` packets. `hooks`: the base chains.
    pub fn new(hooks: Vec<HookedChain>, limit: usize) -> Self {
        Self { hooks, limit, packets: Vec::new() }
    }

    /// Whether further packets are ignored.
    pub fn is_full(&self) -> bool {
        self.packets.len() >= self.limit
    }

    /// Takes a step.
    pub fn add(&mut self, event: &TraceEvent) {
        let head = PacketHead::parse(&event.network_header, &event.transport_header);
        if event.table == TRACE_TABLE {
            if let Some(head) = head.filter(|_| event.kind == TraceKind::Rule) {
                self.begin(event, head);
            }
            return;
        }
        let hooks = &self.hooks;
        let is_known = |chain: &&HookedChain| {
            (chain.family, &chain.table, &chain.chain) == (event.family, &event.table, &event.chain)
        };
        let hook = hooks.iter().find(is_known).map(|chain| chain.hook);
        // The latest: numbers are used again.
        if let Some(packet) = self.packets.iter_mut().rev().find(|packet| packet.id == event.id) {
            packet.add(event, head, hook);
        }
    }

    /// A packet was marked. A packet of the node that comes back by the loopback interface is marked twice.
    fn begin(&mut self, event: &TraceEvent, head: PacketHead) {
        let is_same = |packet: &SeenPacket| {
            packet.id == event.id && packet.head == head && packet.iif.is_none() && event.iif.is_some()
        };
        if self.is_full() || self.packets.last().is_some_and(is_same) {
            return;
        }
        self.packets.push(SeenPacket {
            id: event.id,
            head,
            iif: event.iif,
            destination: head.destination,
            mark: event.mark.unwrap_or_default(),
            hook: None,
            steps: Vec::new(),
            more_steps: 0,
        });
    }

    /// Whether it is the connection of a packet.
    pub fn has(&self, connection: &IpvsConnection) -> bool {
        self.packets.iter().any(|packet| packet.has(connection))
    }

    /// The tables of steps, each once.
    pub fn tables(&self) -> Vec<(NftFamily, String)> {
        let steps = self.packets.iter().flat_map(|packet| &packet.steps);
        let mut tables: Vec<_> = steps.map(|step| (step.family, step.table.clone())).collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// The packets, completed by what is known at the end.
    pub fn finish(self, facts: &TraceFacts) -> Vec<TracedPacket> {
        self.packets.into_iter().map(|packet| packet.finish(facts)).collect()
    }
}

impl SeenPacket {
    fn add(&mut self, event: &TraceEvent, head: Option<PacketHead>, hook: Option<&'static str>) {
        // The policy of a base chain is told next.
        if hook.is_some() && event.kind == TraceKind::Return {
            return;
        }
        // Chains that are jumped to have the hook of their base chain.
        self.hook = hook.or(self.hook);
        let destination = head.map_or(self.destination, |head| head.destination);
        let mark = event.mark.unwrap_or_default();
        let (action, to) = action(event);
        let step = TraceStep {
            hook: self.hook.map(str::to_owned),
            family: event.family,
            table: event.table.clone(),
            chain: event.chain.clone(),
            rule: event.rule.filter(|_| event.kind == TraceKind::Rule),
            rule_text: None,
            action,
            to,
            mark: (mark != self.mark).then_some(mark),
            new_destination: (destination != self.destination).then_some(destination),
        };
        (self.mark, self.destination) = (mark, destination);
        match self.steps.len() < STEPS {
            true => self.steps.push(step),
            false => self.more_steps += 1,
        }
    }

    fn has(&self, connection: &IpvsConnection) -> bool {
        connection.client == self.head.source
            && connection.vip == self.head.destination
            && connection.protocol == self.head.protocol.to_string()
    }

    fn finish(mut self, facts: &TraceFacts) -> TracedPacket {
        for step in &mut self.steps {
            step.name_rule(&facts.rules);
        }
        let PacketHead { protocol, source, destination } = self.head;
        let key = VsKey { protocol, addr: destination.ip(), port: destination.port() };
        let connection = facts.connections.iter().find(|connection| self.has(connection));
        let conntrack = TrackedConnection::of(&self.head, &facts.tracked);
        let answered_by = conntrack.as_ref().map_or(destination, |tracked| tracked.real_server);
        let moved = [self.destination, answered_by].into_iter().find(|addr| *addr != destination);
        let index_name = |index: u32| match facts.interfaces.get(&index) {
            Some(name) => name.clone(),
            None => format!("interface {index}"),
        };
        TracedPacket {
            protocol,
            client: source,
            destination,
            service: facts.owners.get(&key.to_string()).map(str::to_owned),
            interface: self.iif.map(index_name),
            real_server: connection.map(|connection| connection.real_server),
            state: connection.map(|connection| connection.state.clone()),
            conntrack,
            result: result(
                &self.steps,
                connection,
                moved,
                facts.servers.as_ref().map(|servers| servers.get(&key).copied()),
            ),
            steps: self.steps,
            more_steps: self.more_steps,
        }
    }
}

impl TraceStep {
    fn name_rule(&mut self, rules: &[RuleSummary]) {
        let Some(handle) = self.rule else { return };
        let is_rule = |rule: &&RuleSummary| {
            rule.handle == handle && rule.table == self.table && rule.family == self.family
        };
        let Some(rule) = rules.iter().find(is_rule) else { return };
        self.rule_text = Some(rule.text.clone()).filter(|text| !text.is_empty());
        if rule.rejects && self.action == StepAction::Drop {
            self.action = StepAction::Reject;
        }
    }

    /// Table and chain as nft(8) names them.
    pub fn place(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.chain)
    }
}

/// Protocols and families are written as in the text.
fn as_text<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn action(event: &TraceEvent) -> (StepAction, Option<String>) {
    let verdict = match (&event.verdict, event.policy) {
        _ if event.kind == TraceKind::Return => return (StepAction::Return, None),
        (_, Some(Policy::Drop)) => return (StepAction::Drop, None),
        (_, Some(Policy::Accept)) => return (StepAction::Accept, None),
        (Some(verdict), _) => verdict,
        (None, _) => return (StepAction::Other, None),
    };
    match verdict {
        TraceVerdict::Continue => (StepAction::Continue, None),
        TraceVerdict::Rule(Verdict::Jump(chain) | Verdict::Goto(chain)) => {
            (StepAction::Jump, Some(chain.clone()))
        }
        TraceVerdict::Rule(Verdict::Return) => (StepAction::Return, None),
        TraceVerdict::Rule(Verdict::Accept) => (StepAction::Accept, None),
        TraceVerdict::Rule(Verdict::Drop) => (StepAction::Drop, None),
        _ => (StepAction::Other, None),
    }
}

/// What became of a packet. `moved`: where it went according to its steps. `ready`: real servers that take new
/// connections; `Some(None)`: there is no such virtual server, `None`: unknown.
fn result(
    steps: &[TraceStep],
    connection: Option<&IpvsConnection>,
    moved: Option<SocketAddr>,
    ready: Option<Option<usize>>,
) -> String {
    if let Some(stop) = steps.iter().find(|step| matches!(step.action, StepAction::Drop | StepAction::Reject))
    {
        let what = match stop.action {
            StepAction::Reject => "refused",
            _ => "dropped",
        };
        let by = match stop.rule {
            Some(handle) => format!("rule {handle} of {}", stop.place()),
            None => format!("the policy of {}", stop.place()),
        };
        return match connection {
            Some(connection) => {
                format!("IPVS: chose {}, but the packet was {what} by {by}", connection.real_server)
            }
            None => format!("{what} by {by}: it did not reach a real server"),
        };
    }
    match (connection, moved, ready) {
        (Some(connection), ..) => {
            let state = connection.state.to_lowercase();
            format!("IPVS: sent to {} ({state})", connection.real_server)
        }
        (None, Some(moved), _) => format!("sent to {moved}; IPVS has no such connection, or not any more"),
        (None, None, None) => "it is not known what IPVS did".to_owned(),
        (None, None, Some(None)) => "IPVS: no virtual server has this address and port".to_owned(),
        (None, None, Some(Some(0))) => "IPVS: refused, no real server takes new connections".to_owned(),
        (None, None, Some(Some(_))) => {
            "IPVS: no connection; a later hook, a full table or a limit of connections stopped it".to_owned()
        }
    }
}
