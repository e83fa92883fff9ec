// SPDX-License-Identifier: Apache-2.0
//! How datagrams come and go.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
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
}

/// A netlink socket of the system, in the network namespace that it was opened in.
#[derive(Debug)]
pub struct KernelChannel {
    socket: Socket,
    pub(crate) port: u32,
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
        Ok(Self { socket, port })
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
        loop {
            self.buffer.clear();
            match self.channel.receive(&mut self.buffer) {
                Ok(len) if len >= RECEIVE_BYTES => return Err(Error::Truncated),
                Ok(_) => return Ok(&self.buffer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
