// SPDX-License-Identifier: Apache-2.0
//! Lists, whole or little by little.

use netlink_batch::{Dump, Error as NetlinkError};
use netlink_packet_core::DecodeError;

use super::request::{ask_for, attributes, may_have_moved, refused};
use super::{Client, service_of};
use crate::command::CommandKind;
use crate::error::Error;
use crate::packet::{IpvsAttribute, IpvsCommand, message_attributes};
use crate::service::Service;

/// A list of services that is being read.
#[derive(Debug)]
pub struct ServiceList {
    dump: Dump,
    ended: bool,
}

impl Client {
    /// Reads a list. Every part has to hold what `pick` looks for.
    pub(super) fn dump<T>(
        &mut self,
        kind: CommandKind,
        pick: impl Fn(IpvsAttribute) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut list = self.try_dump(kind, &pick);
        let moved = matches!(&list, Err(Error::Netlink(NetlinkError::Refused(why))) if may_have_moved(why));
        if moved && self.family_moved()? {
            list = self.try_dump(kind, &pick);
        }
        list.map_err(|error| named(kind, error))
    }

    fn try_dump<T>(
        &mut self,
        kind: CommandKind,
        pick: &impl Fn(IpvsAttribute) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        self.socket.dump(&ask_for(self.family, &kind), |found: &mut Vec<T>, payload| {
            found.push(entry(kind, payload, pick)?);
            Ok(())
        })
    }

    /// Requests all services, to be read little by little with [`Self::more_services`]. Until the end
    /// no other list can be read over this client.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn begin_services(&mut self) -> Result<ServiceList, Error> {
        let request = ask_for(self.family, &CommandKind::of(IpvsCommand::GetService));
        Ok(ServiceList { dump: self.socket.begin_dump(&request)?, ended: false })
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
                match entry(kind, payload, &service_of) {
                    Ok(service) => services.push(service),
                    Err(error) => found = Err(error),
                }
            }
        });
        list.ended = !more.map_err(|error| named(kind, error.into()))?;
        found.map(Some)
    }
}

/// What `pick` finds in a part of a list. Nothing is collected but that.
fn entry<T>(
    kind: CommandKind,
    payload: &[u8],
    pick: &impl Fn(IpvsAttribute) -> Option<T>,
) -> Result<T, Error> {
    let service = kind.service.map(|id| id.family());
    let mut found = None;
    for attribute in message_attributes(kind.command, attributes(payload)?, service) {
        let attribute = attribute?;
        if found.is_none() {
            found = pick(attribute);
        }
    }
    found.ok_or_else(|| DecodeError::from(format!("{kind}: a part of the list without an entry")).into())
}

/// Names the command that was refused.
fn named(kind: CommandKind, error: Error) -> Error {
    match error {
        Error::Netlink(NetlinkError::Refused(refusal)) => refused(kind, refusal),
        Error::Netlink(NetlinkError::NotPermitted) => Error::PermissionDenied,
        other => other,
    }
}
