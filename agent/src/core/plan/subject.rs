// SPDX-License-Identifier: Apache-2.0
//! Subjects: the kernel objects that ops change or reads read. A subject is the unit of retries and the name of a
//! failure.

use std::net::IpAddr;

use ipnet::IpNet;
use strum::{EnumDiscriminants, IntoStaticStr};

use super::op::{Op, Subsystem};
use crate::core::model::changes::Changes;
use crate::core::model::sets::{Entry, SetId};
use crate::core::model::{Family, RsKey, VsKey};

/// A part of the kernel state that is read separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::Display)]
pub enum Part {
    /// Virtual servers with their real servers.
    #[strum(to_string = "the IPVS table")]
    Ipvs,
    /// One ipset.
    #[strum(to_string = "set {0}")]
    Set(SetId),
    /// Addresses of `kube-ipvs0` and of all other devices.
    #[strum(to_string = "addresses")]
    Addresses,
    /// Rules of one family.
    #[strum(to_string = "{0} rules")]
    Rules(Family),
    /// Sysctls, IPVS timeouts, routes.
    #[strum(to_string = "sysctls, IPVS timeouts and routes")]
    Node,
}

/// The object that an op changes, or a read. Its text is for example `real server TCP 10.96.0.1:80 -> 10.244.1.5:8080`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EnumDiscriminants, strum::Display)]
#[strum_discriminants(name(SubjectKind), derive(PartialOrd, Ord, Hash, IntoStaticStr))]
#[strum_discriminants(doc = "The kinds of [`Subject`], for counting.", strum(serialize_all = "snake_case"))]
pub enum Subject {
    /// A read of a part of the kernel.
    #[strum(to_string = "reading {0}")]
    Reading(Part),
    /// A sysctl, by its file.
    #[strum(to_string = "sysctl {0}")]
    Sysctl(&'static str),
    /// The IPVS timeouts.
    #[strum(to_string = "IPVS timeouts")]
    Timeouts,
    /// `kube-ipvs0`.
    #[strum(to_string = "device kube-ipvs0")]
    Device,
    /// An ipset.
    #[strum_discriminants(strum(serialize = "ipset"))]
    #[strum(to_string = "set {0}")]
    Set(SetId),
    /// A member of an ipset.
    #[strum_discriminants(strum(serialize = "ipset_entry"))]
    #[strum(to_string = "entry {1} of set {0}")]
    Entry(SetId, Entry),
    /// All rules of one family.
    #[strum(to_string = "{0} rules")]
    Rules(Family),
    /// A virtual server.
    #[strum(to_string = "virtual server {0}")]
    VirtualServer(VsKey),
    /// A real server.
    #[strum(to_string = "real server {0} -> {1}")]
    RealServer(VsKey, RsKey),
    /// A host address on `kube-ipvs0`.
    #[strum(to_string = "address {0}")]
    Address(IpAddr),
    /// An address with a wider prefix on `kube-ipvs0`: never wanted. It counts as an address.
    #[strum(to_string = "address {0}")]
    Network(IpNet),
    /// The local route of a network of ClusterIPs.
    #[strum(to_string = "local route {0}")]
    Route(IpNet),
    /// UDP flows of one family.
    #[strum_discriminants(strum(serialize = "udp_flows"))]
    #[strum(to_string = "stale {0} UDP flows")]
    Flows(Family),
    /// Rules of other kube-proxy modes in one family.
    #[strum(to_string = "{0} rules of other kube-proxy modes")]
    Leftovers(Family),
}

impl SubjectKind {
    /// The value of a metric's label `kind`.
    pub fn label(self) -> &'static str {
        self.into()
    }

    /// A count as text: `1 real server`, `3 real servers`.
    pub fn count(self, count: usize) -> String {
        let (one, many) = match self {
            SubjectKind::Reading => ("part of the kernel", "parts of the kernel"),
            SubjectKind::Sysctl => ("sysctl", "sysctls"),
            SubjectKind::Timeouts => ("set of IPVS timeouts", "sets of IPVS timeouts"),
            SubjectKind::Device => ("device", "devices"),
            SubjectKind::Set => ("set", "sets"),
            SubjectKind::Entry => ("set entry", "set entries"),
            SubjectKind::Rules => ("family of rules", "families of rules"),
            SubjectKind::VirtualServer => ("virtual server", "virtual servers"),
            SubjectKind::RealServer => ("real server", "real servers"),
            SubjectKind::Address | SubjectKind::Network => ("address", "addresses"),
            SubjectKind::Route => ("local route", "local routes"),
            SubjectKind::Flows => ("family of UDP flows", "families of UDP flows"),
            SubjectKind::Leftovers => ("rule set of another mode", "rule sets of other modes"),
        };
        format!("{count} {}", if count == 1 { one } else { many })
    }
}

impl Subject {
    pub fn kind(&self) -> SubjectKind {
        match self {
            Subject::Network(_) => SubjectKind::Address,
            subject => subject.into(),
        }
    }

    /// The subsystem that changes or reads it.
    pub fn subsystem(&self) -> Subsystem {
        match self {
            Subject::Sysctl(_) | Subject::Timeouts | Subject::Reading(Part::Node) => Subsystem::Sysctl,
            Subject::Device => Subsystem::Device,
            Subject::Set(_) | Subject::Entry(..) | Subject::Reading(Part::Set(_)) => Subsystem::Sets,
            Subject::Rules(_) | Subject::Reading(Part::Rules(_)) => Subsystem::Rules,
            Subject::VirtualServer(_) | Subject::RealServer(..) | Subject::Reading(Part::Ipvs) => {
                Subsystem::Ipvs
            }
            Subject::Address(_) | Subject::Network(_) | Subject::Reading(Part::Addresses) => {
                Subsystem::Addresses
            }
            Subject::Route(_) => Subsystem::Routes,
            Subject::Flows(_) => Subsystem::Conntrack,
            Subject::Leftovers(_) => Subsystem::Leftovers,
        }
    }

    /// The family of the subject; `None`: both families depend on it.
    pub fn family(&self) -> Option<Family> {
        match self {
            Subject::Sysctl(_) | Subject::Timeouts | Subject::Device => None,
            Subject::Reading(Part::Ipvs | Part::Addresses | Part::Node) => None,
            Subject::Set(set) | Subject::Entry(set, _) | Subject::Reading(Part::Set(set)) => Some(set.family),
            Subject::VirtualServer(vs) | Subject::RealServer(vs, _) => Some(vs.family()),
            Subject::Address(addr) => Some(Family::of(*addr)),
            Subject::Network(net) | Subject::Route(net) => Some(Family::of(net.addr())),
            Subject::Rules(family)
            | Subject::Reading(Part::Rules(family))
            | Subject::Flows(family)
            | Subject::Leftovers(family) => Some(*family),
        }
    }

    /// Whether no VIP of the family is served without the subject. `needs`: whether a rule references a set.
    pub fn guards(&self, family: Family, needs: &dyn Fn(SetId) -> bool) -> bool {
        match self {
            Subject::Device | Subject::Reading(Part::Ipvs | Part::Addresses) => true,
            Subject::Set(set) => set.family == family && needs(*set),
            Subject::Rules(of) | Subject::Reading(Part::Rules(of)) => *of == family,
            Subject::Route(net) => Family::of(net.addr()) == family,
            _ => false,
        }
    }

    /// Whether many Services depend on the subject: it does not belong to a single Service.
    pub fn is_shared(&self) -> bool {
        use SubjectKind as K;
        !matches!(self.kind(), K::Entry | K::VirtualServer | K::RealServer | K::Address)
    }

    pub fn virtual_server(&self) -> Option<&VsKey> {
        match self {
            Subject::VirtualServer(vs) | Subject::RealServer(vs, _) => Some(vs),
            _ => None,
        }
    }

    /// The address of the subject, or of an ipset entry.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Subject::Address(addr) => Some(*addr),
            Subject::Entry(_, Entry::Ip(ip) | Entry::IpPort(ip, ..) | Entry::IpPortNet(ip, ..)) => Some(*ip),
            _ => None,
        }
    }
}

impl Op {
    pub fn subject(&self) -> Subject {
        match self {
            Op::SetSysctl(sysctl) => Subject::Sysctl(sysctl.path),
            Op::SetTimeouts(_) => Subject::Timeouts,
            Op::CreateDevice => Subject::Device,
            Op::DestroySet(set) | Op::CreateSet(set) => Subject::Set(*set),
            Op::GrowSet(grow) => Subject::Set(grow.set),
            Op::AddEntry(set, entry) | Op::RemoveEntry(set, entry) => Subject::Entry(*set, *entry),
            Op::WriteRules(rules) => Subject::Rules(rules.family),
            Op::AddVirtualServer(vs, _) | Op::EditVirtualServer(vs, _) | Op::RemoveVirtualServer(vs) => {
                Subject::VirtualServer(*vs)
            }
            Op::AddRealServer(vs, rs, _)
            | Op::EditRealServer(vs, rs, _)
            | Op::DrainRealServer(vs, rs)
            | Op::RemoveRealServer(vs, rs) => Subject::RealServer(*vs, *rs),
            Op::Bind(addr) => Subject::Address(*addr),
            Op::Unbind(net) if net.prefix_len() == net.max_prefix_len() => Subject::Address(net.addr()),
            Op::Unbind(net) => Subject::Network(*net),
            Op::AddRoute(net) | Op::RemoveRoute(net) => Subject::Route(*net),
            Op::ForgetFlows(flows) => Subject::Flows(flows.filter.family),
            Op::RemoveLeftovers(leftovers) => Subject::Leftovers(leftovers.family),
        }
    }
}

impl Changes {
    /// Adds the key of a subject. Device, sets, rules and sysctls have no key: every plan compares them.
    pub fn add_subject(&mut self, subject: &Subject) {
        match subject {
            Subject::Entry(set, entry) => _ = self.entries.insert((*set, *entry)),
            Subject::VirtualServer(vs) | Subject::RealServer(vs, _) => _ = self.virtual_servers.insert(*vs),
            Subject::Address(addr) => _ = self.addresses.insert(*addr),
            Subject::Network(net) => _ = self.networks.insert(*net),
            _ => self.common = true,
        }
    }

    /// Adds the key of the subject of an op.
    pub fn add_op(&mut self, op: &Op) {
        if let Op::ForgetFlows(flows) = op {
            self.flows.extend(flows.services.iter().cloned());
        }
        self.add_subject(&op.subject());
    }

    /// Whether the key of the subject is among the changes. False for subjects without a key.
    pub fn contains(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Entry(set, entry) => self.entries.contains(&(*set, *entry)),
            Subject::VirtualServer(vs) | Subject::RealServer(vs, _) => self.virtual_servers.contains(vs),
            Subject::Address(addr) => self.addresses.contains(addr),
            Subject::Network(net) => self.networks.contains(net),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::Protocol;
    use crate::core::model::real_servers::RsState;

    #[test]
    fn kinds_have_labels_and_text_for_counts() {
        assert_eq!(SubjectKind::Entry.label(), "ipset_entry");
        assert_eq!(SubjectKind::VirtualServer.label(), "virtual_server");
        assert_eq!(SubjectKind::Address.count(1), "1 address");
        assert_eq!(SubjectKind::Entry.count(2), "2 set entries");
    }

    #[test]
    fn an_op_has_a_subject_and_keys() {
        let vs = VsKey { protocol: Protocol::Tcp, addr: [10, 96, 0, 1].into(), port: 80 };
        let rs = RsKey { addr: [10, 244, 1, 5].into(), port: 8080 };
        let op = Op::AddRealServer(vs, rs, RsState::USUAL);
        assert_eq!(op.subject().to_string(), "real server TCP 10.96.0.1:80 -> 10.244.1.5:8080");
        let mut keys = Changes::default();
        keys.add_op(&op);
        keys.add_op(&Op::Unbind("10.0.0.1/8".parse().unwrap()));
        keys.add_op(&Op::Unbind("10.0.0.1/32".parse().unwrap()));
        keys.add_op(&Op::CreateDevice);
        assert_eq!((keys.len(), keys.common), (3, true));
    }
}
