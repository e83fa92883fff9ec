// SPDX-License-Identifier: Apache-2.0
//! Detects changes of our chains by other programs at once, by notifications of nf_tables
//! (`<linux/netfilter/nf_tables.h>`, nfnetlink subsystem 10). iptables-legacy sends none: there the next audit finds
//! the changes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use netlink_batch::{Error, Listener};
use nftables_netlink::{Action, Family as NftFamily, Notification, Object, listen};

use crate::core::model::Family;
use crate::core::rules::chains::{CHAINS, JUMPS, Table};
use crate::lock::lock;

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
        Ok(Self { listener: listen()?, own })
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
                    families.extend(concerned_family(&Notification::parse(&message)?));
                }
            }
            if !families.is_empty() {
                return Ok(families);
            }
        }
    }
}

/// The family whose rules of ours a change can affect. Tables of other families, such as `inet`, may have the same
/// names.
fn concerned_family(notification: &Notification) -> Option<Family> {
    let Notification::Change { action, family, table, object } = notification else { return None };
    let family = match family {
        NftFamily::Ipv4 => Family::V4,
        NftFamily::Ipv6 => Family::V6,
        _ => return None,
    };
    let table = Table::ALL.into_iter().find(|known| known.name() == table)?;
    let ours = |chain: &str| CHAINS.iter().any(|(t, c)| *t == table && *c == chain);
    let jumps = |chain: &str| JUMPS.iter().any(|jump| jump.table == table && jump.from == chain);
    let concerns_us = match (action, object) {
        (Action::Delete, Object::Table) => true,
        (Action::Delete, Object::Chain(chain)) => ours(chain),
        (Action::New, Object::Rule { chain, .. }) => ours(chain),
        (Action::Delete, Object::Rule { chain, .. }) => ours(chain) || jumps(chain),
        _ => false,
    };
    concerns_us.then_some(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concerned(action: Action, family: NftFamily, table: &str, object: Object) -> Option<Family> {
        concerned_family(&Notification::Change { action, family, table: table.to_owned(), object })
    }

    #[test]
    fn other_families_are_ignored() {
        let family = |family| concerned(Action::Delete, family, "filter", Object::Table);
        let families = [NftFamily::Ipv4, NftFamily::Ipv6, NftFamily::Inet, NftFamily::Other(7)];
        assert_eq!(families.map(family), [Some(Family::V4), Some(Family::V6), None, None]);
    }

    #[test]
    fn only_changes_that_can_affect_our_rules_count() {
        use Action::{Delete, New};
        let concerns =
            |action, table: &str, object| concerned(action, NftFamily::Ipv4, table, object).is_some();
        let rule = |chain: &str| Object::Rule { chain: chain.to_owned(), handle: 7 };
        assert!(concerns(Delete, "nat", rule("KUBE-SERVICES")));
        assert!(concerns(New, "filter", rule("KUBE-IPVS-FILTER")));
        assert!(concerns(Delete, "filter", rule("INPUT")), "it may be our jump");
        assert!(!concerns(New, "filter", rule("INPUT")), "other programs may add rules");
        assert!(!concerns(Delete, "nat", rule("CNI-HOSTPORT-DNAT")));
        assert!(!concerns(Delete, "mangle", rule("KUBE-SERVICES")));
        assert!(concerns(Delete, "nat", Object::Chain("KUBE-MARK-MASQ".to_owned())));
        assert!(!concerns(New, "nat", Object::Chain("KUBE-MARK-MASQ".to_owned())));
        assert!(concerns(Delete, "filter", Object::Table));
        assert!(!concerns(Delete, "filter", Object::Set("KUBE-SERVICES".to_owned())));
    }

    #[test]
    fn the_most_recent_children_are_remembered() {
        let children = Children::default();
        (0..CHILDREN as u32 + 5).for_each(|pid| children.add(pid));
        assert!(!children.contains(4) && children.contains(5));
    }
}
