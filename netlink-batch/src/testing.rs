// SPDX-License-Identifier: Apache-2.0
//! A peer without a kernel: it says what a test wrote down.

use std::collections::VecDeque;
use std::io;

use nix::errno::Errno;

use crate::channel::Channel;
use crate::message::Message;

/// A message with these bytes.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub kind: u16,
    pub flags: u16,
    pub body: Vec<u8>,
}

impl Message for Note {
    fn kind(&self) -> u16 {
        self.kind
    }

    fn flags(&self) -> u16 {
        self.flags
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.body);
    }
}

/// Keeps what is sent and says what it was given; then nothing, so that receiving times out.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub sent: Vec<Vec<u8>>,
    says: VecDeque<Result<Vec<u8>, Errno>>,
}

impl Peer {
    pub fn say(&mut self, datagram: Vec<u8>) -> &mut Self {
        self.says.push_back(Ok(datagram));
        self
    }

    pub fn fail(&mut self, errno: Errno) -> &mut Self {
        self.says.push_back(Err(errno));
        self
    }
}

impl Channel for Peer {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sent.push(bytes.to_vec());
        Ok(())
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let mut datagram = self.says.pop_front().unwrap_or(Err(Errno::EAGAIN))?;
        datagram.truncate(buffer.capacity());
        buffer.extend_from_slice(&datagram);
        Ok(datagram.len())
    }
}

/// A datagram of messages: kind, flags, sequence number, port, payload.
pub(crate) fn datagram(messages: &[(u16, u16, u32, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, flags, seq, port, payload) in messages {
        let len = u32::try_from(16 + payload.len()).unwrap();
        bytes.extend_from_slice(&len.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&seq.to_ne_bytes());
        bytes.extend_from_slice(&port.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}
