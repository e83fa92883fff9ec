// SPDX-License-Identifier: Apache-2.0
//! Whole messages of the family.

use netlink_batch::Attributes;
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, Nla, NlaBuffer, NlasIterator, Parseable,
    ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};

use super::codec::{Codec, Host, MAX_VALUE, nest};
use super::{ATTR_DAEMON, ATTR_DEST, ATTR_SERVICE, InfoAttribute, IpvsCommand, attributes};
use crate::control::{Config, Info};
use crate::daemon::SyncDaemon;
use crate::destination::Destination;
use crate::service::Service;
use crate::types::Family;

/// `IPVS_GENL_NAME`
pub(crate) const FAMILY_NAME: &str = "IPVS";
/// `IPVS_GENL_VERSION`
pub(crate) const VERSION: u8 = 1;

const ATTR_TIMEOUT_TCP: u16 = 4;
const ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const ATTR_TIMEOUT_UDP: u16 = 6;

/// Attributes of a message, `IPVS_CMD_ATTR_*`. In a report of [`IpvsCommand::SetInfo`] the kinds
/// mean something else (`IPVS_INFO_ATTR_*`), so there they are [`IpvsAttribute::Info`].
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
    /// Version and size.
    Info(InfoAttribute),
    /// A kind that this version does not know, kept as it is.
    Other(DefaultNla),
}

impl IpvsAttribute {
    /// `service` is the family of the service that a destination belongs to, where it is known: see
    /// [`Destination::from_attributes`].
    fn parse(
        command: IpvsCommand,
        nla: &NlaBuffer<&[u8]>,
        service: Option<Family>,
    ) -> Result<Self, DecodeError> {
        let value = nla.value();
        let seconds = || Host::parse(value).map_err(|error| DecodeError::from(format!("timeout: {error}")));
        Ok(match nla.kind() {
            _ if command == IpvsCommand::SetInfo => Self::Info(InfoAttribute::parse(nla)?),
            ATTR_SERVICE => Self::Service(Service::from_attributes(attributes(value))?),
            ATTR_DEST => Self::Destination(Destination::from_attributes(attributes(value), service)?),
            ATTR_DAEMON => Self::Daemon(SyncDaemon::from_attributes(attributes(value))?),
            ATTR_TIMEOUT_TCP => Self::TimeoutTcp(seconds()?),
            ATTR_TIMEOUT_TCP_FIN => Self::TimeoutTcpFin(seconds()?),
            ATTR_TIMEOUT_UDP => Self::TimeoutUdp(seconds()?),
            _ => Self::Other(DefaultNla::parse(nla)?),
        })
    }

    /// Writes the attributes in a nested one.
    fn write_nested(&self, out: &mut Attributes) {
        match self {
            Self::Service(service) => service.write(out),
            Self::Destination(dest) => dest.write_report(out),
            Self::Daemon(daemon) => daemon.write(out),
            _ => {}
        }
    }
}

impl Nla for IpvsAttribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Service(_) | Self::Destination(_) | Self::Daemon(_) => {
                let mut inner = Attributes::default();
                self.write_nested(&mut inner);
                inner.len().min(MAX_VALUE)
            }
            Self::TimeoutTcp(_) | Self::TimeoutTcpFin(_) | Self::TimeoutUdp(_) => 4,
            Self::Info(info) => info.value_len(),
            Self::Other(nla) => nla.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Service(_) => ATTR_SERVICE | NLA_F_NESTED,
            Self::Destination(_) => ATTR_DEST | NLA_F_NESTED,
            Self::Daemon(_) => ATTR_DAEMON | NLA_F_NESTED,
            Self::TimeoutTcp(_) => ATTR_TIMEOUT_TCP,
            Self::TimeoutTcpFin(_) => ATTR_TIMEOUT_TCP_FIN,
            Self::TimeoutUdp(_) => ATTR_TIMEOUT_UDP,
            Self::Info(info) => info.kind(),
            Self::Other(nla) => nla.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Service(_) | Self::Destination(_) | Self::Daemon(_) => {
                nest(buffer, |out| self.write_nested(out));
            }
            Self::TimeoutTcp(n) | Self::TimeoutTcpFin(n) | Self::TimeoutUdp(n) => Host::emit(n, buffer),
            Self::Info(info) => info.emit_value(buffer),
            Self::Other(nla) => nla.emit_value(buffer),
        }
    }
}

/// Reads the attributes of a message one after the other.
pub(crate) fn message_attributes(
    command: IpvsCommand,
    bytes: &[u8],
    service: Option<Family>,
) -> impl Iterator<Item = Result<IpvsAttribute, DecodeError>> {
    NlasIterator::new(bytes).map(move |nla| IpvsAttribute::parse(command, &nla?, service))
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
        let attributes = message_attributes(command, bytes, None).collect::<Result<_, _>>()?;
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
            match attribute {
                IpvsAttribute::Info(InfoAttribute::Version(version)) => info.version = *version,
                IpvsAttribute::Info(InfoAttribute::ConnectionTableSize(size)) => {
                    info.connection_table_size = *size;
                }
                _ => {}
            }
        }
        info
    }

    /// Not as netlink-packet-core does it for lists: of an attribute with two flags that keeps one, and an
    /// attribute that is too long it takes for further attributes.
    fn encode(&self) -> Attributes {
        let mut out = Attributes::default();
        self.attributes.iter().for_each(|attribute| _ = out.put_nla(attribute));
        out
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
        self.encode().len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(self.encode().as_bytes());
    }
}

impl ParseableParametrized<[u8], GenlHeader> for IpvsMessage {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Self::parse(header.cmd.into(), bytes)
    }
}
