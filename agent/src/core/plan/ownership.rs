// SPDX-License-Identifier: Apache-2.0
//! Ownership: how an agent without stored state recognises its own kernel objects.
//!
//! | object | ours when |
//! |---|---|
//! | address | it is on `kube-ipvs0` (IPv6 link-local is the kernel's own) |
//! | set | its name is one of [`SetId::all`](crate::core::model::sets::SetId::all) |
//! | chain, jump | its name is one of [`CHAINS`](crate::core::rules::chains::CHAINS), a jump also by its comment |
//! | virtual server | it is in this network namespace, has an address, and that is not in `excludeCIDRs` |
//! | real server | its virtual server is wanted; weight 0 means that it drains |
//! | rules of other kube-proxy modes | chains by name, jumps by comment, the nftables table `kube-proxy`; see [`removal`](crate::core::rules::removal) |
//! | sysctl | never: the agent sets sysctls and does not restore them |

use std::net::IpAddr;

use crate::core::mirror::{Observed, ObservedSet};
use crate::core::model::map::{Map, Set};
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::settings::Settings;
use crate::core::model::{Family, Protocol, VsKey};

/// The device that holds the VIPs.
pub const DEVICE: &str = "kube-ipvs0";

/// Whether an unwanted virtual server may be removed. Services by fwmark have no address and are never observed.
pub fn may_remove(vs: &VsKey, settings: &Settings) -> bool {
    settings.families.contains(&vs.family())
        && !settings.exclude_cidrs.iter().any(|net| net.contains(&vs.addr))
}

/// Whether the state of the node proves that an agent or kube-proxy made the virtual server: its address is on
/// `kube-ipvs0`, or one of our sets has its address and port, or its port as a node port.
pub fn is_provably_ours(vs: &VsKey, bound: &Set<IpAddr>, sets: &Map<SetId, ObservedSet>) -> bool {
    let has = |kind: SetKind, entry: Entry| {
        sets.get(&SetId { kind, family: vs.family() }).is_some_and(|set| set.members.contains(&entry))
    };
    let address = Entry::IpPort(vs.addr, vs.protocol, vs.port);
    let node_port = if vs.protocol == Protocol::Sctp { address } else { Entry::Port(vs.port) };
    bound.contains(&vs.addr)
        || has(SetKind::of_node_ports(vs.protocol).0, node_port)
        || SetKind::VIPS.into_iter().any(|kind| has(kind, address))
}

/// Whether the address may be a ClusterIP, through which pods and the agent may reach the API server. Our sets say
/// so. Without sets any address of a virtual server may be one.
pub fn may_be_cluster_ip(observed: &Observed, addr: IpAddr) -> bool {
    let has = |kind: SetKind| {
        let id = SetId { kind, family: Family::of(addr) };
        let sets = observed.sets.get(&id).into_iter().chain(observed.node.other_sets.get(&id));
        let is_at = |entry: Entry| matches!(entry, Entry::IpPort(ip, ..) if ip == addr);
        sets.flat_map(|set| set.members.iter()).any(is_at)
    };
    let is_served = || observed.virtual_servers.keys().any(|key| key.addr == addr);
    has(SetKind::ClusterIp) || (!SetKind::VIPS.into_iter().any(has) && is_served())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_excluded_networks_and_disabled_families_are_kept() {
        let vs = |addr: &str| VsKey { protocol: Protocol::Tcp, addr: addr.parse().unwrap(), port: 80 };
        let settings = Settings {
            families: vec![Family::V4],
            exclude_cidrs: vec!["9.9.9.0/24".parse().unwrap()],
            ..Settings::default()
        };
        assert!(may_remove(&vs("9.9.8.8"), &settings));
        assert!(!may_remove(&vs("9.9.9.9"), &settings));
        assert!(!may_remove(&vs("fd00::1"), &settings));
    }
}
