// SPDX-License-Identifier: Apache-2.0
//! Chains of iptables that kube-proxy or the other rules mode left, without the programs of iptables: iptables-nft keeps
//! its rules in nf_tables.

use std::fmt::Write as _;

use nftables_netlink::{Chain, Client, Command, Error, Expression, Scope, Verdict};

use crate::core::model::Family;
use crate::core::rules::chains::is_ours;
use crate::core::rules::removal::{HANDLE, Removal, is_of_other_modes};
use crate::kernel::netfilter::nft_rule_text::comment;
use crate::kernel::netfilter::nft_tables::nft_family;

/// The tables of iptables that have chains of kube-proxy.
const TABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// Chains of ours that a kubelet before Kubernetes 1.28 makes, too.
const OF_KUBELET: [&str; 2] = ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"];

/// What is in the tables of iptables-nft that have a chain of kube-proxy, as `iptables-save` would print it: only jumps, each
/// with its handle at the end. `chains`: all chains of the family.
///
/// # Errors
/// When the rules cannot be read.
pub fn save_text(client: &mut Client, family: Family, chains: &[Chain]) -> Result<String, Error> {
    let mut saved = String::new();
    for table in TABLES {
        let in_table = || chains.iter().filter(|chain| chain.table == table);
        let is_left = |chain: &Chain| {
            let ours = is_ours(table, &chain.name) && !OF_KUBELET.contains(&chain.name.as_str());
            ours || is_of_other_modes(table, &chain.name)
        };
        if !in_table().any(is_left) {
            continue;
        }
        let _ = writeln!(saved, "*{table}");
        in_table().for_each(|chain| _ = writeln!(saved, ":{} - [0:0]", chain.name));
        for rule in client.rules(Scope::Table(nft_family(family), table))? {
            let comment = comment(&rule);
            let to = rule.expressions.iter().find_map(|expression| match expression {
                Expression::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) => Some(to),
                _ => None,
            });
            if let (Some(to), Some(handle)) = (to, rule.handle) {
                let spec = format!("-m comment --comment \"{comment}\" -j {to}{HANDLE}{handle}");
                let _ = writeln!(saved, "-A {} {spec}", rule.chain);
            }
        }
        saved.push_str("COMMIT\n");
    }
    Ok(saved)
}

/// The commands that remove what was found in the text of [`save_text`]; together they are atomic.
pub fn removal_commands(family: Family, removal: &Removal) -> Vec<Command> {
    let family = nft_family(family);
    let mut commands = Vec::new();
    for (table, removal) in &removal.tables {
        let table = || table.clone();
        for (chain, rule) in &removal.rules {
            if let Some(handle) = handle(rule) {
                commands.push(Command::DeleteRule { family, table: table(), chain: chain.clone(), handle });
            }
        }
        // Chains that jump to each other are empty before the first of them goes.
        let chains = || removal.chains.iter().cloned();
        commands.extend(chains().map(|chain| Command::FlushChain { family, table: table(), chain }));
        commands.extend(chains().map(|chain| Command::DeleteChain { family, table: table(), chain }));
    }
    commands
}

fn handle(rule: &str) -> Option<u64> {
    rule.rsplit_once(HANDLE)?.1.parse().ok()
}
