// SPDX-License-Identifier: Apache-2.0
//! Messages (`struct nlmsghdr`) as bytes, both ways. All header fields are in host order.

use netlink_packet_core::{Emitable, NLM_F_REQUEST};

use crate::Error;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Where its flags are.
pub(crate) const FLAGS_AT: std::ops::Range<usize> = 6..8;

/// A message to send. The socket adds the header, `NLM_F_REQUEST`, and where needed `NLM_F_ACK` or `NLM_F_DUMP`.
pub trait Message {
    /// Type of the message (`nlmsg_type`).
    fn kind(&self) -> u16;

    /// Additional `NLM_F_*` flags.
    fn flags(&self) -> u16 {
        0
    }

    /// Adds everything that follows the header to `out`, and changes nothing before it.
    fn write(&self, out: &mut Vec<u8>);
}

impl<M: Message + ?Sized> Message for &M {
    fn kind(&self) -> u16 {
        (**self).kind()
    }

    fn flags(&self) -> u16 {
        (**self).flags()
    }

    fn write(&self, out: &mut Vec<u8>) {
        (**self).write(out);
    }
}

/// A message whose body a rust-netlink codec encodes, such as `RouteMessage` of netlink-packet-route.
#[derive(Clone, Debug)]
pub struct Packet<B> {
    /// Type of the message.
    pub kind: u16,
    /// Additional `NLM_F_*` flags.
    pub flags: u16,
    /// What follows the header.
    pub body: B,
}

impl<B> Packet<B> {
    /// A message without additional flags.
    pub fn new(kind: u16, body: B) -> Self {
        Self { kind, flags: 0, body }
    }
}

impl<B: Emitable> Message for Packet<B> {
    fn kind(&self) -> u16 {
        self.kind
    }

    fn flags(&self) -> u16 {
        self.flags
    }

    fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + self.body.buffer_len(), 0);
        self.body.emit(&mut out[start..]);
    }
}

/// A message as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// Type of the message.
    pub kind: u16,
    /// `NLM_F_*` flags.
    pub flags: u16,
    /// Sequence number of the request that it answers.
    pub seq: u32,
    /// Port of the socket whose request caused the message; 0 where the kernel does not say.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// Adds a whole message to `out`, padded so that another may follow.
pub(crate) fn encode(message: &impl Message, flags: u16, seq: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&message.kind().to_ne_bytes());
    out.extend_from_slice(&(NLM_F_REQUEST | message.flags() | flags).to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    message.write(out);
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Splits a datagram into its messages. Ends after the first error.
///
/// # Errors
/// [`Error::Malformed`] for a message that is longer than the rest of the datagram.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<Received<'_>, Error>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message = parse_header(bytes);
        bytes = match &message {
            Some((_, len)) => bytes.get(len.next_multiple_of(4)..).unwrap_or_default(),
            None => &[],
        };
        Some(message.map(|(m, _)| m).ok_or(Error::Malformed("a message is longer than its datagram")))
    })
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
    use proptest::prelude::*;

    use super::*;
    use crate::Refusal;
    use crate::testing::Note;

    #[test]
    fn what_is_encoded_is_read_back() {
        let mut bytes = Vec::new();
        encode(&Note { kind: 20, flags: 0x600, body: vec![1; 5] }, 0, 7, &mut bytes);
        encode(&Note { kind: 21, flags: 0, body: vec![2; 4] }, 4, 8, &mut bytes);
        assert_eq!(bytes.len(), 24 + 20);
        let read: Vec<_> = messages(&bytes).map(Result::unwrap).collect();
        let expected = [
            Received { kind: 20, flags: 0x601, seq: 7, port: 0, payload: &[1; 5] },
            Received { kind: 21, flags: 5, seq: 8, port: 0, payload: &[2; 4] },
        ];
        assert_eq!(read, expected);
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in messages(&bytes).flatten() {
                let _ = Refusal::of(&message);
            }
        }
    }
}
