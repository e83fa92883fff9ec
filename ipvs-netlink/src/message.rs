// SPDX-License-Identifier: Apache-2.0
//! Whole messages of the family, in the shape of the rust-netlink crates.

use netlink_packet_core::{DecodeError, DefaultNla, Emitable, Nla, ParseableParametrized};
use netlink_packet_generic::{GenlFamily, GenlHeader};

use crate::control::{Config, Info, SyncDaemon};
use crate::destination::Destination;
use crate::service::Service;
use crate::types::{Family, raw_attribute};
use crate::wire::{self, Writer};

/// `IPVS_GENL_NAME`
pub(crate) const FAMILY_NAME: &str = "IPVS";
/// `IPVS_GENL_VERSION`
pub(crate) const VERSION: u8 = 1;

pub(crate) const ATTR_SERVICE: u16 = 1;
pub(crate) const ATTR_DEST: u16 = 2;
pub(crate) const ATTR_DAEMON: u16 = 3;
pub(crate) const ATTR_TIMEOUT_TCP: u16 = 4;
pub(crate) const ATTR_TIMEOUT_TCP_FIN: u16 = 5;
pub(crate) const ATTR_TIMEOUT_UDP: u16 = 6;

const INFO_VERSION: u16 = 1;
const INFO_CONN_TAB_SIZE: u16 = 2;

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Commands of the family, `IPVS_CMD_*`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum IpvsCommand {
            $($(#[$doc])* $name,)*
            /// A number that this version does not know.
            Other(u8),
        }

        impl From<u8> for IpvsCommand {
            fn from(number: u8) -> Self {
                match number {
                    $($number => IpvsCommand::$name,)*
                    other => IpvsCommand::Other(other),
                }
            }
        }

        impl From<IpvsCommand> for u8 {
            fn from(command: IpvsCommand) -> u8 {
                match command {
                    $(IpvsCommand::$name => $number,)*
                    IpvsCommand::Other(other) => other,
                }
            }
        }
    };
}

commands! {
    /// Add a service; also the kind of every part of a list of services.
    NewService = 1,
    /// Change a service.
    SetService = 2,
    /// Remove a service with its destinations.
    DelService = 3,
    /// Report one service, or all.
    GetService = 4,
    /// Add a destination; also the kind of every part of a list of destinations.
    NewDest = 5,
    /// Change a destination.
    SetDest = 6,
    /// Remove a destination.
    DelDest = 7,
    /// Report the destinations of a service.
    GetDest = 8,
    /// Start a sync daemon; also the kind of every part of their list.
    NewDaemon = 9,
    /// Stop a sync daemon.
    DelDaemon = 10,
    /// Report the sync daemons.
    GetDaemon = 11,
    /// Set the timeouts; also the kind of their report.
    SetConfig = 12,
    /// Report the timeouts.
    GetConfig = 13,
    /// The kind of the report of version and size.
    SetInfo = 14,
    /// Report version and size.
    GetInfo = 15,
    /// Set counters to zero.
    Zero = 16,
    /// Remove everything.
    Flush = 17,
}

/// Attributes of a message, `IPVS_CMD_ATTR_*`. In a report of [`IpvsCommand::SetInfo`] the kinds
/// mean something else (`IPVS_INFO_ATTR_*`), so there they are [`IpvsAttribute::Other`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum IpvsAttribute {
    /// A service.
    Service(Service),
    /// A destination with its family, as the kernel reports it.
    Destination(Destination),
    /// A sync daemon.
    Daemon(SyncDaemon),
    /// Seconds.
    TimeoutTcp(u32),
    /// Seconds.
    TimeoutTcpFin(u32),
    /// Seconds.
    TimeoutUdp(u32),
    /// Anything else, kept as it is.
    Other(DefaultNla),
}

impl IpvsAttribute {
    fn value(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            IpvsAttribute::Service(service) => service.write(&mut out),
            IpvsAttribute::Destination(dest) => dest.write_report(&mut out),
            IpvsAttribute::Daemon(daemon) => daemon.write(&mut out),
            IpvsAttribute::TimeoutTcp(n) | IpvsAttribute::TimeoutTcpFin(n) | IpvsAttribute::TimeoutUdp(n) => {
                return n.to_ne_bytes().to_vec();
            }
            IpvsAttribute::Other(nla) => out.bytes = raw_attribute(nla).1,
        }
        // What is too long for the 16 bits of its length is cut off, as in `Writer::put`.
        out.bytes.truncate(wire::MAX_VALUE);
        out.bytes
    }
}

impl Nla for IpvsAttribute {
    fn value_len(&self) -> usize {
        self.value().len()
    }

    fn kind(&self) -> u16 {
        match self {
            IpvsAttribute::Service(_) => ATTR_SERVICE | wire::NLA_F_NESTED,
            IpvsAttribute::Destination(_) => ATTR_DEST | wire::NLA_F_NESTED,
            IpvsAttribute::Daemon(_) => ATTR_DAEMON | wire::NLA_F_NESTED,
            IpvsAttribute::TimeoutTcp(_) => ATTR_TIMEOUT_TCP,
            IpvsAttribute::TimeoutTcpFin(_) => ATTR_TIMEOUT_TCP_FIN,
            IpvsAttribute::TimeoutUdp(_) => ATTR_TIMEOUT_UDP,
            IpvsAttribute::Other(nla) => nla.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.value());
    }
}

/// A message of the family.
#[derive(Clone, Debug, PartialEq)]
pub struct IpvsMessage {
    /// The command.
    pub command: IpvsCommand,
    /// The attributes.
    pub attributes: Vec<IpvsAttribute>,
}

impl IpvsMessage {
    /// Reads the attributes of a message.
    ///
    /// # Errors
    /// When an attribute does not fit its buffer or its type; unknown ones are kept.
    pub fn parse(command: IpvsCommand, bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::parse_for(command, bytes, None)
    }

    /// As [`Self::parse`], when the service that was asked about is known: see [`Destination::parse`].
    pub(crate) fn parse_for(
        command: IpvsCommand,
        bytes: &[u8],
        service: Option<Family>,
    ) -> Result<Self, DecodeError> {
        let mut attributes = Vec::new();
        for nla in wire::attributes(bytes) {
            let nla = nla?;
            let value = nla.value();
            attributes.push(match nla.kind() {
                _ if command == IpvsCommand::SetInfo => IpvsAttribute::Other(wire::keep(&nla)?),
                ATTR_SERVICE => IpvsAttribute::Service(Service::parse(value)?),
                ATTR_DEST => IpvsAttribute::Destination(Destination::parse(value, service)?),
                ATTR_DAEMON => IpvsAttribute::Daemon(SyncDaemon::parse(value)?),
                ATTR_TIMEOUT_TCP => IpvsAttribute::TimeoutTcp(wire::get_u32(value, "timeout")?),
                ATTR_TIMEOUT_TCP_FIN => IpvsAttribute::TimeoutTcpFin(wire::get_u32(value, "timeout")?),
                ATTR_TIMEOUT_UDP => IpvsAttribute::TimeoutUdp(wire::get_u32(value, "timeout")?),
                _ => IpvsAttribute::Other(wire::keep(&nla)?),
            });
        }
        Ok(Self { command, attributes })
    }

    /// The timeouts in a report of the configuration.
    pub fn config(&self) -> Config {
        let mut config = Config::default();
        for attribute in &self.attributes {
            match attribute {
                IpvsAttribute::TimeoutTcp(n) => config.tcp = *n,
                IpvsAttribute::TimeoutTcpFin(n) => config.tcp_fin = *n,
                IpvsAttribute::TimeoutUdp(n) => config.udp = *n,
                _ => {}
            }
        }
        config
    }

    /// Version and size in a report of [`IpvsCommand::SetInfo`].
    pub fn info(&self) -> Info {
        let mut info = Info::default();
        for attribute in &self.attributes {
            let IpvsAttribute::Other(nla) = attribute else { continue };
            match raw_attribute(nla) {
                (INFO_VERSION, value) => info.version = wire::get_u32(&value, "version").unwrap_or(0),
                (INFO_CONN_TAB_SIZE, value) => {
                    info.connection_table_size = wire::get_u32(&value, "size").unwrap_or(0);
                }
                _ => {}
            }
        }
        info
    }
}

impl GenlFamily for IpvsMessage {
    fn family_name() -> &'static str {
        FAMILY_NAME
    }

    fn command(&self) -> u8 {
        self.command.into()
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for IpvsMessage {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    /// Not as netlink-packet-core does it for lists: of an attribute with two flags that keeps one.
    fn emit(&self, buffer: &mut [u8]) {
        let mut out = Writer::default();
        self.attributes.iter().for_each(|attribute| out.put(attribute.kind(), &attribute.value()));
        buffer.copy_from_slice(&out.bytes);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for IpvsMessage {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Self::parse(header.cmd.into(), bytes)
    }
}
