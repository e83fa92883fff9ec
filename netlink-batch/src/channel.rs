// SPDX-License-Identifier: Apache-2.0
//! How datagrams come and go.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::Error;

/// Room for the refusals of a whole send, and for many notifications.
const RECEIVE_QUEUE_BYTES: usize = 8 * 1024 * 1024;
/// A send must fit whatever `net.core.wmem_default` says.
const SEND_QUEUE_BYTES: usize = 1024 * 1024;
/// The kernel's dumps come in datagrams of up to 32 KiB; what fills the whole buffer counts as cut off.
const RECEIVE_BYTES: usize = 128 * 1024;

/// The other side of a socket: the kernel ([`KernelChannel`]), or a peer of a test.
pub trait Channel {
    /// Sends one datagram.
    ///
    /// # Errors
    /// What the system says.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Waits for one datagram and adds as much of it to the empty `buffer` as fits without growing it. Returns
    /// how much that is.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::WouldBlock`] when none came in time.
    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize>;

    /// As [`Self::receive`], but does not wait.
    ///
    /// # Errors
    /// As [`Self::receive`].
    fn receive_queued(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        self.receive(buffer)
    }

    /// Makes the send buffer large enough for a datagram of this length, as far as the system permits.
    fn reserve(&mut self, _bytes: usize) {}
}

/// A netlink socket of the system, in the network namespace that it was opened in.
#[derive(Debug)]
pub struct KernelChannel {
    socket: Socket,
    pub(crate) port: u32,
    /// Size of the send buffer as set.
    send_queue: usize,
}

impl KernelChannel {
    /// Opens a socket that receives from the kernel and from other sockets.
    pub(crate) fn open(protocol: isize) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        // Forcing needs privilege; without it the system's limit has to do.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_QUEUE_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_QUEUE_BYTES)?;
        }
        Ok(Self { socket, port, send_queue: SEND_QUEUE_BYTES })
    }

    /// Receives from the kernel only, from now on, and asks it to explain refusals (`NETLINK_EXT_ACK`).
    pub(crate) fn connect(&self) -> Result<(), Error> {
        if setsockopt(&self.socket, sockopt::SndBufForce, &SEND_QUEUE_BYTES).is_err() {
            setsockopt(&self.socket, sockopt::SndBuf, &SEND_QUEUE_BYTES)?;
        }
        self.socket.connect(&SocketAddr::new(0, 0))?;
        self.socket.set_cap_ack(true)?;
        self.socket.set_ext_ack(true)?;
        Ok(())
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) -> Result<(), Error> {
        let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX);
        Ok(setsockopt(&self.socket, sockopt::ReceiveTimeout, &TimeVal::microseconds(micros))?)
    }

    pub(crate) fn join(&mut self, group: u32) -> Result<(), Error> {
        Ok(self.socket.add_membership(group)?)
    }
}

impl Channel for KernelChannel {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send(bytes, 0).map(drop)
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        self.socket.recv(buffer, 0)
    }

    fn receive_queued(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        self.socket.recv(buffer, MsgFlags::MSG_DONTWAIT.bits())
    }

    fn reserve(&mut self, bytes: usize) {
        // The kernel doubles the size, for what it adds to each datagram.
        if bytes > self.send_queue {
            self.send_queue = bytes;
            // A buffer that stays too small shows when the datagram is sent.
            let _ = setsockopt(&self.socket, sockopt::SndBufForce, &bytes)
                .or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &bytes));
        }
    }
}

/// Receives into one buffer that is used again and again.
#[derive(Debug)]
pub(crate) struct Inbound<C> {
    pub channel: C,
    buffer: Vec<u8>,
}

impl<C: Channel> Inbound<C> {
    pub fn new(channel: C) -> Self {
        Self { channel, buffer: Vec::with_capacity(RECEIVE_BYTES) }
    }

    /// Waits for one datagram.
    pub fn receive(&mut self) -> Result<&[u8], Error> {
        self.receive_with(C::receive)
    }

    /// Takes one datagram that is queued; without one [`Error::Timeout`].
    pub fn receive_queued(&mut self) -> Result<&[u8], Error> {
        self.receive_with(C::receive_queued)
    }

    fn receive_with(
        &mut self,
        receive: impl Fn(&mut C, &mut Vec<u8>) -> io::Result<usize>,
    ) -> Result<&[u8], Error> {
        loop {
            self.buffer.clear();
            match receive(&mut self.channel, &mut self.buffer) {
                Ok(len) if len >= RECEIVE_BYTES => return Err(Error::Truncated),
                Ok(_) => return Ok(&self.buffer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
