// SPDX-License-Identifier: Apache-2.0
//! Batches of nfnetlink that apply as a whole or not at all (`<linux/netfilter/nfnetlink.h>`: between
//! `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`), in one datagram of any length.

use std::io;

use netlink_packet_core::NLMSG_ERROR;
use nix::errno::Errno;

use crate::channel::Channel;
use crate::error::{Error, Refusal};
use crate::message::{Message, encode, messages};
use crate::pack::ask_for_ack;
use crate::socket::Socket;

/// Which messages of a transaction the kernel refused. It refused the whole transaction if there is any.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusals {
    /// Index of the message and its refusal, in the order of the kernel's answers.
    pub messages: Vec<(usize, Refusal)>,
    /// Some refusals did not fit the receive buffer.
    pub lost: bool,
}

impl Refusals {
    /// Whether the transaction was applied.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && !self.lost
    }
}

impl<C: Channel> Socket<C> {
    /// Sends a transaction in one datagram: the message that begins it, commands, and the message that ends it. The
    /// last command asks for an acknowledgement. Everything is applied, or nothing: then each refused message has
    /// its refusal. An error of the commit itself is reported for the first command.
    ///
    /// A transaction without a command sends nothing.
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::NotPermitted`]: nothing was applied. [`Error::Timeout`], [`Error::Truncated`],
    /// [`Error::Malformed`], [`Error::Io`]: it is unknown whether the transaction was applied.
    pub fn transaction<M: Message>(
        &mut self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Refusals, Error> {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        let first_seq = self.peek_seq();
        for message in messages {
            starts.push(bytes.len());
            let seq = self.next_seq();
            encode(&message, 0, seq, &mut bytes);
        }
        let Some(last) = starts.len().checked_sub(2).filter(|last| *last > 0) else {
            return Ok(Refusals::default());
        };
        ask_for_ack(&mut bytes[starts[last]..]);
        self.counters.commands += last as u64;
        self.inbound.channel.reserve(bytes.len());
        self.send(&bytes).map_err(|error| too_large(error, bytes.len()))?;
        self.collect_refusals(first_seq, last)
    }

    /// Reads answers until the last command is acknowledged or refused, or the transaction as a whole is refused.
    fn collect_refusals(&mut self, first_seq: u32, last: usize) -> Result<Refusals, Error> {
        let mut refusals = Refusals::default();
        loop {
            // The kernel answers while it takes the datagram, so after a loss all other answers are queued. The
            // queue must become empty: until then the kernel drops further answers.
            let received = if refusals.lost { self.inbound.receive_queued() } else { self.inbound.receive() };
            let datagram = match received {
                Ok(datagram) => datagram,
                Err(Error::Overrun) => {
                    refusals.lost = true;
                    continue;
                }
                Err(Error::Timeout) if refusals.lost => return Ok(refusals),
                Err(error) => return Err(error),
            };
            for message in messages(datagram) {
                let message = message?;
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if message.kind != NLMSG_ERROR || index > last {
                    continue;
                }
                let refusal = Refusal::of(&message)?;
                if refusal.errno() == Errno::EPERM && index == 0 {
                    return Err(Error::NotPermitted);
                }
                // For lack of memory the kernel refuses the first command, and answers no other one.
                let whole = index == 0 || index == 1 && refusal.errno() == Errno::ENOMEM;
                if refusal.code != 0 {
                    refusals.messages.push((index, refusal));
                }
                if (index == last || whole) && !refusals.lost {
                    return Ok(refusals);
                }
            }
        }
    }
}

/// The error of a send that does not fit.
fn too_large(error: Error, len: usize) -> Error {
    match error {
        Error::Overrun => Error::TooLarge(len),
        Error::Io(cause) if is_message_size(&cause) => Error::TooLarge(len),
        other => other,
    }
}

fn is_message_size(cause: &io::Error) -> bool {
    cause.raw_os_error() == Some(Errno::EMSGSIZE as i32)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

    use super::*;
    use crate::testing::{Note, Peer, datagram};

    fn notes(count: usize) -> Vec<Note> {
        vec![Note { kind: 30, flags: 0, body: vec![0; 4] }; count]
    }

    fn status(code: i32) -> Vec<u8> {
        [&(-code).to_ne_bytes(), &[0; 16][..]].concat()
    }

    fn socket(fill: impl FnOnce(&mut Peer)) -> Socket<Peer> {
        let mut peer = Peer::default();
        fill(&mut peer);
        Socket::over(peer)
    }

    fn refused(index: usize, errno: Errno) -> (usize, Refusal) {
        (index, Refusal::new(errno as i32, None))
    }

    #[test]
    fn only_the_last_command_asks_for_an_acknowledgement() {
        let mut socket = socket(|peer| _ = peer.say(datagram(&[(NLMSG_ERROR, 0, 3, 0, &status(0))])));
        assert!(socket.transaction(notes(4)).unwrap().is_empty());
        let sent = &socket.inbound.channel.sent;
        let flags: Vec<u16> = messages(&sent[0]).map(|message| message.unwrap().flags).collect();
        assert_eq!(flags, [NLM_F_REQUEST, NLM_F_REQUEST, NLM_F_REQUEST | NLM_F_ACK, NLM_F_REQUEST]);
        assert_eq!((socket.counters().sends, socket.counters().commands), (1, 2));
    }

    #[test]
    fn without_a_command_nothing_is_sent() {
        let mut socket = socket(|_| {});
        assert!(socket.transaction(notes(2)).unwrap().is_empty());
        assert_eq!(socket.counters().sends, 0);
    }

    #[test]
    fn each_refused_command_is_reported_although_the_last_one_is_acknowledged() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(NLMSG_ERROR, 0, 2, 0, &status(Errno::EEXIST as i32))]));
            peer.say(datagram(&[(NLMSG_ERROR, 0, 3, 0, &status(Errno::ENOENT as i32))]));
            peer.say(datagram(&[(NLMSG_ERROR, 0, 4, 0, &status(0))]));
        });
        let refusals = socket.transaction(notes(5)).unwrap();
        assert_eq!(refusals.messages, [refused(1, Errno::EEXIST), refused(2, Errno::ENOENT)]);
        assert!(!refusals.is_empty() && !refusals.lost);
    }

    #[test]
    fn the_whole_may_be_refused_at_its_first_message() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(NLMSG_ERROR, 0, 1, 0, &status(Errno::ERESTART as i32))]));
            peer.say(datagram(&[(NLMSG_ERROR, 0, 5, 0, &status(Errno::EPERM as i32))]));
            peer.say(datagram(&[(NLMSG_ERROR, 0, 10, 0, &status(Errno::ENOMEM as i32))]));
        });
        assert_eq!(socket.transaction(notes(4)).unwrap().messages, [refused(0, Errno::ERESTART)]);
        assert!(matches!(socket.transaction(notes(4)), Err(Error::NotPermitted)));
        assert_eq!(socket.transaction(notes(4)).unwrap().messages, [refused(1, Errno::ENOMEM)]);
    }

    #[test]
    fn lost_refusals_are_refusals_and_the_queue_is_emptied() {
        let mut socket = socket(|peer| {
            peer.fail(Errno::ENOBUFS);
            peer.say(datagram(&[(NLMSG_ERROR, 0, 2, 0, &status(Errno::ENOENT as i32))]));
            peer.fail(Errno::EAGAIN);
            peer.say(datagram(&[(NLMSG_ERROR, 0, 7, 0, &status(0))]));
        });
        let refusals = socket.transaction(notes(4)).unwrap();
        assert_eq!(refusals, Refusals { messages: vec![refused(1, Errno::ENOENT)], lost: true });
        assert!(socket.transaction(notes(4)).unwrap().is_empty());
    }

    #[test]
    fn what_does_not_fit_has_a_name() {
        let too_small = Error::from(io::Error::from_raw_os_error(Errno::EMSGSIZE as i32));
        assert!(matches!(too_large(too_small, 7), Error::TooLarge(7)));
        assert!(matches!(too_large(Error::from(Errno::ENOBUFS), 7), Error::TooLarge(7)));
        assert!(matches!(too_large(Error::Timeout, 7), Error::Timeout));
    }
}
