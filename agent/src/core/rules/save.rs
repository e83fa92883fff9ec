// SPDX-License-Identifier: Apache-2.0
//! Parser of the output of `iptables-save`: our chains, our jumps, and the rules of other kube-proxy modes.

use std::collections::BTreeMap;

use super::Chains;
use super::chains::{JUMPS, JumpFix, Table, is_ours, jump_chains, wanted_jumps};
use super::removal::{Extent, Removal, find_removal};
use super::save_text::split_save;

/// Our rules of one family in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRules {
    /// Our chains that exist, with their rules.
    pub chains: Chains,
    /// Our jumps in each built-in chain, from the top, by their indexes in [`JUMPS`].
    pub jumps: BTreeMap<(Table, &'static str), Vec<usize>>,
    /// Chains and jumps of other kube-proxy modes.
    pub leftovers: Removal,
}

impl ObservedRules {
    /// The built-in chains whose jumps are missing, duplicated or in a wrong order. Only the order among our jumps
    /// matters: other programs may put their rules anywhere.
    pub fn broken_jumps(&self) -> Vec<JumpFix> {
        let fix = |(table, from): (Table, &'static str)| {
            let present = self.jumps.get(&(table, from)).cloned().unwrap_or_default();
            (present != wanted_jumps(table, from)).then_some(JumpFix { table, from, present })
        };
        jump_chains().into_iter().filter_map(fix).collect()
    }

    /// Records a repair of jumps.
    pub fn fix_jumps(&mut self, fixes: &[JumpFix]) {
        for fix in fixes {
            self.jumps.insert((fix.table, fix.from), wanted_jumps(fix.table, fix.from));
        }
    }
}

/// Parses `iptables-save` output. Tables, chains and rules of other programs are ignored.
pub fn parse_save(text: &str) -> ObservedRules {
    let leftovers = find_removal(text, Extent::OtherModes);
    let mut observed = ObservedRules { leftovers, ..ObservedRules::default() };
    let saved = split_save(text);
    for (table, saved) in Table::ALL.into_iter().filter_map(|table| Some((table, saved.get(table.name())?))) {
        for chain in saved.chains.iter().filter(|chain| is_ours(table.name(), chain)) {
            observed.chains.entry((table, (*chain).to_owned())).or_default();
        }
        for (chain, rule) in &saved.rules {
            if is_ours(table.name(), chain) {
                observed.chains.entry((table, (*chain).to_owned())).or_default().push((*rule).to_owned());
            }
            for (i, jump) in JUMPS.iter().enumerate() {
                if jump.table == table && jump.from == *chain && jump.spec() == *rule {
                    observed.jumps.entry((table, jump.from)).or_default().push(i);
                }
            }
        }
    }
    observed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::settings::Settings;
    use crate::core::model::{Family, Protocol, VsKey};
    use crate::core::rules::{RulesInput, build_chains, render_restore};

    #[test]
    fn written_rules_are_parsed_unchanged() {
        for family in Family::ALL {
            let vip = if family == Family::V4 { "203.0.113.1" } else { "fd00::1" };
            let closed = VsKey { protocol: Protocol::Udp, addr: vip.parse().unwrap(), port: 53 };
            let chains = build_chains(
                family,
                &Settings::default(),
                &RulesInput { closed: &[closed], ..RulesInput::new(&|_| true) },
            );
            let fixes = ObservedRules::default().broken_jumps();
            assert_eq!(fixes.len(), jump_chains().len());
            // Rules are inserted at the top, so iptables-save prints them in the opposite order.
            let text = render_restore(&chains, &fixes);
            let (inserted, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.starts_with("-I "));
            let mut printed = Vec::new();
            for line in rest {
                printed.push(line.to_owned());
                if let Some(table) = line.strip_prefix('*') {
                    let of_table = |l: &&&str| {
                        JUMPS
                            .iter()
                            .any(|j| j.table.name() == table && ***l == format!("-I {} {}", j.from, j.spec()))
                    };
                    let jumps = inserted.iter().filter(of_table).rev();
                    printed.extend(jumps.map(|l| l.replace("-I ", "-A ")));
                }
            }
            let observed = parse_save(&printed.join("\n"));
            assert_eq!(observed.chains, chains);
            assert!(observed.broken_jumps().is_empty());
        }
    }

    #[test]
    fn jumps_out_of_order_or_repeated_are_broken() {
        let line = |i: usize| format!("-A INPUT {}\n", JUMPS[i].spec());
        let right = wanted_jumps(Table::Filter, "INPUT");
        assert_eq!(right, [7, 5, 4], "the filter first, then the firewall, then the health checks");
        let broken = |order: &[usize]| {
            let rules: String = order.iter().map(|i| line(*i)).collect();
            let observed = parse_save(&format!("*filter\n{rules}COMMIT\n"));
            observed.broken_jumps().into_iter().find(|fix| fix.from == "INPUT").map(|fix| fix.present)
        };
        assert_eq!(broken(&right), None);
        assert_eq!(broken(&[4, 7, 5]), Some(vec![4, 7, 5]));
        assert_eq!(broken(&[7, 5, 4, 4]), Some(vec![7, 5, 4, 4]));
        assert_eq!(broken(&[7]), Some(vec![7]));
    }

    #[test]
    fn foreign_chains_and_tables_are_ignored() {
        let text = "*mangle\n:KUBE-SERVICES - [0:0]\nCOMMIT\n*nat\n:CNI-X - [0:0]\n:KUBE-FORWARD - [0:0]\n\
                    -A CNI-X -j ACCEPT\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";
        let observed = parse_save(text);
        assert!(observed.chains.is_empty() && observed.leftovers.is_empty());
        assert_eq!(
            observed.broken_jumps().len(),
            jump_chains().len(),
            "a jump without its comment is not ours"
        );
    }
}
