// SPDX-License-Identifier: Apache-2.0
//! Frames as bytes (`<linux/netlink.h>`): requests packed into sends, datagrams split into messages,
//! and what a refusal says. Pure; all header fields are in host order.

use netlink_packet_core::{Emitable, NlasIterator};

use crate::Error;

const HEADER: usize = 16;
/// A send is closed once it holds this much.
pub(crate) const SEND_BYTES: usize = 64 * 1024;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CAPPED: u16 = 0x100;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
/// `NLM_F_CREATE | NLM_F_EXCL`
pub(crate) const NEW: u16 = 0x600;
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
    pub port: u32,
    pub payload: &'a [u8],
}

/// An errno with the kernel's own message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub errno: i32,
    pub message: Option<String>,
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
pub(crate) fn pack<'a, B: Emitable + 'a>(
    kind: u16,
    flags: u16,
    bodies: &mut impl Iterator<Item = &'a B>,
    first_seq: u32,
) -> Option<Packed> {
    let mut packed = Packed::default();
    let (mut seq, mut last_at) = (first_seq, 0);
    while packed.bytes.len() < SEND_BYTES
        && let Some(body) = bodies.next()
    {
        last_at = packed.bytes.len();
        encode(kind, flags, seq, body, &mut packed.bytes);
        seq = seq.wrapping_add(1);
        packed.count += 1;
    }
    if let Some(at) = packed.bytes.get_mut(last_at + 6..last_at + 8) {
        at.copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    }
    (packed.count > 0).then_some(packed)
}

pub(crate) fn encode(kind: u16, flags: u16, seq: u32, body: &impl Emitable, out: &mut Vec<u8>) {
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

/// Reads the error at the start of an error or done message, and the kernel's message behind it:
/// after the header of the request when that is all the kernel returns (`NLM_F_CAPPED`), else after
/// the whole request.
pub(crate) fn refusal(message: &Received<'_>) -> Result<Refusal, Error> {
    let word = |at: usize| message.payload.get(at..at + 4)?.try_into().ok();
    let code = word(0).map(i32::from_ne_bytes).ok_or(Error::Malformed("an error message is too short"))?;
    let echoed = word(4).map_or(0, u32::from_ne_bytes) as usize;
    let attributes_at = match message.kind {
        NLMSG_DONE => 4,
        _ if message.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
        _ => 4usize.saturating_add(echoed.max(HEADER)).next_multiple_of(4),
    };
    let text = NlasIterator::new(message.payload.get(attributes_at..).unwrap_or_default())
        .flatten()
        .find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)
        .map(|nla| crate::message::text(nla.value()));
    Ok(Refusal { errno: code.saturating_neg(), message: text })
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
    use ipnet::IpNet;
    use proptest::prelude::*;
    use std::net::IpAddr;

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

    fn pack_all(count: u32) -> Vec<Packed> {
        let bodies: Vec<_> =
            (0..count).map(|n| address(3, IpNet::from(IpAddr::from(n.to_be_bytes())))).collect();
        let (mut bodies, mut seq) = (bodies.iter(), 100);
        std::iter::from_fn(|| {
            let packed = pack(20, NEW, &mut bodies, seq)?;
            seq += u32::try_from(packed.count).unwrap();
            Some(packed)
        })
        .collect()
    }

    #[test]
    fn a_send_is_closed_at_its_limit() {
        // An IPv4 address takes 40 bytes, so 1639 of them are the first to reach 64 KiB.
        assert!(pack_all(0).is_empty());
        for (count, expected) in
            [(1, vec![1]), (1639, vec![1639]), (1640, vec![1639, 1]), (3278, vec![1639; 2])]
        {
            let sends = pack_all(count);
            assert_eq!(sends.iter().map(|s| s.count).collect::<Vec<_>>(), expected);
        }
        assert_eq!(pack_all(1640)[0].bytes.len(), 1639 * 40);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn what_a_kernel_really_answers() {
        // Linux 6.1, with NETLINK_CAP_ACK and NETLINK_EXT_ACK: DEL_SERVICE of generic netlink family
        // IPVS without such a service, a wrong attribute to the same, and an acknowledgement.
        let refused = "240000000200000107000000f6020000fdffffff380000001c0005000700000000000000";
        let worded = "800000000200000307000000f6020000deffffff1c0000001c000500070000000000000027000100\
                      417474726962757465206661696c656420706f6c6963792076616c69646174696f6e0000\
                      08000200140000002c00048004000b000c000400000000000000000004000b000c000500\
                      ffffffff000000000800010004000000";
        let fine = "240000000200000107000000f6020000000000001c0000001c0005000700000000000000";
        let words = Some("Attribute failed policy validation".to_owned());
        for (hex, errno, words) in [(refused, 3, None), (worded, 34, words), (fine, 0, None)] {
            let pairs = hex.as_bytes().chunks(2);
            let bytes: Vec<u8> =
                pairs.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect();
            let all = messages(&bytes).unwrap();
            assert_eq!(refusal(&all[0]).unwrap(), Refusal { errno, message: words });
        }
    }

    #[test]
    fn an_error_without_its_code_is_malformed() {
        let message = Received { kind: NLMSG_DONE, flags: 0, seq: 1, port: 0, payload: &[1] };
        assert!(matches!(refusal(&message), Err(Error::Malformed(_))));
    }

    proptest! {
        #[test]
        fn sends_are_full_and_ask_for_one_answer(count in 0u32..6000) {
            let sends = pack_all(count);
            let mut expected_seq = 100;
            for (i, send) in sends.iter().enumerate() {
                let all = messages(&send.bytes).unwrap();
                prop_assert_eq!(all.len(), send.count);
                let (last, others) = all.split_last().unwrap();
                prop_assert_eq!(last.flags, NLM_F_REQUEST | NLM_F_ACK | NEW);
                prop_assert!(others.iter().all(|m| m.flags == NLM_F_REQUEST | NEW));
                for message in &all {
                    prop_assert_eq!(message.seq, expected_seq);
                    expected_seq += 1;
                }
                prop_assert!(i + 1 == sends.len() || send.bytes.len() >= SEND_BYTES);
                prop_assert!(send.bytes.len() - HEADER - last.payload.len() < SEND_BYTES);
            }
            prop_assert_eq!(expected_seq, 100 + count);
        }

        #[test]
        fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes).unwrap_or_default() {
                let _ = refusal(&message);
            }
        }
    }
}
