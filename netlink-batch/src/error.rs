// SPDX-License-Identifier: Apache-2.0
//! Errors of the conversation, and refusals of single messages.

use std::fmt;
use std::io;

use netlink_packet_core::{NLM_F_CAPPED, NLMSG_DONE};
use nix::errno::Errno;

use crate::attributes::{AttributeIter, text};
use crate::message::{HEADER, Received};

/// `NLMSGERR_ATTR_MSG`
const ATTR_MSG: u16 = 1;

/// What can go wrong with a conversation. A cause is a source and not part of the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket failed.
    #[error("netlink socket")]
    Io(#[source] io::Error),
    /// No answer came in time: it is unknown which messages took effect.
    #[error("the kernel did not answer in time")]
    Timeout,
    /// The receive buffer overflowed (`ENOBUFS`, `NLMSG_OVERRUN`): it is unknown which messages took effect, or
    /// which notifications were lost.
    #[error("the kernel's answers were lost")]
    Overrun,
    /// A datagram was longer than the buffer, so its end is missing.
    #[error("the kernel's answer was cut off")]
    Truncated,
    /// An answer that cannot be read; the text says what is wrong with it.
    #[error("the kernel's answer cannot be read: {0}")]
    Malformed(&'static str),
    /// A datagram is longer than the send buffer can become (`EMSGSIZE`, or `ENOBUFS` for lack of memory). Nothing
    /// was sent. The number is its length in bytes.
    #[error("a send of {0} bytes is too large: raise net.core.wmem_max, or grant CAP_NET_ADMIN")]
    TooLarge(usize),
    /// A list changed while it was read, in every try (`NLM_F_DUMP_INTR`).
    #[error("the list changed while it was read")]
    Interrupted,
    /// The kernel refused a dump or a request.
    #[error("the kernel refused the request")]
    Refused(#[source] Refusal),
    /// The process lacks a privilege (`EPERM`).
    #[error("not permitted: CAP_NET_ADMIN is needed")]
    NotPermitted,
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match (error.kind(), error.raw_os_error().map(Errno::from_raw)) {
            (io::ErrorKind::WouldBlock, _) => Error::Timeout,
            (_, Some(Errno::ENOBUFS)) => Error::Overrun,
            _ => Error::Io(error),
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        if refusal.errno() == Errno::EPERM { Error::NotPermitted } else { Error::Refused(refusal) }
    }
}

/// Why the kernel refused a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// A positive errno, or a private code of the subsystem (ipset: 4096 and above); 0 is an acknowledgement.
    pub code: i32,
    /// The kernel's own text (extended acknowledgement, `NLMSGERR_ATTR_MSG`), if it sent one.
    pub text: Option<String>,
}

impl Refusal {
    /// A refusal with this code and text.
    pub fn new(code: i32, text: Option<String>) -> Self {
        Self { code, text }
    }

    /// The code as an errno; [`Errno::UnknownErrno`] for private codes.
    pub fn errno(&self) -> Errno {
        Errno::from_raw(self.code)
    }

    /// Reads an error or done message (`NLMSG_ERROR`, `NLMSG_DONE`).
    ///
    /// The kernel's text is behind the header of the request when that is all the kernel returns
    /// (`NLM_F_CAPPED`), else behind the whole request.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the message has no code.
    pub fn of(message: &Received<'_>) -> Result<Self, Error> {
        let payload = message.payload;
        let word = |at: usize| payload.get(at..at + 4)?.try_into().ok();
        let code =
            word(0).map(i32::from_ne_bytes).ok_or(Error::Malformed("an error message is too short"))?;
        let echoed = word(4).map_or(0, u32::from_ne_bytes) as usize;
        let attributes_at = match message.kind {
            NLMSG_DONE => 4,
            _ if message.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
            _ => 4usize.saturating_add(echoed.max(HEADER)).next_multiple_of(4),
        };
        let text = AttributeIter::new(payload.get(attributes_at..).unwrap_or_default())
            .flatten()
            .find(|(kind, _)| *kind == ATTR_MSG)
            .map(|(_, value)| text(value));
        Ok(Self { code: code.saturating_neg(), text })
    }
}

/// What the code means, without its number where it is an errno, and the kernel's text.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno() {
            Errno::UnknownErrno => write!(f, "error {}", self.code)?,
            errno => f.write_str(errno.desc())?,
        }
        self.text.as_ref().map_or(Ok(()), |text| write!(f, " ({text})"))
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use netlink_packet_core::NLMSG_ERROR;

    use super::*;
    use crate::attributes::Attributes;
    use crate::message::messages;
    use crate::testing::hex;

    fn received(kind: u16, flags: u16, payload: &[u8]) -> Received<'_> {
        Received { kind, flags, seq: 1, port: 0, payload }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn answers_as_a_kernel_sends_them() {
        // Linux 6.1, with NETLINK_CAP_ACK and NETLINK_EXT_ACK: DEL_SERVICE of generic netlink family
        // IPVS without such a service, a wrong attribute to the same, and an acknowledgement.
        let refused = "240000000200000107000000f6020000fdffffff380000001c0005000700000000000000";
        let worded = "800000000200000307000000f6020000deffffff1c0000001c000500070000000000000027000100\
                      417474726962757465206661696c656420706f6c6963792076616c69646174696f6e0000\
                      08000200140000002c00048004000b000c000400000000000000000004000b000c000500\
                      ffffffff000000000800010004000000";
        let fine = "240000000200000107000000f6020000000000001c0000001c0005000700000000000000";
        let words = Some("Attribute failed policy validation".to_owned());
        for (text, code, words) in [(refused, 3, None), (worded, 34, words), (fine, 0, None)] {
            let bytes = hex(text);
            let message = messages(&bytes).next().unwrap().unwrap();
            assert_eq!(Refusal::of(&message).unwrap(), Refusal::new(code, words));
        }
    }

    #[test]
    fn the_kernels_text_follows_the_header_or_the_whole_request() {
        let mut attributes = Attributes::default();
        attributes.put_str(ATTR_MSG, "Unknown scheduler");
        let after = |echo: &[u8]| [&(-2i32).to_ne_bytes(), echo, attributes.as_bytes()].concat();
        let mut whole = vec![0; 24];
        whole[..4].copy_from_slice(&24u32.to_ne_bytes());
        let expected = Refusal::new(2, Some("Unknown scheduler".to_owned()));
        for (flags, payload) in [(NLM_F_CAPPED, after(&[0; HEADER])), (0, after(&whole))] {
            assert_eq!(Refusal::of(&received(NLMSG_ERROR, flags, &payload)).unwrap(), expected);
        }
        assert_eq!(Refusal::of(&received(NLMSG_DONE, 0, &after(&[]))).unwrap(), expected);
        assert_eq!(expected.to_string(), "No such file or directory (Unknown scheduler)");
    }

    #[test]
    fn an_error_without_its_code_is_malformed() {
        assert!(matches!(Refusal::of(&received(NLMSG_DONE, 0, &[1])), Err(Error::Malformed(_))));
        let smallest = Refusal::of(&received(NLMSG_ERROR, 0, &i32::MIN.to_ne_bytes())).unwrap();
        assert_eq!((smallest.code, smallest.to_string().as_str()), (i32::MAX, "error 2147483647"));
    }

    #[test]
    fn a_cause_is_a_source_and_no_part_of_the_text() {
        let error = Error::from(io::Error::from_raw_os_error(Errno::EBADF as i32));
        assert_eq!(error.to_string(), "netlink socket");
        assert!(error.source().is_some_and(|cause| cause.is::<io::Error>()));
        let error = Error::from(Refusal::new(Errno::EINVAL as i32, None));
        assert!(matches!(&error, Error::Refused(_)));
        assert_eq!(error.source().unwrap().to_string(), "Invalid argument");
        assert!(matches!(Refusal::new(Errno::EPERM as i32, None).into(), Error::NotPermitted));
    }
}
