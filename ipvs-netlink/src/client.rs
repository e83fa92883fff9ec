// SPDX-License-Identifier: Apache-2.0
//! The client: one method per command, and batches.

use std::borrow::Borrow;
use std::net::SocketAddr;

use netlink_batch::{Counters, Refusal, Socket, protocols};
use netlink_packet_core::DecodeError;

use crate::command::{Command, CommandKind};
use crate::control::{Config, Info};
use crate::daemon::SyncDaemon;
use crate::destination::Destination;
use crate::error::{CommandError, Error};
use crate::packet::{IpvsAttribute, IpvsCommand, IpvsMessage, VERSION};
use crate::service::Service;
use crate::types::ServiceId;

mod list;
pub(crate) mod request;

pub use list::ServiceList;
use request::{Request, ask_for, attributes, may_have_moved, refused, resolve};

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
    pub fn batch<C: Borrow<Command>>(
        &mut self,
        commands: impl IntoIterator<Item = C, IntoIter: Clone + Send>,
    ) -> Result<BatchReport, Error> {
        let commands = commands.into_iter();
        let mut refused = self.send(commands.clone())?;
        // If the module was loaded anew its family has another number, and nothing ran.
        let all = !refused.is_empty() && refused.len() == commands.clone().count();
        if all && refused.iter().all(|(_, refusal)| may_have_moved(refusal)) && self.family_moved()? {
            refused = self.send(commands.clone())?;
        }
        // Refusals are sorted by index, so one walk over the commands names them all.
        let mut numbered = commands.enumerate();
        let failures = refused.into_iter().filter_map(|(index, refusal)| {
            let (_, command) = numbered.find(|(at, _)| *at == index)?;
            Some((index, CommandError::new(command.borrow().kind(), refusal)))
        });
        Ok(BatchReport { failures: failures.collect() })
    }

    fn send<C: Borrow<Command>>(
        &mut self,
        commands: impl Iterator<Item = C> + Send,
    ) -> Result<Vec<(usize, Refusal)>, Error> {
        let family = self.family;
        let request = move |command: C| Request {
            family,
            command: command.borrow().kind().command.into(),
            version: VERSION,
            write: move |out: &mut _| command.borrow().write(out),
        };
        Ok(self.socket.batch(commands.map(request))?)
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
        let message = self.ask(CommandKind::service(IpvsCommand::GetService, *id))?;
        let found = message.attributes.into_iter().find_map(service_of);
        found.ok_or_else(|| DecodeError::from("a report of a service without one").into())
    }

    /// Reports all services. `ipvsadm -L`
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn services(&mut self) -> Result<Vec<Service>, Error> {
        self.dump(CommandKind::of(IpvsCommand::GetService), service_of)
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
        self.dump(CommandKind::service(IpvsCommand::GetDest, *service), |attribute| match attribute {
            IpvsAttribute::Destination(dest) => Some(dest),
            _ => None,
        })
    }

    /// Reports the timeouts. `ipvsadm -L --timeout`
    ///
    /// # Errors
    /// See [`Error`].
    pub fn config(&mut self) -> Result<Config, Error> {
        Ok(self.ask(CommandKind::of(IpvsCommand::GetConfig))?.config())
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
        Ok(self.ask(CommandKind::of(IpvsCommand::GetInfo))?.info())
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
    /// `NoSuchDaemon`. [`Timeout`](crate::NetlinkError::Timeout) when it was stopped so soon after its start that its thread
    /// had not run yet (seen on 6.1): it is stopped, but the kernel does not answer then.
    pub fn del_daemon(&mut self, daemon: &SyncDaemon) -> Result<(), Error> {
        self.run(Command::DelDaemon(daemon.clone()))
    }

    /// Reports the sync daemons. `ipvsadm -L --daemon`
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        self.dump(CommandKind::of(IpvsCommand::GetDaemon), |attribute| match attribute {
            IpvsAttribute::Daemon(daemon) => Some(daemon),
            _ => None,
        })
    }

    fn ask(&mut self, kind: CommandKind) -> Result<IpvsMessage, Error> {
        let mut answer = self.socket.ask(&ask_for(self.family, &kind))?;
        if answer.as_ref().is_err_and(may_have_moved) && self.family_moved()? {
            answer = self.socket.ask(&ask_for(self.family, &kind))?;
        }
        let answer = answer.map_err(|refusal| refused(kind, refusal))?;
        // Version and size come in attributes whose kinds mean something else elsewhere.
        let reported = if kind.command == IpvsCommand::GetInfo { IpvsCommand::SetInfo } else { kind.command };
        Ok(IpvsMessage::parse(reported, attributes(&answer)?)?)
    }
}

fn service_of(attribute: IpvsAttribute) -> Option<Service> {
    match attribute {
        IpvsAttribute::Service(service) => Some(service),
        _ => None,
    }
}
