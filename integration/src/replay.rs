// SPDX-License-Identifier: Apache-2.0
//! IPVS commands and addresses as raw bytes: the limit that the agent is measured against. An encoder of its own,
//! so that it owes nothing to the code that it is compared with.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use kube_ipvs::core::model::{RsKey, VsKey, VsSpec};
use kube_ipvs::core::op::Op;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of one send.
const SEND: usize = 64 * 1024;

/// One send, with the sequence number of its last message, the only one to be acknowledged.
pub struct Send {
    bytes: Vec<u8>,
    last: u32,
}

fn attr(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn service(vs: &VsKey, spec: Option<&VsSpec>) -> Vec<u8> {
    let mut out = Vec::new();
    let family: u16 = if vs.addr.is_ipv4() { 2 } else { 10 };
    attr(&mut out, 1, &family.to_ne_bytes());
    attr(&mut out, 2, &u16::from(vs.protocol.number()).to_ne_bytes());
    attr(&mut out, 3, &octets(vs.addr));
    attr(&mut out, 4, &vs.port.to_be_bytes());
    if let Some(spec) = spec {
        attr(&mut out, 6, format!("{}\0", spec.scheduler).as_bytes());
        attr(&mut out, 7, &[spec.flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat());
        attr(&mut out, 8, &spec.timeout.to_ne_bytes());
        let mask = if vs.addr.is_ipv4() { u32::MAX } else { 128 };
        attr(&mut out, 9, &mask.to_ne_bytes());
    }
    out
}

fn destination(rs: &RsKey) -> Vec<u8> {
    let mut out = Vec::new();
    attr(&mut out, 1, &octets(rs.addr));
    attr(&mut out, 2, &rs.port.to_be_bytes());
    for (kind, value) in [(3, 0u32), (4, 1), (5, 0), (6, 0)] {
        attr(&mut out, kind, &value.to_ne_bytes());
    }
    out
}

/// Encodes the additions among `ops`, packed into sends.
pub fn encode_commands(family: u16, ops: &[&Op]) -> Vec<Send> {
    const NESTED: u16 = 0x8000;
    let mut sends: Vec<Send> = Vec::new();
    let mut last_at = 0;
    for (seq, op) in (1..).zip(ops) {
        let mut body = Vec::new();
        let command: u8 = match op {
            Op::AddVirtualServer(vs, spec) => {
                attr(&mut body, 1 | NESTED, &service(vs, Some(spec)));
                1
            }
            Op::AddRealServer(vs, rs) => {
                attr(&mut body, 1 | NESTED, &service(vs, None));
                attr(&mut body, 2 | NESTED, &destination(rs));
                5
            }
            Op::RemoveRealServer(vs, rs) => {
                attr(&mut body, 1 | NESTED, &service(vs, None));
                attr(&mut body, 2 | NESTED, &destination(rs));
                7
            }
            _ => continue,
        };
        let message = [&[command, 1, 0, 0], &body[..]].concat();
        last_at = push(&mut sends, last_at, seq, (family, 0), &message);
    }
    sends
}

/// Encodes addresses for the device of this index, packed into sends.
pub fn encode_addresses(index: u32, addresses: &[IpAddr]) -> Vec<Send> {
    const NEW_ADDRESS: u16 = 20;
    const CREATE: u16 = 0x600;
    let mut sends: Vec<Send> = Vec::new();
    let mut last_at = 0;
    for (seq, addr) in (1..).zip(addresses) {
        let (family, prefix) = if addr.is_ipv4() { (2, 32) } else { (10, 128) };
        let mut body = vec![family, prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        attr(&mut body, 2, &octets(*addr));
        attr(&mut body, 1, &octets(*addr));
        last_at = push(&mut sends, last_at, seq, (NEW_ADDRESS, CREATE), &body);
    }
    sends
}

/// Adds a message to the sends, the only one of its send so far to ask for an acknowledgement; returns
/// where it begins.
fn push(sends: &mut Vec<Send>, last_at: usize, seq: u32, (kind, flags): (u16, u16), body: &[u8]) -> usize {
    if sends.last().is_none_or(|s| s.bytes.len() >= SEND) {
        sends.push(Send { bytes: Vec::new(), last: 0 });
    }
    let Some(current) = sends.last_mut() else { return 0 };
    if !current.bytes.is_empty() {
        current.bytes[last_at + 6..last_at + 8].copy_from_slice(&(flags | 1).to_ne_bytes());
    }
    let at = current.bytes.len();
    current.last = seq;
    current.bytes.extend_from_slice(&((16 + body.len()) as u32).to_ne_bytes());
    current.bytes.extend_from_slice(&kind.to_ne_bytes());
    current.bytes.extend_from_slice(&(flags | 5).to_ne_bytes()); // REQUEST | ACK, until another one follows
    current.bytes.extend_from_slice(&seq.to_ne_bytes());
    current.bytes.extend_from_slice(&0u32.to_ne_bytes());
    current.bytes.extend_from_slice(body);
    at
}

/// A bare netlink socket.
pub struct RawSocket(OwnedFd);

impl RawSocket {
    /// Opens a socket of a protocol.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(protocol: SockProtocol) -> Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(8 * 1024 * 1024))?;
        Ok(Self(socket))
    }

    /// Asks for the number of the IPVS family; of a generic-netlink socket.
    ///
    /// # Errors
    /// When the kernel has no IPVS.
    pub fn family(&self) -> Result<u16> {
        let mut body = Vec::new();
        attr(&mut body, 2, b"IPVS\0");
        let mut bytes = ((20 + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[0x10, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 0]);
        bytes.extend_from_slice(&body);
        send(self.0.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answer = [0; 8192];
        let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        find_family(answer.get(20..len).unwrap_or_default()).context("no IPVS family")
    }

    /// Sends everything, waiting for one acknowledgement per send.
    ///
    /// # Errors
    /// When a message is refused.
    pub fn send(&mut self, sends: &[Send]) -> Result<()> {
        let mut answer = [0; 8192];
        for one in sends {
            send(self.0.as_raw_fd(), &one.bytes, MsgFlags::empty())?;
            let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            let word =
                |at: usize| u32::from_ne_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]]);
            if len < 20 || word(8) != one.last || word(16) != 0 {
                bail!("a message was refused: sequence {}, error {}", word(8), word(16) as i32);
            }
        }
        Ok(())
    }
}

fn find_family(mut attrs: &[u8]) -> Option<u16> {
    while attrs.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([attrs[0], attrs[1]]));
        if attrs[2..4] == 1u16.to_ne_bytes() {
            return Some(u16::from_ne_bytes([*attrs.get(4)?, *attrs.get(5)?]));
        }
        attrs = attrs.get(len.max(4).next_multiple_of(4)..)?;
    }
    None
}
