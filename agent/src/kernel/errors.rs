// SPDX-License-Identifier: Apache-2.0
//! Converts errors of the netlink libraries to causes and to messages with the remedy. No message names its
//! object, so that the same failure of many objects is one line in the log.

use crate::core::plan::outcome::{Cause, OpError};
use dummy_iface::AddressErrorKind;
use ipvs_netlink as ipvs;
use ipvs_netlink::ErrorKind;
use netlink_batch::Error as Netlink;

use crate::core::plan::op::Op;
use crate::core::plan::ownership::DEVICE;
use crate::words;

/// The kernel refused an IPVS command.
pub(super) fn ipvs_error(op: &Op, error: &ipvs::CommandError) -> OpError {
    let (cause, uncertain) = match error.kind {
        ErrorKind::ServiceExists | ErrorKind::DestinationExists => (Cause::Exists, true),
        ErrorKind::NoSuchService | ErrorKind::NoSuchDestination => (Cause::Missing, true),
        ErrorKind::PermissionDenied => (Cause::NotPermitted, false),
        ErrorKind::InvalidArgument => (Cause::InvalidArgument, false),
        ErrorKind::NotSupported => (Cause::NotSupported, false),
        ErrorKind::NoSuchScheduler => (Cause::NoScheduler, false),
        _ => (Cause::of_errno(error.errno), false),
    };
    let extack = error.extack.as_ref().map(|text| format!(" ({text})")).unwrap_or_default();
    let remedy = match (op, error.kind) {
        (Op::AddRealServer(..), ErrorKind::InvalidArgument) => {
            ": the node's routes classify the endpoint's address as broadcast, multicast or local; correct the \
             EndpointSlice"
        }
        _ => "",
    };
    let message = format!("{}{extack}{remedy}", error.kind);
    OpError { uncertain, ..OpError::plain(cause, message) }
}

/// The IPVS socket failed: which commands took effect is unknown.
pub(super) fn client_error(error: &ipvs::Error) -> OpError {
    let text = words::causes(error);
    match error {
        ipvs::Error::PermissionDenied => OpError::plain(Cause::NotPermitted, text),
        ipvs::Error::FamilyMissing => OpError::plain(Cause::NotSupported, text),
        ipvs::Error::Netlink(Netlink::Timeout | Netlink::Overrun) => {
            OpError::uncertain(Cause::TimedOut, text)
        }
        _ => OpError::uncertain(Cause::Other, text),
    }
}

/// The kernel refused an address.
pub(super) fn address_error(error: &dummy_iface::AddressError) -> OpError {
    let (cause, uncertain) = match error.kind {
        AddressErrorKind::NoDevice => (Cause::Missing, true),
        AddressErrorKind::PermissionDenied => (Cause::NotPermitted, false),
        AddressErrorKind::FamilyDisabled => (Cause::FamilyDisabled, false),
        AddressErrorKind::Other(errno) => {
            let cause = Cause::of_errno(errno);
            (cause, matches!(cause, Cause::Exists | Cause::Missing))
        }
        _ => (Cause::Other, true),
    };
    let extack = error.extack.as_ref().map(|text| format!(" ({text})")).unwrap_or_default();
    let message = match (error.kind, error.addr.is_ipv6()) {
        (AddressErrorKind::FamilyDisabled, true) => format!(
            "IPv6 is disabled{extack}: set net.ipv6.conf.all.disable_ipv6 and net.ipv6.conf.{DEVICE}.disable_ipv6 \
             to 0, or use a cluster without IPv6 Services"
        ),
        (kind, _) => format!("{kind}{extack}"),
    };
    OpError { uncertain, ..OpError::plain(cause, message) }
}

/// The kernel refused a route.
pub(super) fn route_error(error: &Netlink) -> OpError {
    let text = words::causes(error);
    match error {
        Netlink::Refused(refusal) => {
            let cause = Cause::of_errno(refusal.code);
            OpError {
                uncertain: matches!(cause, Cause::Exists | Cause::Missing),
                ..OpError::plain(cause, text)
            }
        }
        Netlink::NotPermitted => OpError::plain(Cause::NotPermitted, text),
        Netlink::Overrun | Netlink::Timeout => OpError::uncertain(Cause::TimedOut, text),
        _ => OpError::uncertain(Cause::Other, text),
    }
}

/// An operation on the device, or its socket, failed.
pub(super) fn device_error(error: &dummy_iface::Error) -> OpError {
    use dummy_iface::Error as E;
    let text = words::causes(error);
    match error {
        E::WrongKind { .. } | E::InvalidName(_) => OpError::plain(Cause::WrongKind, text),
        E::NoDummySupport => OpError::plain(Cause::NotSupported, text),
        E::Netlink(Netlink::NotPermitted) => OpError::plain(Cause::NotPermitted, text),
        E::NoDevice(_) => OpError::uncertain(Cause::Missing, text),
        E::Netlink(Netlink::Overrun | Netlink::Timeout) => OpError::uncertain(Cause::TimedOut, text),
        _ => OpError::uncertain(Cause::Other, text),
    }
}
