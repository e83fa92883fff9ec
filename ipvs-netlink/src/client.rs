// SPDX-License-Identifier: Apache-2.0
//! The client: one method per command, and batches.

use std::borrow::Cow;
use std::net::SocketAddr;

use crate::command::{Command, CommandKind, write_id};
use crate::control::{Config, Info, SyncDaemon};
use crate::destination::Destination;
use crate::error::{CommandError, Error, Refusal};
use crate::frame::Request;
use crate::message::{FAMILY_NAME, IpvsAttribute, IpvsCommand, IpvsMessage, VERSION};
use crate::service::Service;
use crate::socket::{Counters, Dump, DumpEnd, GenlSocket};
use crate::types::{Family, ServiceId};
use crate::wire::{self, Writer};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_VERSION: u8 = 2;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EOPNOTSUPP: i32 = 95;

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
    socket: GenlSocket,
    family: u16,
}

impl Client {
    /// Opens a socket and asks for the family, which makes kernels from 5.16 on load `ip_vs`.
    ///
    /// # Errors
    /// [`Error::FamilyMissing`] when the kernel has no IPVS.
    pub fn open() -> Result<Self, Error> {
        let mut socket = GenlSocket::open()?;
        let family = resolve(&mut socket)?;
        Ok(Self { socket, family })
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters
    }

    /// Runs many commands in few sends: each holds at least 64 KiB, but for the last, and asks for
    /// one acknowledgement. A refused command does not stop those after it, so a service and its
    /// destinations can go in one batch. `ipvsadm -R`
    ///
    /// # Errors
    /// [`Error::Overrun`], [`Error::Timeout`]: nobody knows which commands ran. The client can be
    /// used on: late answers are passed over.
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
        self.socket.batch(commands.iter().map(|command| {
            let mut out = Writer::default();
            command.write(&mut out);
            let number = command.kind().command.into();
            Request { family, command: number, version: VERSION, attributes: Cow::Owned(out.bytes) }
        }))
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
        found.ok_or_else(|| Error::Malformed("a report of a service without one".to_owned()))
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

    fn ask(&mut self, kind: CommandKind, attributes: &[u8]) -> Result<IpvsMessage, Error> {
        let mut answer = self.socket.ask(&self.request(&kind, attributes))?;
        if answer.as_ref().is_err_and(may_have_moved) && self.family_moved()? {
            answer = self.socket.ask(&self.request(&kind, attributes))?;
        }
        let answer = answer.map_err(|refusal| refused(kind, refusal))?;
        // Version and size come in attributes whose kinds mean something else elsewhere.
        let reported = if kind.command == IpvsCommand::GetInfo { IpvsCommand::SetInfo } else { kind.command };
        parse(reported, &answer, None)
    }

    /// Reads a list. Every part has to hold what `pick` looks for.
    fn dump<T>(
        &mut self,
        kind: CommandKind,
        attributes: &[u8],
        pick: impl Fn(IpvsAttribute) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let service = kind.service.map(|id| id.family());
        let found = std::cell::RefCell::new(Found::new());
        let mut part = |bytes: &[u8]| found.borrow_mut().take(kind, bytes, service, &pick);
        let mut restart = || *found.borrow_mut() = Found::new();
        let request = self.request(&kind, attributes);
        let mut end = self.socket.dump(&request, &mut restart, &mut part)?;
        if end.as_ref().is_err_and(may_have_moved) && self.family_moved()? {
            end = self.socket.dump(&self.request(&kind, attributes), &mut restart, &mut part)?;
        }
        end.map_err(|refusal| refused(kind, refusal))?;
        found.into_inner().end()
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
        let mut found = Found::new();
        let mut part = |bytes: &[u8]| found.take(kind, bytes, None, &service_of);
        let end = self.socket.more(&mut list.dump, &mut part)?;
        list.ended = end.is_some();
        match end {
            None | Some(DumpEnd::Whole) => found.end().map(Some),
            Some(DumpEnd::Interrupted) => Err(Error::DumpInterrupted),
            Some(DumpEnd::Refused(refusal)) => Err(refused(kind, refusal)),
        }
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

/// What was read of a list; one bad part spoils it.
struct Found<T>(Result<Vec<T>, Error>);

impl<T> Found<T> {
    fn new() -> Self {
        Self(Ok(Vec::new()))
    }

    fn take(
        &mut self,
        kind: CommandKind,
        bytes: &[u8],
        service: Option<Family>,
        pick: &dyn Fn(IpvsAttribute) -> Option<T>,
    ) {
        let Ok(found) = &mut self.0 else { return };
        let parsed = parse(kind.command, bytes, service).and_then(|message| {
            let entry = message.attributes.into_iter().find_map(pick);
            entry.ok_or_else(|| Error::Malformed(format!("{kind}: a part of the list without an entry")))
        });
        match parsed {
            Ok(entry) => found.push(entry),
            Err(error) => self.0 = Err(error),
        }
    }

    fn end(self) -> Result<Vec<T>, Error> {
        self.0
    }
}

/// Whether a refusal may be generic netlink's for a family number that nobody has.
fn may_have_moved(refusal: &Refusal) -> bool {
    refusal.errno == ENOENT || refusal.errno == EOPNOTSUPP
}

fn parse(command: IpvsCommand, bytes: &[u8], service: Option<Family>) -> Result<IpvsMessage, Error> {
    IpvsMessage::parse_for(command, bytes, service).map_err(|error| Error::Malformed(error.to_string()))
}

fn refused(kind: CommandKind, refusal: Refusal) -> Error {
    match refusal.errno {
        EPERM => Error::PermissionDenied,
        _ => CommandError::new(kind, refusal).into(),
    }
}

/// Asks for the number of the family by its name.
fn resolve(socket: &mut GenlSocket) -> Result<u16, Error> {
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
        Err(refusal) if refusal.errno == ENOENT => return Err(Error::FamilyMissing),
        Err(refusal) => return Err(refused(CommandKind::of(IpvsCommand::Other(0)), refusal)),
    };
    parse_family(&answer)
}

/// The number of a family in a report of the controller.
pub(crate) fn parse_family(attributes: &[u8]) -> Result<u16, Error> {
    for nla in wire::attributes(attributes) {
        let nla = nla.map_err(|error| Error::Malformed(error.to_string()))?;
        if nla.kind() == CTRL_ATTR_FAMILY_ID {
            return wire::get_u16(nla.value(), "family").map_err(|error| Error::Malformed(error.to_string()));
        }
    }
    Err(Error::Malformed("a family without a number".to_owned()))
}
