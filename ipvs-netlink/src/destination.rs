// SPDX-License-Identifier: Apache-2.0
//! Destinations (`IPVS_DEST_ATTR_*`).

use std::net::{IpAddr, SocketAddr};

use netlink_batch::Attributes;
use netlink_packet_core::{DecodeError, DefaultNla};

use crate::packet::DestinationAttribute;
use crate::stats::{Stats, StatsParts};
use crate::types::{Family, ForwardMethod};

/// The forwarding method among the flags of connections, `IP_VS_CONN_F_FWD_MASK`.
const FORWARD_MASK: u32 = 0x7;

/// Encapsulation of a tunnelled destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TunnelKind {
    /// 0: IP in IP.
    IpIp,
    /// 1: generic UDP encapsulation.
    Gue,
    /// 2: GRE.
    Gre,
    /// A number that this version does not know.
    Other(u8),
}

impl From<u8> for TunnelKind {
    fn from(number: u8) -> Self {
        match number {
            0 => TunnelKind::IpIp,
            1 => TunnelKind::Gue,
            2 => TunnelKind::Gre,
            other => TunnelKind::Other(other),
        }
    }
}

impl From<TunnelKind> for u8 {
    fn from(kind: TunnelKind) -> u8 {
        match kind {
            TunnelKind::IpIp => 0,
            TunnelKind::Gue => 1,
            TunnelKind::Gre => 2,
            TunnelKind::Other(other) => other,
        }
    }
}

/// How a tunnelled destination is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Encapsulation.
    pub kind: TunnelKind,
    /// UDP port of GUE, else 0. Network order on the wire.
    pub port: u16,
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*`: checksum options of GUE and GRE.
    pub flags: u16,
}

/// A destination of a service: a real server.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Destination {
    /// Address. It may be of another family than the service's when tunnelled.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
    /// How packets get there.
    pub forward: ForwardMethod,
    /// Share of new connections; 0: none, the present ones go on.
    pub weight: u32,
    /// Connections above which no new ones come; 0: no limit.
    pub upper_threshold: u32,
    /// Connections below which new ones come again; 0: three quarters of the upper one.
    pub lower_threshold: u32,
    /// Tunnel, reported for every destination by kernels from 5.3 on.
    pub tunnel: Option<Tunnel>,
    /// Connections in an active state; only ever reported.
    pub active_connections: u32,
    /// Connections that are closing, or of UDP; only ever reported.
    pub inactive_connections: u32,
    /// Persistence templates; only ever reported.
    pub persistent_connections: u32,
    /// Statistics; only ever reported.
    pub stats: Option<Stats>,
    /// Attributes that this version does not know.
    pub other: Vec<DefaultNla>,
}

impl Destination {
    /// A masqueraded destination of weight 1.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr: addr.ip(),
            port: addr.port(),
            forward: ForwardMethod::Masquerade,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: None,
            active_connections: 0,
            inactive_connections: 0,
            persistent_connections: 0,
            stats: None,
            other: Vec::new(),
        }
    }

    /// Writes what identifies a destination. The family is left out where it is the service's, as
    /// kernels before 3.18 do not know it.
    pub(crate) fn write_id(addr: IpAddr, port: u16, service: Family, out: &mut Attributes) {
        out.put_nla(&DestinationAttribute::Address(addr.into()));
        out.put_nla(&DestinationAttribute::Port(port));
        if Family::of(addr) != service {
            out.put_nla(&DestinationAttribute::Family(Family::of(addr).number()));
        }
    }

    /// Writes the attributes inside `IPVS_CMD_ATTR_DEST`, for a service of this family.
    pub(crate) fn write(&self, service: Family, out: &mut Attributes) {
        use DestinationAttribute as A;
        Self::write_id(self.addr, self.port, service, out);
        out.put_nla(&A::ForwardMethod(self.forward.into()));
        out.put_nla(&A::Weight(self.weight));
        out.put_nla(&A::UpperThreshold(self.upper_threshold));
        out.put_nla(&A::LowerThreshold(self.lower_threshold));
        if let Some(tunnel) = self.tunnel {
            out.put_nla(&A::TunnelType(tunnel.kind.into()));
            out.put_nla(&A::TunnelPort(tunnel.port));
            out.put_nla(&A::TunnelFlags(tunnel.flags));
        }
        self.other.iter().for_each(|other| _ = out.put_nla(other));
    }

    /// Writes the attributes as the kernel reports them: all of [`Self::write`] with family, connections
    /// and statistics.
    pub(crate) fn write_report(&self, out: &mut Attributes) {
        use DestinationAttribute as A;
        // The family is always there in a report; pretend that the service has the other one.
        let other = if self.addr.is_ipv4() { Family::Inet6 } else { Family::Inet };
        self.write(other, out);
        out.put_nla(&A::ActiveConnections(self.active_connections));
        out.put_nla(&A::InactiveConnections(self.inactive_connections));
        out.put_nla(&A::PersistentConnections(self.persistent_connections));
        if let Some(stats) = self.stats {
            out.put_nla(&A::Stats64(stats));
        }
    }

    /// Collects a destination from its attributes. Kernels before 3.18 report no family: then the length of the
    /// address cannot tell either, because it is padded to 16 bytes, so the family of its `service` decides.
    ///
    /// # Errors
    /// The first error of an attribute; when address or port is missing.
    pub fn from_attributes(
        attributes: impl Iterator<Item = Result<DestinationAttribute, DecodeError>>,
        service: Option<Family>,
    ) -> Result<Self, DecodeError> {
        use DestinationAttribute as A;
        let mut dest = Self::new(SocketAddr::new(IpAddr::from([0; 4]), 0));
        let (mut addr, mut port, mut family) = (None, None, None);
        let mut stats = StatsParts::default();
        let mut tunnel = Tunnel { kind: TunnelKind::IpIp, port: 0, flags: 0 };
        let mut has_tunnel = false;
        for attribute in attributes {
            match attribute? {
                A::Address(found) => addr = Some(found),
                A::Port(found) => port = Some(found),
                A::Family(number) => family = Some(Family::from_number(number)?),
                A::ForwardMethod(method) => dest.forward = (method & FORWARD_MASK).into(),
                A::Weight(weight) => dest.weight = weight,
                A::UpperThreshold(threshold) => dest.upper_threshold = threshold,
                A::LowerThreshold(threshold) => dest.lower_threshold = threshold,
                A::ActiveConnections(count) => dest.active_connections = count,
                A::InactiveConnections(count) => dest.inactive_connections = count,
                A::PersistentConnections(count) => dest.persistent_connections = count,
                A::Stats(narrow) => stats.narrow = Some(narrow),
                A::Stats64(wide) => stats.wide = Some(wide),
                A::TunnelType(kind) => (tunnel.kind, has_tunnel) = (kind.into(), true),
                A::TunnelPort(port) => tunnel.port = port,
                A::TunnelFlags(flags) => tunnel.flags = flags,
                A::Other(nla) => dest.other.push(nla),
            }
        }
        let addr = addr.ok_or("a destination without an address")?;
        let by_length = if addr.as_bytes().len() == 4 { Family::Inet } else { Family::Inet6 };
        dest.addr = addr.of_family(family.or(service).unwrap_or(by_length))?;
        dest.port = port.ok_or("a destination without a port")?;
        dest.tunnel = has_tunnel.then_some(tunnel);
        dest.stats = stats.build();
        Ok(dest)
    }
}
