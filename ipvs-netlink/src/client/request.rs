// SPDX-License-Identifier: Apache-2.0
//! Requests of generic netlink (`<linux/genetlink.h>`), and the number of the family.

use netlink_batch::{Attributes, Message, Refusal, Socket};
use netlink_packet_core::{DecodeError, NlasIterator};
use nix::errno::Errno;

use crate::command::{CommandKind, write_id};
use crate::error::{CommandError, Error};
use crate::packet::{FAMILY_NAME, IpvsCommand, VERSION};

/// Length of `struct genlmsghdr`.
const HEADER: usize = 4;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_VERSION: u8 = 2;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// One request of a family; `write` adds its attributes.
pub(super) struct Request<F> {
    pub family: u16,
    pub command: u8,
    pub version: u8,
    pub write: F,
}

impl<F: Fn(&mut Attributes)> Message for Request<F> {
    fn kind(&self) -> u16 {
        self.family
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.command, self.version, 0, 0]);
        Attributes::append_to(out, &self.write);
    }
}

/// The request for what `kind` reports, of one service where it names one.
pub(super) fn ask_for(family: u16, kind: &CommandKind) -> Request<impl Fn(&mut Attributes) + use<>> {
    let service = kind.service;
    let write = move |out: &mut Attributes| {
        if let Some(id) = &service {
            write_id(out, id);
        }
    };
    Request { family, command: kind.command.into(), version: VERSION, write }
}

/// The attributes of a message of generic netlink.
pub(super) fn attributes(payload: &[u8]) -> Result<&[u8], DecodeError> {
    payload.get(HEADER..).ok_or_else(|| DecodeError::from("a message is too short"))
}

/// Whether generic netlink may have refused because the family number is no longer in use.
pub(super) fn may_have_moved(refusal: &Refusal) -> bool {
    matches!(refusal.errno(), Errno::ENOENT | Errno::EOPNOTSUPP)
}

/// The error of a refused command.
pub(super) fn refused(kind: CommandKind, refusal: Refusal) -> Error {
    match refusal.errno() {
        Errno::EPERM => Error::PermissionDenied,
        _ => CommandError::new(kind, refusal).into(),
    }
}

/// Asks for the number of the family by its name.
pub(super) fn resolve(socket: &mut Socket) -> Result<u16, Error> {
    let request = Request {
        family: GENL_ID_CTRL,
        command: CTRL_CMD_GETFAMILY,
        version: CTRL_VERSION,
        write: |out: &mut Attributes| _ = out.put_str(CTRL_ATTR_FAMILY_NAME, FAMILY_NAME),
    };
    match socket.ask(&request)? {
        Ok(answer) => parse_family(attributes(&answer)?),
        Err(refusal) if refusal.errno() == Errno::ENOENT => Err(Error::FamilyMissing),
        Err(refusal) => Err(refused(CommandKind::of(IpvsCommand::Other(0)), refusal)),
    }
}

/// The number of a family in a report of the controller.
pub(crate) fn parse_family(attributes: &[u8]) -> Result<u16, Error> {
    for nla in NlasIterator::new(attributes) {
        let nla = nla?;
        if nla.kind() == CTRL_ATTR_FAMILY_ID {
            let number = nla.value().first_chunk().copied().map(u16::from_ne_bytes);
            return number.ok_or_else(|| DecodeError::from("a family whose number is too short").into());
        }
    }
    Err(DecodeError::from("a family without a number").into())
}
