// SPDX-License-Identifier: Apache-2.0
//! The conversation: requests with one acknowledgement per send, dumps that are complete or an error.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::error::{Error, Refusal};
use crate::wire;

const HEADER: usize = 16;
const GENL: usize = 4;
/// A send is closed once it holds this much. The default send buffer takes three times as much.
pub(crate) const SEND_BYTES: usize = 64 * 1024;
const RECV_BYTES: usize = 128 * 1024;
/// Room for the refusals of a whole send.
const SOCKET_BYTES: usize = 8 * 1024 * 1024;
const RECV_SECONDS: i64 = 10;
const DUMP_TRIES: usize = 3;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 0x2;
const NLMSG_DONE: u16 = 0x3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const ENOBUFS: i32 = 105;

/// What went over the socket since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Datagrams sent.
    pub sends: u64,
    /// Bytes in them.
    pub bytes_sent: u64,
    /// Commands sent, those of dumps and questions not counted.
    pub commands: u64,
    /// Dumps asked for.
    pub dumps: u64,
}

/// A message as received.
pub(crate) struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    pub payload: &'a [u8],
}

/// One request: generic netlink command, version and attributes.
pub(crate) struct Request<'a> {
    pub family: u16,
    pub command: u8,
    pub version: u8,
    pub attributes: &'a [u8],
}

/// A blocking generic-netlink socket.
#[derive(Debug)]
pub(crate) struct GenlSocket {
    socket: Socket,
    seq: u32,
    buffer: Vec<u8>,
    pub counters: Counters,
}

impl GenlSocket {
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        // Only the kernel may answer.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // Without privilege the default stays; commands are then refused anyway.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BYTES);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(RECV_SECONDS, 0))
            .map_err(io::Error::from)?;
        Ok(Self { socket, seq: 0, buffer: Vec::with_capacity(RECV_BYTES), counters: Counters::default() })
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.counters.sends += 1;
        self.counters.bytes_sent += bytes.len() as u64;
        self.socket.send(bytes, 0)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<Received<'_>>, Error> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(n) if n >= RECV_BYTES => {
                    return Err(Error::Malformed("a datagram was cut off".to_owned()));
                }
                Ok(_) => break,
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::Interrupted, _) => {}
                    (io::ErrorKind::WouldBlock, _) => return Err(Error::Timeout),
                    (_, Some(ENOBUFS)) => return Err(Error::Overrun),
                    _ => return Err(error.into()),
                },
            }
        }
        messages(&self.buffer)
    }

    /// Sends one request and returns the attributes of its answer.
    pub fn ask(&mut self, request: &Request<'_>) -> Result<Result<Vec<u8>, Refusal>, Error> {
        let seq = self.next_seq();
        let mut bytes = Vec::new();
        encode(request, 0, seq, &mut bytes);
        self.send(&bytes)?;
        loop {
            for message in self.receive()? {
                match (message.seq == seq, message.kind) {
                    // Answers to a request that was given up before.
                    (false, _) => {}
                    (true, NLMSG_ERROR) => return Ok(Err(refusal(&message)?)),
                    (true, _) => return Ok(Ok(message.payload.get(GENL..).unwrap_or_default().to_vec())),
                }
            }
        }
    }

    /// Sends encoded requests, each send holding at least [`SEND_BYTES`] but for the last, with an
    /// acknowledgement for the last request of each, and returns index and refusal of those refused.
    pub fn batch<'a>(
        &mut self,
        count: usize,
        mut request: impl FnMut(usize) -> (u16, u8, u8, std::borrow::Cow<'a, [u8]>),
    ) -> Result<Vec<(usize, Refusal)>, Error> {
        let mut refused = Vec::new();
        let mut start = 0;
        while start < count {
            let first_seq = self.seq.wrapping_add(1);
            let mut bytes = Vec::with_capacity(SEND_BYTES + 1024);
            let mut end = start;
            let mut last_at = 0;
            while end < count && bytes.len() < SEND_BYTES {
                let (family, command, version, attributes) = request(end);
                last_at = bytes.len();
                let seq = self.next_seq();
                let request = Request { family, command, version, attributes: &attributes };
                encode(&request, 0, seq, &mut bytes);
                end += 1;
            }
            ask_for_ack(&mut bytes[last_at..]);
            self.counters.commands += (end - start) as u64;
            self.send(&bytes)?;
            self.collect(first_seq, start..end, &mut refused)?;
            start = end;
        }
        Ok(refused)
    }

    /// Reads answers until the last request of a send is acknowledged or refused.
    fn collect(
        &mut self,
        first_seq: u32,
        range: std::ops::Range<usize>,
        refused: &mut Vec<(usize, Refusal)>,
    ) -> Result<(), Error> {
        loop {
            for message in self.receive()? {
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if message.kind != NLMSG_ERROR || index >= range.len() {
                    continue;
                }
                let refusal = refusal(&message)?;
                if refusal.errno != 0 {
                    refused.push((range.start + index, refusal));
                }
                if index + 1 == range.len() {
                    return Ok(());
                }
            }
        }
    }

    /// Dumps: returns the attributes of every part. Complete or an error; read again when the
    /// kernel says that the list changed meanwhile.
    pub fn dump(&mut self, request: &Request<'_>) -> Result<Result<Vec<Vec<u8>>, Refusal>, Error> {
        for _ in 0..DUMP_TRIES {
            let seq = self.next_seq();
            let mut bytes = Vec::new();
            encode(request, NLM_F_DUMP, seq, &mut bytes);
            self.counters.dumps += 1;
            self.send(&bytes)?;
            if let Some(parts) = self.dump_parts(seq)? {
                return Ok(parts);
            }
        }
        Err(Error::DumpInterrupted)
    }

    /// Reads one dump to its end; `None` when it was interrupted.
    #[allow(clippy::type_complexity, reason = "the refusal of a dump is an answer, not a failure")]
    fn dump_parts(&mut self, seq: u32) -> Result<Option<Result<Vec<Vec<u8>>, Refusal>>, Error> {
        let mut parts = Vec::new();
        let mut whole = true;
        loop {
            for message in self.receive()? {
                if message.seq != seq {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR => return Ok(Some(Err(refusal(&message)?))),
                    NLMSG_DONE => {
                        let refusal = refusal(&message).unwrap_or_default();
                        let parts = if refusal.errno == 0 { Ok(parts) } else { Err(refusal) };
                        return Ok(whole.then_some(parts));
                    }
                    _ => parts.push(message.payload.get(GENL..).unwrap_or_default().to_vec()),
                }
            }
        }
    }
}

fn encode(request: &Request<'_>, flags: u16, seq: u32, out: &mut Vec<u8>) {
    let len = HEADER + GENL + request.attributes.len();
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend_from_slice(&request.family.to_ne_bytes());
    out.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&[request.command, request.version, 0, 0]);
    // Attributes are padded to 4 bytes, so the next message is aligned.
    out.extend_from_slice(request.attributes);
}

/// Sets `NLM_F_ACK` in an encoded message.
fn ask_for_ack(message: &mut [u8]) {
    if let Some(flags) = message.get_mut(6..8) {
        flags.copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    }
}

/// Reads the error at the start of an error or done message, and the kernel's message behind it:
/// after the header of the request when that is all the kernel returns (`NLM_F_CAPPED`), else after
/// the whole request.
fn refusal(message: &Received<'_>) -> Result<Refusal, Error> {
    let payload = message.payload;
    let short = || Error::Malformed("an error message is too short".to_owned());
    let code = payload.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes).ok_or_else(short)?;
    let echoed = payload.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes) as usize;
    let attributes_at = match message.kind {
        NLMSG_DONE => 4,
        _ if message.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
        _ => 4usize.saturating_add(echoed.max(HEADER)).next_multiple_of(4),
    };
    let attributes = payload.get(attributes_at..).unwrap_or_default();
    let text = wire::attributes(attributes)
        .flatten()
        .find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)
        .and_then(|nla| wire::get_text(nla.value(), "message").ok());
    Ok(Refusal { errno: code.saturating_neg(), message: text })
}

/// Splits a datagram into messages.
fn messages(mut bytes: &[u8]) -> Result<Vec<Received<'_>>, Error> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let longer = || Error::Malformed("a message is longer than its datagram".to_owned());
        let (message, len) = parse_header(bytes).ok_or_else(longer)?;
        all.push(message);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(all)
}

fn parse_header(bytes: &[u8]) -> Option<(Received<'_>, usize)> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let half = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let len = word(0)? as usize;
    Some((Received { kind: half(4)?, flags: half(6)?, seq: word(8)?, payload: bytes.get(HEADER..len)? }, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Writer;
    use proptest::prelude::*;

    #[test]
    fn the_kernels_words_are_found_behind_the_header() {
        let mut attributes = Writer::default();
        attributes.put_text(NLMSGERR_ATTR_MSG, "Unknown scheduler");
        let mut payload = (-2i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&[0; HEADER]);
        payload.extend_from_slice(&attributes.bytes);
        let message = Received { kind: NLMSG_ERROR, flags: NLM_F_CAPPED, seq: 1, payload: &payload };
        let expected = Refusal { errno: 2, message: Some("Unknown scheduler".to_owned()) };
        assert_eq!(refusal(&message).unwrap(), expected);
    }

    #[test]
    fn a_whole_echo_is_passed_over() {
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&24u32.to_ne_bytes());
        payload.extend_from_slice(&[0; 20]);
        let mut attributes = Writer::default();
        attributes.put_text(NLMSGERR_ATTR_MSG, "x");
        payload.extend_from_slice(&attributes.bytes);
        let message = Received { kind: NLMSG_ERROR, flags: 0, seq: 1, payload: &payload };
        assert_eq!(refusal(&message).unwrap().message.as_deref(), Some("x"));
    }

    #[test]
    fn only_the_last_message_asks_for_an_answer() {
        let request = Request { family: 30, command: 1, version: 1, attributes: &[8, 0, 1, 0, 9, 9, 9, 9] };
        let mut bytes = Vec::new();
        encode(&request, 0, 1, &mut bytes);
        let last_at = bytes.len();
        encode(&request, 0, 2, &mut bytes);
        ask_for_ack(&mut bytes[last_at..]);
        let flags: Vec<u16> = messages(&bytes).unwrap().iter().map(|m| m.flags).collect();
        assert_eq!(flags, [NLM_F_REQUEST, NLM_F_REQUEST | NLM_F_ACK]);
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in messages(&bytes).unwrap_or_default() {
                let _ = refusal(&message);
            }
        }
    }
}
