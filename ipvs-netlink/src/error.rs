// SPDX-License-Identifier: Apache-2.0
//! Errors that carry the command and its meaning.

use std::fmt;

use netlink_batch::Refusal;
use netlink_packet_core::DecodeError;
use nix::errno::Errno;

use crate::command::CommandKind;
use crate::packet::IpvsCommand;

/// What went wrong with the conversation or with a single command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel has no IPVS.
    #[error("the kernel has no IPVS: load the module with `modprobe ip_vs`, or use a kernel that has it")]
    FamilyMissing,
    /// The process may not use IPVS. In a user namespace no process may.
    #[error("not permitted to use IPVS: CAP_NET_ADMIN is needed, outside of a user namespace")]
    PermissionDenied,
    /// The kernel refused a command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Attributes of an answer cannot be decoded. Nothing is made of the rest of it.
    #[error("the kernel's answer cannot be read")]
    Malformed(#[from] DecodeError),
    /// The conversation failed: it is unknown which commands took effect. Read the state again.
    #[error(transparent)]
    Netlink(#[from] netlink_batch::Error),
}

/// What a refusal means for the command that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A new service exists already (`EEXIST`).
    ServiceExists,
    /// There is no such service (`ESRCH`).
    NoSuchService,
    /// The scheduler or persistence engine is unknown and could not be loaded (`ENOENT`).
    NoSuchScheduler,
    /// A new destination exists already (`EEXIST`).
    DestinationExists,
    /// There is no such destination (`ENOENT`).
    NoSuchDestination,
    /// A sync daemon of that kind runs already (`EEXIST`).
    DaemonExists,
    /// There is no such sync daemon (`ESRCH`).
    NoSuchDaemon,
    /// `EPERM`.
    PermissionDenied,
    /// `EINVAL`. For a new destination: also in a network namespace that never had an IPv4 address,
    /// for lack of a routing table; bring its loopback device up. For a new sync daemon: also while
    /// a service has a destination of another family than its own.
    InvalidArgument,
    /// `ENOMEM`.
    OutOfMemory,
    /// The kernel does not know the command or the family (`EOPNOTSUPP`, `EAFNOSUPPORT`).
    NotSupported,
    /// Any other errno, e.g. `ERANGE` for a weight or threshold out of range, `ENODEV` for a sync
    /// daemon on an unknown interface.
    Other(i32),
}

impl ErrorKind {
    /// The meaning of a positive errno for a command.
    pub fn of(command: IpvsCommand, errno: i32) -> Self {
        use IpvsCommand as C;
        match (command, Errno::from_raw(errno)) {
            (C::NewDest, Errno::EEXIST) => ErrorKind::DestinationExists,
            (C::NewDaemon, Errno::EEXIST) => ErrorKind::DaemonExists,
            (_, Errno::EEXIST) => ErrorKind::ServiceExists,
            (C::NewDaemon | C::DelDaemon | C::GetDaemon, Errno::ESRCH) => ErrorKind::NoSuchDaemon,
            (_, Errno::ESRCH) => ErrorKind::NoSuchService,
            (C::NewService | C::SetService, Errno::ENOENT) => ErrorKind::NoSuchScheduler,
            (C::SetDest | C::DelDest, Errno::ENOENT) => ErrorKind::NoSuchDestination,
            (_, Errno::EPERM) => ErrorKind::PermissionDenied,
            (_, Errno::EINVAL) => ErrorKind::InvalidArgument,
            (_, Errno::ENOMEM) => ErrorKind::OutOfMemory,
            (_, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => ErrorKind::NotSupported,
            _ => ErrorKind::Other(errno),
        }
    }
}

/// What it means, without the object.
impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::ServiceExists => "the service exists already",
            ErrorKind::NoSuchService => "there is no such service",
            ErrorKind::NoSuchScheduler => {
                "the scheduler is unknown: load its module (ip_vs_NAME) or correct the name"
            }
            ErrorKind::DestinationExists => "the destination exists already",
            ErrorKind::NoSuchDestination => "there is no such destination",
            ErrorKind::DaemonExists => "such a daemon runs already",
            ErrorKind::NoSuchDaemon => "no such daemon runs",
            ErrorKind::PermissionDenied => "not permitted: CAP_NET_ADMIN is needed",
            ErrorKind::InvalidArgument => "the kernel rejected an argument (EINVAL)",
            ErrorKind::OutOfMemory => "the kernel is out of memory",
            ErrorKind::NotSupported => "the kernel does not support this",
            ErrorKind::Other(errno) => Errno::from_raw(*errno).desc(),
        })
    }
}

/// A refused command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {command}: {}{}", kind, extack.as_ref().map(|m| format!(" ({m})")).unwrap_or_default())]
#[non_exhaustive]
pub struct CommandError {
    /// What was refused.
    pub command: CommandKind,
    /// What the refusal means.
    pub kind: ErrorKind,
    /// The errno.
    pub errno: i32,
    /// The kernel's own message (`NLMSGERR_ATTR_MSG`), if it sent one.
    pub extack: Option<String>,
}

impl CommandError {
    pub(crate) fn new(command: CommandKind, refusal: Refusal) -> Self {
        let kind = ErrorKind::of(command.command, refusal.code);
        Self { command, kind, errno: refusal.code, extack: refusal.text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ServiceId;

    #[test]
    fn the_same_errno_means_different_things() {
        use IpvsCommand as C;
        let table = [
            (C::NewService, Errno::EEXIST, ErrorKind::ServiceExists),
            (C::NewService, Errno::ENOENT, ErrorKind::NoSuchScheduler),
            (C::SetService, Errno::ENOENT, ErrorKind::NoSuchScheduler),
            (C::SetService, Errno::ESRCH, ErrorKind::NoSuchService),
            (C::DelService, Errno::ESRCH, ErrorKind::NoSuchService),
            (C::GetDest, Errno::ESRCH, ErrorKind::NoSuchService),
            (C::NewDest, Errno::ESRCH, ErrorKind::NoSuchService),
            (C::NewDest, Errno::EEXIST, ErrorKind::DestinationExists),
            (C::SetDest, Errno::ENOENT, ErrorKind::NoSuchDestination),
            (C::DelDest, Errno::ENOENT, ErrorKind::NoSuchDestination),
            (C::NewDest, Errno::EINVAL, ErrorKind::InvalidArgument),
            (C::NewDaemon, Errno::EEXIST, ErrorKind::DaemonExists),
            (C::DelDaemon, Errno::ESRCH, ErrorKind::NoSuchDaemon),
            (C::Flush, Errno::EPERM, ErrorKind::PermissionDenied),
            (C::Zero, Errno::EIO, ErrorKind::Other(5)),
        ];
        for (command, errno, kind) in table {
            assert_eq!(ErrorKind::of(command, errno as i32), kind, "{command:?} {errno}");
        }
    }

    #[test]
    fn a_message_names_the_command_its_object_and_the_kernels_words() {
        let id = ServiceId::tcp("10.0.0.1:80".parse().unwrap());
        let refusal = Refusal::new(Errno::ESRCH as i32, Some("no luck".to_owned()));
        let error = CommandError::new(CommandKind::service(IpvsCommand::DelService, id), refusal);
        assert_eq!(
            error.to_string(),
            "cannot remove service TCP 10.0.0.1:80: there is no such service (no luck)"
        );
    }
}
