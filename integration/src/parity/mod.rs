// SPDX-License-Identifier: Apache-2.0
//! Compares the kernel state of a node with recordings of the real kube-proxy.
//!
//! A recording is a folder with `scenario.json`, `config.yaml`, `node.json`, and per step the objects and the resulting
//! state in a normal form. [`normal`] converts tool output to that form, [`diff`] prints a difference, [`scenario`]
//! reads the folders, [`run`] runs an agent against a recording, and [`faults`] injects failures.

pub mod diff;
pub mod faults;
pub mod normal;
pub mod run;
pub mod scenario;

/// One part of a node's state, recorded separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subsystem {
    /// Virtual servers and real servers.
    Ipvs,
    /// Addresses of the dummy device.
    Addrs,
    /// The dummy device itself.
    Link,
    /// Sets and their entries.
    Ipset,
    /// IPv4 rules.
    Iptables,
    /// IPv6 rules.
    Ip6tables,
    /// IPVS timeouts.
    Timeouts,
    /// Kernel settings.
    Sysctl,
    /// Answers of the health servers.
    Health,
}

impl Subsystem {
    /// All subsystems, in the order of comparison.
    pub const ALL: [Self; 9] = [
        Self::Ipvs,
        Self::Addrs,
        Self::Link,
        Self::Ipset,
        Self::Iptables,
        Self::Ip6tables,
        Self::Timeouts,
        Self::Sysctl,
        Self::Health,
    ];

    /// The name, as in `expected/NAME.txt`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Addrs => "addrs",
            Self::Link => "link",
            Self::Ipset => "ipset",
            Self::Iptables => "iptables",
            Self::Ip6tables => "ip6tables",
            Self::Timeouts => "timeouts",
            Self::Sysctl => "sysctl",
            Self::Health => "health",
        }
    }

    /// The subsystem with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|subsystem| subsystem.name() == name)
    }
}
