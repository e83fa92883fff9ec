// SPDX-License-Identifier: Apache-2.0
//! Plans: the difference between the wanted state and the mirror, as ordered ops.

pub mod cleanup_plan;
pub mod drain;
pub mod failures;
pub mod history;
pub mod op;
pub mod outcome;
pub mod ownership;
pub mod pass;
#[cfg(test)]
mod plan_tests;
pub mod preview;
mod record;
pub mod retries;
pub mod services_of;
pub mod subject;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use ipnet::IpNet;

use self::op::{FlowsOp, GrowOp, LeftoversOp, Op, Plan, RulesOp};
use crate::core::mirror::comparison::NftTables;
use crate::core::mirror::{Observed, ObservedServer};
use crate::core::model::changes::Changes;
use crate::core::model::options;
use crate::core::model::real_servers::RsState;
use crate::core::model::sets::{Entry, SetId, SetKind};
use crate::core::model::settings::{RulesMode, Settings};
use crate::core::model::{Family, ObjectName, PerFamily, RsKey, VsKey};
use crate::core::rules::chains::Table;
use crate::core::rules::removal::{dispatches, target};
use crate::core::rules::{Chains, OUT_FILTER, RulesInput, build_chains, nftables, references};
use crate::core::service::desired::Desired;
use crate::core::service::fragment::VirtualServer;

/// The inputs of a plan.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    pub desired: &'a Desired,
    pub observed: &'a Observed,
    pub settings: &'a Settings,
    /// Real servers whose drain deadline is over.
    pub expired: &'a BTreeSet<(VsKey, RsKey)>,
    /// True while rules of another kube-proxy mode must be kept because ours are not all in place.
    pub takeover_pending: bool,
    /// Addresses behind a route that may be bound now; others wait, see [`Settings::binds_routed`].
    pub later: &'a BTreeSet<IpAddr>,
    /// Sets of another type that cannot be destroyed. Our rules that match them go: they cannot work, and may be what holds
    /// the set.
    pub stuck: &'a BTreeSet<SetId>,
    /// Inputs of the installed rules of each family. `None`: unknown, compare the rules in full.
    pub installed: &'a PerFamily<Option<RulesBasis>>,
}

/// Inputs of the rules of one family, besides the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesBasis {
    /// Sets that have wanted members, a bit each.
    wanted: u32,
    /// Sets that have members in the kernel.
    observed: u32,
    closed_to_node: Vec<VsKey>,
    wanted_routes: BTreeSet<IpNet>,
    observed_routes: BTreeSet<IpNet>,
    /// Only rules of nf_tables have these.
    node_addresses: Vec<IpAddr>,
    source_prefixes: BTreeSet<u8>,
}

impl RulesBasis {
    pub fn build(family: Family, desired: &Desired, observed: &Observed, mode: RulesMode) -> Self {
        // Otherwise each address of a pod's link would have the rules of iptables compared.
        let (node_addresses, source_prefixes) = match mode {
            RulesMode::Iptables => Default::default(),
            RulesMode::Nftables => (observed.node_addresses.clone(), desired.source_prefixes(family)),
        };
        let bits = |holds: &dyn Fn(SetKind) -> bool| {
            let sets = SetId::all(family).zip(0..);
            sets.filter(|(set, _)| holds(set.kind)).fold(0, |bits, (_, n)| bits | 1 << n)
        };
        Self {
            wanted: bits(&|kind| desired.has_members(kind, family)),
            observed: bits(&|kind| observed.has_members(kind, family)),
            closed_to_node: desired.closed_to_node(family),
            wanted_routes: desired.routes.clone(),
            observed_routes: observed.node.routes.clone(),
            node_addresses,
            source_prefixes,
        }
    }
}

/// Builds the plan that brings the objects of `keys` from the observed to the wanted state and deletes the stale
/// flows of the Services `flows`. Device, sets, rules, routes, timeouts and sysctls are few, so every plan compares them.
pub fn build_plan(input: PlanInput<'_>, keys: &Changes, flows: &BTreeSet<ObjectName>) -> Plan {
    let mut ops = Vec::new();
    let routes = input.routes(keys);
    input.diff_node(&mut ops);
    input.diff_sets(&keys.entries, &mut ops);
    for &family in input.settings.families.iter().filter(|family| input.must_compare_rules(**family)) {
        input.diff_rules(family, &routes, &mut ops);
        input.diff_leftovers(family, &mut ops);
    }
    for key in &keys.virtual_servers {
        let wanted = input.desired.virtual_server(key).map(|vs| &**vs);
        input.diff_server(key, wanted, input.observed.virtual_servers.get(key), &mut ops);
    }
    input.diff_addresses(keys, &mut ops);
    input.diff_routes(&routes, &mut ops);
    for filter in input.desired.stale_flows(flows) {
        ops.push(Op::ForgetFlows(Box::new(FlowsOp { services: flows.clone(), filter })));
    }
    Plan::new(ops, &input.desired.priority_keys())
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// The keys of a full comparison: every virtual server that is wanted or exists, and each address and entry that is
/// either missing or not wanted.
pub fn all_keys(desired: &Desired, observed: &Observed) -> Changes {
    let wanted_servers = desired.virtual_servers().map(|vs| vs.key);
    let other_servers = observed.virtual_servers.keys().filter(|key| desired.virtual_server(key).is_none());
    let missing = desired.addresses().filter(|addr| !observed.addresses.contains(&IpNet::from(*addr)));
    let other_addresses = observed.addresses.iter().map(IpNet::addr).filter(|a| !desired.wants_address(*a));
    let missing_entries = desired.entries().filter(|(set, entry)| !observed.has_entry(*set, entry));
    let entries = observed.sets.iter().flat_map(|(id, set)| set.members.iter().map(move |e| (*id, e)));
    Changes {
        virtual_servers: wanted_servers.chain(other_servers.copied()).collect(),
        addresses: missing.chain(other_addresses).collect(),
        networks: observed.addresses.iter().filter(|net| !is_host(net)).copied().collect(),
        entries: missing_entries.chain(entries.filter(|entry| !desired.wants_entry(entry))).collect(),
        ..Changes::default()
    }
}

/// Members of this set drop all traffic that other sets do not allow. So they are added after the members of those
/// sets and removed before them.
fn restricts(kind: SetKind) -> bool {
    kind == SetKind::LoadBalancerFw
}

impl PlanInput<'_> {
    /// Whether the rules of a family may differ from the wanted rules. Rules that were not read are not compared.
    fn must_compare_rules(&self, family: Family) -> bool {
        let installed = self.installed[family].as_ref();
        !self.observed.unread_rules[family]
            && installed.is_none_or(|basis| {
                *basis != RulesBasis::build(family, self.desired, self.observed, self.settings.rules)
            })
    }

    fn diff_node(&self, ops: &mut Vec<Op>) {
        for sysctl in &self.settings.sysctls {
            if !sysctl.is_met(self.observed.node.sysctls.get(sysctl.path).copied()) {
                ops.push(Op::SetSysctl(sysctl.clone()));
            }
        }
        if !self.settings.timeouts.is_met(&self.observed.node.timeouts) {
            ops.push(Op::SetTimeouts(self.settings.timeouts));
        }
        if !self.observed.device {
            ops.push(Op::CreateDevice);
        }
    }

    fn diff_sets(&self, keys: &BTreeSet<(SetId, Entry)>, ops: &mut Vec<Op>) {
        let mut grown = BTreeSet::new();
        // Sets of nf_tables grow by themselves.
        let has_limit = self.settings.rules == RulesMode::Iptables;
        for id in self.settings.families.iter().flat_map(|family| SetId::all(*family)) {
            let observed = self.observed.sets.get(&id);
            if observed.is_some_and(|set| set.misfit) {
                ops.push(Op::DestroySet(id));
            }
            let capacity = match observed.filter(|set| !set.misfit) {
                Some(set) => set.capacity,
                None => {
                    ops.push(Op::CreateSet(id));
                    id.kind.set_type().capacity()
                }
            };
            if has_limit && self.desired.members(id) > capacity {
                grown.insert(id);
                ops.push(Op::GrowSet(Box::new(self.grow(id))));
            }
        }
        let is_managed = |set: &SetId| self.settings.families.contains(&set.family) && !grown.contains(set);
        for late in [false, true] {
            for key @ (set, entry) in keys.iter().filter(|(set, _)| is_managed(set)) {
                let (wanted, exists) = (self.desired.wants_entry(key), self.observed.has_entry(*set, entry));
                if wanted && !exists && restricts(set.kind) == late {
                    ops.push(Op::AddEntry(*set, *entry));
                } else if !wanted && exists && restricts(set.kind) != late {
                    ops.push(Op::RemoveEntry(*set, *entry));
                }
            }
        }
    }

    fn grow(&self, set: SetId) -> GrowOp {
        let mut entries: Vec<Entry> =
            self.desired.entries().filter(|(id, _)| *id == set).map(|(_, entry)| entry).collect();
        entries.sort_unstable();
        let room = self.desired.members(set).saturating_mul(2).checked_next_power_of_two();
        GrowOp { set, capacity: room.unwrap_or(u32::MAX), entries }
    }

    /// Rules that match sets which become empty stay until the tidy phase: traffic to addresses that are still bound
    /// keeps its masquerading and its filter. A plan needs two writes only if it both adds and removes rules.
    fn diff_rules(&self, family: Family, routes: &BTreeSet<IpNet>, ops: &mut Vec<Op>) {
        let has = &self.observed.rules[family];
        let by_iptables = self.settings.rules == RulesMode::Iptables;
        let jumps = if by_iptables { has.broken_jumps() } else { Vec::new() };
        let closed = self.desired.closed_to_node(family);
        let prefixes = self.desired.source_prefixes(family);
        let build = |has: &dyn Fn(SetKind) -> bool, routes: &BTreeSet<IpNet>| {
            let node_addresses = &self.observed.node_addresses;
            let input = RulesInput { has, closed: &closed, routes, node_addresses, prefixes: &prefixes };
            let mut chains = build_chains(family, self.settings, &input);
            for set in self.stuck.iter().filter(|set| set.family == family) {
                chains.values_mut().for_each(|rules| rules.retain(|rule| !references(rule, *set)));
            }
            chains
        };
        let is_wanted = |kind: SetKind| self.desired.has_members(kind, family);
        let is_own = |net: &&IpNet| Family::of(net.addr()) == family;
        let routes: BTreeSet<IpNet> = routes.iter().filter(is_own).copied().collect();
        let wanted = build(&is_wanted, &routes);
        if has.chains == wanted && jumps.is_empty() {
            return;
        }
        let either = |kind: SetKind| is_wanted(kind) || self.observed.has_members(kind, family);
        let existing = self.observed.node.routes.iter().filter(is_own).copied();
        let mut meanwhile = build(&either, &existing.chain(routes).collect());
        let takes_over = if by_iptables {
            keep_closed(&has.chains, &mut meanwhile);
            keep_dispatch(&has.chains, &mut meanwhile) && self.takeover_pending
        } else {
            nftables::keep_protected(&has.chains, &mut meanwhile);
            let others = !has.leftovers.is_empty() || self.observed.node.nft_tables[family].kube_proxy;
            let takes_over = others && self.takeover_pending;
            if takes_over {
                nftables::keep_dispatch(&mut meanwhile);
            }
            takes_over
        };
        let write = |chains, jumps, tidy| {
            let is_takeover = takes_over && tidy;
            Op::WriteRules(Box::new(RulesOp { family, chains, jumps, tidy, is_takeover }))
        };
        let guarded = has.chains == meanwhile && jumps.is_empty();
        if meanwhile != wanted {
            ops.push(write(wanted, Vec::new(), true));
        }
        if !guarded {
            ops.push(write(meanwhile, jumps, false));
        }
    }

    /// Rules of other kube-proxy modes are removed last, when everything of ours is in place.
    fn diff_leftovers(&self, family: Family, ops: &mut Vec<Op>) {
        let removal = self.observed.rules[family].leftovers.clone();
        let nft_tables = self.observed.node.nft_tables[family];
        let of_family = self.observed.node.other_sets.keys().filter(|set| set.family == family);
        // Those of nf_tables go with their table.
        let are_ipsets = self.settings.rules == RulesMode::Nftables;
        let sets: BTreeSet<SetId> = of_family.filter(|_| are_ipsets).copied().collect();
        if !removal.is_empty() || !sets.is_empty() || nft_tables != NftTables::default() {
            let is_takeover = self.takeover_pending;
            let leftovers = LeftoversOp { family, removal, sets, nft_tables, is_takeover };
            ops.push(Op::RemoveLeftovers(Box::new(leftovers)));
        }
    }

    fn diff_server(
        &self,
        key: &VsKey,
        wanted: Option<&VirtualServer>,
        observed: Option<&ObservedServer>,
        ops: &mut Vec<Op>,
    ) {
        let Some(wanted) = wanted else {
            if observed.is_some() && ownership::may_remove(key, self.settings) {
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
        for (rs, state) in self.in_order(wanted) {
            match observed.and_then(|server| server.real_servers.get(&rs)) {
                None => ops.push(Op::AddRealServer(*key, rs, state)),
                Some(before) if before != state => ops.push(Op::EditRealServer(*key, rs, state)),
                Some(_) => {}
            }
        }
        for (rs, state) in observed.iter().flat_map(|server| server.real_servers.iter()) {
            if !wanted.real_servers.contains(&rs) {
                ops.extend(self.close_real_server(*key, rs, state));
            }
        }
    }

    /// The order in which real servers are added. Schedulers that hash depend on it: nodes that start alike choose the same for a client.
    fn in_order<'s>(&self, server: &'s VirtualServer) -> impl Iterator<Item = (RsKey, RsState)> + use<'s> {
        let wanted = &server.real_servers;
        let seed = self.settings.order_seed.filter(|_| !options::chooses_by_hash(&server.spec.scheduler));
        let order = seed.map(|seed| {
            let mut order: Vec<usize> = (0..wanted.keys().len()).collect();
            order.sort_by_cached_key(|index| {
                let mut hasher = DefaultHasher::new();
                (seed, &wanted.keys()[*index]).hash(&mut hasher);
                hasher.finish()
            });
            order
        });
        let at = move |place| {
            let index = order.as_ref().map_or(place, |order| order[place]);
            (wanted.keys()[index], wanted.state(index))
        };
        (0..wanted.keys().len()).map(at)
    }

    /// A real server first gets weight 0. It is removed when a later read of its counters shows no connections, or
    /// after the deadline: a removal at once could break a connection that began after the last read.
    fn close_real_server(&self, vs: VsKey, rs: RsKey, state: RsState) -> Option<Op> {
        if !drain::is_drained(vs.protocol) || self.expired.contains(&(vs, rs)) {
            return Some(Op::RemoveRealServer(vs, rs));
        }
        if state.weight != 0 {
            return Some(Op::DrainRealServer(vs, rs));
        }
        let busy = self.observed.busy.contains(&(vs, rs));
        (!busy).then_some(Op::RemoveRealServer(vs, rs))
    }

    fn diff_routes(&self, routes: &BTreeSet<IpNet>, ops: &mut Vec<Op>) {
        let existing = &self.observed.node.routes;
        ops.extend(routes.difference(existing).map(|net| Op::AddRoute(*net)));
        ops.extend(existing.difference(routes).map(|net| Op::RemoveRoute(*net)));
    }

    /// Whether the address is bound later: a route serves it.
    fn waits(&self, addr: IpAddr) -> bool {
        self.settings.binds_routed
            && !self.later.contains(&addr)
            && self.desired.routes.iter().any(|net| net.contains(&addr))
    }

    /// The routes after the plan. A route that is no longer wanted stays while a ClusterIP in its network is not bound.
    fn routes(&self, keys: &Changes) -> BTreeSet<IpNet> {
        let is_unbound = |addr: &IpAddr| {
            !self.observed.addresses.contains(&IpNet::from(*addr)) && !keys.addresses.contains(addr)
        };
        let is_needed = |net: &&IpNet| {
            let mut inside = self.desired.addresses().filter(|addr| net.contains(addr));
            !self.settings.manages(net.addr()) || inside.any(|addr| is_unbound(&addr))
        };
        let unwanted = self.observed.node.routes.difference(&self.desired.routes);
        unwanted.filter(is_needed).chain(&self.desired.routes).copied().collect()
    }

    fn diff_addresses(&self, keys: &Changes, ops: &mut Vec<Op>) {
        let (desired, observed) = (self.desired, self.observed);
        // An address with a wider prefix would make the whole prefix local.
        let exists = |net: &&IpNet| observed.addresses.contains(*net) && self.settings.manages(net.addr());
        let foreign: Vec<&IpNet> = keys.networks.iter().filter(exists).collect();
        for addr in keys.addresses.iter().copied().filter(|addr| self.settings.manages(*addr)) {
            let host = IpNet::from(addr);
            // The kernel has an IPv6 address only once, whatever its prefix. This sync removes the one with
            // the wider prefix, and the next sync adds ours.
            if addr.is_ipv6() && foreign.iter().any(|net| net.addr() == addr) {
                continue;
            }
            match (desired.wants_address(addr), observed.addresses.contains(&host)) {
                (true, false) if self.waits(addr) => {}
                (true, false) => ops.push(Op::Bind(addr)),
                (false, true) => ops.push(Op::Unbind(host)),
                _ => {}
            }
        }
        ops.extend(foreign.into_iter().map(|net| Op::Unbind(*net)));
    }
}

/// Virtual servers that are closed to the node stay closed until the tidy phase.
fn keep_closed(has: &Chains, meanwhile: &mut Chains) {
    let key = (OUT_FILTER.0, OUT_FILTER.1.to_owned());
    let (Some(has), Some(meanwhile)) = (has.get(&key), meanwhile.get_mut(&key)) else { return };
    let ours = |rule: &&String| rule.contains(" -m ipvs ") && rule.ends_with(" -j DROP");
    let more: Vec<String> =
        has.iter().filter(ours).filter(|rule| !meanwhile.contains(rule)).cloned().collect();
    meanwhile.extend(more);
}

/// kube-proxy's iptables mode uses the same chain name, `KUBE-SERVICES`. Its jumps to Services stay ahead of our
/// first verdict until the tidy phase, so its Services work until IPVS is programmed. True if there are any.
fn keep_dispatch(has: &Chains, meanwhile: &mut Chains) -> bool {
    let key = (Table::Nat, "KUBE-SERVICES".to_owned());
    let (Some(has), Some(meanwhile)) = (has.get(&key), meanwhile.get_mut(&key)) else { return false };
    let kept: Vec<String> = has.iter().filter(|rule| dispatches(rule)).cloned().collect();
    let decides = |rule: &String| matches!(target(rule), Some("ACCEPT" | "KUBE-NODE-PORT"));
    let at = meanwhile.iter().position(decides).unwrap_or(meanwhile.len());
    let any = !kept.is_empty();
    meanwhile.splice(at..at, kept);
    any
}
