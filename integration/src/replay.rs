// SPDX-License-Identifier: Apache-2.0
//! IPVS commands as raw bytes: the limit that the agent is measured against. An encoder of its own,
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
            _ => continue,
        };
        if sends.last().is_none_or(|s| s.bytes.len() >= SEND) {
            sends.push(Send { bytes: Vec::new(), last: 0 });
        }
        let Some(current) = sends.last_mut() else { continue };
        last_at = if current.bytes.is_empty() { 0 } else { clear_ack(&mut current.bytes, last_at) };
        current.last = seq;
        current.bytes.extend_from_slice(&((20 + body.len()) as u32).to_ne_bytes());
        current.bytes.extend_from_slice(&family.to_ne_bytes());
        current.bytes.extend_from_slice(&5u16.to_ne_bytes()); // REQUEST | ACK, until another one follows
        current.bytes.extend_from_slice(&seq.to_ne_bytes());
        current.bytes.extend_from_slice(&0u32.to_ne_bytes());
        current.bytes.extend_from_slice(&[command, 1, 0, 0]);
        current.bytes.extend_from_slice(&body);
    }
    sends
}

/// Takes the ACK flag from the message at `at`, and returns where the next one begins.
fn clear_ack(bytes: &mut [u8], at: usize) -> usize {
    bytes[at + 6..at + 8].copy_from_slice(&1u16.to_ne_bytes());
    bytes.len()
}

/// A bare generic-netlink socket.
pub struct RawIpvs {
    socket: OwnedFd,
    family: u16,
}

impl RawIpvs {
    /// Opens a socket and asks for the number of the family.
    ///
    /// # Errors
    /// When the kernel has no IPVS.
    pub fn open() -> Result<Self> {
        let protocol = SockProtocol::NetlinkGeneric;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(8 * 1024 * 1024))?;
        let mut raw = Self { socket, family: 0 };
        let mut body = Vec::new();
        attr(&mut body, 2, b"IPVS\0");
        let mut bytes = ((20 + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[0x10, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 0]);
        bytes.extend_from_slice(&body);
        send(raw.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answer = [0; 8192];
        let len = recv(raw.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        raw.family = find_family(answer.get(20..len).unwrap_or_default()).context("no IPVS family")?;
        Ok(raw)
    }

    /// Number of the family.
    pub fn family(&self) -> u16 {
        self.family
    }

    /// Sends everything, waiting for one acknowledgement per send.
    ///
    /// # Errors
    /// When a command is refused.
    pub fn send(&mut self, sends: &[Send]) -> Result<()> {
        let mut answer = [0; 8192];
        for one in sends {
            send(self.socket.as_raw_fd(), &one.bytes, MsgFlags::empty())?;
            let len = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            let word =
                |at: usize| u32::from_ne_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]]);
            if len < 20 || word(8) != one.last || word(16) != 0 {
                bail!("a command was refused: sequence {}, error {}", word(8), word(16) as i32);
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
