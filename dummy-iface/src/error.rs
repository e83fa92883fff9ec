// SPDX-License-Identifier: Apache-2.0
//! Errors, with what can be done about them.

use std::fmt;
use std::net::IpAddr;

use netlink_batch::Refusal;
use nix::errno::Errno;

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
    /// The conversation failed, the kernel refused, or a privilege is missing.
    #[error(transparent)]
    Netlink(#[from] netlink_batch::Error),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        netlink_batch::Error::from(refusal).into()
    }
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

impl AddressError {
    pub(crate) fn new(addr: IpAddr, refusal: Refusal) -> Self {
        let kind = match refusal.errno() {
            Errno::EPERM => AddressErrorKind::PermissionDenied,
            Errno::EACCES | Errno::EOPNOTSUPP => AddressErrorKind::FamilyDisabled,
            Errno::ENODEV => AddressErrorKind::NoDevice,
            _ => AddressErrorKind::Other(refusal.code),
        };
        Self { addr, kind, extack: refusal.text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_error_names_the_address_and_the_reason() {
        let addr = "10.0.0.1".parse().unwrap();
        let error = |errno: Errno, text: Option<&str>| {
            AddressError::new(addr, Refusal::new(errno as i32, text.map(str::to_owned)))
        };
        assert_eq!(
            error(Errno::EPERM, None).to_string(),
            "address 10.0.0.1: not permitted: CAP_NET_ADMIN is needed"
        );
        assert!(
            error(Errno::EINVAL, Some("ipv4: Invalid prefix length"))
                .to_string()
                .ends_with("(ipv4: Invalid prefix length)")
        );
        let table = [
            (Errno::EPERM, AddressErrorKind::PermissionDenied),
            (Errno::EACCES, AddressErrorKind::FamilyDisabled),
            (Errno::EOPNOTSUPP, AddressErrorKind::FamilyDisabled),
            (Errno::ENODEV, AddressErrorKind::NoDevice),
            (Errno::ENOMEM, AddressErrorKind::Other(12)),
        ];
        for (errno, kind) in table {
            assert_eq!(error(errno, None).kind, kind, "{errno}");
        }
        assert!(error(Errno::ENOMEM, None).to_string().contains("memory"));
    }
}
