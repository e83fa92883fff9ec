// SPDX-License-Identifier: Apache-2.0
//! Detects changes of our chains by other programs at once, by notifications of nf_tables
//! (`<linux/netfilter/nf_tables.h>`, nfnetlink subsystem 10). iptables-legacy sends none: there the next audit finds
//! the changes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use netlink_batch::{AttributeIter, Error, Listener, Received, protocols, text};

use super::nfnetlink::attributes;
use crate::core::model::Family;
use crate::core::rules::chains::{CHAINS, JUMPS, Table};
use crate::lock::lock;

const SUBSYSTEM: u16 = 10 << 8;
const DEL_TABLE: u16 = SUBSYSTEM | 2;
const DEL_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DEL_RULE: u16 = SUBSYSTEM | 8;
/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
const ATTR_TABLE: u16 = 1;
const ATTR_RULE_CHAIN: u16 = 2;
const ATTR_CHAIN_NAME: u16 = 3;
/// Number of remembered processes: more than run before their notifications are read.
const CHILDREN: usize = 64;

/// The processes that the agent started to write rules. Their netlink port is their process id, which distinguishes
/// their changes from those of other programs.
#[derive(Clone, Debug, Default)]
pub struct Children(Arc<Mutex<Vec<u32>>>);

impl Children {
    /// Remembers a process, before it writes anything.
    pub fn add(&self, pid: u32) {
        let mut pids = lock(&self.0);
        if pids.len() == CHILDREN {
            pids.remove(0);
        }
        pids.push(pid);
    }

    fn contains(&self, pid: u32) -> bool {
        lock(&self.0).contains(&pid)
    }
}

/// Listens for changes to rules in the network namespace that it was opened in.
#[derive(Debug)]
pub struct RulesWatch {
    listener: Listener,
    own: Children,
}

impl RulesWatch {
    /// Starts to listen; changes by `own` are ignored.
    ///
    /// # Errors
    /// When the kernel has no nf_tables, or the process may not listen.
    pub fn open(own: Children) -> Result<Self, Error> {
        Ok(Self { listener: Listener::open(protocols::NETLINK_NETFILTER, &[GROUP])?, own })
    }

    /// Waits until another program changes one of our chains, or removes a rule from a chain that jumps to ours.
    /// Returns the families.
    ///
    /// # Errors
    /// When the socket fails. After lost notifications all families are returned.
    pub fn wait(&mut self) -> Result<BTreeSet<Family>, Error> {
        loop {
            let messages = match self.listener.receive() {
                Ok(messages) => messages,
                Err(Error::Overrun | Error::Truncated) => return Ok(Family::ALL.into()),
                Err(error) => return Err(error),
            };
            let mut families = BTreeSet::new();
            for message in messages {
                let message = message?;
                if !self.own.contains(message.port) {
                    families.extend(concerned_family(&message));
                }
            }
            if !families.is_empty() {
                return Ok(families);
            }
        }
    }
}

/// The family whose rules of ours a message can affect. Tables of other families, such as `inet`, may have the
/// same names.
pub(in crate::kernel) fn concerned_family(message: &Received<'_>) -> Option<Family> {
    let family = match message.payload.first()? {
        2 => Family::V4,
        10 => Family::V6,
        _ => return None,
    };
    concerns_us(message).then_some(family)
}

fn concerns_us(message: &Received<'_>) -> bool {
    let attrs = AttributeIter::new(attributes(message.payload)).flatten();
    let name = |kind: u16| attrs.clone().find(|(k, _)| *k == kind).map(|(_, value)| text(value));
    let table = name(ATTR_TABLE).unwrap_or_default();
    let Some(table) = Table::ALL.into_iter().find(|t| t.name() == table) else { return false };
    let ours = |chain: &str| CHAINS.iter().any(|(t, c)| *t == table && *c == chain);
    let jumps = |chain: &str| JUMPS.iter().any(|jump| jump.table == table && jump.from == chain);
    let chain = |attr| name(attr).unwrap_or_default();
    match message.kind {
        DEL_TABLE => true,
        DEL_CHAIN => ours(&chain(ATTR_CHAIN_NAME)),
        NEW_RULE => ours(&chain(ATTR_RULE_CHAIN)),
        DEL_RULE => ours(&chain(ATTR_RULE_CHAIN)) || jumps(&chain(ATTR_RULE_CHAIN)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use netlink_batch::Attributes;

    use super::*;

    fn concerned(family: u8, kind: u16, table: &str, attr: u16, chain: &str) -> Option<Family> {
        let mut attrs = Attributes::default();
        attrs.put_str(ATTR_TABLE, table).put_str(attr, chain);
        let payload = [&[family, 0, 0, 0], attrs.as_bytes()].concat();
        concerned_family(&Received { kind, flags: 0, seq: 0, port: 7, payload: &payload })
    }

    fn concerns(kind: u16, table: &str, attr: u16, chain: &str) -> bool {
        concerned(2, kind, table, attr, chain).is_some()
    }

    #[test]
    fn other_families_are_ignored() {
        let family = |family| concerned(family, DEL_TABLE, "filter", 9, "");
        assert_eq!([2, 10, 1, 7].map(family), [Some(Family::V4), Some(Family::V6), None, None]);
    }

    #[test]
    fn only_messages_that_can_affect_our_rules_count() {
        assert!(concerns(DEL_RULE, "nat", ATTR_RULE_CHAIN, "KUBE-SERVICES"));
        assert!(concerns(NEW_RULE, "filter", ATTR_RULE_CHAIN, "KUBE-IPVS-FILTER"));
        assert!(concerns(DEL_RULE, "filter", ATTR_RULE_CHAIN, "INPUT"), "it may be our jump");
        assert!(!concerns(NEW_RULE, "filter", ATTR_RULE_CHAIN, "INPUT"), "other programs may add rules");
        assert!(!concerns(DEL_RULE, "nat", ATTR_RULE_CHAIN, "CNI-HOSTPORT-DNAT"));
        assert!(!concerns(DEL_RULE, "mangle", ATTR_RULE_CHAIN, "KUBE-SERVICES"));
        assert!(concerns(DEL_CHAIN, "nat", ATTR_CHAIN_NAME, "KUBE-MARK-MASQ"));
        assert!(concerns(DEL_TABLE, "filter", 9, ""));
        assert!(!concerns(SUBSYSTEM | 15, "filter", ATTR_RULE_CHAIN, "INPUT"), "a new generation alone");
    }

    #[test]
    fn the_most_recent_children_are_remembered() {
        let children = Children::default();
        (0..CHILDREN as u32 + 5).for_each(|pid| children.add(pid));
        assert!(!children.contains(4) && children.contains(5));
    }
}
