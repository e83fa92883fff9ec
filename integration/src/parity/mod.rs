// SPDX-License-Identifier: Apache-2.0
//! Comparing a node's kernel state with recordings of the real kube-proxy.
//!
//! A recording is a folder: `scenario.json`, `config.yaml`, `node.json`, and per step the objects and the
//! state that they led to, in a normal form. [`normal`] makes that form of raw tool output, [`diff`] shows
//! a difference, [`scenario`] reads the folders and [`run`] plays one of them to an agent.

pub mod diff;
pub mod faults;
pub mod normal;
pub mod run;
pub mod scenario;

/// One part of a node's state, with a recording of its own.
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
    /// All of them, in the order they are compared and shown.
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

    /// Its name, as in `expected/NAME.txt`.
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

    /// The one with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|subsystem| subsystem.name() == name)
    }
}
