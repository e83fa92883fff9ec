// SPDX-License-Identifier: Apache-2.0
//! Updates of the mirror by acknowledged ops.

use super::op::Op;
use ipnet::IpNet;

use crate::core::mirror::comparison::NftTables;
use crate::core::mirror::{Observed, ObservedServer, ObservedSet, RealServers};
use crate::core::model::real_servers::RsState;
use crate::core::model::{RsKey, VsKey};
use crate::core::rules::removal::Removal;

impl Observed {
    /// Records an op that the kernel acknowledged.
    pub fn record(&mut self, op: &Op) {
        match op {
            Op::SetSysctl(s) => _ = self.node.sysctls.insert(s.path, s.value),
            Op::SetTimeouts(t) => {
                let set = |now: &mut u32, wanted| {
                    if wanted != 0 {
                        *now = wanted;
                    }
                };
                let timeouts = &mut self.node.timeouts;
                set(&mut timeouts.tcp, t.tcp);
                set(&mut timeouts.tcp_fin, t.tcp_fin);
                set(&mut timeouts.udp, t.udp);
            }
            Op::CreateDevice => self.device = true,
            Op::DestroySet(set) => _ = self.sets.remove(set),
            Op::CreateSet(set) => _ = self.sets.insert(*set, ObservedSet::fresh(*set)),
            Op::GrowSet(grow) => {
                let members = grow.entries.iter().copied().collect();
                self.sets.insert(grow.set, ObservedSet { members, misfit: false, capacity: grow.capacity });
            }
            Op::AddEntry(set, entry) => _ = self.sets.entry(*set).or_default().members.insert(*entry),
            Op::RemoveEntry(set, entry) => _ = self.sets.entry(*set).or_default().members.remove(entry),
            Op::WriteRules(rules) => {
                let observed = &mut self.rules[rules.family];
                observed.chains.clone_from(&rules.chains);
                observed.fix_jumps(&rules.jumps);
            }
            Op::RemoveLeftovers(leftovers) => {
                let family = leftovers.family;
                self.rules[family].leftovers = Removal::default();
                self.node.nft_tables[family] = NftTables::default();
                self.node.other_sets.retain(|set, _| set.family != family);
            }
            Op::Bind(addr) => _ = self.addresses.insert(IpNet::from(*addr)),
            Op::Unbind(net) => _ = self.addresses.remove(net),
            Op::AddRoute(net) => _ = self.node.routes.insert(*net),
            Op::RemoveRoute(net) => _ = self.node.routes.remove(net),
            Op::AddVirtualServer(vs, spec) => {
                let server = ObservedServer { spec: spec.clone(), real_servers: RealServers::default() };
                self.virtual_servers.insert(*vs, server);
            }
            Op::EditVirtualServer(vs, spec) => {
                if let Some(server) = self.virtual_servers.get_mut(vs) {
                    server.spec = spec.clone();
                }
            }
            Op::RemoveVirtualServer(vs) => {
                if let Some(server) = self.virtual_servers.remove(vs) {
                    for rs in server.real_servers.keys() {
                        self.busy.remove(&(*vs, rs));
                    }
                }
            }
            Op::AddRealServer(vs, rs, state) | Op::EditRealServer(vs, rs, state) => {
                self.set_real_server(vs, *rs, *state);
            }
            Op::DrainRealServer(vs, rs) => self.set_real_server(vs, *rs, RsState::DRAINING),
            Op::ForgetFlows(_) => {}
            Op::RemoveRealServer(vs, rs) => {
                self.busy.remove(&(*vs, *rs));
                if let Some(server) = self.virtual_servers.get_mut(vs) {
                    server.real_servers.remove(rs);
                }
            }
        }
    }

    fn set_real_server(&mut self, vs: &VsKey, rs: RsKey, state: RsState) {
        if let Some(server) = self.virtual_servers.get_mut(vs) {
            server.real_servers.insert(rs, state);
        }
    }
}
