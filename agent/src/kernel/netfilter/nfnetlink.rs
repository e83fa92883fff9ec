// SPDX-License-Identifier: Apache-2.0
//! A small blocking nfnetlink client: complete dumps, and batches with one ack per send.

use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

/// `nlmsghdr` and `nfgenmsg`, in bytes.
const HEADER: usize = 16;
const NFGEN: usize = 4;
/// A send is closed once it holds this much.
const SEND_BYTES: usize = 64 * 1024;
/// Largest datagram that a dump sends is half of this.
const RECV_BYTES: usize = 64 * 1024;
/// Room for the refusals of a whole send.
const SOCKET_BYTES: usize = 8 * 1024 * 1024;
const RECV_TIMEOUT: Duration = Duration::from_secs(10);

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 0x2;
const EPERM: i32 = 1;
const NLMSG_DONE: u16 = 0x3;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_F_NET_BYTEORDER: u16 = 0x4000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// What can go wrong with the conversation itself.
#[derive(Debug, thiserror::Error)]
pub enum NfError {
    /// The socket failed.
    #[error("netfilter netlink socket: {}", crate::words::io_error(.0))]
    Io(std::io::Error),
    /// No answer came in time: nobody knows what ran.
    #[error("the kernel did not answer in time")]
    Timeout,
    /// Answers were lost (`ENOBUFS`): nobody knows what ran.
    #[error("the kernel's answers were lost")]
    Overrun,
    /// A list changed while it was read.
    #[error("the list changed while it was read")]
    Interrupted,
    /// The kernel refused a request; the number is an errno or a private code of the subsystem.
    #[error("the kernel refused the request (error {0})")]
    Refused(i32),
    /// The process may not use netfilter. The kernel then answers the first message of a send only.
    #[error("not permitted: CAP_NET_ADMIN is needed")]
    NotPermitted,
    /// The kernel does not have a set type.
    #[error(
        "the kernel has no ipset type {0} (error {1}): load its module with `modprobe ip_set_{module}`",
        module = .0.replace([':', ','], "_")
    )]
    NoSetType(&'static str, i32),
    /// The kernel does not tell about connection tracking.
    #[error(
        "the kernel has no netlink for connection tracking (error {0}): load its module with \
         `modprobe nf_conntrack_netlink`"
    )]
    NoConntrack(i32),
    /// Entries of the connection-tracking table stayed, though the kernel was told to delete them.
    #[error(
        "the kernel refused to delete {count} stale UDP flows; the first was {first}: {}",
        nix::errno::Errno::from_raw(*.code).desc()
    )]
    FlowsStay {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
        /// Why it stayed, as an errno.
        code: i32,
    },
    /// An answer that cannot be read, or one that was cut short.
    #[error("the kernel's answer cannot be read: {0}")]
    Malformed(&'static str),
}

impl From<std::io::Error> for NfError {
    fn from(error: std::io::Error) -> Self {
        const ENOBUFS: i32 = 105;
        match error {
            error if error.kind() == std::io::ErrorKind::WouldBlock => NfError::Timeout,
            error if error.raw_os_error() == Some(ENOBUFS) => NfError::Overrun,
            error => NfError::Io(error),
        }
    }
}

/// Builds the attributes of one message.
#[derive(Clone, Debug, Default)]
pub struct Attrs {
    bytes: Vec<u8>,
}

impl Attrs {
    /// Adds an attribute with these bytes.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a number in network byte order, marked as such.
    pub fn put_be(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.put(kind | NLA_F_NET_BYTEORDER, value)
    }

    /// Adds a text with its terminating zero.
    pub fn put_str(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value)
    }

    /// Adds nested attributes.
    pub fn nest(&mut self, kind: u16, inner: &Attrs) -> &mut Self {
        self.nest_bytes(kind, &inner.bytes)
    }

    /// Adds nested attributes that are encoded already, for example as the kernel sent them.
    pub fn nest_bytes(&mut self, kind: u16, inner: &[u8]) -> &mut Self {
        self.put(kind | NLA_F_NESTED, inner)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds the attributes of another builder on the same level.
    pub fn append(&mut self, other: &Attrs) {
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// The encoded attributes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Walks encoded attributes: kind without flags, and value.
#[derive(Clone, Copy, Debug)]
pub struct AttrIter<'a>(pub &'a [u8]);

impl<'a> Iterator for AttrIter<'a> {
    type Item = Result<(u16, &'a [u8]), NfError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut take = || {
            let len = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
            let value = self.0.get(4..len)?;
            self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        };
        let item = take().ok_or(NfError::Malformed("an attribute is longer than its message"));
        if item.is_err() {
            self.0 = &[];
        }
        Some(item)
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Subsystem in the high byte, command in the low one.
    pub kind: u16,
    /// Additional `NLM_F_*`.
    pub flags: u16,
    /// Family of the `nfgenmsg`.
    pub family: u8,
    /// Attributes.
    pub attrs: Attrs,
}

impl Request {
    fn encode(&self, seq: u32, flags: u16, out: &mut Vec<u8>) {
        let len = u32::try_from(HEADER + NFGEN + self.attrs.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&len.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(NLM_F_REQUEST | self.flags | flags).to_ne_bytes());
        out.extend_from_slice(&seq.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&[self.family, 0, 0, 0]);
        out.extend_from_slice(self.attrs.as_bytes());
    }
}

/// What went over the socket since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams sent.
    pub sends: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Dumps asked for.
    pub dumps: u64,
}

/// A netlink message as received.
pub(in crate::kernel) struct Received<'a> {
    pub(in crate::kernel) kind: u16,
    pub(in crate::kernel) flags: u16,
    pub(in crate::kernel) seq: u32,
    /// Netlink port of whoever caused the message.
    pub(in crate::kernel) port: u32,
    pub(in crate::kernel) payload: &'a [u8],
}

/// The client.
#[derive(Debug)]
pub struct NfSocket {
    socket: Socket,
    seq: u32,
    buffer: Vec<u8>,
    counters: Counters,
}

impl NfSocket {
    /// Opens a socket in the current network namespace.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink or the process may not open one.
    pub fn open() -> Result<Self, NfError> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        // Without privilege the smaller default stays; the kernel then refuses the writes anyway.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BYTES);
        let timeout = TimeVal::new(RECV_TIMEOUT.as_secs() as i64, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).map_err(std::io::Error::from)?;
        Ok(Self { socket, seq: 0, buffer: Vec::with_capacity(RECV_BYTES), counters: Counters::default() })
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NfError> {
        self.counters.sends += 1;
        self.counters.bytes += bytes.len() as u64;
        self.socket.send(bytes, 0)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<(), NfError> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(n) if n == self.buffer.capacity() => {
                    return Err(NfError::Malformed("a datagram was cut off"));
                }
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a dump request and hands each part's attributes to `part`. Complete or an error.
    ///
    /// # Errors
    /// A refusal, an interrupted dump, or anything that `part` cannot read.
    pub fn dump(
        &mut self,
        request: &Request,
        mut part: impl FnMut(&[u8]) -> Result<(), NfError>,
    ) -> Result<(), NfError> {
        let seq = self.next_seq();
        let mut bytes = Vec::new();
        request.encode(seq, NLM_F_DUMP, &mut bytes);
        self.counters.dumps += 1;
        self.send(&bytes)?;
        // Whatever is wrong, the dump is read to its end: the kernel refuses the next one until then.
        let mut result = Ok(());
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                if message.seq != seq {
                    continue;
                }
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    result = result.and(Err(NfError::Interrupted));
                }
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let end = refusal(message.payload).map_or(Ok(()), |e| Err(NfError::Refused(e)));
                        return result.and(end);
                    }
                    _ if result.is_ok() => result = part(message.payload.get(NFGEN..).unwrap_or_default()),
                    _ => {}
                }
            }
        }
    }

    /// Asks several questions in one send and returns the answer of each: its attributes, or the
    /// refusal.
    ///
    /// # Errors
    /// An unreadable answer.
    pub fn ask(&mut self, requests: &[Request]) -> Result<Vec<Result<Vec<u8>, i32>>, NfError> {
        let first_seq = self.seq.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            let seq = self.next_seq();
            request.encode(seq, 0, &mut bytes);
        }
        self.send(&bytes)?;
        let mut answers = vec![None; requests.len()];
        while answers.iter().any(Option::is_none) {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if let Some(answer) = answers.get_mut(index) {
                    *answer = Some(match message.kind {
                        NLMSG_ERROR if refusal(message.payload) == Some(EPERM) => {
                            return Err(NfError::NotPermitted);
                        }
                        NLMSG_ERROR => Err(refusal(message.payload).unwrap_or(0)),
                        _ => Ok(message.payload.get(NFGEN..).unwrap_or_default().to_vec()),
                    });
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Sends requests, many per datagram, with an ack on the last of each only, and returns the
    /// refusal of each request (`None`: done). A refused request does not stop the others.
    ///
    /// # Errors
    /// When an answer was lost: then nobody knows which requests ran.
    pub fn batch(&mut self, requests: &[Request]) -> Result<Vec<Option<i32>>, NfError> {
        let mut refused = vec![None; requests.len()];
        let mut start = 0;
        while start < requests.len() {
            let first_seq = self.seq.wrapping_add(1);
            let mut bytes = Vec::new();
            let mut end = start;
            while end < requests.len() && bytes.len() < SEND_BYTES {
                let seq = self.next_seq();
                let size = HEADER + NFGEN + requests[end].attrs.len();
                let last = end + 1 == requests.len() || bytes.len() + size >= SEND_BYTES;
                requests[end].encode(seq, if last { NLM_F_ACK } else { 0 }, &mut bytes);
                end += 1;
            }
            self.send(&bytes)?;
            self.collect(first_seq, &mut refused[start..end])?;
            start = end;
        }
        Ok(refused)
    }

    /// Runs one request as a transaction of a subsystem that knows no other way (nf_tables).
    ///
    /// # Errors
    /// A refusal; then nothing was changed.
    pub fn transaction(&mut self, subsystem: u16, request: &Request) -> Result<(), NfError> {
        let mark = |kind| Request { kind, flags: 0, family: 0, attrs: Attrs::default() };
        let first_seq = self.seq.wrapping_add(1);
        let mut bytes = Vec::new();
        mark(BATCH_BEGIN).encode(self.next_seq(), 0, &mut bytes);
        // The last half of the `nfgenmsg` says which subsystem.
        let length = bytes.len();
        bytes[length - 2..].copy_from_slice(&subsystem.to_be_bytes());
        request.encode(self.next_seq(), NLM_F_ACK, &mut bytes);
        mark(BATCH_END).encode(self.next_seq(), 0, &mut bytes);
        self.send(&bytes)?;
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                if message.kind == NLMSG_ERROR && message.seq.wrapping_sub(first_seq) < 3 {
                    return match refusal(message.payload) {
                        None => Ok(()),
                        Some(EPERM) => Err(NfError::NotPermitted),
                        Some(code) => Err(NfError::Refused(code)),
                    };
                }
            }
        }
    }

    /// Reads answers until the last request of a send is acknowledged or refused.
    fn collect(&mut self, first_seq: u32, refused: &mut [Option<i32>]) -> Result<(), NfError> {
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if message.kind != NLMSG_ERROR || index >= refused.len() {
                    continue;
                }
                refused[index] = refusal(message.payload);
                if refused[index] == Some(EPERM) {
                    return Err(NfError::NotPermitted);
                }
                if index + 1 == refused.len() {
                    return Ok(());
                }
            }
        }
    }
}

/// The positive errno at the start of an error or done message; `None` for zero or nothing.
pub(in crate::kernel) fn refusal(payload: &[u8]) -> Option<i32> {
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    (code != 0).then_some(code.saturating_neg())
}

pub(in crate::kernel) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<Received<'_>, NfError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message = parse_header(bytes);
        bytes = match &message {
            Some((_, len)) => bytes.get(len.next_multiple_of(4)..).unwrap_or_default(),
            None => &[],
        };
        Some(message.map(|(m, _)| m).ok_or(NfError::Malformed("a message is longer than its datagram")))
    })
}

fn parse_header(bytes: &[u8]) -> Option<(Received<'_>, usize)> {
    let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
    let seq = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let port = u32::from_ne_bytes(bytes.get(12..16)?.try_into().ok()?);
    Some((Received { kind, flags, seq, port, payload: bytes.get(HEADER..len)? }, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut inner = Attrs::default();
        inner.put_be(1, &[10, 96, 0, 1]);
        let mut attrs = Attrs::default();
        attrs.put(5, &[7]).put_str(2, "abc").nest(7, &inner);
        assert_eq!(attrs.len() % 4, 0);
        let read: Vec<_> = AttrIter(attrs.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(read[0], (5, &[7][..]));
        assert_eq!(read[1], (2, &b"abc\0"[..]));
        assert_eq!(AttrIter(read[2].1).next().unwrap().unwrap(), (1, &[10, 96, 0, 1][..]));
    }

    #[test]
    fn an_error_message_is_its_errno() {
        assert_eq!(refusal(&(-17i32).to_ne_bytes()), Some(17));
        assert_eq!(refusal(&0i32.to_ne_bytes()), None);
        assert_eq!(refusal(&[]), None);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes).flatten() {
                let _ = refusal(message.payload);
                for _ in AttrIter(message.payload) {}
            }
            prop_assert!(AttrIter(&bytes).count() <= bytes.len());
        }
    }
}
