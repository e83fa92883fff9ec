// SPDX-License-Identifier: Apache-2.0
//! Reads the output of `iptables-save`: our chains, and which of our jumps are there.

use super::rules::{CHAINS, Chains, JUMPS, Table};

/// What a family's iptables hold of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRules {
    /// Our chains that exist, with their rules.
    pub chains: Chains,
    /// Which of [`JUMPS`] exist.
    pub jumps: [bool; JUMPS.len()],
}

impl ObservedRules {
    /// Indexes of the jumps that are missing.
    pub fn missing_jumps(&self) -> Vec<usize> {
        (0..JUMPS.len()).filter(|i| !self.jumps[*i]).collect()
    }
}

/// Parses `iptables-save` output. Tables, chains and rules of others are passed over.
pub fn parse_save(text: &str) -> ObservedRules {
    let mut observed = ObservedRules::default();
    let mut table = None;
    for line in text.lines() {
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|t| t.name() == name);
        }
        let Some(table) = table else { continue };
        if let Some(declaration) = line.strip_prefix(':') {
            let chain = declaration.split_whitespace().next().unwrap_or_default();
            if is_ours(table, chain) {
                observed.chains.entry((table, chain.to_owned())).or_default();
            }
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|r| r.split_once(' ')) {
            if is_ours(table, chain) {
                observed.chains.entry((table, chain.to_owned())).or_default().push(rule.to_owned());
            }
            for (i, jump) in JUMPS.iter().enumerate() {
                if jump.table == table && jump.from == chain && jump.spec() == rule {
                    observed.jumps[i] = true;
                }
            }
        }
    }
    observed
}

fn is_ours(table: Table, chain: &str) -> bool {
    CHAINS.iter().any(|(t, c)| *t == table && *c == chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{Family, Settings};
    use crate::core::rules::{build_chains, render_restore};

    #[test]
    fn what_is_written_is_what_is_read() {
        for family in Family::ALL {
            let chains = build_chains(family, &Settings::default(), &|_| true);
            let all: Vec<usize> = (0..JUMPS.len()).collect();
            // iptables-save prints an inserted jump as an appended rule of its chain.
            let text = render_restore(&chains, &all).replace("-I ", "-A ");
            let observed = parse_save(&text);
            assert_eq!(observed.chains, chains);
            assert!(observed.missing_jumps().is_empty());
        }
    }

    #[test]
    fn others_chains_and_tables_are_not_ours() {
        let text = "*mangle\n:KUBE-SERVICES - [0:0]\nCOMMIT\n*nat\n:KUBE-SVC-X - [0:0]\n:KUBE-FORWARD - [0:0]\n\
                    -A KUBE-SVC-X -j ACCEPT\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";
        let observed = parse_save(text);
        assert!(observed.chains.is_empty());
        assert_eq!(observed.missing_jumps().len(), JUMPS.len(), "a jump without its comment is not ours");
    }
}
