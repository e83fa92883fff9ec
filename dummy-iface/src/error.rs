// SPDX-License-Identifier: Apache-2.0
//! Errors, with what can be done about them.

use std::fmt;
use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::frame::Refusal;

/// What can go wrong with the device or the conversation with the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is empty, longer than 15 bytes, or has a slash or white space (`IFNAMSIZ`).
    #[error("{0:?} cannot be the name of a network device: 1 to 15 bytes without '/' and white space")]
    InvalidName(String),
    /// A device of that name exists and is no dummy.
    #[error("the device {name} exists but is of kind {kind}: remove it with `ip link delete {name}`")]
    WrongKind {
        /// The device.
        name: String,
        /// Its kind, `physical` when it has none.
        kind: String,
    },
    /// The device does not exist (any more).
    #[error("the device {0} does not exist")]
    NoDevice(String),
    /// The kernel cannot make dummy devices.
    #[error("the kernel has no dummy devices: load the module with `modprobe dummy`")]
    NoDummySupport,
    /// Changes need `CAP_NET_ADMIN`.
    #[error("not permitted: CAP_NET_ADMIN is needed")]
    PermissionDenied,
    /// The socket failed.
    #[error("rtnetlink socket: {}", describe(.0))]
    Io(#[from] io::Error),
    /// The kernel refused a request.
    #[error("the kernel refused: {}", describe(.0))]
    Refused(io::Error),
    /// A dump was interrupted by changes again and again.
    #[error("the list of {0} changed while it was read")]
    Interrupted(&'static str),
    /// An answer could not be read. Nothing is made of the rest of it.
    #[error("the kernel's answer cannot be read: {0}")]
    Malformed(&'static str),
    /// Answers were lost (`ENOBUFS`): nobody knows what ran.
    #[error("the kernel's answers were lost: read the state again")]
    Lost,
    /// No answer came in time: nobody knows what ran.
    #[error("the kernel did not answer in time: read the state again")]
    Timeout,
}

/// What the system says, without its number.
fn describe(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |errno| Errno::from_raw(errno).desc().to_owned())
}

/// Why one address of many was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressErrorKind {
    /// The device is gone (`ENODEV`).
    NoDevice,
    /// `CAP_NET_ADMIN` is missing (`EPERM`).
    PermissionDenied,
    /// The family is switched off in this namespace (`EACCES`, `EOPNOTSUPP`).
    FamilyDisabled,
    /// Anything else, by its errno.
    Other(i32),
}

/// One refused address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {addr}: {}{}", kind, extack.as_ref().map(|m| format!(" ({m})")).unwrap_or_default())]
#[non_exhaustive]
pub struct AddressError {
    /// The address.
    pub addr: IpAddr,
    /// Why.
    pub kind: AddressErrorKind,
    /// The kernel's own message (`NLMSGERR_ATTR_MSG`), if it sent one.
    pub extack: Option<String>,
}

/// What it means, without the address.
impl fmt::Display for AddressErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddressErrorKind::NoDevice => "the device does not exist",
            AddressErrorKind::PermissionDenied => "not permitted: CAP_NET_ADMIN is needed",
            AddressErrorKind::FamilyDisabled => "its family is disabled in this network namespace",
            AddressErrorKind::Other(errno) => Errno::from_raw(*errno).desc(),
        })
    }
}

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;

impl AddressError {
    pub(crate) fn new(addr: IpAddr, refusal: Refusal) -> Self {
        let kind = match refusal.errno {
            EPERM => AddressErrorKind::PermissionDenied,
            EACCES | EOPNOTSUPP => AddressErrorKind::FamilyDisabled,
            ENODEV => AddressErrorKind::NoDevice,
            other => AddressErrorKind::Other(other),
        };
        Self { addr, kind, extack: refusal.message }
    }
}

impl Error {
    pub(crate) fn refused(refusal: Refusal) -> Self {
        let error = io::Error::from_raw_os_error(refusal.errno);
        match (refusal.errno, refusal.message) {
            (EPERM, _) => Error::PermissionDenied,
            (_, Some(message)) => {
                Error::Refused(io::Error::new(error.kind(), format!("{error} ({message})")))
            }
            (_, None) => Error::Refused(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_error_names_the_address_and_the_reason() {
        let addr = "10.0.0.1".parse().unwrap();
        let error = |errno, message: Option<&str>| {
            AddressError::new(addr, Refusal { errno, message: message.map(str::to_owned) })
        };
        assert_eq!(
            error(EPERM, None).to_string(),
            "address 10.0.0.1: not permitted: CAP_NET_ADMIN is needed"
        );
        assert!(
            error(22, Some("ipv4: Invalid prefix length"))
                .to_string()
                .ends_with("(ipv4: Invalid prefix length)")
        );
        let table = [
            (EPERM, AddressErrorKind::PermissionDenied),
            (EACCES, AddressErrorKind::FamilyDisabled),
            (EOPNOTSUPP, AddressErrorKind::FamilyDisabled),
            (ENODEV, AddressErrorKind::NoDevice),
            (12, AddressErrorKind::Other(12)),
        ];
        for (errno, kind) in table {
            assert_eq!(error(errno, None).kind, kind, "{errno}");
        }
        assert!(error(12, None).to_string().contains("memory"));
    }
}
