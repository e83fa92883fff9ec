// SPDX-License-Identifier: Apache-2.0
//! Files that tell what the node's kernel has and how it is set: modules, sysctls, processes and privileges. For
//! `kube-ipvs doctor`, which only reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// The name of process 2, which only the namespace of the whole node has.
const KERNEL_THREADS: &str = "kthreadd";

/// The files below a root: `/`, or the folder of a test.
#[derive(Clone, Debug)]
pub struct NodeFiles {
    root: PathBuf,
}

/// Whether the kernel has a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleState {
    /// Loaded, or built into the kernel.
    Present,
    /// Installed and not loaded.
    Installed,
    Missing,
    /// It is not loaded, and there is no list of the installed modules.
    Unknown,
}

/// The modules of the kernel; names have underscores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundModules {
    pub present: BTreeSet<String>,
    /// Modules under `/lib/modules`; `None`: the folder of this kernel is not there.
    pub installed: Option<BTreeSet<String>>,
}

impl FoundModules {
    pub fn state(&self, name: &str) -> ModuleState {
        match &self.installed {
            _ if self.present.contains(name) => ModuleState::Present,
            Some(installed) if installed.contains(name) => ModuleState::Installed,
            Some(_) => ModuleState::Missing,
            None => ModuleState::Unknown,
        }
    }

    /// Adds the modules of `/proc/modules`.
    pub(in crate::kernel) fn take_loaded(&mut self, text: &str) {
        let name = |line: &str| line.split(' ').next().filter(|name| !name.is_empty()).map(str::to_owned);
        self.present.extend(text.lines().filter_map(name));
    }
}

/// A sysctl as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysctlState {
    pub value: String,
    /// Whether this process may write it.
    pub is_writable: bool,
}

/// Sysctls by the path of their file, e.g. `/proc/sys/net/ipv4/ip_forward`. One that cannot be read is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundSysctls(pub BTreeMap<String, SysctlState>);

impl FoundSysctls {
    pub fn number(&self, path: &str) -> Option<i64> {
        self.0.get(path)?.value.parse().ok()
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(|state| state.value.as_str())
    }

    pub fn is_writable(&self, path: &str) -> bool {
        self.0.get(path).is_some_and(|state| state.is_writable)
    }
}

/// The programs that run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundProcesses {
    /// Process id and name. Only those of this network namespace, as far as that can be read.
    pub programs: Vec<(u32, String)>,
    /// False in a container that sees only its own processes.
    pub sees_node: bool,
}

impl Default for NodeFiles {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl NodeFiles {
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok()
    }

    /// The modules of the kernel of this release.
    pub fn modules(&self, release: &str) -> FoundModules {
        let mut found = FoundModules::default();
        found.take_loaded(&self.text("proc/modules").unwrap_or_default());
        if let Ok(entries) = fs::read_dir(self.root.join("sys/module")) {
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            found.present.extend(names.map(|name| normal(&name)));
        }
        for folder in ["lib/modules", "usr/lib/modules"] {
            let list = |file: &str| self.text(&format!("{folder}/{release}/{file}"));
            found.present.extend(module_files(&list("modules.builtin").unwrap_or_default()));
            if let Some(installed) = list("modules.dep") {
                found.installed.get_or_insert_default().extend(module_files(&installed));
            }
        }
        found
    }

    /// The sysctls with these paths, as far as they exist.
    pub fn sysctls<'a>(&self, paths: impl IntoIterator<Item = &'a str>) -> FoundSysctls {
        let state = |path: &str| {
            let value = self.text(path)?.trim().to_owned();
            let file = self.root.join(path.trim_start_matches('/'));
            let is_writable = access(&file, AccessFlags::W_OK).is_ok();
            Some((path.to_owned(), SysctlState { value, is_writable }))
        };
        FoundSysctls(paths.into_iter().filter_map(state).collect())
    }

    /// The running programs.
    pub fn processes(&self) -> FoundProcesses {
        let mut found = FoundProcesses::default();
        let namespace = |process: &str| fs::read_link(self.root.join(format!("proc/{process}/ns/net"))).ok();
        let own = namespace("self");
        let entries = fs::read_dir(self.root.join("proc")).into_iter().flatten();
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        for id in ids {
            let Some(name) = self.text(&format!("proc/{id}/comm")) else { continue };
            let name = name.trim().to_owned();
            found.sees_node |= id == 2 && name == KERNEL_THREADS;
            let theirs = namespace(&id.to_string());
            if theirs.is_none() || own.is_none() || theirs == own {
                found.programs.push((id, name));
            }
        }
        found.programs.sort_unstable();
        found
    }

    /// The effective capabilities of this process, a bit each.
    pub fn capabilities(&self) -> Option<u64> {
        let status = self.text("proc/self/status")?;
        parse_capabilities(&status)
    }
}

/// The effective capabilities in `/proc/PID/status`.
pub(in crate::kernel) fn parse_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The modules in `modules.builtin` or `modules.dep`, with a file and what it needs in each line.
pub(in crate::kernel) fn module_files(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter_map(|line| module_name(line.split(':').next()?))
}

/// The module of a file such as `kernel/net/netfilter/ipvs/ip_vs.ko.xz`.
fn module_name(file: &str) -> Option<String> {
    let (name, _) = file.rsplit('/').next()?.split_once(".ko")?;
    Some(normal(name))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, NodeFiles) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let files = NodeFiles::below(root.path());
        (root, files)
    }

    #[test]
    fn modules_are_loaded_built_in_installed_missing_or_unknown() {
        let (_root, files) = node(&[
            ("proc/modules", "ip_vs_rr 16384 2 - Live 0x0\nip_vs 212992 4 ip_vs_rr, Live 0x0\n"),
            ("sys/module/nf_conntrack/parameters/hashsize", "1024"),
            ("lib/modules/6.1/modules.builtin", "kernel/drivers/net/dummy.ko\n"),
            (
                "lib/modules/6.1/modules.dep",
                "kernel/net/netfilter/xt_set.ko.xz: kernel/net/x.ko.xz\nkernel/net/ip-set.ko:\n",
            ),
        ]);
        let found = files.modules("6.1");
        for (name, state) in [
            ("ip_vs", ModuleState::Present),
            ("nf_conntrack", ModuleState::Present),
            ("dummy", ModuleState::Present),
            ("xt_set", ModuleState::Installed),
            ("ip_set", ModuleState::Installed),
            ("ip_vs_mh", ModuleState::Missing),
        ] {
            assert_eq!(found.state(name), state, "{name}");
        }
        assert_eq!(files.modules("6.2").state("ip_vs_mh"), ModuleState::Unknown, "the container has no list");
    }

    #[test]
    fn sysctls_have_a_value_and_may_be_read_only() {
        let (root, files) =
            node(&[("proc/sys/net/ipv4/ip_forward", "1\n"), ("proc/sys/net/ipv4/vs/est_cpulist", "0-3\n")]);
        let paths = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/vs/est_cpulist", "/proc/sys/none"];
        let found = files.sysctls(paths);
        assert_eq!(found.number(paths[0]), Some(1));
        assert_eq!((found.number(paths[1]), found.text(paths[1])), (None, Some("0-3")));
        assert!(found.is_writable(paths[0]) && !found.is_writable(paths[2]) && found.0.len() == 2);
        drop(root);
    }

    #[test]
    fn processes_and_capabilities_are_read() {
        let (_root, files) = node(&[
            ("proc/2/comm", "kthreadd\n"),
            ("proc/77/comm", "kube-proxy\n"),
            ("proc/self/status", "Name:\tdoctor\nCapEff:\t0000000000003000\n"),
            ("proc/uptime", "1 1\n"),
        ]);
        let found = files.processes();
        assert_eq!(found.programs, [(2, "kthreadd".to_owned()), (77, "kube-proxy".to_owned())]);
        assert!(found.sees_node);
        assert_eq!(files.capabilities(), Some(0x3000));
        let (_root, container) = node(&[("proc/1/comm", "kube-ipvs\n")]);
        assert!(!container.processes().sees_node && container.capabilities().is_none());
        assert!(NodeFiles::default().capabilities().is_some());
    }
}
