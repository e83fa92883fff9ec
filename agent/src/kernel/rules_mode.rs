// SPDX-License-Identifier: Apache-2.0
//! Chooses what sets and rules are made of (`kubeIPVS.rules: auto`): ipset and iptables where all of it works, else
//! nf_tables.

use netlink_batch::Error as Netlink;

use super::iptables::Iptables;
use super::netfilter::ipset::{IpsetClient, IpsetError};
use crate::core::model::Family;
use crate::core::model::settings::{RulesMode, Settings};
use crate::core::plan::outcome::{Cause, OpError};
use crate::words;

/// Sets the rules mode for this node, and returns why it is this one.
pub fn choose(settings: &mut Settings) -> String {
    let (mode, why) = match why_not_iptables(&settings.families) {
        Some(why) => (RulesMode::Nftables, why),
        None => (RulesMode::Iptables, "ipset and iptables work".to_owned()),
    };
    settings.rules = mode;
    why
}

/// The mode that [`choose`] probably finds, without a trial in the kernel.
pub fn guess() -> RulesMode {
    match (IpsetClient::open(), super::iptables::version()) {
        (Ok(_), Some(_)) => RulesMode::Iptables,
        _ => RulesMode::Nftables,
    }
}

/// What of ipset and iptables is missing. A failure that may pass is not: the mode of a node must not change with its
/// load.
fn why_not_iptables(families: &[Family]) -> Option<String> {
    let mut sets = match IpsetClient::open() {
        Err(IpsetError::Netlink(Netlink::Timeout | Netlink::Overrun | Netlink::Io(_))) => return None,
        Err(error) => return Some(format!("ipset is not usable: {}", words::causes(&error))),
        Ok(sets) => sets,
    };
    let iptables = Iptables::default();
    families.iter().find_map(|family| {
        let tried = sets.with_temporary(*family, |set| iptables.try_rules(*family, set));
        match tried {
            Ok(Ok(())) | Err(_) => None,
            Ok(Err(error)) => is_permanent(&error).then(|| format!("{family} rules cannot be made: {error}")),
        }
    })
}

fn is_permanent(error: &OpError) -> bool {
    !matches!(error.cause, Cause::TimedOut)
}
