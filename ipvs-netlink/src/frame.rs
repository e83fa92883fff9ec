// SPDX-License-Identifier: Apache-2.0
//! Frames as bytes (`<linux/netlink.h>`, `<linux/genetlink.h>`): requests packed into sends, datagrams
//! split into messages, and what a refusal says. Pure; all header fields are in host order.

use std::borrow::Cow;

use crate::error::{Error, Refusal};
use crate::wire;

const HEADER: usize = 16;
/// Length of `struct genlmsghdr`.
pub(crate) const GENL: usize = 4;
/// A send is closed once it holds this much. The default send buffer takes three times as much.
pub(crate) const SEND_BYTES: usize = 64 * 1024;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CAPPED: u16 = 0x100;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLMSG_NOOP: u16 = 0x1;
pub(crate) const NLMSG_ERROR: u16 = 0x2;
pub(crate) const NLMSG_DONE: u16 = 0x3;
pub(crate) const NLMSG_OVERRUN: u16 = 0x4;
const NLMSGERR_ATTR_MSG: u16 = 1;

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
    pub attributes: Cow<'a, [u8]>,
}

/// The bytes of one send, and how many requests are in them.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub bytes: Vec<u8>,
    pub count: usize,
}

/// Takes requests until the send holds at least [`SEND_BYTES`] or there are no more, so no send is
/// longer than that and one message. They are numbered from `first_seq` on, and only the last asks
/// for an acknowledgement: refusals come without asking. `None` when there were no requests.
pub(crate) fn pack<'a>(requests: &mut impl Iterator<Item = Request<'a>>, first_seq: u32) -> Option<Packed> {
    let mut packed = Packed::default();
    let (mut seq, mut last_at) = (first_seq, 0);
    while packed.bytes.len() < SEND_BYTES
        && let Some(request) = requests.next()
    {
        last_at = packed.bytes.len();
        encode(&request, 0, seq, &mut packed.bytes);
        seq = seq.wrapping_add(1);
        packed.count += 1;
    }
    ask_for_ack(packed.bytes.get_mut(last_at..).unwrap_or_default());
    (packed.count > 0).then_some(packed)
}

pub(crate) fn encode(request: &Request<'_>, flags: u16, seq: u32, out: &mut Vec<u8>) {
    let len = HEADER + GENL + request.attributes.len();
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend_from_slice(&request.family.to_ne_bytes());
    out.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&[request.command, request.version, 0, 0]);
    // Attributes are padded to 4 bytes, so the next message is aligned.
    out.extend_from_slice(&request.attributes);
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
pub(crate) fn refusal(message: &Received<'_>) -> Result<Refusal, Error> {
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
pub(crate) fn messages(mut bytes: &[u8]) -> Result<Vec<Received<'_>>, Error> {
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
    #[cfg(target_endian = "little")]
    fn what_a_kernel_really_answers() {
        let text = include_str!("../tests/captured/datagrams.hex");
        let read = |line: &str| {
            let pairs = line.trim().as_bytes().chunks(2);
            let byte = |d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap();
            let bytes: Vec<u8> = pairs.map(byte).collect();
            let all = messages(&bytes).unwrap();
            let [message] = &all[..] else { panic!("{} messages", all.len()) };
            let refusal = refusal(message).unwrap();
            (message.kind, refusal.errno, refusal.message)
        };
        let answers: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).map(read).collect();
        let words = Some("Attribute failed policy validation".to_owned());
        let expected =
            [(NLMSG_ERROR, 34, words), (NLMSG_ERROR, 3, None), (NLMSG_ERROR, 0, None), (NLMSG_DONE, 0, None)];
        assert_eq!(answers, expected);
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

    /// Requests with attributes of these lengths.
    fn requests(lengths: &[usize]) -> impl Iterator<Item = Request<'static>> + '_ {
        lengths.iter().map(|len| Request {
            family: 30,
            command: 1,
            version: 1,
            attributes: vec![0; len.next_multiple_of(4)].into(),
        })
    }

    fn pack_all(lengths: &[usize]) -> Vec<Packed> {
        let mut requests = requests(lengths);
        let mut seq = 100u32;
        std::iter::from_fn(|| {
            let packed = pack(&mut requests, seq)?;
            seq += u32::try_from(packed.count).unwrap();
            Some(packed)
        })
        .collect()
    }

    #[test]
    fn nothing_to_say_is_no_send() {
        assert!(pack(&mut requests(&[]), 1).is_none());
    }

    #[test]
    fn a_send_is_closed_exactly_at_its_limit() {
        // 64 messages of 1024 bytes each are 64 KiB: the 65th goes into the next send.
        let sends = pack_all(&[1024 - HEADER - GENL; 65]);
        assert_eq!(sends.iter().map(|s| s.count).collect::<Vec<_>>(), [64, 1]);
        assert_eq!(sends[0].bytes.len(), SEND_BYTES);
        // A byte short of the limit, one more message fits.
        let sends = pack_all(&[1020 - HEADER - GENL; 66]);
        assert_eq!(sends.iter().map(|s| s.count).collect::<Vec<_>>(), [65, 1]);
    }

    #[test]
    fn numbers_wrap_around() {
        let packed = pack(&mut requests(&[0, 0, 0]), u32::MAX).unwrap();
        let seqs: Vec<u32> = messages(&packed.bytes).unwrap().iter().map(|m| m.seq).collect();
        assert_eq!(seqs, [u32::MAX, 0, 1]);
    }

    proptest! {
        #[test]
        fn sends_are_full_and_ask_for_one_answer(lengths in proptest::collection::vec(0usize..3000, 0..400)) {
            let sends = pack_all(&lengths);
            prop_assert_eq!(sends.iter().map(|s| s.count).sum::<usize>(), lengths.len());
            let mut expected_seq = 100;
            for (i, send) in sends.iter().enumerate() {
                let all = messages(&send.bytes).unwrap();
                prop_assert_eq!(all.len(), send.count);
                let (last, others) = all.split_last().unwrap();
                prop_assert_eq!(last.flags, NLM_F_REQUEST | NLM_F_ACK);
                prop_assert!(others.iter().all(|m| m.flags == NLM_F_REQUEST));
                for message in &all {
                    prop_assert_eq!(message.seq, expected_seq);
                    expected_seq += 1;
                }
                let last_len = HEADER + last.payload.len();
                prop_assert!(i + 1 == sends.len() || send.bytes.len() >= SEND_BYTES);
                prop_assert!(send.bytes.len() - last_len < SEND_BYTES);
            }
        }

        #[test]
        fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in messages(&bytes).unwrap_or_default() {
                let _ = refusal(&message);
            }
        }
    }
}
