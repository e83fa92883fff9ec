// SPDX-License-Identifier: Apache-2.0
//! The difference between wanted and observed state, as ordered ops.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::desired::{Changes, Desired};
use super::fragment::VirtualServer;
use super::model::{Family, Settings, VsKey};
use super::observed::{Observed, ObservedServer, RsState};
use super::op::{Op, Plan, RulesOp};
use super::ownership;
use super::rules::build_chains;
use super::sets::{Entry, SetId};

/// What a plan looks at.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Everything wanted and everything observed: an audit.
    All,
    /// These keys only.
    Changes(&'a Changes),
}

/// Builds the plan that turns `observed` into `desired` within `scope`. Device, sets, rules and
/// sysctls are few and looked at every time.
pub fn build_plan(desired: &Desired, observed: &Observed, settings: &Settings, scope: Scope<'_>) -> Plan {
    let all;
    let keys = match scope {
        Scope::Changes(changes) => changes,
        Scope::All => {
            all = all_keys(desired, observed);
            &all
        }
    };
    let mut ops = Vec::new();
    diff_sysctls(observed, settings, &mut ops);
    if !observed.device {
        ops.push(Op::CreateDevice);
    }
    diff_sets(desired, observed, settings, &keys.entries, &mut ops);
    diff_rules(desired, observed, settings, &mut ops);
    for key in &keys.virtual_servers {
        let wanted = desired.virtual_server(key).map(|vs| &**vs);
        diff_server(key, wanted, observed.virtual_servers.get(key), settings, &mut ops);
    }
    diff_addresses(desired, observed, settings, keys, matches!(scope, Scope::All), &mut ops);
    Plan::new(ops)
}

fn all_keys(desired: &Desired, observed: &Observed) -> Changes {
    let observed_entries =
        observed.sets.iter().flat_map(|(id, set)| set.members.iter().map(move |entry| (*id, *entry)));
    Changes {
        virtual_servers: desired
            .virtual_servers()
            .map(|vs| vs.key)
            .chain(observed.virtual_servers.keys().copied())
            .collect(),
        addresses: desired.addresses().chain(observed.addresses.iter().map(IpNet::addr)).collect(),
        entries: desired.entries().copied().chain(observed_entries).collect(),
    }
}

fn diff_sysctls(observed: &Observed, settings: &Settings, ops: &mut Vec<Op>) {
    for sysctl in &settings.sysctls {
        if observed.sysctls.get(sysctl.path) != Some(&sysctl.value) {
            ops.push(Op::SetSysctl(sysctl.clone()));
        }
    }
}

fn diff_sets(
    desired: &Desired,
    observed: &Observed,
    settings: &Settings,
    keys: &BTreeSet<(SetId, Entry)>,
    ops: &mut Vec<Op>,
) {
    for id in settings.families.iter().flat_map(|family| SetId::all(*family)) {
        if observed.sets.get(&id).is_none_or(|set| set.misfit) {
            ops.push(Op::CreateSet(id));
        }
    }
    for key @ (set, entry) in keys {
        if !settings.families.contains(&set.family) {
            continue;
        }
        match (desired.wants_entry(key), observed.has_entry(*set, entry)) {
            (true, false) => ops.push(Op::AddEntry(*set, *entry)),
            (false, true) => ops.push(Op::RemoveEntry(*set, *entry)),
            _ => {}
        }
    }
}

/// Rules over sets that empty in this plan stay until the tidy phase, so that traffic which is
/// just being closed keeps its masquerading. One write is enough unless rules both come and go.
fn diff_rules(desired: &Desired, observed: &Observed, settings: &Settings, ops: &mut Vec<Op>) {
    for &family in &settings.families {
        let has = &observed.rules[family.index()];
        let missing_jumps = has.missing_jumps();
        let wanted = build_chains(family, settings, &|kind| desired.has_members(kind, family));
        if has.chains == wanted && missing_jumps.is_empty() {
            continue;
        }
        let meanwhile = build_chains(family, settings, &|kind| {
            desired.has_members(kind, family) || observed.has_members(kind, family)
        });
        let write = |chains, missing_jumps, tidy| {
            Op::WriteRules(Box::new(RulesOp { family, chains, missing_jumps, tidy }))
        };
        let guarded = has.chains == meanwhile && missing_jumps.is_empty();
        if meanwhile != wanted {
            ops.push(write(wanted, Vec::new(), true));
        }
        if !guarded {
            ops.push(write(meanwhile, missing_jumps, false));
        }
    }
}

fn diff_server(
    key: &VsKey,
    wanted: Option<&VirtualServer>,
    observed: Option<&ObservedServer>,
    settings: &Settings,
    ops: &mut Vec<Op>,
) {
    let Some(wanted) = wanted else {
        if observed.is_some() && ownership::may_remove(key, settings) {
            ops.push(Op::RemoveVirtualServer(*key));
        }
        return;
    };
    match observed {
        None => ops.push(Op::AddVirtualServer(*key, wanted.spec.clone())),
        Some(server) if server.spec != wanted.spec => {
            ops.push(Op::EditVirtualServer(*key, wanted.spec.clone()));
        }
        Some(_) => {}
    }
    for rs in &wanted.real_servers {
        match observed.and_then(|server| server.real_servers.get(rs)) {
            None => ops.push(Op::AddRealServer(*key, *rs)),
            Some(state) if *state != RsState::WANTED => ops.push(Op::EditRealServer(*key, *rs)),
            Some(_) => {}
        }
    }
    for rs in observed.iter().flat_map(|server| server.real_servers.keys()) {
        if wanted.real_servers.binary_search(rs).is_err() {
            ops.push(Op::RemoveRealServer(*key, *rs));
        }
    }
}

fn diff_addresses(
    desired: &Desired,
    observed: &Observed,
    settings: &Settings,
    keys: &Changes,
    all: bool,
    ops: &mut Vec<Op>,
) {
    let mine = |addr: IpAddr| settings.families.contains(&Family::of(addr));
    for addr in keys.addresses.iter().copied().filter(|addr| mine(*addr)) {
        let host = IpNet::from(addr);
        match (desired.wants_address(addr), observed.addresses.contains(&host)) {
            (true, false) => ops.push(Op::Bind(addr)),
            (false, true) => ops.push(Op::Unbind(host)),
            _ => {}
        }
    }
    if all {
        // Somebody's address with a wider prefix would make the whole prefix look local.
        let is_host = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let mut foreign: Vec<&IpNet> =
            observed.addresses.iter().filter(|net| !is_host(net) && mine(net.addr())).collect();
        foreign.sort();
        ops.extend(foreign.into_iter().map(|net| Op::Unbind(*net)));
    }
}
