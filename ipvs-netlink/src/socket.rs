// SPDX-License-Identifier: Apache-2.0
//! The conversation: requests with one acknowledgement per send, dumps that are complete or an error.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::error::{Error, Refusal};
use crate::frame::{
    GENL, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, Received, Request,
    encode, messages, pack, refusal,
};

const RECV_BYTES: usize = 128 * 1024;
/// Room for the refusals of a whole send.
const RECV_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// A send must fit whatever `net.core.wmem_default` says.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;
const RECV_SECONDS: i64 = 10;
const DUMP_TRIES: usize = 3;
const EBUSY: i32 = 16;
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

/// A dump that was asked for.
#[derive(Debug)]
pub(crate) struct Dump {
    seq: u32,
    whole: bool,
    busy: bool,
    cut: bool,
}

/// How one try of a dump ended.
pub(crate) enum DumpEnd {
    /// Every part was handed on.
    Whole,
    /// The list changed meanwhile, or an earlier dump was still going on.
    Interrupted,
    Refused(Refusal),
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
        // Forcing needs privilege; without it the system's limit has to do, and commands are refused
        // anyway.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECV_BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECV_BUFFER_BYTES).map_err(io::Error::from)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER_BYTES).map_err(io::Error::from)?;
        }
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

    /// Sends requests packed by [`pack`], each send once the one before is acknowledged, and returns
    /// index and refusal of those refused, by index.
    pub fn batch<'a>(
        &mut self,
        requests: impl IntoIterator<Item = Request<'a>>,
    ) -> Result<Vec<(usize, Refusal)>, Error> {
        let mut requests = requests.into_iter();
        let mut refused = Vec::new();
        let mut start = 0;
        while let Some(packed) = pack(&mut requests, self.seq.wrapping_add(1)) {
            let first_seq = self.seq.wrapping_add(1);
            // A send holds 64 KiB, so far fewer requests than 32 bits can count.
            self.seq = self.seq.wrapping_add(packed.count as u32);
            self.counters.commands += packed.count as u64;
            self.send(&packed.bytes)?;
            self.collect(first_seq, start..start + packed.count, &mut refused)?;
            start += packed.count;
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

    /// Asks for a dump. Its answer is read by [`Self::more`].
    pub fn begin_dump(&mut self, request: &Request<'_>) -> Result<Dump, Error> {
        let seq = self.next_seq();
        let mut bytes = Vec::new();
        encode(request, NLM_F_DUMP, seq, &mut bytes);
        self.counters.dumps += 1;
        self.send(&bytes)?;
        Ok(Dump { seq, whole: true, busy: false, cut: false })
    }

    /// Dumps: hands the attributes of every part to `part`. Complete or an error; read again, after
    /// `restart`, when the kernel says that the list changed meanwhile.
    pub fn dump(
        &mut self,
        request: &Request<'_>,
        restart: &mut dyn FnMut(),
        part: &mut dyn FnMut(&[u8]),
    ) -> Result<Result<(), Refusal>, Error> {
        for _ in 0..DUMP_TRIES {
            restart();
            let mut dump = self.begin_dump(request)?;
            let end = loop {
                if let Some(end) = self.more(&mut dump, part)? {
                    break end;
                }
            };
            match end {
                DumpEnd::Whole => return Ok(Ok(())),
                DumpEnd::Refused(refusal) => return Ok(Err(refusal)),
                DumpEnd::Interrupted => {}
            }
        }
        Err(Error::DumpInterrupted)
    }

    /// Reads one datagram of a dump; `None` until its end. A dump is read to the end also when it is
    /// useless by then: a socket has one dump at a time, and refuses the next with `EBUSY` until the first
    /// is read out.
    pub fn more(&mut self, dump: &mut Dump, part: &mut dyn FnMut(&[u8])) -> Result<Option<DumpEnd>, Error> {
        for message in self.receive()? {
            if message.seq != dump.seq {
                // The dump that was in the way, given up after a timeout, ends here.
                if dump.busy && message.kind == NLMSG_DONE {
                    return Ok(Some(DumpEnd::Interrupted));
                }
                continue;
            }
            dump.whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_ERROR => match refusal(&message)? {
                    refusal if refusal.errno == EBUSY => dump.busy = true,
                    refusal => return Ok(Some(DumpEnd::Refused(refusal))),
                },
                NLMSG_DONE => {
                    let refusal = refusal(&message)?;
                    return match () {
                        () if refusal.errno != 0 => Ok(Some(DumpEnd::Refused(refusal))),
                        () if !dump.whole => Ok(Some(DumpEnd::Interrupted)),
                        () if dump.cut => Err(Error::Malformed("a part of a list is too short".to_owned())),
                        () => Ok(Some(DumpEnd::Whole)),
                    };
                }
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(Error::Overrun),
                _ => match message.payload.get(GENL..) {
                    Some(attributes) => part(attributes),
                    None => dump.cut = true,
                },
            }
        }
        Ok(None)
    }
}
