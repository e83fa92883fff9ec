// SPDX-License-Identifier: Apache-2.0
//! Addresses and networks: VIPs that the node has on a link, and ranges that overlap.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::NodeFinding;
use super::facts::{ApiFacts, DoctorFacts, Intent};
use crate::core::model::sets::{Entry, SetKind};
use crate::core::model::settings::LocalTraffic;
use crate::core::model::{Family, PerFamily};
use crate::core::plan::ownership::DEVICE;
use crate::kernel::host::links::NodeLink;
use crate::words::some;

/// Names of objects in one line.
const NAMED: usize = 5;

pub(super) fn check(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    let links = match &facts.links {
        Ok(links) => links,
        Err(why) => {
            return vec![NodeFinding::warning(
                "networks",
                "the addresses of this node could not be checked",
                why,
                "run this command in the node's network namespace, and look at `ip address`",
            )];
        }
    };
    let mut findings = vec![local_vips(facts, links)];
    findings.extend(overlaps(&networks(intent, facts, links)));
    findings
}

/// Whether the cluster has IPv6, as far as the configuration and the node tell.
pub(super) fn uses_v6(intent: &Intent, facts: &DoctorFacts) -> bool {
    let is_v6 = |net: &IpNet| Family::of(net.addr()) == Family::V6;
    pod_networks(intent).iter().any(is_v6)
        || service_networks(intent, facts).iter().any(is_v6)
        || facts.ipvs.as_ref().is_ok_and(|s| s.servers.iter().any(|(key, _)| key.family() == Family::V6))
}

fn pod_networks(intent: &Intent) -> Vec<IpNet> {
    let LocalTraffic::Cidrs(cidrs) = &intent.settings.local else { return Vec::new() };
    let of = |cidrs: &PerFamily<Option<IpNet>>| Family::ALL.into_iter().filter_map(|f| cidrs[f]).collect();
    of(cidrs)
}

fn service_networks(intent: &Intent, facts: &DoctorFacts) -> Vec<IpNet> {
    match &facts.api {
        _ if !intent.settings.routed.is_empty() => intent.settings.routed.clone(),
        ApiFacts::Answered(survey) => survey.service_cidrs.clone(),
        _ => Vec::new(),
    }
}

/// VIPs that are addresses of the node, too.
fn local_vips(facts: &DoctorFacts, links: &[NodeLink]) -> NodeFinding {
    const CHECK: &str = "localVIPs";
    let found = match &facts.found {
        Ok((found, _)) => found,
        Err(why) => {
            return NodeFinding::warning(
                CHECK,
                "VIPs that are addresses of this node could not be checked",
                why,
                "run this command as root in the node's network namespace",
            );
        }
    };
    let mut vips: BTreeSet<IpAddr> = found.bound.iter().flatten().map(IpNet::addr).collect();
    for (id, set) in found.sets.iter().chain(&found.nft_sets) {
        if SetKind::VIPS.contains(&id.kind) {
            let address = |entry: Entry| match entry {
                Entry::IpPort(addr, ..) => Some(addr),
                _ => None,
            };
            vips.extend(set.members.iter().filter_map(address));
        }
    }
    let at = |link: &NodeLink| {
        let on = link.addresses.iter().map(IpNet::addr).filter(|addr| vips.contains(addr));
        on.map(|addr| format!("{addr} on {}", link.name)).collect::<Vec<_>>()
    };
    let local: Vec<String> = links.iter().filter(|link| link.name != DEVICE).flat_map(at).collect();
    if local.is_empty() {
        return NodeFinding::ok(CHECK, "no VIP is an address of a link of this node");
    }
    NodeFinding::warning(
        CHECK,
        format!("VIPs are addresses of this node: {}", some(&local, NAMED, local.len())),
        "Services take their ports on this node; a program of the node that listens at such a port gets no connections",
        "give the Service another external or load-balancer IP, or move the program to another port; `kube-ipvs explain \
         VIP:PORT` names the Service",
    )
}

/// A network and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamedNetwork {
    net: IpNet,
    name: String,
    role: NetworkRole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NetworkRole {
    Pods,
    Services,
    Protected,
    /// A network card is in it.
    Node,
}

fn networks(intent: &Intent, facts: &DoctorFacts, links: &[NodeLink]) -> Vec<NamedNetwork> {
    let named = |net: IpNet, name: &str, role| NamedNetwork { net, name: format!("{name} {net}"), role };
    let pods = pod_networks(intent).into_iter().map(|net| named(net, "clusterCIDR", NetworkRole::Pods));
    let services = service_networks(intent, facts).into_iter();
    let services = services.map(|net| named(net, "the ServiceCIDR", NetworkRole::Services));
    let protected = intent.settings.protected.iter();
    let protected = protected.map(|net| named(*net, "kubeIPVS.protectedCIDRs", NetworkRole::Protected));
    // Other links are those of pods and overlays, which are inside of the other networks.
    let cards = links.iter().filter(|link| link.is_physical);
    let of_card = |link: &NodeLink| {
        let nets = link.addresses.iter().map(IpNet::trunc).filter(|net| !is_link_local(net.addr()));
        nets.map(|net| named(net, &format!("the network of {}", link.name), NetworkRole::Node))
            .collect::<Vec<_>>()
    };
    pods.chain(services).chain(protected).chain(cards.flat_map(of_card)).collect()
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

fn overlaps(networks: &[NamedNetwork]) -> Vec<NodeFinding> {
    use NetworkRole::{Node, Pods, Protected, Services};
    const CHECK: &str = "networks";
    let mut findings = Vec::new();
    for (i, one) in networks.iter().enumerate() {
        for other in networks.iter().skip(i + 1).filter(|other| overlap(&one.net, &other.net)) {
            let what = format!("{} and {} overlap", one.name, other.name);
            let finding = match (one.role, other.role) {
                (Pods, Services) => NodeFinding::error(
                    CHECK,
                    what,
                    "a ClusterIP may be the address of a pod, which the nodes can then not reach",
                    "create the cluster with another --service-cluster-ip-range, or set clusterCIDR to the range of pods",
                ),
                (Services, Node) => NodeFinding::error(
                    CHECK,
                    what,
                    "a ClusterIP may be the address of a host next to this node, which the node can then not reach",
                    "use another range of ClusterIPs (kube-apiserver --service-cluster-ip-range), or another network for \
                     the nodes",
                ),
                (Services, Protected) => NodeFinding::warning(
                    CHECK,
                    what,
                    "ClusterIPs are bound even if they are in kubeIPVS.protectedCIDRs",
                    "take the range of ClusterIPs out of kubeIPVS.protectedCIDRs",
                ),
                (Pods, Node) => NodeFinding::warning(
                    CHECK,
                    what,
                    "traffic of other hosts in that network counts as traffic of pods and is not masqueraded",
                    "set clusterCIDR to the range of pods alone, or detectLocalMode: NodeCIDR; where pods get their \
                     addresses from the network of the nodes, nothing has to be done",
                ),
                _ => continue,
            };
            findings.push(finding);
        }
    }
    if findings.is_empty() {
        let names = networks.iter().map(|network| &network.name);
        let what = match networks.len() {
            0 => "no ranges of pods, Services or cards are known that could overlap".to_owned(),
            count => format!("no overlap of {}", some(names, NAMED, count)),
        };
        findings.push(NodeFinding::ok(CHECK, what));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::{Level, sample};
    use super::*;
    use crate::core::mirror::ObservedSet;
    use crate::core::model::Protocol;
    use crate::core::model::sets::SetId;

    fn found(config: &str, facts: &DoctorFacts) -> Vec<(Level, String)> {
        let intent = sample::intent(config);
        let found = check(&intent, facts);
        found.into_iter().filter(|f| f.check == "networks").map(|f| (f.level, f.what)).collect()
    }

    #[test]
    fn networks_overlap() {
        let facts = sample::facts();
        assert_eq!(found("clusterCIDR: 10.244.0.0/16", &facts)[0].0, Level::Ok);
        let pods = found("clusterCIDR: 10.64.0.0/10", &facts);
        let what = "clusterCIDR 10.64.0.0/10 and the ServiceCIDR 10.96.0.0/12 overlap".to_owned();
        assert_eq!(pods, [(Level::Error, what)]);
        let node = found("kubeIPVS: {clusterIPs: route, serviceCIDRs: [192.0.2.0/25]}", &facts);
        assert_eq!(node[0].0, Level::Error, "{node:?}");
        let protected = found("kubeIPVS: {protectedCIDRs: [10.96.0.0/24]}", &facts);
        assert_eq!(protected[0].0, Level::Warning);
        let flat = found("clusterCIDR: 192.0.2.0/23", &facts);
        assert_eq!(flat[0].0, Level::Warning, "{flat:?}");
        let unread = DoctorFacts { links: Err("not permitted".to_owned()), ..sample::facts() };
        assert_eq!(found("", &unread)[0].0, Level::Warning);
    }

    #[test]
    fn vips_on_links_of_the_node_are_a_warning() {
        let mut facts = sample::facts();
        let links = facts.links.clone().unwrap();
        assert_eq!(local_vips(&facts, &links).level, Level::Ok);
        let id = SetId { kind: SetKind::LoadBalancer, family: Family::V4 };
        let mut set = ObservedSet::fresh(id);
        set.members.extend([Entry::IpPort("192.0.2.7".parse().unwrap(), Protocol::Tcp, 80)]);
        facts.found.as_mut().unwrap().0.sets.insert(id, set);
        let found = local_vips(&facts, &links);
        assert_eq!(
            (found.level, &*found.what),
            (Level::Warning, "VIPs are addresses of this node: 192.0.2.7 on eth0")
        );
        facts.found = Err("not permitted".to_owned());
        assert!(local_vips(&facts, &links).what.contains("could not be checked"));
    }
}
