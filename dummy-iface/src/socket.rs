// SPDX-License-Identifier: Apache-2.0
//! The conversation: requests with one acknowledgement per send, dumps that are complete or an error.

use std::io;

use netlink_packet_core::Emitable;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::Error;
use crate::frame::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, Received, Refusal,
    encode, messages, pack, refusal,
};

const RECV_BYTES: usize = 128 * 1024;
/// Room for the refusals of a whole send, and for many notifications.
const RECV_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// A send must fit whatever `net.core.wmem_default` says.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;
const RECV_SECONDS: i64 = 10;
const DUMP_TRIES: usize = 3;
const EBUSY: i32 = 16;
const ENOBUFS: i32 = 105;

/// What went over a socket since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Datagrams sent.
    pub sends: u64,
    /// Bytes in them.
    pub bytes_sent: u64,
    /// Requests sent.
    pub messages: u64,
    /// Dumps asked for.
    pub dumps: u64,
}

/// A blocking rtnetlink socket.
#[derive(Debug)]
pub(crate) struct RouteSocket {
    socket: Socket,
    port: u32,
    seq: u32,
    buffer: Vec<u8>,
    pub counters: Counters,
}

impl RouteSocket {
    /// Opens a socket for requests.
    pub fn open() -> Result<Self, Error> {
        let (socket, port) = new_socket()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(RECV_SECONDS, 0))
            .map_err(io::Error::from)?;
        Ok(Self::new(socket, port))
    }

    /// Opens a socket that hears these groups and waits without limit.
    pub fn listen(groups: &[u32]) -> Result<Self, Error> {
        let (socket, port) = new_socket()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self::new(socket, port))
    }

    fn new(socket: Socket, port: u32) -> Self {
        Self { socket, port, seq: 0, buffer: Vec::with_capacity(RECV_BYTES), counters: Counters::default() }
    }

    pub fn port(&self) -> u32 {
        self.port
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    fn send(&mut self, bytes: &[u8], messages: u64) -> Result<(), Error> {
        self.counters.sends += 1;
        self.counters.bytes_sent += bytes.len() as u64;
        self.counters.messages += messages;
        self.socket.send(bytes, 0)?;
        Ok(())
    }

    /// Reads one datagram.
    pub fn receive(&mut self) -> Result<Vec<Received<'_>>, Error> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(n) if n >= RECV_BYTES => return Err(Error::Malformed("a datagram was cut off")),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Error::Timeout),
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => return Err(Error::Lost),
                Err(error) => return Err(error.into()),
            }
        }
        messages(&self.buffer)
    }

    /// Sends one request; `Some` when it was refused.
    pub fn request(&mut self, kind: u16, flags: u16, body: &impl Emitable) -> Result<Option<Refusal>, Error> {
        Ok(self.batch(kind, flags, std::iter::once(body))?.pop().map(|(_, refusal)| refusal))
    }

    /// Sends one request and returns the payload of its answer, or its refusal.
    pub fn ask(&mut self, kind: u16, body: &impl Emitable) -> Result<Result<Vec<u8>, Refusal>, Error> {
        let seq = self.next_seq();
        let mut bytes = Vec::new();
        encode(kind, 0, seq, body, &mut bytes);
        self.send(&bytes, 1)?;
        loop {
            for message in self.receive()? {
                match (message.seq == seq, message.kind) {
                    (false, _) => {}
                    (true, NLMSG_ERROR) => return Ok(Err(refusal(&message)?)),
                    (true, _) => return Ok(Ok(message.payload.to_vec())),
                }
            }
        }
    }

    /// Sends many requests of one kind, packed by [`pack`], each send once the one before is
    /// acknowledged, and returns index and refusal of those refused, by index.
    pub fn batch<'a, B: Emitable + 'a>(
        &mut self,
        kind: u16,
        flags: u16,
        bodies: impl IntoIterator<Item = &'a B>,
    ) -> Result<Vec<(usize, Refusal)>, Error> {
        let mut bodies = bodies.into_iter();
        let mut refused = Vec::new();
        let mut start = 0;
        while let Some(packed) = pack(kind, flags, &mut bodies, self.seq.wrapping_add(1)) {
            let first_seq = self.seq.wrapping_add(1);
            // A send holds 64 KiB, so far fewer requests than 32 bits can count.
            self.seq = self.seq.wrapping_add(packed.count as u32);
            self.send(&packed.bytes, packed.count as u64)?;
            self.collect(first_seq, packed.count, start, &mut refused)?;
            start += packed.count;
        }
        Ok(refused)
    }

    /// Reads answers until the last request of a send is acknowledged or refused.
    fn collect(
        &mut self,
        first_seq: u32,
        count: usize,
        start: usize,
        refused: &mut Vec<(usize, Refusal)>,
    ) -> Result<(), Error> {
        loop {
            for message in self.receive()? {
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if message.kind != NLMSG_ERROR || index >= count {
                    continue;
                }
                let refusal = refusal(&message)?;
                if refusal.errno != 0 {
                    refused.push((start + index, refusal));
                }
                if index + 1 == count {
                    return Ok(());
                }
            }
        }
    }

    /// Dumps, and hands every payload to `part`. Complete or an error; `part` starts anew (after
    /// `restart`) when the kernel says that the list changed meanwhile.
    pub fn dump(
        &mut self,
        what: &'static str,
        kind: u16,
        body: &impl Emitable,
        restart: &mut dyn FnMut(),
        part: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for _ in 0..DUMP_TRIES {
            restart();
            let seq = self.next_seq();
            let mut bytes = Vec::new();
            encode(kind, NLM_F_DUMP, seq, body, &mut bytes);
            self.counters.dumps += 1;
            self.send(&bytes, 1)?;
            if self.dump_parts(seq, part)? {
                return Ok(());
            }
        }
        Err(Error::Interrupted(what))
    }

    /// Reads one dump to its end, also when it is useless by then: a socket has one dump at a time,
    /// and refuses the next with `EBUSY` until the first is read out. False when it was interrupted.
    fn dump_parts(
        &mut self,
        seq: u32,
        part: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let (mut whole, mut busy, mut parts) = (true, false, Ok(()));
        loop {
            for message in self.receive()? {
                if message.seq != seq {
                    // The dump that was in the way, given up after a timeout, ends here.
                    if busy && message.kind == NLMSG_DONE {
                        return Ok(false);
                    }
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR => match refusal(&message)? {
                        refusal if refusal.errno == EBUSY => busy = true,
                        refusal => return Err(Error::refused(refusal)),
                    },
                    NLMSG_DONE => match refusal(&message)? {
                        refusal if refusal.errno != 0 => return Err(Error::refused(refusal)),
                        _ if !whole => return Ok(false),
                        _ => return parts.map(|()| true),
                    },
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => return Err(Error::Lost),
                    _ if whole && parts.is_ok() => parts = part(message.payload),
                    _ => {}
                }
            }
        }
    }
}

fn new_socket() -> Result<(Socket, u32), Error> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    let port = socket.bind_auto()?.port_number();
    // Forcing needs privilege; without it the system's limit has to do.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECV_BUFFER_BYTES).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECV_BUFFER_BYTES).map_err(io::Error::from)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES).is_err() {
        setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER_BYTES).map_err(io::Error::from)?;
    }
    Ok((socket, port))
}
