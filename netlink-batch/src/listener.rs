// SPDX-License-Identifier: Apache-2.0
//! Notifications.

use std::time::Duration;

use crate::Error;
use crate::channel::{Channel, Inbound, KernelChannel};
use crate::message::{Received, messages};

/// A member of multicast groups, which waits for notifications, without limit unless one is set.
#[derive(Debug)]
pub struct Listener<C = KernelChannel> {
    inbound: Inbound<C>,
}

impl Listener {
    /// Opens a socket of a family (`protocols::NETLINK_*`) and joins these groups (`RTNLGRP_*`, `NFNLGRP_*`), in
    /// the current network namespace.
    ///
    /// # Errors
    /// When the kernel lacks the family or a group, or the process may not join it.
    pub fn open(protocol: isize, groups: &[u32]) -> Result<Self, Error> {
        let mut channel = KernelChannel::open(protocol)?;
        for group in groups {
            channel.join(*group)?;
        }
        Ok(Self::over(channel))
    }

    /// Sets how long [`Self::receive`] waits before it returns [`Error::Timeout`]; zero: without limit.
    ///
    /// # Errors
    /// [`Error::Io`] when the system refuses the value.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), Error> {
        self.inbound.channel.set_timeout(timeout)
    }
}

impl<C: Channel> Listener<C> {
    /// Listens to another channel than the kernel's.
    pub fn over(channel: C) -> Self {
        Self { inbound: Inbound::new(channel) }
    }

    /// Waits for the next datagram and returns its messages. [`Received::port`] is the port of the socket whose
    /// request caused the change, where the kernel says it.
    ///
    /// # Errors
    /// [`Error::Overrun`] when the kernel dropped notifications, [`Error::Truncated`] when the end of one is
    /// missing; in both cases more can be received. [`Error::Io`] when the socket fails.
    pub fn receive(&mut self) -> Result<impl Iterator<Item = Result<Received<'_>, Error>>, Error> {
        self.inbound.receive().map(messages)
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::testing::{Peer, datagram};

    #[test]
    fn notifications_have_the_port_of_their_cause_and_lost_ones_are_reported() {
        let mut peer = Peer::default();
        peer.say(datagram(&[(16, 0, 0, 77, b"link"), (20, 0, 0, 0, b"addr")]));
        peer.fail(Errno::EINTR).fail(Errno::ENOBUFS);
        peer.say(datagram(&[(20, 0, 0, 0, b"more")]));
        let mut listener = Listener::over(peer);
        let read: Vec<_> =
            listener.receive().unwrap().map(Result::unwrap).map(|m| (m.kind, m.port, m.payload)).collect();
        assert_eq!(read, [(16, 77, &b"link"[..]), (20, 0, &b"addr"[..])]);
        assert!(matches!(listener.receive().map(Iterator::count), Err(Error::Overrun)));
        assert_eq!(listener.receive().unwrap().count(), 1);
    }
}
