// SPDX-License-Identifier: Apache-2.0
//! Notifications of changes that others make.

use std::collections::VecDeque;

use ipnet::IpNet;
use netlink_batch::{Error as NetlinkError, Listener, protocols};

use crate::device::{DummyDevice, HostAddress, is_link_local};
use crate::error::Error;
use crate::message::{self, RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`
const GROUPS: [u32; 3] = [1, 5, 9];

/// What another program changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// An address was added to the device.
    Added(IpNet),
    /// An address was removed from the device.
    Removed(IpNet),
    /// The device is gone.
    DeviceGone,
    /// The device is there now.
    DeviceAppeared,
    /// An address of another device came or went.
    OtherDevice,
    /// Notifications were lost: read the addresses again.
    Lost,
}

/// Watches one device by name, in the network namespace that it was opened in; see
/// [`DummyDevice::watch`].
///
/// The kernel says who made a change only for some: always for IPv4 addresses, never for IPv6 ones (it also
/// reports these twice, before and after duplicate address detection), and for links in newer kernels (not in
/// 6.1). The others are reported even if they are one's own: compare them with what is wanted.
#[derive(Debug)]
pub struct Watch {
    name: String,
    ignore: u32,
    index: Option<u32>,
    listener: Listener,
    device: DummyDevice,
    queue: VecDeque<Change>,
}

impl Watch {
    /// Watches `name` and leaves out changes that carry the netlink port `ignore`.
    pub(crate) fn open(name: &str, ignore: u32) -> Result<Self, Error> {
        // Listen first, then read: no change falls between the two.
        let listener = Listener::open(protocols::NETLINK_ROUTE, &GROUPS)?;
        let mut device = DummyDevice::open(name)?;
        let index = look(&mut device)?;
        Ok(Self { name: name.to_owned(), ignore, index, listener, device, queue: VecDeque::new() })
    }

    /// Waits for the next change.
    ///
    /// # Errors
    /// When the socket fails, or a notification cannot be read.
    #[allow(clippy::should_implement_trait, reason = "it fails and blocks, which an iterator should not")]
    pub fn next(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(change) = self.queue.pop_front() {
                return Ok(change);
            }
            match self.listener.receive() {
                Ok(messages) => {
                    for message in messages {
                        let message = message?;
                        let own = message.port == self.ignore && self.ignore != 0;
                        let change = change(&self.name, &mut self.index, message.kind, message.payload)?;
                        self.queue.extend(change.filter(|_| !own));
                    }
                }
                Err(NetlinkError::Overrun) => {
                    // The device may be another one by now.
                    self.index = look(&mut self.device)?;
                    return Ok(Change::Lost);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The index that the device has now.
fn look(device: &mut DummyDevice) -> Result<Option<u32>, Error> {
    match device.state() {
        Ok(state) => Ok(state.map(|state| state.index)),
        Err(Error::WrongKind { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a notification means for the device `name`, whose index is kept current.
pub(crate) fn change(
    name: &str,
    index: &mut Option<u32>,
    kind: u16,
    payload: &[u8],
) -> Result<Option<Change>, NetlinkError> {
    Ok(match kind {
        RTM_NEWLINK => {
            let link = message::parse_link(payload)?;
            if link.family != 0 {
                None // the device as a port of a bridge
            } else if link.name == name {
                let appeared = *index != Some(link.index);
                *index = Some(link.index);
                appeared.then_some(Change::DeviceAppeared)
            } else if *index == Some(link.index) {
                *index = None;
                Some(Change::DeviceGone) // it has another name now
            } else {
                None
            }
        }
        RTM_DELLINK => {
            let link = message::parse_link(payload)?;
            // A device that leaves a bridge is "deleted" in the family of bridges only.
            (link.family == 0 && *index == Some(link.index)).then(|| {
                *index = None;
                Change::DeviceGone
            })
        }
        RTM_NEWADDR | RTM_DELADDR => {
            let Some(HostAddress { addr: net, index: link, .. }) = message::parse_address(payload)? else {
                return Ok(None);
            };
            match (*index == Some(link), kind) {
                _ if is_link_local(&net) => None,
                (false, _) => Some(Change::OtherDevice),
                (true, RTM_NEWADDR) => Some(Change::Added(net)),
                (true, _) => Some(Change::Removed(net)),
            }
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;

    fn emit(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn link(name: &str, index: u32) -> Vec<u8> {
        let mut message = message::new_dummy(name);
        message.header.index = index;
        emit(&message)
    }

    #[test]
    fn the_device_is_followed_through_its_life() {
        let mut index = None;
        let mut see = |kind, payload: &[u8]| change("d0", &mut index, kind, payload).unwrap();
        let net: IpNet = "10.0.0.1/32".parse().unwrap();
        let on = |index| emit(&message::address(index, net));
        assert_eq!(see(RTM_NEWADDR, &on(7)), Some(Change::OtherDevice));
        assert_eq!(see(RTM_NEWLINK, &link("d0", 7)), Some(Change::DeviceAppeared));
        assert_eq!(see(RTM_NEWLINK, &link("d0", 7)), None, "a second notification of the same device");
        assert_eq!(see(RTM_NEWADDR, &on(7)), Some(Change::Added(net)));
        assert_eq!(see(RTM_DELADDR, &on(7)), Some(Change::Removed(net)));
        assert_eq!(see(RTM_DELADDR, &on(8)), Some(Change::OtherDevice));
        assert_eq!(see(RTM_DELLINK, &link("x", 8)), None);
        assert_eq!(see(RTM_NEWLINK, &link("renamed", 7)), Some(Change::DeviceGone));
        assert_eq!(see(RTM_NEWLINK, &link("d0", 9)), Some(Change::DeviceAppeared));
        assert_eq!(see(RTM_DELLINK, &link("d0", 9)), Some(Change::DeviceGone));
    }

    #[test]
    fn link_local_addresses_are_the_kernels_own() {
        let mut index = Some(7);
        let bytes = emit(&message::address(7, "fe80::1/64".parse().unwrap()));
        assert_eq!(change("d0", &mut index, RTM_NEWADDR, &bytes).unwrap(), None);
    }

    #[test]
    fn leaving_a_bridge_is_not_the_end() {
        let mut index = Some(7);
        let mut bytes = link("d0", 7);
        bytes[0] = 7; // AF_BRIDGE, as the kernel sends it after `ip link set d0 nomaster`
        assert_eq!(change("d0", &mut index, RTM_NEWLINK, &bytes).unwrap(), None);
        assert_eq!(change("d0", &mut index, RTM_DELLINK, &bytes).unwrap(), None);
        assert_eq!(index, Some(7));
    }
}
