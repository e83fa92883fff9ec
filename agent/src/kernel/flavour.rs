// SPDX-License-Identifier: Apache-2.0
//! Which iptables the node uses, where both flavours are installed, as in the agent's image: rules that
//! one writes the other does not see, so kubelet, the CNI and the agent must agree.
//!
//! The answer is the flavour in which kubelet keeps its own chains, as for kube-proxy's base image; on a
//! node without them, the one with more rules; and if that does not tell, what the machine calls
//! `iptables`. Tables of the legacy flavour are not looked into where there are none: that would make them.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::core::model::Family;

/// Chains that kubelet makes in the table `mangle` to show which flavour it uses; the second is older.
const KUBELETS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// A flavour of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Whatever the machine calls `iptables-save`.
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

    /// The flavour that this node uses. `save` runs a program and returns what it printed, nothing if it
    /// failed; it is only called where the two must be compared.
    pub fn of_node(save: impl Fn(&str) -> String) -> Flavour {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = Installed::in_path(&path);
        let (flavour, why) = match installed.undisputed(legacy_tables_exist()) {
            Some(flavour) => (flavour, "no rules of another flavour found"),
            None => {
                let rules = |flavour: Flavour| {
                    let programs = [Family::V4, Family::V6].map(|family| flavour.program(family, "save"));
                    programs.map(|program| save(&program)).join("\n")
                };
                choose(&rules(Flavour::Nft), &rules(Flavour::Legacy), installed.default_flavour())
            }
        };
        tracing::info!("using {flavour}: {why}");
        flavour
    }
}

/// Which programs there are.
#[derive(Clone, Copy, Debug)]
struct Installed {
    nft: bool,
    legacy: bool,
    /// What the plain name stands for, as far as that can be told.
    plain: Option<Flavour>,
}

impl Installed {
    fn in_path(path: &OsStr) -> Self {
        let plain = find(path, "iptables-save").map(|program| {
            // A link to a program that does all, whose name tells the flavour.
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

    /// The flavour to use if the rules of both need not be compared.
    fn undisputed(self, legacy_tables: bool) -> Option<Flavour> {
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

/// The flavour, and why, from what the two save programs printed.
pub(super) fn choose(nft: &str, legacy: &str, default: Flavour) -> (Flavour, &'static str) {
    let kubelet = |rules: &str| {
        let declared =
            |chain: &&str| rules.lines().any(|l| l.split(' ').next() == Some(&format!(":{chain}")));
        KUBELETS.iter().any(declared)
    };
    let count = |rules: &str| rules.lines().filter(|line| line.starts_with("-A ")).count();
    match (count(nft), count(legacy)) {
        _ if kubelet(nft) => (Flavour::Nft, "kubelet's hint chain is in this flavour"),
        _ if kubelet(legacy) => (Flavour::Legacy, "kubelet's hint chain is in this flavour"),
        (nft, legacy) if nft > legacy => {
            (Flavour::Nft, "no kubelet hint found; this flavour holds more rules")
        }
        (nft, legacy) if nft < legacy => {
            (Flavour::Legacy, "no kubelet hint found; this flavour holds more rules")
        }
        _ => (default, "no kubelet hint found; both flavours hold as many rules"),
    }
}

/// Whether any legacy table exists in this network namespace.
fn legacy_tables_exist() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|file| {
        // Of this thread: tests have namespaces of their own.
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

    const KUBELET: &str = "*mangle\n:INPUT ACCEPT [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    const CANARY: &str = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
    const DOCKER: &str = "*nat\n-A POSTROUTING -j MASQUERADE\n-A PREROUTING -j DOCKER\nCOMMIT\n";

    #[test]
    fn kubelet_decides_then_the_number_of_rules() {
        for (nft, legacy, expected) in [
            (KUBELET, "", Flavour::Nft),
            (KUBELET, DOCKER, Flavour::Nft),
            (KUBELET, KUBELET, Flavour::Nft),
            ("", KUBELET, Flavour::Legacy),
            (DOCKER, CANARY, Flavour::Legacy),
            (DOCKER, "", Flavour::Nft),
            ("", DOCKER, Flavour::Legacy),
            ("", "", Flavour::Plain),
            (DOCKER, DOCKER, Flavour::Plain),
            // A chain that only begins like kubelet's, or is only jumped to.
            (":KUBE-IPTABLES-HINTS - [0:0]\n", DOCKER, Flavour::Legacy),
            ("-A INPUT -j KUBE-IPTABLES-HINT\n", DOCKER, Flavour::Legacy),
        ] {
            assert_eq!(choose(nft, legacy, Flavour::Plain).0, expected, "{nft:?} and {legacy:?}");
        }
    }

    #[test]
    fn rules_are_compared_only_where_they_can_differ() {
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
            // Then starting it says what is missing.
            (installed(false, false, None), false, Some(Flavour::Plain)),
        ] {
            assert_eq!(installed.undisputed(legacy_tables), expected, "{installed:?}, {legacy_tables}");
        }
    }

    #[test]
    fn links_tell_what_the_plain_name_stands_for() {
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
