// SPDX-License-Identifier: Apache-2.0
//! Dumps: complete or an error, and read to the end whatever is wrong with them. A socket has one dump at a time,
//! and the kernel refuses the next with `EBUSY` until the first is read out.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN};
use nix::errno::Errno;

use crate::channel::Channel;
use crate::error::{Error, Refusal};
use crate::message::{Message, Received, encode, messages};
use crate::pack::USUAL_BYTES;
use crate::socket::Socket;

/// How often a dump is begun when the list changes meanwhile.
const TRIES: usize = 3;

/// A dump that was requested and is being read; see [`Socket::begin_dump`].
#[derive(Debug)]
pub struct Dump {
    seq: u32,
    /// The list did not change so far.
    whole: bool,
    /// Another dump, given up after a timeout, is in the way.
    busy: bool,
    ended: bool,
    /// What could not be received or split into messages.
    failed: Option<Error>,
}

/// How one try of a dump ended.
enum End {
    Complete,
    /// The list changed meanwhile, or another dump was in the way.
    Interrupted,
    Refused(Refusal),
}

impl Dump {
    /// Takes a message; `Some` at the end of the dump.
    fn take(&mut self, message: &Received<'_>, part: &mut dyn FnMut(&[u8])) -> Result<Option<End>, Error> {
        if message.seq != self.seq {
            // The dump that was in the way ends here.
            let free = self.busy && message.kind == NLMSG_DONE;
            return Ok(free.then_some(End::Interrupted));
        }
        self.whole &= message.flags & NLM_F_DUMP_INTR == 0;
        match message.kind {
            NLMSG_ERROR => match Refusal::of(message)? {
                refusal if refusal.errno() == Errno::EBUSY => self.busy = true,
                refusal => return Ok(Some(End::Refused(refusal))),
            },
            NLMSG_DONE => {
                let refusal = Refusal::of(message)?;
                return match self.failed.take() {
                    _ if refusal.code != 0 => Ok(Some(End::Refused(refusal))),
                    _ if !self.whole => Ok(Some(End::Interrupted)),
                    Some(error) => Err(error),
                    None => Ok(Some(End::Complete)),
                };
            }
            NLMSG_NOOP => {}
            NLMSG_OVERRUN => return Err(Error::Overrun),
            _ if self.whole && self.failed.is_none() => part(message.payload),
            _ => {}
        }
        Ok(None)
    }
}

impl<C: Channel> Socket<C> {
    /// Requests a dump and returns what `part` makes of everything that follows the header of each message. When
    /// the kernel says that the list changed meanwhile, the dump begins anew with a new `T`, at most three times.
    ///
    /// # Errors
    /// The first error of `part`; [`Error::Refused`], [`Error::NotPermitted`], [`Error::Interrupted`], and what can
    /// go wrong with the conversation.
    pub fn dump<T: Default, E: From<Error>>(
        &mut self,
        request: &impl Message,
        mut part: impl FnMut(&mut T, &[u8]) -> Result<(), E>,
    ) -> Result<T, E> {
        for _ in 0..TRIES {
            let mut result = Ok(T::default());
            let mut take = |payload: &[u8]| {
                if let Ok(found) = &mut result {
                    if let Err(error) = part(found, payload) {
                        result = Err(error);
                    }
                }
            };
            let mut dump = self.begin_dump(request)?;
            let end = loop {
                if let Some(end) = self.receive_part(&mut dump, &mut take)? {
                    break end;
                }
            };
            match end {
                End::Complete => return result,
                End::Refused(refusal) => return Err(Error::from(refusal).into()),
                End::Interrupted => {}
            }
        }
        Err(Error::Interrupted.into())
    }

    /// Requests a dump that is read little by little with [`Self::read_dump`]. Until its end nothing else can be
    /// dumped over this socket.
    ///
    /// # Errors
    /// [`Error::Io`] when the request cannot be sent.
    pub fn begin_dump(&mut self, request: &impl Message) -> Result<Dump, Error> {
        let seq = self.next_seq();
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        encode(request, NLM_F_DUMP, seq, &mut bytes);
        self.counters.dumps += 1;
        self.send(&bytes)?;
        Ok(Dump { seq, whole: true, busy: false, ended: false, failed: None })
    }

    /// Waits for one datagram of a dump and hands each of its messages to `part`. False: that was the end.
    ///
    /// # Errors
    /// As [`Self::dump`], but an interrupted dump does not begin anew.
    pub fn read_dump(&mut self, dump: &mut Dump, part: &mut dyn FnMut(&[u8])) -> Result<bool, Error> {
        if dump.ended {
            return Ok(false);
        }
        match self.receive_part(dump, part)? {
            None => Ok(true),
            Some(End::Complete) => Ok(false),
            Some(End::Interrupted) => Err(Error::Interrupted),
            Some(End::Refused(refusal)) => Err(refusal.into()),
        }
    }

    /// Receives one datagram of a dump; `Some` at the end of it. After one that cannot be read the rest of the dump
    /// is received all the same.
    fn receive_part(&mut self, dump: &mut Dump, part: &mut dyn FnMut(&[u8])) -> Result<Option<End>, Error> {
        let datagram = match self.inbound.receive() {
            Ok(datagram) => datagram,
            Err(Error::Truncated) => {
                dump.failed.get_or_insert(Error::Truncated);
                return Ok(None);
            }
            Err(error) => return Err(dump.failed.take().unwrap_or(error)),
        };
        for message in messages(datagram) {
            match message {
                Ok(message) => {
                    let end = dump.take(&message, part);
                    if !matches!(end, Ok(None)) {
                        dump.ended = true;
                        return end;
                    }
                }
                Err(error) => _ = dump.failed.get_or_insert(error),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Note, Peer, datagram};

    const PART: u16 = 30;
    const FINE: [u8; 4] = [0; 4];

    fn list() -> Note {
        Note { kind: 29, flags: 0, body: vec![1, 2, 3, 4] }
    }

    fn read(socket: &mut Socket<Peer>) -> Result<Vec<u8>, Error> {
        socket.dump(&list(), |found: &mut Vec<u8>, payload| {
            let [byte, ..] = payload else { return Err(Error::Malformed("a part without a byte")) };
            found.push(*byte);
            Ok(())
        })
    }

    fn code(errno: Errno) -> [u8; 4] {
        (-(errno as i32)).to_ne_bytes()
    }

    fn socket(fill: impl FnOnce(&mut Peer)) -> Socket<Peer> {
        let mut peer = Peer::default();
        fill(&mut peer);
        Socket::over(peer)
    }

    /// The next dump of this number is complete.
    fn then_fine(peer: &mut Peer, seq: u32) {
        peer.say(datagram(&[(PART, 0, seq, 0, &[7; 4])]));
        peer.say(datagram(&[(NLMSG_DONE, 0, seq, 0, &FINE)]));
    }

    #[test]
    fn a_dump_is_all_of_its_parts() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(PART, 2, 1, 0, &[1]), (NLMSG_NOOP, 0, 1, 0, &[]), (PART, 2, 1, 0, &[2])]));
            peer.say(datagram(&[(PART, 2, 1, 0, &[3]), (NLMSG_DONE, 2, 1, 0, &FINE)]));
        });
        assert_eq!(read(&mut socket).unwrap(), [1, 2, 3]);
        let sent = messages(&socket.inbound.channel.sent[0]).next().unwrap().unwrap();
        assert_eq!((sent.kind, sent.flags, sent.payload), (29, NLM_F_DUMP | 1, &[1, 2, 3, 4][..]));
        assert_eq!((socket.counters().dumps, socket.counters().commands), (1, 0));
    }

    #[test]
    fn an_interrupted_dump_is_read_to_its_end_and_begun_anew() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(PART, 0, 1, 0, &[1]), (PART, NLM_F_DUMP_INTR, 1, 0, &[2])]));
            peer.say(datagram(&[(PART, 0, 1, 0, &[3]), (NLMSG_DONE, 0, 1, 0, &FINE)]));
            then_fine(peer, 2);
        });
        assert_eq!(read(&mut socket).unwrap(), [7]);
        assert_eq!(socket.counters().dumps, 2);
    }

    #[test]
    fn a_list_that_always_changes_is_an_error() {
        let mut socket = socket(|peer| {
            for seq in 1..=3 {
                peer.say(datagram(&[(NLMSG_DONE, NLM_F_DUMP_INTR, seq, 0, &FINE)]));
            }
            then_fine(peer, 4);
        });
        assert!(matches!(read(&mut socket), Err(Error::Interrupted)));
        assert_eq!(read(&mut socket).unwrap(), [7]);
    }

    #[test]
    fn a_part_that_cannot_be_read_spoils_the_dump_and_not_the_next_one() {
        let cut_header = [&datagram(&[(PART, 0, 1, 0, &[1])])[..], &[200, 0, 0, 0]].concat();
        let no_byte = datagram(&[(PART, 0, 1, 0, &[])]);
        for (bad, truncated) in [(cut_header, false), (no_byte, false), (vec![0; 256 * 1024], true)] {
            let mut socket = socket(|peer| {
                peer.say(bad);
                peer.say(datagram(&[(PART, 0, 1, 0, &[2])]));
                then_fine(peer, 1);
                then_fine(peer, 2);
            });
            match read(&mut socket) {
                Err(Error::Truncated) => assert!(truncated),
                other => assert!(matches!(other, Err(Error::Malformed(_))) && !truncated),
            }
            assert_eq!(read(&mut socket).unwrap(), [7]);
        }
    }

    #[test]
    fn a_dump_given_up_after_a_timeout_is_read_out_by_the_next_one() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(PART, 0, 1, 0, &[1])]));
            peer.fail(Errno::EAGAIN);
            peer.say(datagram(&[(PART, 0, 1, 0, &[2])]));
            peer.say(datagram(&[(NLMSG_ERROR, 0, 2, 0, &code(Errno::EBUSY))]));
            peer.say(datagram(&[(PART, 0, 1, 0, &[3]), (NLMSG_DONE, 0, 1, 0, &FINE)]));
            then_fine(peer, 3);
        });
        assert!(matches!(read(&mut socket), Err(Error::Timeout)));
        assert_eq!(read(&mut socket).unwrap(), [7]);
    }

    #[test]
    fn refusals_and_lost_parts_have_names() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(NLMSG_ERROR, 0, 1, 0, &code(Errno::EOPNOTSUPP))]));
            peer.say(datagram(&[(NLMSG_DONE, 0, 2, 0, &code(Errno::EPERM))]));
            peer.fail(Errno::ENOBUFS);
            peer.say(datagram(&[(NLMSG_OVERRUN, 0, 4, 0, &[])]));
        });
        let refused = read(&mut socket).unwrap_err();
        assert!(matches!(refused, Error::Refused(refusal) if refusal.errno() == Errno::EOPNOTSUPP));
        assert!(matches!(read(&mut socket), Err(Error::NotPermitted)));
        assert!(matches!(read(&mut socket), Err(Error::Overrun)));
        assert!(matches!(read(&mut socket), Err(Error::Overrun)));
    }

    #[test]
    fn a_dump_is_read_little_by_little() {
        let mut socket = socket(|peer| {
            peer.say(datagram(&[(PART, 0, 1, 0, &[1])]));
            then_fine(peer, 1);
            peer.say(datagram(&[(NLMSG_DONE, NLM_F_DUMP_INTR, 2, 0, &FINE)]));
        });
        let (mut dump, mut parts) = (socket.begin_dump(&list()).unwrap(), 0);
        let mut count = |_: &[u8]| parts += 1;
        let more = [(); 4].map(|()| socket.read_dump(&mut dump, &mut count).unwrap());
        assert_eq!((more, parts), ([true, true, false, false], 2));
        let mut dump = socket.begin_dump(&list()).unwrap();
        assert!(matches!(socket.read_dump(&mut dump, &mut |_| {}), Err(Error::Interrupted)));
        assert!(!socket.read_dump(&mut dump, &mut |_| {}).unwrap());
    }
}
