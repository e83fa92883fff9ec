// SPDX-License-Identifier: Apache-2.0
//! Messages packed into sends.

use netlink_packet_core::NLM_F_ACK;

use crate::message::{FLAGS_AT, Message, encode};

/// A send is closed once it holds this much. The default send buffer takes three times as much.
pub(crate) const SEND_BYTES: usize = 64 * 1024;
/// Room for one message of usual size, so that it takes one allocation.
pub(crate) const USUAL_BYTES: usize = 256;

/// The bytes of one send, and how many messages are in them.
#[derive(Debug)]
pub(crate) struct Packed {
    pub bytes: Vec<u8>,
    pub count: usize,
}

/// Packs messages into sends. A send takes messages until it holds at least [`SEND_BYTES`] or there are no more, so none
/// is longer than that and one message. Only its last message asks for an acknowledgement: refusals come without asking.
pub(crate) struct Packer<I> {
    pub messages: I,
    /// The number of the next message.
    pub seq: u32,
}

impl<M: Message, I: Iterator<Item = M>> Iterator for Packer<I> {
    type Item = Packed;

    fn next(&mut self) -> Option<Packed> {
        let mut message = self.messages.next()?;
        let mut packed = Packed { bytes: Vec::with_capacity(USUAL_BYTES), count: 0 };
        loop {
            let start = packed.bytes.len();
            encode(&message, 0, self.seq, &mut packed.bytes);
            self.seq = self.seq.wrapping_add(1);
            packed.count += 1;
            let next = if packed.bytes.len() < SEND_BYTES { self.messages.next() } else { None };
            let Some(next) = next else {
                ask_for_ack(&mut packed.bytes[start..]);
                return Some(packed);
            };
            message = next;
        }
    }
}

/// Sets `NLM_F_ACK` in an encoded message.
pub(crate) fn ask_for_ack(message: &mut [u8]) {
    let flags = u16::from_ne_bytes([message[FLAGS_AT.start], message[FLAGS_AT.start + 1]]) | NLM_F_ACK;
    message[FLAGS_AT].copy_from_slice(&flags.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_REQUEST;
    use proptest::prelude::*;

    use super::*;
    use crate::message::{HEADER, messages};
    use crate::testing::Note;

    fn pack_all(lengths: &[usize]) -> Vec<Packed> {
        let messages = lengths.iter().map(|len| Note { kind: 30, flags: 0x600, body: vec![0; *len] });
        Packer { messages, seq: 100 }.collect()
    }

    fn counts(lengths: &[usize]) -> Vec<usize> {
        pack_all(lengths).iter().map(|send| send.count).collect()
    }

    #[test]
    fn a_send_is_closed_exactly_at_its_limit() {
        assert!(pack_all(&[]).is_empty());
        // 64 messages of 1024 bytes each are 64 KiB: the 65th goes into the next send.
        assert_eq!(counts(&[1024 - HEADER; 65]), [64, 1]);
        assert_eq!(pack_all(&[1024 - HEADER; 65])[0].bytes.len(), SEND_BYTES);
        // A byte short of the limit, one more message fits.
        assert_eq!(counts(&[1020 - HEADER; 66]), [65, 1]);
    }

    #[test]
    fn numbers_wrap_around() {
        let notes = [(); 3].map(|()| Note { kind: 30, flags: 0, body: Vec::new() });
        let packed = Packer { messages: notes.iter(), seq: u32::MAX }.next().unwrap();
        let seqs: Vec<u32> = messages(&packed.bytes).map(|m| m.unwrap().seq).collect();
        assert_eq!(seqs, [u32::MAX, 0, 1]);
    }

    proptest! {
        #[test]
        fn sends_are_full_and_ask_for_one_answer(lengths in proptest::collection::vec(0usize..3000, 0..400)) {
            let sends = pack_all(&lengths);
            prop_assert_eq!(sends.iter().map(|s| s.count).sum::<usize>(), lengths.len());
            let mut expected_seq = 100;
            for (i, send) in sends.iter().enumerate() {
                let all: Vec<_> = messages(&send.bytes).map(Result::unwrap).collect();
                prop_assert_eq!(all.len(), send.count);
                let (last, others) = all.split_last().unwrap();
                prop_assert_eq!(last.flags, NLM_F_REQUEST | NLM_F_ACK | 0x600);
                prop_assert!(others.iter().all(|m| m.flags == NLM_F_REQUEST | 0x600));
                for message in &all {
                    prop_assert_eq!(message.seq, expected_seq);
                    expected_seq += 1;
                }
                let last_len = (HEADER + last.payload.len()).next_multiple_of(4);
                prop_assert!(i + 1 == sends.len() || send.bytes.len() >= SEND_BYTES);
                prop_assert!(send.bytes.len() - last_len < SEND_BYTES);
            }
        }
    }
}
