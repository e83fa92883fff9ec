// SPDX-License-Identifier: Apache-2.0
//! The conversation: batches with one acknowledgement per send, and requests with an answer.

use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use netlink_packet_core::NLMSG_ERROR;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::channel::{Channel, Inbound, KernelChannel};
use crate::error::{Error, Refusal};
use crate::message::{Message, encode, messages};
use crate::pack::{Packed, Packer, SEND_BYTES, USUAL_BYTES};

/// How long an answer may take; see [`Socket::set_timeout`].
const TIMEOUT: Duration = Duration::from_secs(10);

/// What went over a socket since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Datagrams sent.
    pub sends: u64,
    /// Bytes in them.
    pub bytes_sent: u64,
    /// Messages sent in batches.
    pub commands: u64,
    /// Dumps requested.
    pub dumps: u64,
}

/// One answer of the kernel to a message.
#[derive(Debug)]
pub enum Answer<'a> {
    /// What was requested: everything that follows the header.
    Payload(&'a [u8]),
    /// A refusal, or with code 0 an acknowledgement.
    Status(Refusal),
}

/// A blocking netlink socket of one family. Only the kernel can answer.
///
/// It stays usable whatever a call returns: late answers are recognized by their sequence numbers and skipped, and
/// a dump that was not read to its end is read out before the next one.
#[derive(Debug)]
pub struct Socket<C = KernelChannel> {
    pub(crate) inbound: Inbound<C>,
    seq: u32,
    pub(crate) counters: Counters,
    /// Netfilter answers a process without privilege once per send, for the first message only.
    pub(crate) one_refusal_of_all: bool,
}

/// What a batch has sent so far.
#[derive(Debug, Default)]
struct Sent {
    count: usize,
    refused: Vec<(usize, Refusal)>,
}

impl Socket {
    /// Opens a socket of a family (`protocols::NETLINK_*`) in the current network namespace. An answer may take 10
    /// seconds.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel lacks the family.
    pub fn open(protocol: isize) -> Result<Self, Error> {
        let channel = KernelChannel::open(protocol)?;
        channel.connect()?;
        channel.set_timeout(TIMEOUT)?;
        Ok(Self { one_refusal_of_all: protocol == NETLINK_NETFILTER, ..Self::over(channel) })
    }

    /// Sets how long an answer may take before a call returns [`Error::Timeout`]; zero: without limit.
    ///
    /// # Errors
    /// [`Error::Io`] when the system refuses the value.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), Error> {
        self.inbound.channel.set_timeout(timeout)
    }

    /// The netlink port: notifications of changes made through this socket carry it.
    pub fn port_number(&self) -> u32 {
        self.inbound.channel.port
    }
}

impl<C: Channel> Socket<C> {
    /// Talks over another channel than the kernel's. The first message has the sequence number 1.
    pub fn over(channel: C) -> Self {
        Self {
            inbound: Inbound::new(channel),
            seq: 0,
            counters: Counters::default(),
            one_refusal_of_all: false,
        }
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The sequence number of the next message.
    pub(crate) fn peek_seq(&self) -> u32 {
        self.seq.wrapping_add(1)
    }

    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.counters.sends += 1;
        self.counters.bytes_sent += bytes.len() as u64;
        Ok(self.inbound.channel.send(bytes)?)
    }

    /// Sends messages, many per datagram: at least 64 KiB each, but for the last. Only the last message of a send
    /// asks for an acknowledgement, and the next send waits for it. Returns index and refusal of the messages that
    /// were refused, by index; the others took effect.
    ///
    /// The kernel works within the call that sends, so another thread encodes the next send meanwhile.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Overrun`], [`Error::Truncated`], [`Error::Malformed`], [`Error::Io`]: it is
    /// unknown which messages took effect. [`Error::NotPermitted`] from netfilter, which then ran none.
    pub fn batch<M: Message>(
        &mut self,
        messages: impl IntoIterator<Item = M, IntoIter: Send>,
    ) -> Result<Vec<(usize, Refusal)>, Error> {
        let mut packer = Packer { messages: messages.into_iter(), seq: self.peek_seq() };
        let mut sent = Sent::default();
        let Some(first) = packer.next() else { return Ok(sent.refused) };
        if first.bytes.len() < SEND_BYTES {
            self.send_packed(&first, &mut sent)?;
            return Ok(sent.refused);
        }
        let packer = Mutex::new(packer);
        thread::scope(|scope| {
            let (send, receive) = mpsc::sync_channel(1);
            let encode = || {
                let mut packer = packer.lock().unwrap_or_else(PoisonError::into_inner);
                // The receiver is gone after an error.
                packer.by_ref().try_for_each(|packed| send.send(packed)).unwrap_or_default();
                drop(send);
            };
            // Without another thread the sends follow one another.
            let encoder = thread::Builder::new().name("encoder".to_owned()).spawn_scoped(scope, encode);
            self.send_packed(&first, &mut sent)?;
            if encoder.is_ok() {
                receive.into_iter().try_for_each(|packed| self.send_packed(&packed, &mut sent))
            } else {
                let mut packer = packer.lock().unwrap_or_else(PoisonError::into_inner);
                packer.by_ref().try_for_each(|packed| self.send_packed(&packed, &mut sent))
            }
        })?;
        Ok(sent.refused)
    }

    fn send_packed(&mut self, packed: &Packed, sent: &mut Sent) -> Result<(), Error> {
        let first_seq = self.peek_seq();
        // A send holds 64 KiB, so far fewer messages than 32 bits can count.
        self.seq = self.seq.wrapping_add(packed.count as u32);
        self.counters.commands += packed.count as u64;
        self.send(&packed.bytes)?;
        let range = sent.count..sent.count + packed.count;
        sent.count = range.end;
        self.collect(first_seq, range, &mut sent.refused)
    }

    /// Reads answers until the last message of a send is acknowledged or refused.
    fn collect(
        &mut self,
        first_seq: u32,
        range: std::ops::Range<usize>,
        refused: &mut Vec<(usize, Refusal)>,
    ) -> Result<(), Error> {
        loop {
            for message in messages(self.inbound.receive()?) {
                let message = message?;
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if message.kind != NLMSG_ERROR || index >= range.len() {
                    continue;
                }
                let refusal = Refusal::of(&message)?;
                if self.one_refusal_of_all && refusal.errno() == Errno::EPERM {
                    return Err(Error::NotPermitted);
                }
                if refusal.code != 0 {
                    refused.push((range.start + index, refusal));
                }
                if index + 1 == range.len() {
                    return Ok(());
                }
            }
        }
    }

    /// Sends messages in one datagram, with no other flags than their own, and hands each answer with the index of
    /// its message to `each` until that returns something.
    ///
    /// # Errors
    /// When an answer is lost or cannot be read.
    pub fn exchange<M: Message, T>(
        &mut self,
        requests: &[M],
        mut each: impl FnMut(usize, Answer<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        let first_seq = self.seq.wrapping_add(1);
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        for request in requests {
            let seq = self.next_seq();
            encode(request, 0, seq, &mut bytes);
        }
        self.send(&bytes)?;
        loop {
            for message in messages(self.inbound.receive()?) {
                let message = message?;
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if index >= requests.len() {
                    continue;
                }
                let answer = match message.kind {
                    NLMSG_ERROR => Answer::Status(Refusal::of(&message)?),
                    _ => Answer::Payload(message.payload),
                };
                match answer {
                    Answer::Status(refusal) if self.one_refusal_of_all && refusal.errno() == Errno::EPERM => {
                        return Err(Error::NotPermitted);
                    }
                    answer => {
                        if let Some(result) = each(index, answer) {
                            return Ok(result);
                        }
                    }
                }
            }
        }
    }

    /// Sends one request and returns everything that follows the header of its answer, or its refusal.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn ask<M: Message>(&mut self, request: &M) -> Result<Result<Vec<u8>, Refusal>, Error> {
        self.exchange(std::slice::from_ref(request), |_, answer| {
            Some(match answer {
                Answer::Payload(payload) => Ok(payload.to_vec()),
                Answer::Status(refusal) => Err(refusal),
            })
        })
    }

    /// As [`Self::ask`], for several requests in one send. Each must have exactly one answer.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn ask_all<M: Message>(&mut self, requests: &[M]) -> Result<Vec<Result<Vec<u8>, Refusal>>, Error> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let mut answers = vec![None; requests.len()];
        self.exchange(requests, |index, answer| {
            answers[index] = Some(match answer {
                Answer::Payload(payload) => Ok(payload.to_vec()),
                Answer::Status(refusal) => Err(refusal),
            });
            answers.iter().all(Option::is_some).then_some(())
        })?;
        Ok(answers.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_ACK, NLM_F_CAPPED, NLM_F_REQUEST};

    use super::*;
    use crate::attributes::Attributes;
    use crate::testing::{Note, Peer, datagram};

    fn note(body: &[u8]) -> Note {
        Note { kind: 30, flags: 0, body: body.to_vec() }
    }

    /// The payload of an error message, with the header of the request.
    fn status(errno: Errno) -> Vec<u8> {
        [&(-(errno as i32)).to_ne_bytes(), &[0; 16][..]].concat()
    }

    fn acknowledged() -> Vec<u8> {
        status(Errno::UnknownErrno)
    }

    fn socket(fill: impl FnOnce(&mut Peer)) -> Socket<Peer> {
        let mut peer = Peer::default();
        fill(&mut peer);
        Socket::over(peer)
    }

    #[test]
    fn a_refusal_in_the_middle_does_not_stop_the_others() {
        let mut text = Attributes::default();
        text.put_str(1, "no such thing");
        let refused = [&status(Errno::ENOENT), text.as_bytes()].concat();
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(NLMSG_ERROR, NLM_F_CAPPED, 2, 0, &refused)]));
            peer.say(datagram(&[(NLMSG_ERROR, NLM_F_CAPPED, 3, 0, &acknowledged())]));
        });
        let expected = Refusal::new(Errno::ENOENT as i32, Some("no such thing".to_owned()));
        assert_eq!(socket.batch([note(b"a"), note(b"b"), note(b"c")]).unwrap(), [(1, expected)]);
        let sent = &socket.inbound.channel.sent;
        let flags: Vec<u16> = messages(&sent[0]).map(|message| message.unwrap().flags).collect();
        assert_eq!(flags, [NLM_F_REQUEST, NLM_F_REQUEST, NLM_F_REQUEST | NLM_F_ACK]);
        let expected = Counters { sends: 1, bytes_sent: 60, commands: 3, dumps: 0 };
        assert_eq!(socket.counters(), expected);
    }

    #[test]
    fn the_last_message_may_be_the_refused_one() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(NLMSG_ERROR, 0, 2, 0, &status(Errno::EINVAL))]));
        });
        let refused = socket.batch([note(b""), note(b"")]).unwrap();
        assert_eq!(refused, [(1, Refusal::new(Errno::EINVAL as i32, None))]);
    }

    #[test]
    fn each_send_waits_for_the_one_before() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(NLMSG_ERROR, 0, 64, 0, &acknowledged())]));
            peer.say(datagram(&[(NLMSG_ERROR, 0, 65, 0, &status(Errno::EEXIST))]));
        });
        let refused = socket.batch((0..65).map(|_| note(&[0; 1008]))).unwrap();
        assert_eq!(refused, [(64, Refusal::new(Errno::EEXIST as i32, None))]);
        assert_eq!(socket.counters().sends, 2);
    }

    #[test]
    fn an_error_ends_a_batch_of_many_sends() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(NLMSG_ERROR, 0, 64, 0, &acknowledged())]));
            peer.fail(Errno::ENOBUFS);
            peer.say(datagram(&[(NLMSG_ERROR, 0, 129, 0, &acknowledged())]));
        });
        let many = || (0..640).map(|_| note(&[0; 1008]));
        assert!(matches!(socket.batch(many()), Err(Error::Overrun)));
        assert_eq!((socket.counters().sends, socket.counters().commands), (2, 128));
        assert!(socket.batch([note(b"")]).unwrap().is_empty(), "numbers continue after the last send");
    }

    #[test]
    fn a_late_answer_is_not_taken_for_that_of_the_next_request() {
        let mut socket = socket(|peer| {
            peer.fail(Errno::EAGAIN);
            peer.say(datagram(&[(NLMSG_ERROR, 0, 1, 0, &status(Errno::ENOENT))]));
            peer.say(datagram(&[(31, 0, 2, 0, b"answer")]));
        });
        assert!(matches!(socket.batch([note(b"")]), Err(Error::Timeout)));
        assert_eq!(socket.ask(&note(b"")).unwrap().unwrap(), b"answer");
    }

    #[test]
    fn lost_and_cut_answers_have_names() {
        let mut socket = socket(|peer| {
            peer.fail(Errno::ENOBUFS).say(vec![0; 256 * 1024]).say(vec![0; 20]).fail(Errno::EBADF);
        });
        let mut run = || socket.batch([note(b"")]).unwrap_err();
        assert!(matches!(run(), Error::Overrun));
        assert!(matches!(run(), Error::Truncated));
        assert!(matches!(run(), Error::Malformed(_)));
        assert!(matches!(run(), Error::Io(_)));
    }

    #[test]
    fn several_requests_have_their_own_answers() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(NLMSG_ERROR, 0, 2, 0, &status(Errno::ENOENT)), (31, 0, 9, 0, b"late")]));
            peer.say(datagram(&[(31, 0, 1, 0, b"one")]));
        });
        let answers = socket.ask_all(&[note(b""), note(b"")]).unwrap();
        assert_eq!(answers, [Ok(b"one".to_vec()), Err(Refusal::new(Errno::ENOENT as i32, None))]);
        assert_eq!(socket.counters().sends, 1);
        assert!(socket.ask_all::<Note>(&[]).unwrap().is_empty());
    }

    #[test]
    fn netfilter_refuses_a_whole_send_at_once() {
        let mut socket = socket(|peer| {
            for seq in [1, 3] {
                peer.say(datagram(&[(NLMSG_ERROR, 0, seq, 0, &status(Errno::EPERM))]));
            }
        });
        socket.one_refusal_of_all = true;
        assert!(matches!(socket.batch([note(b""), note(b"")]), Err(Error::NotPermitted)));
        assert!(matches!(socket.ask(&note(b"")), Err(Error::NotPermitted)));
    }
}
