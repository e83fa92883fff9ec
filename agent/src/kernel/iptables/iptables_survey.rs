// SPDX-License-Identifier: Apache-2.0
//! Which programs of iptables a node has and which it uses, for `kube-ipvs doctor`.

use super::flavour::{Flavour, Installed, legacy_tables_exist};
use super::{Iptables, child_version};
use crate::core::model::Family;
use crate::core::rules::save_text::split_save;

/// The programs of iptables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IptablesSurvey {
    /// Whether any is installed.
    pub is_installed: bool,
    /// The program for each family, or why there is none.
    pub programs: Vec<(Family, Result<SaveProgram, String>)>,
    /// Chains of Kubernetes in the flavour that is not used, and the program that shows them.
    pub other_flavour: Vec<(String, usize)>,
}

/// A program that prints rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveProgram {
    pub name: String,
    /// Such as `1.8.9 (nf_tables)`.
    pub version: String,
}

impl IptablesSurvey {
    /// Reads the programs of the families. Writes nothing.
    pub fn read(families: &[Family]) -> Self {
        let installed = Installed::in_path(&std::env::var_os("PATH").unwrap_or_default());
        let is_installed = installed.nft || installed.legacy || installed.plain.is_some();
        let mut survey = Self { is_installed, ..Self::default() };
        if !is_installed {
            return survey;
        }
        let iptables = Iptables::default();
        for family in families {
            let program = iptables.program(*family, "save").map_err(|error| error.to_string());
            let program = program.and_then(|name| {
                let version = child_version(&name).map_err(|error| error.to_string())?;
                survey.add_other_flavour(&iptables, *family, &version, installed);
                Ok(SaveProgram { name, version })
            });
            survey.programs.push((*family, program));
        }
        survey
    }

    fn add_other_flavour(
        &mut self,
        iptables: &Iptables,
        family: Family,
        version: &str,
        installed: Installed,
    ) {
        let uses_nft = version.contains("nf_tables");
        // Reading legacy tables that do not exist would create them.
        let other = match uses_nft {
            true if installed.legacy && legacy_tables_exist() => Flavour::Legacy,
            false if installed.nft => Flavour::Nft,
            _ => return,
        };
        let program = other.program(family, "save");
        let chains = iptables.save_to_compare(&program).map(|text| service_chains(&text)).unwrap_or_default();
        if chains > 0 {
            self.other_flavour.push((program, chains));
        }
    }
}

/// The number of chains of Kubernetes' proxies. Those of kubelet do not count.
fn service_chains(text: &str) -> usize {
    const KUBELET: [&str; 4] =
        ["KUBE-FIREWALL", "KUBE-MARK-DROP", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"];
    let tables = split_save(text);
    let chains = tables.values().flat_map(|table| &table.chains);
    chains.filter(|chain| chain.starts_with("KUBE-") && !KUBELET.contains(chain)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_proxies_are_counted() {
        let text = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-X - [0:0]\nCOMMIT\n*mangle\n\
                    :KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
        assert_eq!(service_chains(text), 2);
        assert_eq!(service_chains(""), 0);
    }
}
