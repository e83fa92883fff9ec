// SPDX-License-Identifier: Apache-2.0
//! Destinations (`IPVS_DEST_ATTR_*`).

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DecodeError, DefaultNla};

use crate::stats::{Stats, StatsParts, Width};
use crate::types::{Family, ForwardMethod};
use crate::wire::{self, Writer};

const ADDR: u16 = 1;
const PORT: u16 = 2;
const FWD_METHOD: u16 = 3;
const WEIGHT: u16 = 4;
const U_THRESH: u16 = 5;
const L_THRESH: u16 = 6;
const ACTIVE_CONNS: u16 = 7;
const INACT_CONNS: u16 = 8;
const PERSIST_CONNS: u16 = 9;
const STATS: u16 = 10;
const ADDR_FAMILY: u16 = 11;
const STATS64: u16 = 12;
const TUN_TYPE: u16 = 13;
const TUN_PORT: u16 = 14;
const TUN_FLAGS: u16 = 15;

/// Encapsulation of a tunnelled destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub(crate) fn write_id(addr: IpAddr, port: u16, service: Family, out: &mut Writer) {
        out.put_addr(ADDR, addr);
        out.put_port(PORT, port);
        if Family::of(addr) != service {
            out.put_u16(ADDR_FAMILY, Family::of(addr).number());
        }
    }

    /// The attributes inside `IPVS_CMD_ATTR_DEST`, for a service of this family.
    pub(crate) fn write(&self, service: Family, out: &mut Writer) {
        Self::write_id(self.addr, self.port, service, out);
        out.put_u32(FWD_METHOD, self.forward.into());
        out.put_u32(WEIGHT, self.weight);
        out.put_u32(U_THRESH, self.upper_threshold);
        out.put_u32(L_THRESH, self.lower_threshold);
        if let Some(tunnel) = self.tunnel {
            out.put_u8(TUN_TYPE, tunnel.kind.into());
            out.put_port(TUN_PORT, tunnel.port);
            out.put_u16(TUN_FLAGS, tunnel.flags);
        }
        out.put_others(&self.other);
    }

    /// The attributes as the kernel reports them: all of [`Self::write`] with family, connections
    /// and statistics.
    pub(crate) fn write_report(&self, out: &mut Writer) {
        // The family is always there in a report; pretend that the service has the other one.
        let other = if self.addr.is_ipv4() { Family::Inet6 } else { Family::Inet };
        self.write(other, out);
        out.put_u32(ACTIVE_CONNS, self.active_connections);
        out.put_u32(INACT_CONNS, self.inactive_connections);
        out.put_u32(PERSIST_CONNS, self.persistent_connections);
        if let Some(stats) = self.stats {
            let mut inner = Writer::default();
            stats.write(&mut inner);
            out.put_nested(STATS64, &inner.bytes);
        }
    }

    /// Reads a destination. Kernels before 3.18 report no family: then the length of the address
    /// cannot tell either, for it is padded to 16 bytes, so `service` decides.
    pub(crate) fn parse(bytes: &[u8], service: Option<Family>) -> Result<Self, DecodeError> {
        let mut dest = Self::new(SocketAddr::new(IpAddr::from([0; 4]), 0));
        let (mut addr, mut port, mut family) = (None, None, None);
        let mut stats = StatsParts::default();
        let mut tunnel = Tunnel { kind: TunnelKind::IpIp, port: 0, flags: 0 };
        let mut has_tunnel = false;
        for nla in wire::attributes(bytes) {
            let nla = nla?;
            let value = nla.value();
            match nla.kind() {
                ADDR => addr = Some(value.to_vec()),
                PORT => port = Some(wire::get_port(value, "destination port")?),
                ADDR_FAMILY => family = Some(Family::from_number(wire::get_u16(value, "family")?)?),
                FWD_METHOD => {
                    // The upper bits are flags of connections.
                    dest.forward = (wire::get_u32(value, "forwarding method")? & 0x7).into();
                }
                WEIGHT => dest.weight = wire::get_u32(value, "weight")?,
                U_THRESH => dest.upper_threshold = wire::get_u32(value, "threshold")?,
                L_THRESH => dest.lower_threshold = wire::get_u32(value, "threshold")?,
                ACTIVE_CONNS => dest.active_connections = wire::get_u32(value, "connections")?,
                INACT_CONNS => dest.inactive_connections = wire::get_u32(value, "connections")?,
                PERSIST_CONNS => dest.persistent_connections = wire::get_u32(value, "connections")?,
                STATS => stats.narrow = Some(Stats::parse(value, Width::Narrow)?),
                STATS64 => stats.wide = Some(Stats::parse(value, Width::Wide)?),
                TUN_TYPE => (tunnel.kind, has_tunnel) = (wire::get_u8(value, "tunnel type")?.into(), true),
                TUN_PORT => tunnel.port = wire::get_port(value, "tunnel port")?,
                TUN_FLAGS => tunnel.flags = wire::get_u16(value, "tunnel flags")?,
                _ => dest.other.push(wire::keep(&nla)?),
            }
        }
        let addr = addr.ok_or("a destination without an address")?;
        let by_length = if addr.len() == 4 { Family::Inet } else { Family::Inet6 };
        let family = family.or(service).unwrap_or(by_length);
        dest.addr = wire::get_addr(&addr, family, "destination address")?;
        dest.port = port.ok_or("a destination without a port")?;
        dest.tunnel = has_tunnel.then_some(tunnel);
        dest.stats = stats.build();
        Ok(dest)
    }
}
