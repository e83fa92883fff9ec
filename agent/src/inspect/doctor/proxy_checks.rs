// SPDX-License-Identifier: Apache-2.0
//! Programs and rules of other proxies, the programs of iptables, virtual servers of other programs, and ports.

use super::NodeFinding;
use super::facts::{DoctorFacts, Intent};
use crate::core::model::VsKey;
use crate::core::model::map::{Map, Set};
use crate::core::model::settings::RulesMode;
use crate::core::plan::cleanup_plan::Found;
use crate::core::plan::ownership::{is_provably_ours, may_remove};
use crate::core::rules::removal::{Extent, find_removal};
use crate::inspect::owners::ServiceOwners;
use crate::kernel::iptables::iptables_survey::SaveProgram;
use crate::kernel::ipvs::ipvs_survey::IpvsGap;
use crate::words::{count, some};

/// Names of objects in one line.
const NAMED: usize = 5;
/// Programs that program Services, as `/proc/PID/comm` cuts their names.
const KUBE_PROXY: &str = "kube-proxy";
const OTHER_PROXIES: [&str; 2] = ["kube-router", "cilium-agent"];
/// Links of other proxies, and what they mean.
const LINKS: [(&str, &str); 3] = [
    (
        "kube-dummy-if",
        "kube-router's service proxy binds VIPs to it: run kube-router with --run-service-proxy=false",
    ),
    ("kube-bridge", "kube-router connects pods with it: check that it runs with --run-service-proxy=false"),
    ("cilium_host", "Cilium connects pods with it: check that it runs with kubeProxyReplacement=false"),
];
/// Bits of packet marks that Cilium uses for itself (`MARK_MAGIC_*`).
const CILIUM_MARKS: u32 = 0x0f00;

pub(super) fn check(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    let mut findings = rules(intent, facts);
    findings.extend(programs(intent, facts));
    findings.extend(leftovers(intent, facts));
    findings.extend(virtual_servers(intent, facts));
    findings.extend(ports(facts));
    findings
}

/// Whether what sets and rules are made of is usable.
fn rules(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    const CHECK: &str = "rules";
    match intent.rules {
        Some(RulesMode::Nftables) => vec![nftables(facts)],
        Some(RulesMode::Iptables) => iptables(facts),
        None => {
            let found = iptables(facts);
            let works = found.iter().all(|finding| finding.level != super::Level::Error);
            let mode = if works { "iptables" } else { "nftables" };
            let note = format!(
                "kubeIPVS.rules: auto will probably choose {mode}: a start tries it with a temporary set"
            );
            let mut all = vec![NodeFinding::ok(CHECK, note)];
            all.extend(if works { found } else { vec![nftables(facts)] });
            all
        }
    }
}

fn nftables(facts: &DoctorFacts) -> NodeFinding {
    const CHECK: &str = "rules";
    match &facts.nftables {
        Ok(true) => NodeFinding::ok(CHECK, "nf_tables answers"),
        Ok(false) => NodeFinding::error(
            CHECK,
            "the kernel has no nf_tables",
            "rules mode nftables cannot make sets or rules",
            "run `modprobe nf_tables` on the node, or set kubeIPVS.rules: iptables",
        ),
        Err(why) => NodeFinding::warning(
            CHECK,
            "nf_tables could not be checked",
            why,
            "run this command as root in the node's network namespace",
        ),
    }
}

fn iptables(facts: &DoctorFacts) -> Vec<NodeFinding> {
    const CHECK: &str = "rules";
    let survey = &facts.iptables;
    if !survey.is_installed {
        return vec![NodeFinding::error(
            CHECK,
            "no program of iptables is here",
            "rules mode iptables runs iptables-save and iptables-restore",
            "run this command in the agent's image, which has them, or set kubeIPVS.rules: nftables",
        )];
    }
    let mut findings = Vec::new();
    for (family, program) in &survey.programs {
        match program {
            Ok(SaveProgram { name, version })
                if version.contains("nf_tables") && facts.nftables == Ok(false) =>
            {
                findings.push(NodeFinding::error(
                    CHECK,
                    format!("{name} {version} needs nf_tables, which the kernel does not have"),
                    format!("{family} rules cannot be made"),
                    "run `modprobe nf_tables` on the node, or install iptables-legacy",
                ));
            }
            Ok(SaveProgram { name, version }) => {
                findings.push(NodeFinding::ok(CHECK, format!("{family}: {name} {version}")))
            }
            Err(why) => findings.push(NodeFinding::warning(
                CHECK,
                format!("the programs of iptables for {family} could not be checked"),
                why,
                "run this command as root; if it still fails, see the package iptables of the node",
            )),
        }
    }
    for (program, chains) in &survey.other_flavour {
        findings.push(NodeFinding::warning(
            CHECK,
            format!("`{program}` shows {} of Kubernetes, in the flavour that is not in use", count(*chains, "chain")),
            "the agent does not see these rules, and they may match packets before IPVS does",
            format!(
                "run `{program} | grep KUBE-`, and remove the chains when no program uses them; kubelet, CNI and agent \
                 must use one flavour"
            ),
        ));
    }
    findings
}

fn programs(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    const CHECK: &str = "otherProxies";
    let mut findings = Vec::new();
    let running = |name: &str| facts.processes.programs.iter().find(|(_, program)| program == name);
    if let Some((id, name)) = running(KUBE_PROXY).filter(|_| !intent.settings.shares_node) {
        let what = format!("{name} runs on this node (process {id})");
        let remedy = "stop it before the agent starts, and not with --cleanup: see docs/migrate.md. To share the node, \
                      set kubeIPVS.serviceProxyName";
        findings.push(match intent.agent_runs {
            true => NodeFinding::error(
                CHECK,
                what,
                "it and the agent write the same rules and virtual servers",
                remedy,
            ),
            false => NodeFinding::warning(CHECK, what, "two proxies would write the same objects", remedy),
        });
    }
    for (id, name) in OTHER_PROXIES.into_iter().filter_map(running) {
        findings.push(NodeFinding::warning(
            CHECK,
            format!("{name} runs on this node (process {id})"),
            "it may serve Services, too",
            "turn off its service proxy: kube-router --run-service-proxy=false, Cilium kubeProxyReplacement=false",
        ));
    }
    for (link, remedy) in LINKS {
        if facts.links.as_ref().is_ok_and(|links| links.iter().any(|l| l.name == link)) {
            let what = format!("the link {link} exists");
            let why = "it belongs to another program that can serve Services";
            findings.push(NodeFinding::warning(CHECK, what, why, remedy));
        }
    }
    let has_cilium =
        facts.links.as_ref().is_ok_and(|links| links.iter().any(|link| link.name.starts_with("cilium_")));
    let mark = intent.settings.masquerade_mark;
    if has_cilium && mark & CILIUM_MARKS != 0 {
        findings.push(NodeFinding::warning(
            CHECK,
            format!("the packet mark {mark:#x} is one of Cilium's"),
            "Cilium changes the mark of packets that the agent wants to masquerade",
            "set iptables.masqueradeBit: 14",
        ));
    }
    if !facts.processes.sees_node {
        findings.push(NodeFinding::warning(
            CHECK,
            "the processes of the node could not be checked",
            "this process sees only those of its container",
            "run this command on the node itself, or look at `ps -e | grep kube-proxy`",
        ));
    }
    if findings.is_empty() {
        findings.push(NodeFinding::ok(CHECK, "no other proxy runs here"));
    }
    findings
}

/// Rules of kube-proxy's other modes.
fn leftovers(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    const CHECK: &str = "leftovers";
    let (found, unread) = match &facts.found {
        Ok((found, unread)) => (found, unread),
        Err(why) => {
            return vec![NodeFinding::warning(
                CHECK,
                "rules and sets that other proxies left could not be checked",
                why,
                "run this command as root in the node's network namespace",
            )];
        }
    };
    let mut findings: Vec<NodeFinding> = unread
        .iter()
        .map(|unread| {
            let (what, why) = unread.split_once(": ").unwrap_or(("objects", unread));
            let remedy = "run this command as root, in the agent's image";
            NodeFinding::warning(CHECK, format!("{what} could not be checked"), why, remedy)
        })
        .collect();
    if !intent.settings.shares_node {
        findings.extend(other_modes(intent, found));
    }
    if findings.is_empty() {
        findings.push(NodeFinding::ok(CHECK, "no rules of another kube-proxy mode that are in the way"));
    }
    findings
}

fn other_modes<'a>(intent: &'a Intent, found: &'a Found) -> impl Iterator<Item = NodeFinding> + 'a {
    const CHECK: &str = "leftovers";
    let why = match intent.agent_runs {
        true => "the agent removed such rules at its start, so a kube-proxy runs or a removal failed",
        false => {
            "such rules serve Services until a start has programmed all of them; then the agent removes them"
        }
    };
    let remedy = |kept: &[String]| match kept {
        _ if intent.agent_runs => {
            "stop kube-proxy on this node and restart the agent; see docs/migrate.md".to_owned()
        }
        [] => "stop kube-proxy on this node before the agent starts; see docs/migrate.md".to_owned(),
        kept => {
            format!("delete the rules of other programs that use them: {}", some(kept, NAMED, kept.len()))
        }
    };
    let of_iptables = found.rules.iter().filter_map(move |(family, text)| {
        let removal = find_removal(text, Extent::OtherModes);
        let (chains, rules) = removal.count();
        let what = format!(
            "{family} rules of another kube-proxy mode: {}, {}",
            count(chains, "chain"),
            count(rules, "jump")
        );
        let is_there = !removal.is_empty() || !removal.kept.is_empty();
        is_there.then(|| NodeFinding::warning(CHECK, what, why, remedy(&removal.kept)))
    });
    let families = [crate::core::model::Family::V4, crate::core::model::Family::V6];
    let tables = families.into_iter().filter(|family| found.nft_tables[*family].kube_proxy);
    of_iptables.chain(tables.map(move |family| {
        let what = format!("the {family} table kube-proxy of kube-proxy's nftables mode exists");
        NodeFinding::warning(CHECK, what, why, remedy(&[]))
    }))
}

/// The virtual servers that the agent removes, or would remove at its start, although nothing shows that an agent or
/// kube-proxy made them.
fn foreign<'a>(
    servers: &'a [(VsKey, String)],
    intent: &'a Intent,
    found: &'a Found,
    owners: Option<&'a ServiceOwners>,
) -> impl Iterator<Item = &'a VsKey> {
    let bound: Set<_> = found.bound.iter().flatten().map(ipnet::IpNet::addr).collect();
    let is_ours = move |key: &VsKey| match owners {
        Some(owners) => owners.get(&key.to_string()).is_some(),
        None => {
            let routed = found.routes.iter().any(|net| net.contains(&key.addr));
            let proves = |sets: &Map<_, _>| is_provably_ours(key, &bound, sets);
            routed || proves(&found.sets) || proves(&found.nft_sets)
        }
    };
    servers
        .iter()
        .map(|(key, _)| key)
        .filter(|key| may_remove(key, &intent.settings))
        .filter(move |key| !is_ours(key))
}

fn virtual_servers(intent: &Intent, facts: &DoctorFacts) -> Option<NodeFinding> {
    const CHECK: &str = "virtualServers";
    let survey = match &facts.ipvs {
        Ok(survey) => survey,
        // The check `ipvs` tells it.
        Err(IpvsGap::Missing | IpvsGap::Unread(_)) => return None,
    };
    let unread = |why: &str| {
        Some(NodeFinding::warning(
            CHECK,
            "virtual servers of other programs could not be checked",
            why,
            "run this command as root in the node's network namespace",
        ))
    };
    let found = match &facts.found {
        Ok((found, _)) => found,
        Err(why) => return unread(why),
    };
    if intent.agent_runs && facts.owners.is_none() {
        return unread("the agent does not tell its virtual servers");
    }
    let foreign: Vec<&VsKey> = foreign(&survey.servers, intent, found, facts.owners.as_ref()).collect();
    if foreign.is_empty() {
        return Some(NodeFinding::ok(CHECK, "no virtual server of another program is in the way"));
    }
    let networks: std::collections::BTreeSet<String> =
        foreign.iter().map(|key| ipnet::IpNet::from(key.addr).to_string()).collect();
    Some(NodeFinding::error(
        CHECK,
        format!(
            "the agent removes {} that no Service made: {}",
            count(foreign.len(), "virtual server"),
            some(&foreign, NAMED, foreign.len())
        ),
        "it removes each virtual server without a Service, as kube-proxy does, and its program loses its traffic",
        format!(
            "if another program needs them, add to ipvs.excludeCIDRs: {}; else remove them with `ipvsadm -D`",
            some(&networks, NAMED, networks.len())
        ),
    ))
}

fn ports(facts: &DoctorFacts) -> Vec<NodeFinding> {
    const CHECK: &str = "ports";
    if facts.ports.is_empty() {
        return vec![NodeFinding::ok(CHECK, "the addresses for health and metrics are usable")];
    }
    let has_kube_proxy = facts.processes.programs.iter().any(|(_, name)| name == KUBE_PROXY);
    let of = |problem: &String| {
        let why = "without the port probes of kubelet and load balancers fail, or metrics are missing";
        let remedy =
            "stop the program that listens (`ss -ltnp`), or set healthzBindAddress or metricsBindAddress";
        match has_kube_proxy {
            true => NodeFinding::warning(
                CHECK,
                problem.as_str(),
                why,
                "stop kube-proxy, which probably has the port",
            ),
            false => NodeFinding::error(CHECK, problem.as_str(), why, remedy),
        }
    };
    facts.ports.iter().map(of).collect()
}

#[cfg(test)]
#[path = "proxy_checks_tests.rs"]
mod tests;
