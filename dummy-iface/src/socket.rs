// SPDX-License-Identifier: Apache-2.0
//! The conversation: requests with one acknowledgement per send, dumps that are complete or an error.

use std::io;

use netlink_packet_core::Emitable;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::Error;

const HEADER: usize = 16;
/// A send is closed once it holds this much.
pub(crate) const SEND_BYTES: usize = 64 * 1024;
const RECV_BYTES: usize = 128 * 1024;
/// Room for the refusals of a whole send, and for many notifications.
const SOCKET_BYTES: usize = 8 * 1024 * 1024;
const RECV_SECONDS: i64 = 10;
const DUMP_TRIES: usize = 3;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
/// `NLM_F_CREATE | NLM_F_EXCL`
pub(crate) const NEW: u16 = 0x600;
const NLMSG_ERROR: u16 = 0x2;
const NLMSG_DONE: u16 = 0x3;
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

/// A message as received.
pub(crate) struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    pub port: u32,
    pub payload: &'a [u8],
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
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => return Err(Error::Lost),
                Err(error) => return Err(error.into()),
            }
        }
        messages(&self.buffer)
    }

    /// Sends one request; `Some` errno when it was refused.
    pub fn request(&mut self, kind: u16, flags: u16, body: &impl Emitable) -> Result<Option<i32>, Error> {
        Ok(self.batch(kind, flags, std::iter::once(body))?.pop().map(|(_, errno)| errno))
    }

    /// Sends one request and returns the payload of its answer, or its errno.
    pub fn ask(&mut self, kind: u16, body: &impl Emitable) -> Result<Result<Vec<u8>, i32>, Error> {
        let seq = self.next_seq();
        let mut bytes = Vec::new();
        encode(kind, 0, seq, body, &mut bytes);
        self.send(&bytes, 1)?;
        loop {
            for message in self.receive()? {
                match (message.seq == seq, message.kind) {
                    (false, _) => {}
                    (true, NLMSG_ERROR) => return Ok(Err(errno(message.payload)?)),
                    (true, _) => return Ok(Ok(message.payload.to_vec())),
                }
            }
        }
    }

    /// Sends many requests of one kind and returns the index and errno of those refused. A refused
    /// request does not stop the others.
    pub fn batch<'a, B: Emitable + 'a>(
        &mut self,
        kind: u16,
        flags: u16,
        bodies: impl IntoIterator<Item = &'a B>,
    ) -> Result<Vec<(usize, i32)>, Error> {
        let mut refused = Vec::new();
        let mut bodies = bodies.into_iter().peekable();
        let mut start = 0;
        while bodies.peek().is_some() {
            let first_seq = self.seq.wrapping_add(1);
            let mut bytes = Vec::new();
            let mut count = 0;
            while let Some(body) = bodies.next_if(|_| bytes.len() < SEND_BYTES) {
                let size = HEADER + body.buffer_len();
                let last = bodies.peek().is_none() || bytes.len() + size >= SEND_BYTES;
                let seq = self.next_seq();
                encode(kind, flags | if last { NLM_F_ACK } else { 0 }, seq, body, &mut bytes);
                count += 1;
            }
            self.send(&bytes, count as u64)?;
            self.collect(first_seq, count, start, &mut refused)?;
            start += count;
        }
        Ok(refused)
    }

    /// Reads answers until the last request of a send is acknowledged or refused.
    fn collect(
        &mut self,
        first_seq: u32,
        count: usize,
        start: usize,
        refused: &mut Vec<(usize, i32)>,
    ) -> Result<(), Error> {
        loop {
            for message in self.receive()? {
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if message.kind != NLMSG_ERROR || index >= count {
                    continue;
                }
                match errno(message.payload)? {
                    0 => {}
                    errno => refused.push((start + index, errno)),
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

    /// Reads one dump to its end; false when it was interrupted.
    fn dump_parts(
        &mut self,
        seq: u32,
        part: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let mut whole = true;
        loop {
            for message in self.receive()? {
                if message.seq != seq {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => match errno(message.payload).unwrap_or(0) {
                        0 => return Ok(whole),
                        errno => return Err(Error::refused(errno)),
                    },
                    _ if whole => part(message.payload)?,
                    _ => {}
                }
            }
        }
    }
}

fn new_socket() -> Result<(Socket, u32), Error> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    let port = socket.bind_auto()?.port_number();
    // Without privilege the default stays; changes are then refused anyway.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BYTES);
    Ok((socket, port))
}

fn encode(kind: u16, flags: u16, seq: u32, body: &impl Emitable, out: &mut Vec<u8>) {
    let start = out.len();
    let len = HEADER + body.buffer_len();
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.resize((start + len).next_multiple_of(4), 0);
    body.emit(&mut out[start + HEADER..start + len]);
}

/// The positive errno at the start of an error or done message.
fn errno(payload: &[u8]) -> Result<i32, Error> {
    let code = payload.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    code.map(i32::saturating_neg).ok_or(Error::Malformed("an error message is too short"))
}

/// Splits a datagram into messages.
pub(crate) fn messages(mut bytes: &[u8]) -> Result<Vec<Received<'_>>, Error> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (message, len) =
            parse_header(bytes).ok_or(Error::Malformed("a message is longer than its datagram"))?;
        all.push(message);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(all)
}

fn parse_header(bytes: &[u8]) -> Option<(Received<'_>, usize)> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let half = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let len = word(0)? as usize;
    let payload = bytes.get(HEADER..len)?;
    Some((Received { kind: half(4)?, flags: half(6)?, seq: word(8)?, port: word(12)?, payload }, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::address;
    use proptest::prelude::*;

    #[test]
    fn what_is_encoded_is_read_back() {
        let mut bytes = Vec::new();
        for (seq, net) in [(7, "10.0.0.1/32"), (8, "fd00::1/128")] {
            encode(20, NEW, seq, &address(3, net.parse().unwrap()), &mut bytes);
        }
        let all = messages(&bytes).unwrap();
        assert_eq!(all.iter().map(|m| (m.kind, m.seq)).collect::<Vec<_>>(), [(20, 7), (20, 8)]);
        assert_eq!(all[0].flags, NLM_F_REQUEST | NEW);
    }

    #[test]
    fn errors_are_positive() {
        assert_eq!(errno(&(-17i32).to_ne_bytes()).unwrap(), 17);
        assert!(errno(&[1]).is_err());
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = messages(&bytes).map(|all| all.len());
        }
    }
}
