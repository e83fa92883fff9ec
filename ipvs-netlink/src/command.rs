// SPDX-License-Identifier: Apache-2.0
//! Commands that change something.

use std::fmt;
use std::net::SocketAddr;

use netlink_batch::Attributes;

use crate::control::Config;
use crate::daemon::SyncDaemon;
use crate::destination::Destination;
use crate::packet::{ATTR_DAEMON, ATTR_DEST, ATTR_SERVICE, IpvsAttribute, IpvsCommand};
use crate::service::Service;
use crate::types::ServiceId;

/// A command that changes something. [`Client`](crate::Client) has a method for each.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Command {
    /// Add a service. `ipvsadm -A`
    NewService(Service),
    /// Change a service in place; destinations and connections stay. `ipvsadm -E`
    SetService(Service),
    /// Remove a service with its destinations. `ipvsadm -D`
    DelService(ServiceId),
    /// Add a destination. `ipvsadm -a`
    NewDest(ServiceId, Destination),
    /// Change a destination. `ipvsadm -e`
    SetDest(ServiceId, Destination),
    /// Remove a destination. `ipvsadm -d`
    DelDest(ServiceId, SocketAddr),
    /// Set the counters of one service, or of all, to zero. `ipvsadm -Z`
    Zero(Option<ServiceId>),
    /// Remove everything, whoever made it. `ipvsadm -C`
    Flush,
    /// Set the timeouts; 0 leaves one as it is. `ipvsadm --set`
    SetConfig(Config),
    /// Start a sync daemon. `ipvsadm --start-daemon`
    NewDaemon(SyncDaemon),
    /// Stop a sync daemon. `ipvsadm --stop-daemon`
    DelDaemon(SyncDaemon),
}

/// What a command was about, for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandKind {
    /// The command.
    pub command: IpvsCommand,
    /// The service, if it had one.
    pub service: Option<ServiceId>,
    /// The destination, if it had one.
    pub destination: Option<SocketAddr>,
}

impl CommandKind {
    pub(crate) fn of(command: IpvsCommand) -> Self {
        Self { command, service: None, destination: None }
    }

    pub(crate) fn service(command: IpvsCommand, id: ServiceId) -> Self {
        Self { command, service: Some(id), destination: None }
    }
}

impl fmt::Display for CommandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.command {
            IpvsCommand::NewService => "add service",
            IpvsCommand::SetService => "change service",
            IpvsCommand::DelService => "remove service",
            IpvsCommand::GetService => "read service",
            IpvsCommand::NewDest => "add destination",
            IpvsCommand::SetDest => "change destination",
            IpvsCommand::DelDest => "remove destination",
            IpvsCommand::GetDest => "read destinations of",
            IpvsCommand::NewDaemon => "start sync daemon",
            IpvsCommand::DelDaemon => "stop sync daemon",
            IpvsCommand::GetDaemon => "read sync daemons",
            IpvsCommand::SetConfig => "set timeouts",
            IpvsCommand::GetConfig => "read timeouts",
            IpvsCommand::GetInfo | IpvsCommand::SetInfo => "read version",
            IpvsCommand::Zero => "zero counters",
            IpvsCommand::Flush => "flush",
            IpvsCommand::Other(_) => "command",
        };
        f.write_str(verb)?;
        if let Some(destination) = self.destination {
            write!(f, " {destination}")?;
            if self.service.is_some() {
                f.write_str(" of")?;
            }
        }
        if let Some(service) = self.service {
            write!(f, " {service}")?;
        }
        Ok(())
    }
}

impl Command {
    /// What it is about.
    pub fn kind(&self) -> CommandKind {
        let with_dest = |command, id: &ServiceId, destination| CommandKind {
            command,
            service: Some(*id),
            destination: Some(destination),
        };
        let target = |dest: &Destination| SocketAddr::new(dest.addr, dest.port);
        match self {
            Command::NewService(s) => CommandKind::service(IpvsCommand::NewService, s.id),
            Command::SetService(s) => CommandKind::service(IpvsCommand::SetService, s.id),
            Command::DelService(id) => CommandKind::service(IpvsCommand::DelService, *id),
            Command::NewDest(id, d) => with_dest(IpvsCommand::NewDest, id, target(d)),
            Command::SetDest(id, d) => with_dest(IpvsCommand::SetDest, id, target(d)),
            Command::DelDest(id, d) => with_dest(IpvsCommand::DelDest, id, *d),
            Command::Zero(id) => CommandKind { service: *id, ..CommandKind::of(IpvsCommand::Zero) },
            Command::Flush => CommandKind::of(IpvsCommand::Flush),
            Command::SetConfig(_) => CommandKind::of(IpvsCommand::SetConfig),
            Command::NewDaemon(_) => CommandKind::of(IpvsCommand::NewDaemon),
            Command::DelDaemon(_) => CommandKind::of(IpvsCommand::DelDaemon),
        }
    }

    /// Writes the attributes of the request.
    pub(crate) fn write(&self, out: &mut Attributes) {
        match self {
            Command::NewService(service) | Command::SetService(service) => {
                out.nest_with(ATTR_SERVICE, |inner| service.write(inner));
            }
            Command::DelService(id) | Command::Zero(Some(id)) => write_id(out, id),
            Command::NewDest(id, dest) | Command::SetDest(id, dest) => {
                write_id(out, id);
                out.nest_with(ATTR_DEST, |inner| dest.write(id.family(), inner));
            }
            Command::DelDest(id, dest) => {
                write_id(out, id);
                out.nest_with(ATTR_DEST, |inner| {
                    Destination::write_id(dest.ip(), dest.port(), id.family(), inner);
                });
            }
            Command::Zero(None) | Command::Flush => {}
            Command::SetConfig(config) => {
                out.put_nla(&IpvsAttribute::TimeoutTcp(config.tcp));
                out.put_nla(&IpvsAttribute::TimeoutTcpFin(config.tcp_fin));
                out.put_nla(&IpvsAttribute::TimeoutUdp(config.udp));
            }
            Command::NewDaemon(daemon) | Command::DelDaemon(daemon) => {
                out.nest_with(ATTR_DAEMON, |inner| daemon.write(inner));
            }
        }
    }
}

/// Writes the identity of a service as an attribute.
pub(crate) fn write_id(out: &mut Attributes, id: &ServiceId) {
    out.nest_with(ATTR_SERVICE, |inner| id.write(inner));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::{Tunnel, TunnelKind};
    use crate::service::PersistenceMask;
    use crate::types::{ForwardMethod, ServiceFlags};

    fn tcp(text: &str) -> ServiceId {
        ServiceId::tcp(text.parse().unwrap())
    }

    fn dest(text: &str) -> Destination {
        Destination::new(text.parse().unwrap())
    }

    /// A kernel took exactly these bytes, and `ipvsadm` showed what the commands say.
    #[test]
    #[cfg(target_endian = "little")]
    fn requests_are_the_bytes_that_a_kernel_took() {
        let (v4, v6) = (tcp("10.96.0.1:443"), tcp("[fd00::1]:80"));
        let persistent = |id, scheduler: &str, timeout, mask| {
            let mut service = Service::new(id, scheduler);
            (service.flags, service.timeout) = (ServiceFlags::PERSISTENT, timeout);
            service.persistence_mask = mask;
            service
        };
        let mut tunnel = dest("10.0.0.9:443");
        tunnel.forward = ForwardMethod::Tunnel;
        tunnel.tunnel = Some(Tunnel { kind: TunnelKind::Gue, port: 6080, flags: 0 });
        let mut limited = dest("[fd00::8]:8080");
        (limited.weight, limited.upper_threshold, limited.lower_threshold) = (5, 100, 50);
        let mask = PersistenceMask::V4([255, 255, 255, 0].into());
        let commands = [
            Command::NewService(persistent(v4, "rr", 600, mask)),
            Command::NewDest(v4, tunnel),
            Command::NewService(persistent(v6, "wrr", 300, PersistenceMask::V6(64))),
            Command::NewDest(v6, limited),
            Command::SetConfig(Config { tcp: 800, tcp_fin: 20, udp: 0 }),
        ];
        let text = include_str!("../tests/captured/requests.hex");
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), commands.len());
        for (command, line) in commands.iter().zip(lines) {
            let mut out = Attributes::default();
            command.write(&mut out);
            let header = [u8::from(command.kind().command), crate::packet::VERSION, 0, 0];
            let bytes = header.iter().chain(out.as_bytes());
            let hex: String = bytes.map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, line.trim(), "{}", command.kind());
        }
    }

    #[test]
    fn a_command_says_what_it_is_about() {
        let command = Command::DelDest(tcp("10.96.0.1:80"), "10.0.0.1:8080".parse().unwrap());
        assert_eq!(command.kind().to_string(), "remove destination 10.0.0.1:8080 of TCP 10.96.0.1:80");
        assert_eq!(Command::Flush.kind().to_string(), "flush");
    }
}
