// SPDX-License-Identifier: Apache-2.0
//! Detects the iptables flavour of the node where both are installed, as in the agent's image. Each flavour ignores the
//! rules of the other, so kubelet, the CNI and the agent must use the same one.
//!
//! The order is that of kube-proxy's base image: the flavour with kubelet's hint chain; without one, the flavour
//! with more rules. Each family is detected by itself, so that neither waits for the programs of the other. If both
//! flavours have the same number of rules of a family, the rules of the other family decide; if these do not, the
//! node's `iptables` does. Legacy tables are not read if none exists: reading creates them.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::core::model::Family;

/// Chains that kubelet creates in the table `mangle` to show which flavour it uses; the second name is older.
const KUBELETS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// A flavour of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// The node's `iptables-save`.
    Plain,
    /// Rules are in nf_tables.
    Nft,
    /// Rules are in the kernel's older tables.
    Legacy,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Plain => "iptables",
            Flavour::Nft => "iptables-nft",
            Flavour::Legacy => "iptables-legacy",
        })
    }
}

impl Flavour {
    /// The program for a family: `verb` is `save` or `restore`.
    pub fn program(self, family: Family, verb: &str) -> String {
        let tables = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        match self {
            Flavour::Plain => format!("{tables}-{verb}"),
            Flavour::Nft => format!("{tables}-nft-{verb}"),
            Flavour::Legacy => format!("{tables}-legacy-{verb}"),
        }
    }

    /// The flavour that this node uses for a family. `save` runs a program and returns its output; it is only called
    /// if the rules of both must be compared.
    ///
    /// # Errors
    /// The first error of `save`: the flavour is not guessed.
    pub fn of_family<E>(family: Family, save: impl Fn(&str) -> Result<String, E>) -> Result<Flavour, E> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = Installed::in_path(&path);
        let (flavour, why) = match installed.without_comparison(legacy_tables_exist()) {
            Some(flavour) => (flavour, "no rules of another flavour found"),
            None => compare(family, installed.default_flavour(), save)?,
        };
        tracing::info!("using {flavour} for {family}: {why}");
        Ok(flavour)
    }
}

/// The flavour, and the reason, from the rules of the family; from those of the other family if they do not decide.
fn compare<E>(
    family: Family,
    default: Flavour,
    save: impl Fn(&str) -> Result<String, E>,
) -> Result<(Flavour, &'static str), E> {
    let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
    for family in [family, other] {
        let rules = |flavour: Flavour| save(&flavour.program(family, "save"));
        let nft = rules(Flavour::Nft)?;
        let legacy = if has_kubelet_chain(&nft) { String::new() } else { rules(Flavour::Legacy)? };
        if let Some(found) = choose(&nft, &legacy) {
            return Ok(found);
        }
    }
    Ok((default, "no kubelet hint found; both flavours hold the same number of rules"))
}

/// Which programs are installed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Installed {
    pub nft: bool,
    pub legacy: bool,
    /// The flavour of the plain `iptables-save`, as far as it is known.
    pub plain: Option<Flavour>,
}

impl Installed {
    pub fn in_path(path: &OsStr) -> Self {
        let plain = find(path, "iptables-save").map(|program| {
            // A link to a multi-call program whose name contains the flavour.
            let target = program.canonicalize().unwrap_or(program);
            let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match (name.contains("nft"), name.contains("legacy")) {
                (true, false) => Flavour::Nft,
                (false, true) => Flavour::Legacy,
                _ => Flavour::Plain,
            }
        });
        let has = |name| find(path, name).is_some();
        Self { nft: has("iptables-nft-save"), legacy: has("iptables-legacy-save"), plain }
    }

    /// The flavour, if the rules of both need not be compared.
    fn without_comparison(self, legacy_tables: bool) -> Option<Flavour> {
        match (self.nft, self.legacy) {
            (true, true) if legacy_tables || self.plain.is_some_and(|plain| plain != Flavour::Nft) => None,
            (true, false) if self.plain.is_none() => Some(Flavour::Nft),
            (false, true) if self.plain.is_none() => Some(Flavour::Legacy),
            (true, true) if self.plain.is_none() => Some(Flavour::Nft),
            _ => Some(Flavour::Plain),
        }
    }

    fn default_flavour(self) -> Flavour {
        if self.plain.is_some() { Flavour::Plain } else { Flavour::Nft }
    }
}

/// The flavour, and the reason, from the output of the two save programs of a family; `None`: undecided.
pub(in crate::kernel) fn choose(nft: &str, legacy: &str) -> Option<(Flavour, &'static str)> {
    let count = |rules: &str| rules.lines().filter(|line| line.starts_with("-A ")).count();
    let (hint, more) =
        ("kubelet's hint chain is in this flavour", "no kubelet hint found; this flavour holds more rules");
    match (count(nft), count(legacy)) {
        _ if has_kubelet_chain(nft) => Some((Flavour::Nft, hint)),
        _ if has_kubelet_chain(legacy) => Some((Flavour::Legacy, hint)),
        (nft, legacy) if nft > legacy => Some((Flavour::Nft, more)),
        (nft, legacy) if nft < legacy => Some((Flavour::Legacy, more)),
        _ => None,
    }
}

/// Whether these rules declare a chain of kubelet.
fn has_kubelet_chain(rules: &str) -> bool {
    let declared = |chain: &&str| rules.lines().any(|l| l.split(' ').next() == Some(&format!(":{chain}")));
    KUBELETS.iter().any(declared)
}

/// Whether any legacy table exists in this network namespace.
pub(super) fn legacy_tables_exist() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|file| {
        // The namespace of this thread: each test has its own.
        let names = std::fs::read_to_string(Path::new("/proc/thread-self/net").join(file));
        names.is_ok_and(|names| !names.trim().is_empty())
    })
}

fn find(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const KUBELET: &str = "*mangle\n:INPUT ACCEPT [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    const CANARY: &str = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
    const DOCKER: &str = "*nat\n-A POSTROUTING -j MASQUERADE\n-A PREROUTING -j DOCKER\nCOMMIT\n";

    #[test]
    fn kubelets_chain_decides_then_the_number_of_rules() {
        for (nft, legacy, expected) in [
            (KUBELET, "", Some(Flavour::Nft)),
            (KUBELET, DOCKER, Some(Flavour::Nft)),
            (KUBELET, KUBELET, Some(Flavour::Nft)),
            ("", KUBELET, Some(Flavour::Legacy)),
            (DOCKER, CANARY, Some(Flavour::Legacy)),
            (DOCKER, "", Some(Flavour::Nft)),
            ("", DOCKER, Some(Flavour::Legacy)),
            ("", "", None),
            (DOCKER, DOCKER, None),
            // A longer name, and a jump without a declaration, do not count.
            (":KUBE-IPTABLES-HINTS - [0:0]\n", DOCKER, Some(Flavour::Legacy)),
            ("-A INPUT -j KUBE-IPTABLES-HINT\n", DOCKER, Some(Flavour::Legacy)),
        ] {
            assert_eq!(choose(nft, legacy).map(|(f, _)| f), expected, "{nft:?} and {legacy:?}");
        }
    }

    /// The flavour of IPv4 for the output of these programs, and the programs that were started. Others fail.
    fn compared(printed: &[(&str, &str)]) -> (Result<Flavour, String>, Vec<String>) {
        let started = RefCell::new(Vec::new());
        let save = |program: &str| {
            started.borrow_mut().push(program.to_owned());
            let text = printed.iter().find(|(name, _)| *name == program).map(|(_, text)| (*text).to_owned());
            text.ok_or_else(|| format!("{program} failed"))
        };
        let found = compare(Family::V4, Flavour::Plain, save).map(|(flavour, _)| flavour);
        (found, started.into_inner())
    }

    const NFT: &str = "iptables-nft-save";
    const LEGACY: &str = "iptables-legacy-save";

    #[test]
    fn the_flavour_is_not_guessed_when_a_program_fails() {
        assert_eq!(compared(&[(LEGACY, DOCKER)]).0, Err("iptables-nft-save failed".to_owned()));
        assert_eq!(compared(&[(NFT, DOCKER)]).0, Err("iptables-legacy-save failed".to_owned()));
        assert_eq!(compared(&[(NFT, ""), (LEGACY, "")]).0, Err("ip6tables-nft-save failed".to_owned()));
    }

    #[test]
    fn the_other_family_is_read_only_if_the_rules_of_the_family_do_not_decide() {
        let (found, started) = compared(&[(NFT, DOCKER), (LEGACY, KUBELET)]);
        assert_eq!((found, started), (Ok(Flavour::Legacy), vec![NFT.to_owned(), LEGACY.to_owned()]));
        assert_eq!(compared(&[(NFT, KUBELET)]).0, Ok(Flavour::Nft), "the first hint is enough");
        let other = |nft, legacy| {
            let v6 = [("ip6tables-nft-save", nft), ("ip6tables-legacy-save", legacy)];
            compared(&[&[(NFT, ""), (LEGACY, "")][..], &v6].concat()).0
        };
        assert_eq!(other("", CANARY), Ok(Flavour::Legacy));
        assert_eq!(other(DOCKER, ""), Ok(Flavour::Nft));
        assert_eq!(other("", ""), Ok(Flavour::Plain));
    }

    #[test]
    fn rules_are_compared_only_if_both_flavours_can_have_some() {
        let installed = |nft, legacy, plain| Installed { nft, legacy, plain };
        let plain_nft = Some(Flavour::Nft);
        for (installed, legacy_tables, expected) in [
            (installed(true, true, None), false, Some(Flavour::Nft)),
            (installed(true, true, None), true, None),
            (installed(true, true, plain_nft), false, Some(Flavour::Plain)),
            (installed(true, true, plain_nft), true, None),
            (installed(true, true, Some(Flavour::Legacy)), false, None),
            (installed(true, false, plain_nft), true, Some(Flavour::Plain)),
            (installed(true, false, None), true, Some(Flavour::Nft)),
            (installed(false, true, None), false, Some(Flavour::Legacy)),
            (installed(false, false, Some(Flavour::Plain)), true, Some(Flavour::Plain)),
            // Nothing is installed: starting the program gives the error.
            (installed(false, false, None), false, Some(Flavour::Plain)),
        ] {
            assert_eq!(
                installed.without_comparison(legacy_tables),
                expected,
                "{installed:?}, {legacy_tables}"
            );
        }
    }

    #[test]
    fn the_plain_program_has_the_flavour_of_its_link_target() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(Installed::in_path(dir.path().as_os_str()).plain, None);
        std::fs::write(at("xtables-legacy-multi"), "").unwrap();
        std::os::unix::fs::symlink("xtables-legacy-multi", at("iptables-legacy-save")).unwrap();
        std::os::unix::fs::symlink("iptables-legacy-save", at("iptables-save")).unwrap();
        let found = Installed::in_path(dir.path().as_os_str());
        assert_eq!((found.nft, found.legacy, found.plain), (false, true, Some(Flavour::Legacy)));
    }

    #[test]
    fn programs_by_flavour_and_family() {
        assert_eq!(Flavour::Plain.program(Family::V6, "save"), "ip6tables-save");
        assert_eq!(Flavour::Nft.program(Family::V4, "restore"), "iptables-nft-restore");
        assert_eq!(Flavour::Legacy.program(Family::V6, "restore"), "ip6tables-legacy-restore");
    }
}
