// SPDX-License-Identifier: Apache-2.0
//! The kernel state that the agent manages as text, for a bug report: one file for each kind.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::core::loop_state::LoopState;
use crate::core::mirror::Observed;
use crate::core::model::Family;
use crate::core::model::sets::Entry;

/// Names and contents of the files. Lists are sorted.
pub fn files(state: &LoopState<'_>) -> Vec<(String, String)> {
    let Some(observed) = state.observed else { return Vec::new() };
    let mut files = vec![
        ("kernel/addresses.txt".to_owned(), addresses(observed)),
        ("kernel/virtual-servers.txt".to_owned(), servers(observed)),
        ("kernel/sets.txt".to_owned(), sets(observed)),
        ("kernel/node.txt".to_owned(), node(observed)),
    ];
    for family in Family::ALL {
        files.push((format!("kernel/rules-{family}.txt"), rules(observed, family)));
    }
    files
}

fn sorted_lines<T: Ord + ToString>(things: impl Iterator<Item = T>) -> String {
    let mut things: Vec<T> = things.collect();
    things.sort_unstable();
    things.iter().fold(String::new(), |text, thing| text + &thing.to_string() + "\n")
}

fn addresses(observed: &Observed) -> String {
    let device = if observed.device { "kube-ipvs0 exists" } else { "kube-ipvs0 does not exist" };
    let own = sorted_lines(observed.addresses.iter().copied());
    let others = sorted_lines(observed.node_addresses.iter().copied());
    format!("{device}; its addresses:\n{own}\naddresses of other interfaces:\n{others}")
}

fn servers(observed: &Observed) -> String {
    let servers: BTreeMap<_, _> = observed.virtual_servers.iter().collect();
    let mut text = String::new();
    for (key, server) in servers {
        let spec = &server.spec;
        let _ = writeln!(text, "{key} {} flags {:#x} timeout {}", spec.scheduler, spec.flags, spec.timeout);
        for (rs, state) in server.real_servers.iter() {
            let _ = writeln!(text, "  {rs} weight {} forward {:#x}", state.weight, state.forward);
        }
    }
    text
}

fn sets(observed: &Observed) -> String {
    let sets: BTreeMap<_, _> = observed.sets.iter().collect();
    let mut text = String::new();
    for (id, set) in sets {
        let misfit = if set.misfit { ", of another type" } else { "" };
        let _ = writeln!(text, "{id}: {} members, room for {}{misfit}", set.members.len(), set.capacity);
        let mut members: Vec<Entry> = set.members.iter().collect();
        members.sort_unstable();
        members.iter().for_each(|member| _ = writeln!(text, "  {member}"));
    }
    text
}

fn node(observed: &Observed) -> String {
    let node = &observed.node;
    let timeouts = node.timeouts;
    let mut text =
        format!("IPVS timeouts: tcp {} tcpfin {} udp {}\n", timeouts.tcp, timeouts.tcp_fin, timeouts.udp);
    let _ = writeln!(text, "local routes: {:?}", node.routes);
    let _ = writeln!(text, "next hops: {:?}", node.next_hops);
    let _ = writeln!(text, "routers of DHCP leases: {:?}", node.lease_routers);
    let _ = writeln!(text, "DNS and DHCP servers: {:?}", node.name_servers);
    for family in Family::ALL {
        let _ = writeln!(text, "{family} tables of other modes: {:?}", node.nft_tables[family].names());
    }
    for (path, value) in &node.sysctls {
        let _ = writeln!(text, "{path} = {value}");
    }
    text
}

fn rules(observed: &Observed, family: Family) -> String {
    if observed.unread_rules[family] {
        return "the rules could not be read\n".to_owned();
    }
    let rules = &observed.rules[family];
    let mut text = String::new();
    for ((table, chain), rules) in &rules.chains {
        let _ = writeln!(text, "{} {chain}", table.name());
        rules.iter().for_each(|rule| _ = writeln!(text, "  {rule}"));
    }
    let (chains, others) = rules.leftovers.count();
    let _ = writeln!(text, "of other modes of kube-proxy: {chains} chains, {others} rules");
    text
}
