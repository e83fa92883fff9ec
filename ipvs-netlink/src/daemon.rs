// SPDX-License-Identifier: Apache-2.0
//! The daemons that keep two directors in step (`IPVS_DAEMON_ATTR_*`).

use std::net::IpAddr;

use netlink_batch::Attributes;
use netlink_packet_core::{DecodeError, DefaultNla};

use crate::packet::DaemonAttribute;

/// Which way a daemon sends connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DaemonState {
    /// 1: it sends.
    Master,
    /// 2: it receives.
    Backup,
    /// A number that this version does not know.
    Other(u32),
}

impl From<u32> for DaemonState {
    fn from(number: u32) -> Self {
        match number {
            1 => DaemonState::Master,
            2 => DaemonState::Backup,
            other => DaemonState::Other(other),
        }
    }
}

impl From<DaemonState> for u32 {
    fn from(state: DaemonState) -> u32 {
        match state {
            DaemonState::Master => 1,
            DaemonState::Backup => 2,
            DaemonState::Other(other) => other,
        }
    }
}

/// A daemon that multicasts connections, or receives them (`IPVS_DAEMON_ATTR_*`).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SyncDaemon {
    /// Which way.
    pub state: DaemonState,
    /// Interface of the multicast.
    pub interface: String,
    /// Tells groups of directors apart, 0 to 255.
    pub sync_id: u32,
    /// Longest message in bytes (4.3 and later).
    pub max_len: Option<u16>,
    /// Multicast group (4.3 and later); the kernel's default is 224.0.0.81.
    pub group: Option<IpAddr>,
    /// UDP port (4.3 and later); the kernel's default is 8848.
    pub port: Option<u16>,
    /// Time to live (4.3 and later).
    pub ttl: Option<u8>,
    /// Attributes that this version does not know.
    pub other: Vec<DefaultNla>,
}

impl SyncDaemon {
    /// A daemon with the kernel's defaults.
    pub fn new(state: DaemonState, interface: impl Into<String>, sync_id: u32) -> Self {
        Self {
            state,
            interface: interface.into(),
            sync_id,
            max_len: None,
            group: None,
            port: None,
            ttl: None,
            other: Vec::new(),
        }
    }

    /// Writes the attributes inside `IPVS_CMD_ATTR_DAEMON`.
    pub(crate) fn write(&self, out: &mut Attributes) {
        use DaemonAttribute as A;
        out.put_nla(&A::State(self.state.into()));
        out.put_nla(&A::Interface(self.interface.clone()));
        out.put_nla(&A::SyncId(self.sync_id));
        if let Some(len) = self.max_len {
            out.put_nla(&A::MaxLen(len));
        }
        match self.group {
            Some(IpAddr::V4(group)) => _ = out.put_nla(&A::Group(group)),
            Some(IpAddr::V6(group)) => _ = out.put_nla(&A::Group6(group)),
            None => {}
        }
        if let Some(port) = self.port {
            out.put_nla(&A::Port(port));
        }
        if let Some(ttl) = self.ttl {
            out.put_nla(&A::Ttl(ttl));
        }
        self.other.iter().for_each(|other| _ = out.put_nla(other));
    }

    /// Collects a daemon from its attributes.
    ///
    /// # Errors
    /// The first error of an attribute.
    pub fn from_attributes(
        attributes: impl Iterator<Item = Result<DaemonAttribute, DecodeError>>,
    ) -> Result<Self, DecodeError> {
        use DaemonAttribute as A;
        let mut daemon = Self::new(DaemonState::Other(0), "", 0);
        for attribute in attributes {
            match attribute? {
                A::State(number) => daemon.state = number.into(),
                A::Interface(name) => daemon.interface = name,
                A::SyncId(id) => daemon.sync_id = id,
                A::MaxLen(len) => daemon.max_len = Some(len),
                A::Group(group) => daemon.group = Some(group.into()),
                A::Group6(group) => daemon.group = Some(group.into()),
                A::Port(port) => daemon.port = Some(port),
                A::Ttl(ttl) => daemon.ttl = Some(ttl),
                A::Other(nla) => daemon.other.push(nla),
            }
        }
        Ok(daemon)
    }
}
