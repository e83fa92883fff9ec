// SPDX-License-Identifier: Apache-2.0
//! Sysctls: those that the agent sets, and those that decide whether packets of Services arrive.

use super::NodeFinding;
use super::facts::{DoctorFacts, Intent};
use super::ipvs_checks::{
    CONN_LFACTOR, EST_CPULIST, EST_NICE, ESTABLISHED, FIN_WAIT, KEEPALIVE, RUN_ESTIMATION, UDP_STREAM,
};
use super::network_checks::uses_v6;
use crate::core::model::Family;
use crate::core::model::settings::{LocalTraffic, Sysctl};
use crate::kernel::host::links::NodeLink;

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARD_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const BRIDGED: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
const BRIDGED_V6: &str = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";
const REVERSE_PATH: &str = "/proc/sys/net/ipv4/conf/all/rp_filter";
/// Bridges of CNI plugins that connect pods.
const POD_BRIDGES: [&str; 4] = ["cni0", "cbr0", "kube-bridge", "weave"];

/// The files that the checks need, besides those of [`Intent::settings`].
pub fn paths() -> impl Iterator<Item = &'static str> {
    let of_ipvs =
        [KEEPALIVE, ESTABLISHED, FIN_WAIT, UDP_STREAM, RUN_ESTIMATION, EST_CPULIST, EST_NICE, CONN_LFACTOR];
    of_ipvs.into_iter().chain([FORWARD, FORWARD_V6, BRIDGED, BRIDGED_V6, REVERSE_PATH])
}

/// `net.ipv4.ip_forward` for its file.
pub(super) fn dotted(path: &str) -> String {
    path.strip_prefix("/proc/sys/").map_or_else(|| path.to_owned(), |name| name.replace('/', "."))
}

pub(super) fn check(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    let mut findings = of_agent(intent, facts);
    findings.push(forwarding(intent, facts));
    findings.extend(bridged(intent, facts));
    findings.push(reverse_path(facts));
    findings
}

fn command(sysctl: &Sysctl) -> String {
    match sysctl.path.starts_with("/proc/sys/") {
        true => format!("sysctl -w {}={}", dotted(sysctl.path), sysctl.value),
        false => format!("echo {} > {}", sysctl.value, sysctl.path),
    }
}

/// Whether a start may set it. Without root this process cannot tell.
fn may_be_set(path: &str, facts: &DoctorFacts) -> bool {
    facts.sysctls.is_writable(path) || !facts.is_root
}

/// The sysctls that the agent or its init container sets.
fn of_agent(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    const CHECK: &str = "sysctls";
    let wanted = &intent.settings.sysctls;
    let is_met = |sysctl: &Sysctl| sysctl.is_met(facts.sysctls.number(sysctl.path));
    let unmet = || wanted.iter().filter(|sysctl| !is_met(sysctl));
    let known = |sysctl: &&Sysctl| facts.sysctls.text(sysctl.path).is_some();
    let described = |sysctl: &&Sysctl| {
        let now = facts.sysctls.text(sysctl.path).unwrap_or_default();
        format!("{} is {now} instead of {}", dotted(sysctl.path), sysctl.value)
    };
    let mut findings = Vec::new();
    // A start sets the others, or its init container, which has more privileges.
    let stays = |sysctl: &&Sysctl| intent.agent_runs || !may_be_set(sysctl.path, facts);
    let wrong: Vec<&Sysctl> = unmet().filter(known).filter(stays).collect();
    if !wrong.is_empty() {
        let why = match intent.agent_runs {
            true => "another program changed it, or the agent may not write it",
            false => "/proc/sys is read-only for this process, and the agent cannot set it either",
        };
        let commands: Vec<String> = wrong.iter().map(|sysctl| command(sysctl)).collect();
        findings.push(NodeFinding::warning(
            CHECK,
            wrong.iter().map(described).collect::<Vec<_>>().join(", "),
            why,
            format!("run `{}` on the node, or the init container of the manifests", commands.join(" && ")),
        ));
    }
    let unread: Vec<String> =
        unmet().filter(|sysctl| !known(sysctl)).map(|sysctl| dotted(sysctl.path)).collect();
    // The module brings its sysctls.
    if !unread.is_empty() && (intent.agent_runs || facts.ipvs.is_ok()) {
        findings.push(NodeFinding::warning(
            CHECK,
            format!("could not be checked: {}", unread.join(", ")),
            "there are no such files in this network namespace",
            "run `modprobe -a ip_vs nf_conntrack`, and this command in the node's network namespace",
        ));
    } else if !unread.is_empty() {
        findings.push(NodeFinding::warning(
            CHECK,
            format!("could not be checked: {}", unread.join(", ")),
            "they exist only once the modules ip_vs and nf_conntrack are loaded",
            "run `modprobe -a ip_vs nf_conntrack` and this command again",
        ));
    }
    if findings.is_empty() {
        let later = unmet().count();
        let what = match later {
            0 => format!("all {} have the values that the agent needs", wanted.len()),
            later => format!("{later} of {} have another value: a start sets them", wanted.len()),
        };
        findings.push(NodeFinding::ok(CHECK, what));
    }
    findings
}

fn forwarding(intent: &Intent, facts: &DoctorFacts) -> NodeFinding {
    const CHECK: &str = "forwarding";
    let number = |path| facts.sysctls.number(path);
    let Some(forward) = number(FORWARD) else {
        return NodeFinding::warning(
            CHECK,
            format!("{} could not be checked", dotted(FORWARD)),
            "the file cannot be read",
            "run `sysctl net.ipv4.ip_forward` on the node: it must be 1",
        );
    };
    let off = |path: &str| format!("{} is 0", dotted(path));
    let remedy = |path: &str| {
        let name = dotted(path);
        format!("run `sysctl -w {name}=1`, and write `{name} = 1` to /etc/sysctl.d/90-kube-ipvs.conf")
    };
    if forward == 0 && (intent.agent_runs || !may_be_set(FORWARD, facts)) {
        let why = "the node drops what pods and other hosts send to pods";
        return NodeFinding::error(CHECK, off(FORWARD), why, remedy(FORWARD));
    }
    let has_v6 = intent.settings.families.contains(&Family::V6) && uses_v6(intent, facts);
    if has_v6 && number(FORWARD_V6) == Some(0) {
        let why = "the node drops IPv6 packets to pods. The agent does not set it: with forwarding, Linux ignores router \
                   advertisements unless accept_ra is 2";
        return NodeFinding::error(CHECK, off(FORWARD_V6), why, remedy(FORWARD_V6));
    }
    NodeFinding::ok(CHECK, if has_v6 { "on, for IPv4 and IPv6" } else { "on, or set at the start" })
}

fn pod_bridges<'a>(intent: &'a Intent, links: &'a [NodeLink]) -> impl Iterator<Item = &'a str> {
    let configured =
        move |name: &str| matches!(&intent.settings.local, LocalTraffic::Interface(bridge) if bridge == name);
    let names = links.iter().filter(|link| link.is_bridge).map(|link| link.name.as_str());
    names.filter(move |name| POD_BRIDGES.contains(name) || configured(name))
}

/// Packets from pod to pod over a bridge pass IPVS only as the kernel's bridge gives them to netfilter.
fn bridged(intent: &Intent, facts: &DoctorFacts) -> Option<NodeFinding> {
    const CHECK: &str = "bridge";
    let bridge = pod_bridges(intent, facts.links.as_deref().ok()?).next()?;
    let off = [(BRIDGED, true), (BRIDGED_V6, uses_v6(intent, facts))]
        .into_iter()
        .find(|(path, matters)| *matters && facts.sysctls.number(path) == Some(0));
    Some(match off {
        Some((path, _)) => NodeFinding::error(
            CHECK,
            format!("{} is 0, and pods are on the bridge {bridge}", dotted(path)),
            "answers of a pod to a client on the same bridge bypass IPVS, and the client drops them",
            format!(
                "run `sysctl -w {0}=1`, and write `{0} = 1` to /etc/sysctl.d/90-kube-ipvs.conf",
                dotted(path)
            ),
        ),
        None if facts.sysctls.text(BRIDGED).is_none() => NodeFinding::warning(
            CHECK,
            format!("pods are on the bridge {bridge}, and the module br_netfilter is not loaded"),
            "answers of a pod to a client on the same bridge may bypass IPVS",
            "run `modprobe br_netfilter` and list it in /etc/modules-load.d/kube-ipvs.conf",
        ),
        None => NodeFinding::ok(CHECK, format!("packets on the bridge {bridge} pass netfilter")),
    })
}

fn reverse_path(facts: &DoctorFacts) -> NodeFinding {
    const CHECK: &str = "reversePath";
    let filter = facts.sysctls.number(REVERSE_PATH);
    let cards = facts.links.as_ref().map(|links| {
        let has_v4 = |link: &&NodeLink| link.addresses.iter().any(|net| net.addr().is_ipv4());
        let cards = links.iter().filter(|link| link.is_physical).filter(has_v4);
        cards.map(|link| link.name.as_str()).collect::<Vec<_>>()
    });
    match (filter, cards) {
        (None, _) => NodeFinding::warning(
            CHECK,
            format!("{} could not be checked", dotted(REVERSE_PATH)),
            "the file cannot be read",
            "run `sysctl net.ipv4.conf.all.rp_filter`: 1 drops packets that arrive on another link than answers leave",
        ),
        (Some(1), Ok(cards)) if cards.len() > 1 => NodeFinding::warning(
            CHECK,
            format!("{} is 1 on a node with {}", dotted(REVERSE_PATH), cards.join(" and ")),
            "the kernel drops packets to Services that arrive on another link than the answers leave by",
            format!(
                "run `sysctl -w {}=2` if clients reach the node over more than one link",
                dotted(REVERSE_PATH)
            ),
        ),
        (Some(filter), _) => NodeFinding::ok(CHECK, format!("{} is {filter}", dotted(REVERSE_PATH))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Level, sample};
    use super::*;

    const VS_CONNTRACK: &str = "/proc/sys/net/ipv4/vs/conntrack";

    #[test]
    fn sysctls_that_a_start_sets_are_fine_and_read_only_ones_are_warnings() {
        let (mut intent, mut facts) = (sample::intent("ipvs: {strictARP: true}"), sample::facts());
        let found = |intent: &Intent, facts: &DoctorFacts| of_agent(intent, facts).remove(0);
        sample::meet(&mut facts, &intent);
        assert!(found(&intent, &facts).what.starts_with("all "));
        sample::set(&mut facts, VS_CONNTRACK, "0");
        sample::set(&mut facts, "/proc/sys/net/ipv4/conf/all/arp_ignore", "0");
        assert!(found(&intent, &facts).what.starts_with("2 of "), "{:?}", found(&intent, &facts));
        intent.agent_runs = true;
        let wrong = found(&intent, &facts);
        assert_eq!(
            wrong.what,
            "net.ipv4.vs.conntrack is 0 instead of 1, net.ipv4.conf.all.arp_ignore is 0 instead of 1"
        );
        intent.agent_runs = false;
        facts.sysctls.0.get_mut(VS_CONNTRACK).unwrap().is_writable = false;
        let read_only = found(&intent, &facts);
        assert_eq!(read_only.what, "net.ipv4.vs.conntrack is 0 instead of 1");
        assert!(read_only.remedy.unwrap().starts_with("run `sysctl -w net.ipv4.vs.conntrack=1`"));
        let other = DoctorFacts { is_root: false, ..facts.clone() };
        assert!(found(&intent, &other).what.starts_with("2 of "), "not root: unknown");
        facts.sysctls.0.remove(VS_CONNTRACK);
        assert!(found(&intent, &facts).what.starts_with("could not be checked: net.ipv4.vs.conntrack"));
    }

    #[test]
    fn a_node_that_does_not_forward_is_an_error() {
        let (intent, mut facts) = (sample::intent(""), sample::facts());
        assert_eq!(forwarding(&intent, &facts).level, Level::Ok);
        sample::set(&mut facts, FORWARD_V6, "0");
        assert_eq!(forwarding(&intent, &facts).level, Level::Ok, "the cluster has no IPv6");
        let v6 = sample::intent("clusterCIDR: 10.244.0.0/16,fd00:244::/56");
        assert_eq!(forwarding(&v6, &facts).level, Level::Error);
        sample::set(&mut facts, FORWARD, "0");
        assert_eq!(forwarding(&intent, &facts).level, Level::Ok, "a start sets it");
        facts.sysctls.0.get_mut(FORWARD).unwrap().is_writable = false;
        assert_eq!(forwarding(&intent, &facts).level, Level::Error);
        facts.sysctls.0.remove(FORWARD);
        assert_eq!(forwarding(&intent, &facts).level, Level::Warning);
    }

    #[test]
    fn a_bridge_with_pods_needs_netfilter() {
        let (intent, mut facts) = (sample::intent(""), sample::facts());
        assert_eq!(bridged(&intent, &facts), None);
        let bridge = |name: &str| NodeLink { name: name.to_owned(), is_bridge: true, ..NodeLink::default() };
        facts.links = Ok(vec![bridge("docker0"), bridge("cni0")]);
        assert_eq!(bridged(&intent, &facts).unwrap().level, Level::Warning);
        sample::set(&mut facts, BRIDGED, "0");
        assert_eq!(bridged(&intent, &facts).unwrap().level, Level::Error);
        sample::set(&mut facts, BRIDGED, "1");
        assert_eq!(bridged(&intent, &facts).unwrap().level, Level::Ok);
    }

    #[test]
    fn a_strict_reverse_path_matters_with_several_cards() {
        let mut facts = sample::facts();
        assert_eq!(reverse_path(&facts).level, Level::Ok);
        let card = |name: &str, net: &str| NodeLink {
            name: name.to_owned(),
            is_physical: true,
            addresses: vec![net.parse().unwrap()],
            ..NodeLink::default()
        };
        sample::set(&mut facts, REVERSE_PATH, "1");
        assert_eq!(reverse_path(&facts).level, Level::Ok, "one card");
        facts.links = Ok(vec![card("eth0", "192.0.2.7/24"), card("eth1", "198.51.100.7/24")]);
        let found = reverse_path(&facts);
        assert_eq!(found.what, "net.ipv4.conf.all.rp_filter is 1 on a node with eth0 and eth1");
        facts.sysctls.0.remove(REVERSE_PATH);
        assert_eq!(reverse_path(&facts).level, Level::Warning);
    }
}
