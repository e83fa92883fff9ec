// SPDX-License-Identifier: Apache-2.0
//! Timeouts, version, and the daemons that keep two directors in step.

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, DefaultNla};

use crate::types::Family;
use crate::wire::{self, Writer};

/// Timeouts of connections, in seconds. In a request 0 means: leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Idle established TCP connections; 900 unless set.
    pub tcp: u32,
    /// TCP connections after a FIN; 120 unless set.
    pub tcp_fin: u32,
    /// UDP; 300 unless set.
    pub udp: u32,
}

/// Version of IPVS in the kernel, and the size of its connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// `major << 16 | minor << 8 | patch`.
    pub version: u32,
    /// Number of hash buckets.
    pub connection_table_size: u32,
}

impl Info {
    /// The version as `1.2.1`.
    pub fn version_text(&self) -> String {
        format!("{}.{}.{}", self.version >> 16 & 0xff, self.version >> 8 & 0xff, self.version & 0xff)
    }
}

const STATE: u16 = 1;
const MCAST_IFN: u16 = 2;
const SYNC_ID: u16 = 3;
const SYNC_MAXLEN: u16 = 4;
const MCAST_GROUP: u16 = 5;
const MCAST_GROUP6: u16 = 6;
const MCAST_PORT: u16 = 7;
const MCAST_TTL: u16 = 8;

/// Which way a daemon sends connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A daemon that multicasts connections, or hears them (`IPVS_DAEMON_ATTR_*`).
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

    pub(crate) fn write(&self, out: &mut Writer) {
        out.put_u32(STATE, self.state.into());
        out.put_text(MCAST_IFN, &self.interface);
        out.put_u32(SYNC_ID, self.sync_id);
        if let Some(len) = self.max_len {
            out.put_u16(SYNC_MAXLEN, len);
        }
        if let Some(group) = self.group {
            out.put_addr(if group.is_ipv4() { MCAST_GROUP } else { MCAST_GROUP6 }, group);
        }
        // Host order, unlike every other port of the family.
        if let Some(port) = self.port {
            out.put_u16(MCAST_PORT, port);
        }
        if let Some(ttl) = self.ttl {
            out.put_u8(MCAST_TTL, ttl);
        }
        out.put_others(&self.other);
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut daemon = Self::new(DaemonState::Other(0), "", 0);
        for nla in wire::attributes(bytes) {
            let nla = nla?;
            let value = nla.value();
            match nla.kind() {
                STATE => daemon.state = wire::get_u32(value, "daemon state")?.into(),
                MCAST_IFN => daemon.interface = wire::get_text(value, "interface")?,
                SYNC_ID => daemon.sync_id = wire::get_u32(value, "sync id")?,
                SYNC_MAXLEN => daemon.max_len = Some(wire::get_u16(value, "length")?),
                MCAST_GROUP => daemon.group = Some(wire::get_addr(value, Family::Inet, "group")?),
                MCAST_GROUP6 => daemon.group = Some(wire::get_addr(value, Family::Inet6, "group")?),
                MCAST_PORT => daemon.port = Some(wire::get_u16(value, "port")?),
                MCAST_TTL => daemon.ttl = Some(wire::get_u8(value, "ttl")?),
                _ => daemon.other.push(wire::keep(&nla)?),
            }
        }
        Ok(daemon)
    }
}
