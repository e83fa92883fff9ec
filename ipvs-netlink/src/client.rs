// SPDX-License-Identifier: Apache-2.0
//! The client: one method per command, and batches.

use std::borrow::Cow;
use std::net::SocketAddr;

use netlink_batch::{Counters, Dump, Message, Refusal, Socket, protocols};
use netlink_packet_core::DecodeError;
use nix::errno::Errno;

use crate::command::{Command, CommandKind, write_id};
use crate::control::{Config, Info, SyncDaemon};
use crate::destination::Destination;
use crate::error::{CommandError, Error};
use crate::message::{FAMILY_NAME, IpvsAttribute, IpvsCommand, IpvsMessage, VERSION};
use crate::service::Service;
use crate::types::{Family, ServiceId};
use crate::wire::{self, Writer};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_VERSION: u8 = 2;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Length of `struct genlmsghdr`.
const GENL: usize = 4;

/// Which commands of a batch were refused. The others ran.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchReport {
    /// Index of the command and its error, by index.
    pub failures: Vec<(usize, CommandError)>,
}

/// A blocking client, for the network namespace that it was opened in.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    family: u16,
}

impl Client {
    /// Opens a socket and asks for the family, which makes kernels from 5.16 on load `ip_vs`.
    ///
    /// # Errors
    /// [`Error::FamilyMissing`] when the kernel has no IPVS.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::open(protocols::NETLINK_GENERIC)?;
        let family = resolve(&mut socket)?;
        Ok(Self { socket, family })
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }

    /// Runs many commands in few sends: each holds at least 64 KiB, but for the last, and asks for
    /// one acknowledgement. A refused command does not stop those after it, so a service and its
    /// destinations can go in one batch. `ipvsadm -R`
    ///
    /// # Errors
    /// [`Error::Netlink`]: it is unknown which commands took effect. The client stays usable: late answers are
    /// skipped.
    pub fn batch<'a>(
        &mut self,
        commands: impl IntoIterator<Item = &'a Command>,
    ) -> Result<BatchReport, Error> {
        let commands: Vec<&Command> = commands.into_iter().collect();
        let mut refused = self.send(&commands)?;
        // If the module was loaded anew its family has another number, and nothing ran.
        let all = !commands.is_empty() && refused.len() == commands.len();
        if all && refused.iter().all(|(_, refusal)| may_have_moved(refusal)) && self.family_moved()? {
            refused = self.send(&commands)?;
        }
        let failures = refused.into_iter().filter_map(|(index, refusal)| {
            Some((index, CommandError::new(commands.get(index)?.kind(), refusal)))
        });
        Ok(BatchReport { failures: failures.collect() })
    }

    fn send(&mut self, commands: &[&Command]) -> Result<Vec<(usize, Refusal)>, Error> {
        let family = self.family;
        Ok(self.socket.batch(commands.iter().map(|command| {
            let mut out = Writer::default();
            command.write(&mut out);
            let number = command.kind().command.into();
            Request { family, command: number, version: VERSION, attributes: Cow::Owned(out.bytes) }
        }))?)
    }

    fn family_moved(&mut self) -> Result<bool, Error> {
        let family = resolve(&mut self.socket)?;
        let moved = family != self.family;
        self.family = family;
        Ok(moved)
    }

    fn run(&mut self, command: Command) -> Result<(), Error> {
        match self.batch(&[command])?.failures.pop() {
            None => Ok(()),
            Some((_, error)) => Err(error.into()),
        }
    }

    /// Adds a service. `ipvsadm -A`
    ///
    /// # Errors
    /// `ServiceExists`, `NoSuchScheduler`.
    pub fn new_service(&mut self, service: &Service) -> Result<(), Error> {
        self.run(Command::NewService(service.clone()))
    }

    /// Changes a service in place; its destinations and connections stay. `ipvsadm -E`
    ///
    /// # Errors
    /// `NoSuchService`, `NoSuchScheduler`.
    pub fn set_service(&mut self, service: &Service) -> Result<(), Error> {
        self.run(Command::SetService(service.clone()))
    }

    /// Removes a service with its destinations. `ipvsadm -D`
    ///
    /// # Errors
    /// `NoSuchService`.
    pub fn del_service(&mut self, id: &ServiceId) -> Result<(), Error> {
        self.run(Command::DelService(*id))
    }

    /// Reports one service. `ipvsadm -L -t ADDR:PORT`
    ///
    /// # Errors
    /// `NoSuchService`.
    pub fn service(&mut self, id: &ServiceId) -> Result<Service, Error> {
        let mut out = Writer::default();
        write_id(&mut out, id);
        let kind = CommandKind::service(IpvsCommand::GetService, *id);
        let message = self.ask(kind, &out.bytes)?;
        let found = message.attributes.into_iter().find_map(service_of);
        found.ok_or_else(|| DecodeError::from("a report of a service without one").into())
    }

    /// Reports all services. `ipvsadm -L`
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn services(&mut self) -> Result<Vec<Service>, Error> {
        self.dump(CommandKind::of(IpvsCommand::GetService), &[], service_of)
    }

    /// Adds a destination. `ipvsadm -a`
    ///
    /// # Errors
    /// `NoSuchService`, `DestinationExists`; `InvalidArgument`, see there.
    pub fn new_destination(&mut self, service: &ServiceId, dest: &Destination) -> Result<(), Error> {
        self.run(Command::NewDest(*service, dest.clone()))
    }

    /// Changes a destination. `ipvsadm -e`
    ///
    /// # Errors
    /// `NoSuchService`, `NoSuchDestination`.
    pub fn set_destination(&mut self, service: &ServiceId, dest: &Destination) -> Result<(), Error> {
        self.run(Command::SetDest(*service, dest.clone()))
    }

    /// Removes a destination. `ipvsadm -d`
    ///
    /// # Errors
    /// `NoSuchService`, `NoSuchDestination`.
    pub fn del_destination(&mut self, service: &ServiceId, dest: SocketAddr) -> Result<(), Error> {
        self.run(Command::DelDest(*service, dest))
    }

    /// Reports the destinations of a service, in one dump. `ipvsadm -L -t ADDR:PORT`
    ///
    /// A service that does not exist has none: the kernel answers with an empty list (seen on 6.1)
    /// rather than with `NoSuchService`. Ask [`Self::service`] where the difference matters.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn destinations(&mut self, service: &ServiceId) -> Result<Vec<Destination>, Error> {
        let mut out = Writer::default();
        write_id(&mut out, service);
        let kind = CommandKind::service(IpvsCommand::GetDest, *service);
        self.dump(kind, &out.bytes, |attribute| match attribute {
            IpvsAttribute::Destination(dest) => Some(dest),
            _ => None,
        })
    }

    /// Reports the timeouts. `ipvsadm -L --timeout`
    ///
    /// # Errors
    /// See [`Error`].
    pub fn config(&mut self) -> Result<Config, Error> {
        Ok(self.ask(CommandKind::of(IpvsCommand::GetConfig), &[])?.config())
    }

    /// Sets the timeouts; 0 leaves one as it is. `ipvsadm --set`
    ///
    /// # Errors
    /// `InvalidArgument` when one is too long for the kernel.
    pub fn set_config(&mut self, config: Config) -> Result<(), Error> {
        self.run(Command::SetConfig(config))
    }

    /// Reports version and size. The first line of `ipvsadm -L`
    ///
    /// # Errors
    /// See [`Error`].
    pub fn info(&mut self) -> Result<Info, Error> {
        Ok(self.ask(CommandKind::of(IpvsCommand::GetInfo), &[])?.info())
    }

    /// Removes everything in this network namespace, whoever made it. `ipvsadm -C`
    ///
    /// # Errors
    /// See [`Error`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.run(Command::Flush)
    }

    /// Sets all counters to zero. `ipvsadm -Z`
    ///
    /// # Errors
    /// See [`Error`].
    pub fn zero(&mut self) -> Result<(), Error> {
        self.run(Command::Zero(None))
    }

    /// Sets the counters of a service to zero. `ipvsadm -Z -t ADDR:PORT`
    ///
    /// # Errors
    /// `NoSuchService`.
    pub fn zero_service(&mut self, service: &ServiceId) -> Result<(), Error> {
        self.run(Command::Zero(Some(*service)))
    }

    /// Starts a sync daemon. `ipvsadm --start-daemon`
    ///
    /// # Errors
    /// `DaemonExists`; `Other(ENODEV)` for an unknown interface; `InvalidArgument`, see there.
    pub fn new_daemon(&mut self, daemon: &SyncDaemon) -> Result<(), Error> {
        self.run(Command::NewDaemon(daemon.clone()))
    }

    /// Stops a sync daemon. `ipvsadm --stop-daemon`
    ///
    /// # Errors
    /// `NoSuchDaemon`. [`Error::Timeout`] when it was stopped so soon after its start that its thread
    /// had not run yet (seen on 6.1): it is stopped, but the kernel does not answer then.
    pub fn del_daemon(&mut self, daemon: &SyncDaemon) -> Result<(), Error> {
        self.run(Command::DelDaemon(daemon.clone()))
    }

    /// Reports the sync daemons. `ipvsadm -L --daemon`
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        self.dump(CommandKind::of(IpvsCommand::GetDaemon), &[], |attribute| match attribute {
            IpvsAttribute::Daemon(daemon) => Some(daemon),
            _ => None,
        })
    }

    fn request<'a>(&self, kind: &CommandKind, attributes: &'a [u8]) -> Request<'a> {
        let attributes = Cow::Borrowed(attributes);
        Request { family: self.family, command: kind.command.into(), version: VERSION, attributes }
    }

    fn ask(&mut self, kind: CommandKind, question: &[u8]) -> Result<IpvsMessage, Error> {
        let mut answer = self.socket.ask(&self.request(&kind, question))?;
        if answer.as_ref().is_err_and(may_have_moved) && self.family_moved()? {
            answer = self.socket.ask(&self.request(&kind, question))?;
        }
        let answer = answer.map_err(|refusal| refused(kind, refusal))?;
        // Version and size come in attributes whose kinds mean something else elsewhere.
        let reported = if kind.command == IpvsCommand::GetInfo { IpvsCommand::SetInfo } else { kind.command };
        Ok(IpvsMessage::parse(reported, attributes(&answer)?)?)
    }

    /// Reads a list. Every part has to hold what `pick` looks for.
    fn dump<T>(
        &mut self,
        kind: CommandKind,
        attributes: &[u8],
        pick: impl Fn(IpvsAttribute) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let end = self.try_dump(kind, attributes, &pick);
        match end {
            Err(Error::Netlink(netlink_batch::Error::Refused(refusal))) => {
                if may_have_moved(&refusal) && self.family_moved()? {
                    return self.try_dump(kind, attributes, &pick).map_err(|error| named(kind, error));
                }
                Err(refused(kind, refusal))
            }
            end => end.map_err(|error| named(kind, error)),
        }
    }

    fn try_dump<T>(
        &mut self,
        kind: CommandKind,
        attributes: &[u8],
        pick: &impl Fn(IpvsAttribute) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let service = kind.service.map(|id| id.family());
        let request = self.request(&kind, attributes);
        self.socket.dump(&request, |found: &mut Vec<T>, payload| {
            found.push(entry(kind, payload, service, pick)?);
            Ok(())
        })
    }

    /// Asks for all services, to be read little by little with [`Self::more_services`]. Until the end
    /// nothing else may be asked for over this client.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn begin_services(&mut self) -> Result<ServiceList, Error> {
        let kind = CommandKind::of(IpvsCommand::GetService);
        Ok(ServiceList { dump: self.socket.begin_dump(&self.request(&kind, &[]))?, ended: false })
    }

    /// Some more services of a list, `None` at its end. What is added or removed between two calls moves
    /// positions in the kernel's table: a service may come twice then, or not at all.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn more_services(&mut self, list: &mut ServiceList) -> Result<Option<Vec<Service>>, Error> {
        if list.ended {
            return Ok(None);
        }
        let kind = CommandKind::of(IpvsCommand::GetService);
        let mut found = Ok(Vec::new());
        let more = self.socket.read_dump(&mut list.dump, &mut |payload| {
            if let Ok(services) = &mut found {
                match entry(kind, payload, None, &service_of) {
                    Ok(service) => services.push(service),
                    Err(error) => found = Err(error),
                }
            }
        });
        list.ended = !more.map_err(|error| named(kind, error.into()))?;
        found.map(Some)
    }
}

/// A list of services that is being read.
#[derive(Debug)]
pub struct ServiceList {
    dump: Dump,
    ended: bool,
}

fn service_of(attribute: IpvsAttribute) -> Option<Service> {
    match attribute {
        IpvsAttribute::Service(service) => Some(service),
        _ => None,
    }
}

/// What `pick` finds in a part of a list. Every part has to hold it.
fn entry<T>(
    kind: CommandKind,
    payload: &[u8],
    service: Option<Family>,
    pick: &impl Fn(IpvsAttribute) -> Option<T>,
) -> Result<T, Error> {
    let message = IpvsMessage::parse_for(kind.command, attributes(payload)?, service)?;
    let entry = message.attributes.into_iter().find_map(pick);
    entry.ok_or_else(|| DecodeError::from(format!("{kind}: a part of the list without an entry")).into())
}

/// The attributes of a message of generic netlink.
fn attributes(payload: &[u8]) -> Result<&[u8], DecodeError> {
    payload.get(GENL..).ok_or_else(|| DecodeError::from("a message is too short"))
}

/// Whether a refusal may be generic netlink's for a family number that nobody has.
fn may_have_moved(refusal: &Refusal) -> bool {
    matches!(refusal.errno(), Errno::ENOENT | Errno::EOPNOTSUPP)
}

/// The error of a refused command.
fn refused(kind: CommandKind, refusal: Refusal) -> Error {
    match refusal.errno() {
        Errno::EPERM => Error::PermissionDenied,
        _ => CommandError::new(kind, refusal).into(),
    }
}

/// As [`refused`], where the transport met the refusal.
fn named(kind: CommandKind, error: Error) -> Error {
    match error {
        Error::Netlink(netlink_batch::Error::Refused(refusal)) => refused(kind, refusal),
        Error::Netlink(netlink_batch::Error::NotPermitted) => Error::PermissionDenied,
        other => other,
    }
}

/// Asks for the number of the family by its name.
fn resolve(socket: &mut Socket) -> Result<u16, Error> {
    let mut out = Writer::default();
    out.put_text(CTRL_ATTR_FAMILY_NAME, FAMILY_NAME);
    let request = Request {
        family: GENL_ID_CTRL,
        command: CTRL_CMD_GETFAMILY,
        version: CTRL_VERSION,
        attributes: Cow::Borrowed(&out.bytes),
    };
    let answer = match socket.ask(&request)? {
        Ok(answer) => answer,
        Err(refusal) if refusal.errno() == Errno::ENOENT => return Err(Error::FamilyMissing),
        Err(refusal) => return Err(refused(CommandKind::of(IpvsCommand::Other(0)), refusal)),
    };
    parse_family(attributes(&answer)?)
}

/// The number of a family in a report of the controller.
pub(crate) fn parse_family(attributes: &[u8]) -> Result<u16, Error> {
    for nla in wire::attributes(attributes) {
        let nla = nla?;
        if nla.kind() == CTRL_ATTR_FAMILY_ID {
            return Ok(wire::get_u16(nla.value(), "family")?);
        }
    }
    Err(DecodeError::from("a family without a number").into())
}

/// One request of a family of generic netlink.
struct Request<'a> {
    family: u16,
    command: u8,
    version: u8,
    attributes: Cow<'a, [u8]>,
}

impl Message for Request<'_> {
    fn kind(&self) -> u16 {
        self.family
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.command, self.version, 0, 0]);
        out.extend_from_slice(&self.attributes);
    }
}
