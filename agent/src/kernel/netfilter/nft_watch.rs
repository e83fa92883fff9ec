// SPDX-License-Identifier: Apache-2.0
//! Detects changes of our chains and sets by other programs at once, by notifications of nf_tables
//! (`<linux/netfilter/nf_tables.h>`, nfnetlink subsystem 10). iptables-legacy sends none: there the next audit finds
//! the changes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use netlink_batch::{Error, Listener};
use nftables_netlink::{Action, Family as NftFamily, Notification, Object, listen};

use crate::core::model::Family;
use crate::core::model::sets::SetId;
use crate::core::model::settings::RulesMode;
use crate::core::plan::subject::Part;
use crate::core::rules::chains::{CHAINS, JUMPS, Table};
use crate::core::rules::nftables;
use crate::lock::lock;

/// Number of remembered ports: more than processes run before their notifications are read.
const REMEMBERED: usize = 64;

/// The netlink ports that write rules for this agent: those of its own sockets, and of the programs that it started,
/// whose port is their process id. They distinguish its changes from those of other programs.
#[derive(Clone, Debug, Default)]
pub struct OwnPorts(Arc<Mutex<Vec<u32>>>);

impl OwnPorts {
    /// Remembers a port, before anything is written through it.
    pub fn add(&self, port: u32) {
        let mut ports = lock(&self.0);
        if ports.len() == REMEMBERED {
            ports.remove(0);
        }
        ports.push(port);
    }

    fn contains(&self, port: u32) -> bool {
        lock(&self.0).contains(&port)
    }
}

/// Listens for changes to rules in the network namespace that it was opened in.
#[derive(Debug)]
pub struct RulesWatch {
    listener: Listener,
    mode: RulesMode,
    own: OwnPorts,
}

impl RulesWatch {
    /// Starts to listen; changes by `own` are ignored.
    ///
    /// # Errors
    /// When the kernel has no nf_tables, or the process may not listen.
    pub fn open(mode: RulesMode, own: OwnPorts) -> Result<Self, Error> {
        Ok(Self { listener: listen()?, mode, own })
    }

    /// Waits until another program changes one of our chains or sets, or removes a rule from a chain that jumps to ours.
    /// Returns the parts that may have changed.
    ///
    /// # Errors
    /// When the socket fails. After lost notifications all parts are returned.
    pub fn wait(&mut self) -> Result<BTreeSet<Part>, Error> {
        let (mode, mut parts) = (self.mode, BTreeSet::new());
        loop {
            let messages = match self.listener.receive() {
                Ok(messages) => messages,
                Err(Error::Overrun | Error::Truncated) => {
                    return Ok(all_parts(mode).collect());
                }
                Err(error) => return Err(error),
            };
            // A transaction is reported in several datagrams; this notification is its last one.
            let mut ended = false;
            for message in messages {
                let message = message?;
                if self.own.contains(message.port) {
                    continue;
                }
                let notification = Notification::parse(&message)?;
                ended |= matches!(notification, Notification::Generation(_));
                match mode {
                    RulesMode::Iptables => parts.extend(concerned_family(&notification).map(Part::Rules)),
                    RulesMode::Nftables => parts.extend(concerned_parts(&notification)),
                }
            }
            if ended && !parts.is_empty() {
                return Ok(parts);
            }
        }
    }
}

/// Everything that is in nf_tables.
pub fn all_parts(mode: RulesMode) -> impl Iterator<Item = Part> {
    Family::ALL.into_iter().flat_map(move |family| family_parts(mode, family))
}

fn family_parts(mode: RulesMode, family: Family) -> Vec<Part> {
    let has_sets = mode == RulesMode::Nftables;
    let sets = SetId::all(family).filter(|_| has_sets).map(Part::Set);
    std::iter::once(Part::Rules(family)).chain(sets).collect()
}

/// What a change of our own table can affect.
fn concerned_parts(notification: &Notification) -> Vec<Part> {
    let Notification::Change { action, family, table, object } = notification else { return Vec::new() };
    let Some(family) = our_family(*family).filter(|_| table == nftables::TABLE) else { return Vec::new() };
    match (action, object) {
        (Action::Delete, Object::Table) => family_parts(RulesMode::Nftables, family),
        (_, Object::Set(name) | Object::Elements(name)) => {
            vec![SetId::from_name(name).map_or(Part::Rules(family), Part::Set)]
        }
        _ => vec![Part::Rules(family)],
    }
}

/// Tables of other families, such as `inet`, may have the same names.
fn our_family(family: NftFamily) -> Option<Family> {
    match family {
        NftFamily::Ipv4 => Some(Family::V4),
        NftFamily::Ipv6 => Some(Family::V6),
        _ => None,
    }
}

/// The family whose rules of ours in the tables of iptables a change can affect.
fn concerned_family(notification: &Notification) -> Option<Family> {
    let Notification::Change { action, family, table, object } = notification else { return None };
    let family = our_family(*family)?;
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
        let children = OwnPorts::default();
        (0..REMEMBERED as u32 + 5).for_each(|pid| children.add(pid));
        assert!(!children.contains(4) && children.contains(5));
    }
}
