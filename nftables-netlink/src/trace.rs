// SPDX-License-Identifier: Apache-2.0
//! Traces (`enum nft_trace_attributes`): what rules and policies did with packets whose `nftrace` is set.

use netlink_batch::{AttributeIter, Error, Listener, Received, protocols, text};

use crate::chain::Policy;
use crate::expression::Verdict;
use crate::expression::codec::{VERDICT_CHAIN, VERDICT_CODE};
use crate::wire::{Family, kind, message, split_header, to_u32, to_u64};

/// `NFNLGRP_NFTRACE`: the multicast group.
pub const TRACE_GROUP: u32 = 9;

const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const ID: u16 = 6;
const NETWORK_HEADER: u16 = 8;
const TRANSPORT_HEADER: u16 = 9;
const IIF: u16 = 10;
const OIF: u16 = 12;
const MARK: u16 = 14;
const POLICY: u16 = 16;
/// `NFT_CONTINUE`, which no rule of this crate has.
const CONTINUE: u32 = -1i32 as u32;

numbers! {
    /// What a packet met (`enum nft_trace_types`).
    TraceKind: u32 {
        /// The end of a base chain: its policy decides.
        Policy = 1,
        /// The end of a chain that was jumped to: the packet returns.
        Return = 2,
        /// A rule that matched.
        Rule = 3,
    }
}

/// What a rule decided about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceVerdict {
    /// Nothing: the next rule sees the packet (`NFT_CONTINUE`).
    Continue,
    /// A verdict that a rule of this crate can have, too.
    Rule(Verdict),
    /// Another number (`NF_STOLEN`, `NF_QUEUE`).
    Other(u32),
}

/// One step of a packet. The kernel sends interfaces and headers once for each traversal of a base chain: with its first
/// step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceEvent {
    /// The family of the table.
    pub family: Family,
    /// The number of the packet. Numbers are used again after some time.
    pub id: u32,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// What the packet met.
    pub kind: TraceKind,
    /// The kernel's number of the rule.
    pub rule: Option<u64>,
    /// What the rule decided.
    pub verdict: Option<TraceVerdict>,
    /// What the policy decided.
    pub policy: Option<Policy>,
    /// The mark of the packet after this step, unless it is 0.
    pub mark: Option<u32>,
    /// The index of the input interface.
    pub iif: Option<u32>,
    /// The index of the output interface.
    pub oif: Option<u32>,
    /// The beginning of the header of IPv4 or IPv6.
    pub network_header: Vec<u8>,
    /// The beginning of the header of TCP, UDP or another transport.
    pub transport_header: Vec<u8>,
}

/// Joins the multicast group of traces in the current network namespace.
///
/// # Errors
/// When the kernel has no nf_tables, or the process may not join.
pub fn listen_traces() -> Result<Listener, Error> {
    Listener::open(protocols::NETLINK_NETFILTER, &[TRACE_GROUP])
}

impl TraceEvent {
    /// Reads a notification; `None` if it is none of a trace.
    ///
    /// # Errors
    /// [`Error::Malformed`]
    pub fn parse(received: &Received<'_>) -> Result<Option<Self>, Error> {
        if received.kind != kind(message::TRACE) {
            return Ok(None);
        }
        let (header, attributes) = split_header(received.payload)?;
        let mut event = Self::new(header.family.into());
        for attribute in AttributeIter::new(attributes) {
            event.add(attribute?)?;
        }
        Ok(Some(event))
    }

    /// An event without anything but the family, for tests of programs.
    pub fn new(family: Family) -> Self {
        Self {
            family,
            id: 0,
            table: String::new(),
            chain: String::new(),
            kind: TraceKind::Other(0),
            rule: None,
            verdict: None,
            policy: None,
            mark: None,
            iif: None,
            oif: None,
            network_header: Vec::new(),
            transport_header: Vec::new(),
        }
    }

    fn add(&mut self, (kind, value): (u16, &[u8])) -> Result<(), Error> {
        match kind {
            TABLE => self.table = text(value),
            CHAIN => self.chain = text(value),
            RULE_HANDLE => self.rule = Some(to_u64(value)?),
            TYPE => self.kind = to_u32(value)?.into(),
            VERDICT => self.verdict = Some(parse_verdict(value)?),
            ID => self.id = to_u32(value)?,
            NETWORK_HEADER => self.network_header = value.to_vec(),
            TRANSPORT_HEADER => self.transport_header = value.to_vec(),
            IIF => self.iif = Some(to_u32(value)?),
            OIF => self.oif = Some(to_u32(value)?),
            MARK => self.mark = Some(to_u32(value)?),
            POLICY => self.policy = Some(to_u32(value)?.into()),
            _ => {}
        }
        Ok(())
    }
}

fn parse_verdict(value: &[u8]) -> Result<TraceVerdict, Error> {
    let (mut code, mut chain) = (None, None);
    for attribute in AttributeIter::new(value) {
        match attribute? {
            (VERDICT_CODE, value) => code = Some(to_u32(value)?),
            (VERDICT_CHAIN, value) => chain = Some(text(value)),
            _ => {}
        }
    }
    let code = code.ok_or(Error::Malformed("a verdict of nf_tables has no number"))?;
    Ok(match Verdict::of_code(code, chain) {
        Some(verdict) => TraceVerdict::Rule(verdict),
        None if code == CONTINUE => TraceVerdict::Continue,
        None => TraceVerdict::Other(code),
    })
}
