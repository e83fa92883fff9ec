// SPDX-License-Identifier: Apache-2.0
//! Virtual services (`IPVS_SVC_ATTR_*`).

use std::net::Ipv4Addr;

use netlink_batch::Attributes;
use netlink_packet_core::{DecodeError, DefaultNla};

use crate::packet::ServiceAttribute;
use crate::stats::{Stats, StatsParts};
use crate::types::{Family, IdParts, ServiceFlags, ServiceId};

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

    fn from_bytes(value: [u8; 4], family: Family) -> Result<Self, DecodeError> {
        match family {
            Family::Inet => Ok(PersistenceMask::V4(value.into())),
            Family::Inet6 => {
                let bits = u32::from_ne_bytes(value);
                let prefix = u8::try_from(bits).map_err(|_| format!("a prefix of {bits} bits"))?;
                Ok(PersistenceMask::V6(prefix))
            }
        }
    }

    fn to_bytes(self) -> [u8; 4] {
        match self {
            PersistenceMask::V4(mask) => mask.octets(),
            PersistenceMask::V6(prefix) => u32::from(prefix).to_ne_bytes(),
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

    /// Writes the attributes inside `IPVS_CMD_ATTR_SERVICE`.
    pub(crate) fn write(&self, out: &mut Attributes) {
        use ServiceAttribute as A;
        self.id.write(out);
        out.put_nla(&A::Scheduler(self.scheduler.clone()));
        out.put_nla(&A::Flags(self.flags));
        out.put_nla(&A::Timeout(self.timeout));
        out.put_nla(&A::Netmask(self.persistence_mask.to_bytes()));
        if let Some(name) = &self.pe_name {
            out.put_nla(&A::PersistenceEngine(name.clone()));
        }
        if let Some(stats) = self.stats {
            out.put_nla(&A::Stats64(stats));
        }
        self.other.iter().for_each(|other| _ = out.put_nla(other));
    }

    /// Collects a service from its attributes.
    ///
    /// # Errors
    /// The first error of an attribute; when one of those that identify a service is missing.
    pub fn from_attributes(
        attributes: impl Iterator<Item = Result<ServiceAttribute, DecodeError>>,
    ) -> Result<Self, DecodeError> {
        use ServiceAttribute as A;
        let (mut id, mut stats) = (IdParts::default(), StatsParts::default());
        let (mut scheduler, mut flags, mut timeout, mut netmask, mut pe_name) =
            (String::new(), ServiceFlags::default(), 0, None, None);
        let mut other = Vec::new();
        for attribute in attributes {
            match attribute? {
                A::Family(family) => id.family = Some(family),
                A::Protocol(protocol) => id.protocol = Some(protocol),
                A::Address(addr) => id.addr = Some(addr),
                A::Port(port) => id.port = Some(port),
                A::Fwmark(mark) => id.mark = mark,
                A::Scheduler(name) => scheduler = name,
                A::Flags(found) => flags = found,
                A::Timeout(seconds) => timeout = seconds,
                A::Netmask(mask) => netmask = Some(mask),
                A::PersistenceEngine(name) => pe_name = Some(name),
                A::Stats(narrow) => stats.narrow = Some(narrow),
                A::Stats64(wide) => stats.wide = Some(wide),
                A::Other(nla) => other.push(nla),
            }
        }
        let id = id.build()?;
        let persistence_mask = match netmask {
            Some(mask) => PersistenceMask::from_bytes(mask, id.family())?,
            None => PersistenceMask::full(id.family()),
        };
        let stats = stats.build();
        Ok(Self { id, scheduler, flags, timeout, persistence_mask, pe_name, stats, other })
    }
}
