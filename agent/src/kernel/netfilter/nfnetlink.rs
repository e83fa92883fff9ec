// SPDX-License-Identifier: Apache-2.0
//! The header and the transactions of nfnetlink (`<linux/netfilter/nfnetlink.h>`).

use netlink_batch::{Answer, Attributes, Error, Message, Refusal, Socket, protocols};
use netlink_packet_core::NLM_F_ACK;

/// Length of `struct nfgenmsg`.
pub(super) const NFGEN: usize = 4;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Opens a socket in the current network namespace.
///
/// # Errors
/// When the kernel has no netfilter netlink or the process may not open one.
pub fn open() -> Result<Socket, Error> {
    Socket::open(protocols::NETLINK_NETFILTER)
}

#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Subsystem in the high byte, command in the low one.
    pub kind: u16,
    /// Additional `NLM_F_*`.
    pub flags: u16,
    /// Family of the `nfgenmsg`.
    pub family: u8,
    /// `res_id` of the `nfgenmsg`: the subsystem of a transaction.
    pub resource: u16,
    pub attrs: Attributes,
}

impl Message for Request {
    fn kind(&self) -> u16 {
        self.kind
    }

    fn flags(&self) -> u16 {
        self.flags
    }

    fn write(&self, out: &mut Vec<u8>) {
        let [high, low] = self.resource.to_be_bytes();
        out.extend_from_slice(&[self.family, 0, high, low]);
        out.extend_from_slice(self.attrs.as_bytes());
    }
}

/// The attributes of an nfnetlink message.
pub fn attributes(payload: &[u8]) -> &[u8] {
    payload.get(NFGEN..).unwrap_or_default()
}

/// Runs one request as a transaction, which nf_tables requires for changes.
///
/// # Errors
/// When the kernel refuses: nothing is changed then.
pub fn transaction(socket: &mut Socket, subsystem: u16, request: Request) -> Result<(), Error> {
    let mark = |kind| Request { kind, resource: subsystem, ..Request::default() };
    let request = Request { flags: request.flags | NLM_F_ACK, ..request };
    let end = Request { resource: 0, ..mark(BATCH_END) };
    socket.exchange(&[mark(BATCH_BEGIN), request, end], |_, answer| match answer {
        Answer::Status(Refusal { code: 0, .. }) => Some(Ok(())),
        Answer::Status(refusal) => Some(Err(Error::from(refusal))),
        Answer::Payload(_) => None,
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_family_and_resource() {
        let mut attrs = Attributes::default();
        attrs.put(1, &[7]);
        let request = Request { family: 10, resource: 0x102, attrs, ..Request::default() };
        let mut bytes = Vec::new();
        request.write(&mut bytes);
        assert_eq!(bytes[..4], [10, 0, 1, 2]);
        assert_eq!(attributes(&bytes).len(), 8);
        assert!(attributes(&[1, 2]).is_empty());
    }
}
