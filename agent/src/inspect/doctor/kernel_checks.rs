// SPDX-License-Identifier: Apache-2.0
//! The kernel, its modules, and the privileges of this process.

use super::NodeFinding;
use super::facts::{DoctorFacts, Intent};
use crate::config::host::parse_version;
use crate::core::model::settings::RulesMode;
use crate::kernel::host::node_files::ModuleState;

/// The oldest kernel with tests.
const TESTED: (u32, u32) = (5, 10);
/// Since this version the kernel loads `ip_vs` and others when they are first used.
const LOADS_ON_DEMAND: (u32, u32) = (5, 16);
/// Without one of these nothing works.
const ALWAYS: [&str; 3] = ["ip_vs", "dummy", "nf_conntrack"];
/// Rules mode `iptables`.
const OF_IPTABLES: [&str; 11] = [
    "ip_set",
    "ip_set_hash_ip",
    "ip_set_hash_ipport",
    "ip_set_hash_ipportip",
    "ip_set_hash_ipportnet",
    "ip_set_bitmap_port",
    "xt_set",
    "xt_comment",
    "xt_mark",
    "xt_addrtype",
    "xt_conntrack",
];
/// Rules mode `nftables`.
const OF_NFTABLES: [&str; 2] = ["nf_tables", "nft_ct"];
const MODULES: &str = "modules";
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

pub(super) fn check(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    let mut findings = vec![kernel(facts)];
    findings.extend(modules(intent, facts));
    findings.push(privileges(intent, facts));
    findings
}

fn version(facts: &DoctorFacts) -> Option<(u32, u32)> {
    facts.release.as_deref().ok().and_then(parse_version)
}

fn kernel(facts: &DoctorFacts) -> NodeFinding {
    const CHECK: &str = "kernel";
    let unreadable = |why: &str| {
        NodeFinding::warning(
            CHECK,
            "the version of the kernel could not be checked",
            why,
            "look at `uname -r`: kube-ipvs is tested on Linux 5.10 to 7.2",
        )
    };
    match (&facts.release, version(facts)) {
        (Err(why), _) => unreadable(why),
        (Ok(release), None) => unreadable(&format!("{release:?} is no version of Linux")),
        (Ok(release), Some(version)) if version < TESTED => NodeFinding::warning(
            CHECK,
            format!("Linux {release} is older than the kernels that kube-ipvs is tested on"),
            "the tests run on Linux 5.10 to 7.2",
            "use Linux 5.10 or later, or try this kernel on one node first",
        ),
        (Ok(release), Some(_)) => NodeFinding::ok(CHECK, format!("Linux {release}")),
    }
}

/// The modules that an agent needs, and those without which it does less.
fn wanted(intent: &Intent) -> (Vec<&'static str>, Vec<&'static str>) {
    let of_mode: &[&'static str] = match intent.rules {
        Some(RulesMode::Iptables) => &OF_IPTABLES,
        Some(RulesMode::Nftables) => &OF_NFTABLES,
        None => &[],
    };
    let mut useful = vec!["nf_conntrack_netlink"];
    useful.extend((intent.rules == Some(RulesMode::Iptables)).then_some("xt_ipvs"));
    (ALWAYS.into_iter().chain(of_mode.iter().copied()).collect(), useful)
}

/// Those of the modules that are in this state. An answer over netlink proves more than a file.
fn those(names: &[&'static str], state: ModuleState, facts: &DoctorFacts) -> Vec<&'static str> {
    let works = |name: &&str| {
        (*name == "ip_vs" && facts.ipvs.is_ok()) || (*name == "nf_tables" && facts.nftables == Ok(true))
    };
    let is_in = |name: &&str| facts.modules.state(name) == state && !works(name);
    names.iter().copied().filter(is_in).collect()
}

fn modules(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    let (needed, useful) = wanted(intent);
    let all = [&needed[..], &useful].concat();
    let mut findings = missing(intent, facts, &needed, &useful);
    let idle = those(&all, ModuleState::Installed, facts);
    if !idle.is_empty() && version(facts).is_some_and(|version| version < LOADS_ON_DEMAND) {
        let modules = idle.join(" ");
        findings.push(NodeFinding::warning(
            MODULES,
            format!("installed, but not loaded: {}", idle.join(", ")),
            "before Linux 5.16 the kernel does not load all of them when they are first used",
            format!(
                "run `modprobe -a {modules}` and list them in /etc/modules-load.d/kube-ipvs.conf, or run the init \
                 container `kube-ipvs --init-only` of the manifests"
            ),
        ));
    }
    let unknown = those(&all, ModuleState::Unknown, facts);
    if !unknown.is_empty() {
        let release = facts.release.as_deref().unwrap_or("RELEASE");
        findings.push(NodeFinding::warning(
            MODULES,
            format!("could not be checked: {}", unknown.join(", ")),
            format!("they are not loaded, and /lib/modules/{release} is not here"),
            "run this command on the node itself, or mount /lib/modules into the container",
        ));
    }
    if findings.is_empty() {
        findings.push(NodeFinding::ok(MODULES, format!("all {} modules are there", all.len())));
    }
    findings
}

fn missing(
    intent: &Intent,
    facts: &DoctorFacts,
    needed: &[&'static str],
    useful: &[&'static str],
) -> Vec<NodeFinding> {
    let release = facts.release.as_deref().unwrap_or("of unknown version");
    let absent = |names: &[&str]| format!("Linux {release} has no module {}", names.join(", "));
    let install = |names: &[&str]| {
        format!(
            "install the package with the modules of this kernel (kernel-modules-extra, linux-modules-extra-{release}) \
             and run `modprobe -a {}`, or use a kernel that has them",
            names.join(" ")
        )
    };
    let mut findings = Vec::new();
    let missing = those(needed, ModuleState::Missing, facts);
    if !missing.is_empty() {
        let other = match intent.rules {
            Some(RulesMode::Iptables) if missing.iter().all(|name| OF_IPTABLES.contains(name)) => {
                "; or set kubeIPVS.rules: nftables, which does not need them"
            }
            _ => "",
        };
        let why = "the agent cannot program virtual servers, addresses, sets or rules without it";
        findings.push(NodeFinding::error(MODULES, absent(&missing), why, install(&missing) + other));
    }
    let missing = those(useful, ModuleState::Missing, facts);
    if !missing.is_empty() {
        let why = "without xt_ipvs source ranges of load balancers do not apply to connections of this node itself; \
                   without nf_conntrack_netlink stale UDP flows stay";
        findings.push(NodeFinding::warning(MODULES, absent(&missing), why, install(&missing)));
    }
    findings
}

fn privileges(intent: &Intent, facts: &DoctorFacts) -> NodeFinding {
    const CHECK: &str = "privileges";
    let Some(capabilities) = facts.capabilities else {
        return NodeFinding::warning(
            CHECK,
            "the capabilities of this process could not be checked",
            "/proc/self/status has no line CapEff",
            "look at `grep CapEff /proc/self/status`: the agent needs CAP_NET_ADMIN",
        );
    };
    let lacks = |bit: u32| capabilities & (1 << bit) == 0;
    if lacks(CAP_NET_ADMIN) {
        let what = "this process lacks CAP_NET_ADMIN";
        let why = "IPVS, sets and rules cannot be read or programmed without it";
        return match facts.is_root {
            true => {
                let remedy = "give this container the capability NET_ADMIN, outside of a user namespace";
                NodeFinding::error(CHECK, what, why, remedy)
            }
            // The agent may have it.
            false => NodeFinding::warning(CHECK, what, why, "run this command as root"),
        };
    }
    if lacks(CAP_NET_RAW) && intent.rules != Some(RulesMode::Nftables) {
        let (what, why) = ("this process lacks CAP_NET_RAW", "iptables looks up ipsets through a raw socket");
        let remedy = "give the agent's container the capability NET_RAW, or set kubeIPVS.rules: nftables";
        return match intent.rules {
            Some(RulesMode::Iptables) => NodeFinding::error(CHECK, what, why, remedy),
            _ => NodeFinding::warning(CHECK, what, format!("{why}: the rules mode will be nftables"), remedy),
        };
    }
    NodeFinding::ok(CHECK, "this process has the capabilities that an agent needs")
}

#[cfg(test)]
mod tests {
    use super::super::{Level, sample};
    use super::*;
    use crate::kernel::host::node_files::FoundModules;

    fn remedy(finding: &NodeFinding) -> &str {
        finding.remedy.as_deref().unwrap()
    }

    #[test]
    fn old_and_unknown_kernels_are_warnings() {
        let mut facts = sample::facts();
        assert_eq!(kernel(&facts), NodeFinding::ok("kernel", "Linux 6.1.0-56-amd64"));
        facts.release = Ok("4.18.0-80.el8".to_owned());
        assert_eq!(kernel(&facts).level, Level::Warning);
        facts.release = Ok("plan9".to_owned());
        assert!(kernel(&facts).why.unwrap().contains("plan9"));
    }

    #[test]
    fn a_missing_module_is_an_error_and_names_the_way_out() {
        let (intent, mut facts) = (sample::intent(""), sample::facts());
        assert_eq!(modules(&intent, &facts)[0].level, Level::Ok);
        facts.modules.present.remove("xt_set");
        let [found] = &modules(&intent, &facts)[..] else { panic!() };
        assert_eq!((found.level, &*found.what), (Level::Error, "Linux 6.1.0-56-amd64 has no module xt_set"));
        assert!(remedy(found).contains("modprobe -a xt_set") && remedy(found).contains("rules: nftables"));
        assert_eq!(modules(&sample::intent("kubeIPVS: {rules: nftables}"), &facts)[0].level, Level::Ok);
        facts.modules.present.remove("dummy");
        let [found] = &modules(&intent, &facts)[..] else { panic!() };
        assert!(!remedy(found).contains("rules: nftables"), "{found:?}");
        let mut facts = sample::facts();
        facts.modules.present.remove("xt_ipvs");
        assert_eq!(modules(&intent, &facts)[0].level, Level::Warning);
    }

    #[test]
    fn modules_that_an_old_kernel_does_not_load_are_a_warning() {
        let (intent, mut facts) = (sample::intent(""), sample::facts());
        facts.modules.present.remove("dummy");
        facts.modules.installed.get_or_insert_default().insert("dummy".to_owned());
        assert_eq!(modules(&intent, &facts)[0].level, Level::Ok);
        facts.release = Ok("5.10.0".to_owned());
        let [found] = &modules(&intent, &facts)[..] else { panic!() };
        assert_eq!((found.level, &*found.what), (Level::Warning, "installed, but not loaded: dummy"));
    }

    #[test]
    fn modules_of_a_container_without_their_folder_are_unknown() {
        let (intent, mut facts) = (sample::intent("kubeIPVS: {rules: nftables}"), sample::facts());
        facts.modules = FoundModules::default();
        let [found] = &modules(&intent, &facts)[..] else { panic!() };
        assert_eq!(found.level, Level::Warning);
        // IPVS and nf_tables have answered.
        assert_eq!(found.what, "could not be checked: dummy, nf_conntrack, nft_ct, nf_conntrack_netlink");
    }

    #[test]
    fn the_capabilities_depend_on_the_rules_mode() {
        let modes = ["kubeIPVS: {rules: iptables}", "kubeIPVS: {rules: nftables}", "kubeIPVS: {rules: auto}"];
        let levels = |capabilities| {
            let facts = DoctorFacts { capabilities, ..sample::facts() };
            modes.map(|mode| privileges(&sample::intent(mode), &facts).level)
        };
        assert_eq!(levels(Some(0x3000)), [Level::Ok; 3]);
        assert_eq!(levels(Some(0x1000)), [Level::Error, Level::Ok, Level::Warning]);
        assert_eq!(levels(Some(0x2000)), [Level::Error; 3]);
        assert_eq!(levels(None), [Level::Warning; 3]);
        let facts = DoctorFacts { capabilities: Some(0), is_root: false, ..sample::facts() };
        assert_eq!(privileges(&sample::intent(""), &facts).level, Level::Warning);
    }
}
