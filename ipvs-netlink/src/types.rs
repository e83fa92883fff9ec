// SPDX-License-Identifier: Apache-2.0
//! The terms of `<linux/ip_vs.h>`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlink_batch::Attributes;
use netlink_packet_core::DecodeError;

use crate::packet::{RawAddress, ServiceAttribute};

/// A transport protocol, by its IANA number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// 6
    Tcp,
    /// 17
    Udp,
    /// 132
    Sctp,
    /// Any other number; the kernel schedules none of them.
    Other(u8),
}

impl From<u8> for Protocol {
    fn from(number: u8) -> Self {
        match number {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            other => Protocol::Other(other),
        }
    }
}

impl From<Protocol> for u8 {
    fn from(protocol: Protocol) -> u8 {
        match protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
            Protocol::Other(other) => other,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Tcp => f.write_str("TCP"),
            Protocol::Udp => f.write_str("UDP"),
            Protocol::Sctp => f.write_str("SCTP"),
            Protocol::Other(number) => write!(f, "{number}"),
        }
    }
}

/// An address family: `AF_INET` or `AF_INET6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `AF_INET`, 2.
    Inet,
    /// `AF_INET6`, 10.
    Inet6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Family::Inet } else { Family::Inet6 }
    }

    pub(crate) fn number(self) -> u16 {
        match self {
            Family::Inet => 2,
            Family::Inet6 => 10,
        }
    }

    pub(crate) fn from_number(number: u16) -> Result<Self, DecodeError> {
        match number {
            2 => Ok(Family::Inet),
            10 => Ok(Family::Inet6),
            other => Err(format!("address family {other} is neither IPv4 nor IPv6").into()),
        }
    }
}

/// What identifies a virtual service: protocol, address and port, or a firewall mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ServiceId {
    /// Packets to this address and port.
    Address {
        /// Transport protocol.
        protocol: Protocol,
        /// Virtual address.
        addr: IpAddr,
        /// Virtual port; 0 takes every port of a persistent service.
        port: u16,
    },
    /// Packets that carry this mark.
    Fwmark {
        /// The mark, not 0.
        mark: u32,
        /// Family of the packets.
        family: Family,
    },
}

impl ServiceId {
    /// A TCP service.
    pub fn tcp(addr: SocketAddr) -> Self {
        Self::address(Protocol::Tcp, addr)
    }

    /// A UDP service.
    pub fn udp(addr: SocketAddr) -> Self {
        Self::address(Protocol::Udp, addr)
    }

    /// An SCTP service.
    pub fn sctp(addr: SocketAddr) -> Self {
        Self::address(Protocol::Sctp, addr)
    }

    fn address(protocol: Protocol, addr: SocketAddr) -> Self {
        ServiceId::Address { protocol, addr: addr.ip(), port: addr.port() }
    }

    /// The address family.
    pub fn family(&self) -> Family {
        match self {
            ServiceId::Address { addr, .. } => Family::of(*addr),
            ServiceId::Fwmark { family, .. } => *family,
        }
    }

    /// Writes the identifying attributes of a service (`IPVS_SVC_ATTR_*`).
    pub(crate) fn write(&self, out: &mut Attributes) {
        out.put_nla(&ServiceAttribute::Family(self.family().number()));
        match *self {
            ServiceId::Address { protocol, addr, port } => {
                out.put_nla(&ServiceAttribute::Protocol(u8::from(protocol).into()));
                out.put_nla(&ServiceAttribute::Address(addr.into()));
                out.put_nla(&ServiceAttribute::Port(port));
            }
            ServiceId::Fwmark { mark, .. } => _ = out.put_nla(&ServiceAttribute::Fwmark(mark)),
        }
    }
}

/// `TCP 10.96.0.1:443`, `FWM 7`, `FWM 7 IPv6`.
impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ServiceId::Address { protocol, addr, port } => {
                write!(f, "{protocol} {}", SocketAddr::new(addr, port))
            }
            ServiceId::Fwmark { mark, family: Family::Inet } => write!(f, "FWM {mark}"),
            ServiceId::Fwmark { mark, family: Family::Inet6 } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// The identifying attributes as they are found, in any order.
#[derive(Default)]
pub(crate) struct IdParts {
    pub family: Option<u16>,
    pub protocol: Option<u16>,
    pub addr: Option<RawAddress>,
    pub port: Option<u16>,
    pub mark: u32,
}

impl IdParts {
    pub fn build(self) -> Result<ServiceId, DecodeError> {
        let family = Family::from_number(self.family.ok_or("a service without a family")?)?;
        if self.mark != 0 {
            return Ok(ServiceId::Fwmark { mark: self.mark, family });
        }
        let number = self.protocol.ok_or("a service without a protocol")?;
        let number = u8::try_from(number).map_err(|_| format!("protocol {number} is above 255"))?;
        let addr = self.addr.ok_or("a service without an address")?;
        Ok(ServiceId::Address {
            protocol: Protocol::from(number),
            addr: addr.of_family(family)?,
            port: self.port.ok_or("a service without a port")?,
        })
    }
}

/// Flags of a service, `IP_VS_SVC_F_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceFlags(u32);

impl ServiceFlags {
    /// Connections of one client stay on one destination.
    pub const PERSISTENT: Self = Self(0x1);
    /// The kernel has the service in its table; only ever reported.
    pub const HASHED: Self = Self(0x2);
    /// Every packet is scheduled on its own.
    pub const ONE_PACKET: Self = Self(0x4);
    /// First flag of the scheduler: `sh-fallback`, `mh-fallback`.
    pub const SCHED1: Self = Self(0x8);
    /// Second flag of the scheduler: `sh-port`, `mh-port`.
    pub const SCHED2: Self = Self(0x10);
    /// Third flag of the scheduler.
    pub const SCHED3: Self = Self(0x20);

    /// The flags of these bits; unknown ones are kept.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags that a request can set: all but [`Self::HASHED`].
    pub const fn without_hashed(self) -> Self {
        Self(self.0 & !Self::HASHED.0)
    }
}

impl std::ops::BitOr for ServiceFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How packets reach a destination, `IP_VS_CONN_F_FWD_MASK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ForwardMethod {
    /// 0: network address translation; `ipvsadm -m`.
    Masquerade,
    /// 1: the destination is this host.
    Local,
    /// 2: `ipvsadm -i`.
    Tunnel,
    /// 3: direct routing; `ipvsadm -g`.
    Route,
    /// 4: to the cache server.
    Bypass,
    /// A number that this version does not know.
    Other(u32),
}

impl From<u32> for ForwardMethod {
    fn from(number: u32) -> Self {
        match number {
            0 => ForwardMethod::Masquerade,
            1 => ForwardMethod::Local,
            2 => ForwardMethod::Tunnel,
            3 => ForwardMethod::Route,
            4 => ForwardMethod::Bypass,
            other => ForwardMethod::Other(other),
        }
    }
}

impl From<ForwardMethod> for u32 {
    fn from(method: ForwardMethod) -> u32 {
        match method {
            ForwardMethod::Masquerade => 0,
            ForwardMethod::Local => 1,
            ForwardMethod::Tunnel => 2,
            ForwardMethod::Route => 3,
            ForwardMethod::Bypass => 4,
            ForwardMethod::Other(other) => other,
        }
    }
}
