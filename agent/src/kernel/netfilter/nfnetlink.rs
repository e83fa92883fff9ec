// SPDX-License-Identifier: Apache-2.0
//! The header of nfnetlink (`<linux/netfilter/nfnetlink.h>`).

use netlink_batch::{Attributes, Error, Message, Socket, protocols};

/// Length of `struct nfgenmsg`.
pub(in crate::kernel) const NFGEN: usize = 4;

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
        // Version and `res_id` are 0.
        out.extend_from_slice(&[self.family, 0, 0, 0]);
        out.extend_from_slice(self.attrs.as_bytes());
    }
}

/// The attributes of an nfnetlink message.
pub fn attributes(payload: &[u8]) -> &[u8] {
    payload.get(NFGEN..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_family() {
        let mut attrs = Attributes::default();
        attrs.put(1, &[7]);
        let request = Request { family: 10, attrs, ..Request::default() };
        let mut bytes = Vec::new();
        request.write(&mut bytes);
        assert_eq!(bytes[..4], [10, 0, 0, 0]);
        assert_eq!(attributes(&bytes).len(), 8);
        assert!(attributes(&[1, 2]).is_empty());
    }
}
