// SPDX-License-Identifier: Apache-2.0
//! Virtual services (`IPVS_SVC_ATTR_*`).

use std::net::Ipv4Addr;

use netlink_packet_core::{DecodeError, DefaultNla};

use crate::stats::{Stats, StatsParts, Width};
use crate::types::{
    Family, IdParts, SVC_ADDR, SVC_AF, SVC_FWMARK, SVC_PORT, SVC_PROTOCOL, ServiceFlags, ServiceId,
};
use crate::wire::{self, Writer};

const SCHED_NAME: u16 = 6;
const FLAGS: u16 = 7;
const TIMEOUT: u16 = 8;
const NETMASK: u16 = 9;
const STATS: u16 = 10;
const PE_NAME: u16 = 11;
const STATS64: u16 = 12;

/// Which clients a persistent service treats as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersistenceMask {
    /// IPv4: a netmask, `255.255.255.255` for each address by itself. Network order on the wire.
    V4(Ipv4Addr),
    /// IPv6: a prefix length from 1 to 128. Host order on the wire.
    V6(u8),
}

impl PersistenceMask {
    /// Every client by itself.
    pub fn full(family: Family) -> Self {
        match family {
            Family::Inet => PersistenceMask::V4(Ipv4Addr::BROADCAST),
            Family::Inet6 => PersistenceMask::V6(128),
        }
    }

    fn parse(value: &[u8], family: Family) -> Result<Self, DecodeError> {
        let word = wire::get_u32(value, "netmask")?;
        match family {
            Family::Inet => Ok(PersistenceMask::V4(Ipv4Addr::from(word.to_ne_bytes()))),
            Family::Inet6 => {
                let prefix = u8::try_from(word).map_err(|_| format!("a prefix of {word} bits"))?;
                Ok(PersistenceMask::V6(prefix))
            }
        }
    }

    fn write(self, out: &mut Writer) {
        match self {
            PersistenceMask::V4(mask) => out.put(NETMASK, &mask.octets()),
            PersistenceMask::V6(prefix) => out.put_u32(NETMASK, prefix.into()),
        }
    }
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Service {
    /// What identifies it.
    pub id: ServiceId,
    /// Name of its scheduler, e.g. `rr`.
    pub scheduler: String,
    /// Flags. Sent with a full mask: what is not set here is cleared. The kernel reports
    /// [`ServiceFlags::HASHED`] on top.
    pub flags: ServiceFlags,
    /// Persistence timeout in seconds.
    pub timeout: u32,
    /// Which clients are one.
    pub persistence_mask: PersistenceMask,
    /// Persistence engine, e.g. `sip`.
    pub pe_name: Option<String>,
    /// Statistics; only ever reported.
    pub stats: Option<Stats>,
    /// Attributes that this version does not know.
    pub other: Vec<DefaultNla>,
}

impl Service {
    /// A service without persistence.
    pub fn new(id: ServiceId, scheduler: impl Into<String>) -> Self {
        Self {
            id,
            scheduler: scheduler.into(),
            flags: ServiceFlags::default(),
            timeout: 0,
            persistence_mask: PersistenceMask::full(id.family()),
            pe_name: None,
            stats: None,
            other: Vec::new(),
        }
    }

    /// The attributes inside `IPVS_CMD_ATTR_SERVICE`.
    pub(crate) fn write(&self, out: &mut Writer) {
        self.id.write(out);
        out.put_text(SCHED_NAME, &self.scheduler);
        // struct ip_vs_flags: flags, mask.
        let mut flags = self.flags.bits().to_ne_bytes().to_vec();
        flags.extend_from_slice(&u32::MAX.to_ne_bytes());
        out.put(FLAGS, &flags);
        out.put_u32(TIMEOUT, self.timeout);
        self.persistence_mask.write(out);
        if let Some(name) = &self.pe_name {
            out.put_text(PE_NAME, name);
        }
        if let Some(stats) = self.stats {
            let mut inner = Writer::default();
            stats.write(&mut inner);
            out.put_nested(STATS64, &inner.bytes);
        }
        out.put_others(&self.other);
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut id = IdParts::default();
        let mut stats = StatsParts::default();
        let (mut scheduler, mut flags, mut timeout, mut netmask, mut pe_name) =
            (String::new(), ServiceFlags::default(), 0, None, None);
        let mut other = Vec::new();
        for nla in wire::attributes(bytes) {
            let nla = nla?;
            let value = nla.value();
            match nla.kind() {
                SVC_AF => id.family = Some(wire::get_u16(value, "service family")?),
                SVC_PROTOCOL => id.protocol = Some(wire::get_u16(value, "protocol")?),
                SVC_ADDR => id.addr = Some(value.to_vec()),
                SVC_PORT => id.port = Some(wire::get_port(value, "service port")?),
                SVC_FWMARK => id.mark = wire::get_u32(value, "mark")?,
                SCHED_NAME => scheduler = wire::get_text(value, "scheduler name")?,
                FLAGS => flags = ServiceFlags::from_bits(wire::get_u32(value, "flags")?),
                TIMEOUT => timeout = wire::get_u32(value, "timeout")?,
                NETMASK => netmask = Some(value.to_vec()),
                PE_NAME => pe_name = Some(wire::get_text(value, "persistence engine")?),
                STATS => stats.narrow = Some(Stats::parse(value, Width::Narrow)?),
                STATS64 => stats.wide = Some(Stats::parse(value, Width::Wide)?),
                _ => other.push(wire::keep(&nla)?),
            }
        }
        let id = id.build()?;
        let persistence_mask = match netmask {
            Some(value) => PersistenceMask::parse(&value, id.family())?,
            None => PersistenceMask::full(id.family()),
        };
        let stats = stats.build();
        Ok(Self { id, scheduler, flags, timeout, persistence_mask, pe_name, stats, other })
    }
}
