// SPDX-License-Identifier: Apache-2.0
//! Which keys an op is about.

use crate::core::desired::Changes;
use crate::core::op::Op;

/// Whether the op follows from these changes.
pub(super) fn touches(op: &Op, changes: &Changes) -> bool {
    match op {
        Op::AddEntry(set, entry) | Op::RemoveEntry(set, entry) => changes.entries.contains(&(*set, *entry)),
        Op::AddVirtualServer(vs, _)
        | Op::EditVirtualServer(vs, _)
        | Op::RemoveVirtualServer(vs)
        | Op::AddRealServer(vs, _)
        | Op::EditRealServer(vs, _)
        | Op::DrainRealServer(vs, _)
        | Op::RemoveRealServer(vs, _) => changes.virtual_servers.contains(vs),
        Op::Bind(addr) => changes.addresses.contains(addr),
        Op::Unbind(net) => changes.addresses.contains(&net.addr()) || changes.networks.contains(net),
        // A rule follows from sets that changed.
        Op::WriteRules(rules) => rules.jumps.is_empty() && !changes.is_empty(),
        Op::GrowSet(_) | Op::ForgetFlows(_) | Op::RemoveLeftovers(_) => true,
        Op::SetSysctl(_) | Op::SetTimeouts(_) | Op::CreateDevice => false,
        Op::DestroySet(_) | Op::CreateSet(_) => false,
    }
}

/// Keeps the keys of an op that did not succeed, so that the next pass looks at them again.
pub(super) fn remember(op: &Op, pending: &mut Changes) {
    match op {
        Op::AddEntry(set, entry) | Op::RemoveEntry(set, entry) => {
            pending.entries.insert((*set, *entry));
        }
        Op::AddVirtualServer(vs, _)
        | Op::EditVirtualServer(vs, _)
        | Op::RemoveVirtualServer(vs)
        | Op::AddRealServer(vs, _)
        | Op::EditRealServer(vs, _)
        | Op::DrainRealServer(vs, _)
        | Op::RemoveRealServer(vs, _) => {
            pending.virtual_servers.insert(*vs);
        }
        Op::Bind(addr) => {
            pending.addresses.insert(*addr);
        }
        Op::Unbind(net) if net.prefix_len() == net.max_prefix_len() => {
            pending.addresses.insert(net.addr());
        }
        Op::Unbind(net) => {
            pending.networks.insert(*net);
        }
        Op::GrowSet(grow) => {
            pending.entries.extend(grow.entries.iter().map(|entry| (grow.set, *entry)));
        }
        Op::ForgetFlows(flows) => pending.flows.extend(flows.services.iter().cloned()),
        // Looked at in every pass.
        Op::SetSysctl(_) | Op::SetTimeouts(_) | Op::CreateDevice => {}
        Op::DestroySet(_) | Op::CreateSet(_) | Op::WriteRules(_) | Op::RemoveLeftovers(_) => {}
    }
}
