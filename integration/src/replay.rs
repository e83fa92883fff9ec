// SPDX-License-Identifier: Apache-2.0
//! IPVS commands, set entries and addresses as raw bytes: the limit that the agent is measured against. An
//! encoder of its own, so that it owes nothing to the code that it is compared with.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use kube_ipvs::core::model::sets::{Entry, SetId};
use kube_ipvs::core::model::{Family, RsKey, VsKey, VsSpec};
use kube_ipvs::core::plan::op::Op;
use nftables_netlink::Transaction;
use nftables_netlink::netlink_batch::Message;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of one send.
const SEND: usize = 64 * 1024;
/// Buffers of a socket; a transaction of nf_tables is one send of any length.
const BUFFER: usize = 32 * 1024 * 1024;

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

/// Flags of an attribute: it holds attributes, it is in network order.
const NESTED: u16 = 0x8000;
const NETWORK: u16 = 0x4000;

/// Encodes the commands about servers among `ops`, packed into sends.
pub fn encode_commands(family: u16, ops: &[&Op]) -> Vec<Send> {
    let mut sends: Vec<Send> = Vec::new();
    let mut last_at = 0;
    for (seq, op) in (1..).zip(ops) {
        let mut body = Vec::new();
        let command: u8 = match op {
            Op::AddVirtualServer(vs, spec) => {
                attr(&mut body, 1 | NESTED, &service(vs, Some(spec)));
                1
            }
            Op::AddRealServer(vs, rs, _) => {
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

/// An address within a set's entry.
fn set_address(out: &mut Vec<u8>, kind: u16, addr: IpAddr) {
    let mut inner = Vec::new();
    attr(&mut inner, if addr.is_ipv4() { 1 } else { 2 } | NETWORK, &octets(addr));
    attr(out, kind | NESTED, &inner);
}

/// An entry's attributes; `None`: of a kind that the bench's Services have none of.
fn set_entry(entry: &Entry) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (addr, port) = match *entry {
        Entry::Ip(addr) => (addr, None),
        Entry::IpPort(addr, protocol, port) | Entry::IpPortIp(addr, protocol, port, _) => {
            (addr, Some((protocol, port)))
        }
        Entry::IpPortNet(..) | Entry::Port(_) => return None,
    };
    set_address(&mut out, 1, addr);
    if let Entry::IpPortIp(_, _, _, second) = *entry {
        set_address(&mut out, 20, second);
    }
    if let Some((protocol, port)) = port {
        attr(&mut out, 4 | NETWORK, &port.to_be_bytes());
        attr(&mut out, 7, &[protocol.number()]);
    }
    Some(out)
}

/// Encodes the additions of entries among `ops`, as many in a message as its length can say.
///
/// # Errors
/// When there is an entry of a kind that has no raw form here.
pub fn encode_entries(ops: &[&Op]) -> Result<Vec<Send>> {
    const MESSAGE: usize = 60_000;
    let mut messages: Vec<(SetId, Vec<u8>)> = Vec::new();
    for op in ops {
        let Op::AddEntry(set, entry) = op else { continue };
        let entry = set_entry(entry).with_context(|| format!("no raw form of {op}"))?;
        match messages.last_mut() {
            Some((last, list)) if last == set && list.len() < MESSAGE => attr(list, 7 | NESTED, &entry),
            _ => {
                let mut list = Vec::new();
                attr(&mut list, 7 | NESTED, &entry);
                messages.push((*set, list));
            }
        }
    }
    const ADD: u16 = (6 << 8) | 9;
    let mut sends = Vec::new();
    let mut last_at = 0;
    for (seq, (set, list)) in (1..).zip(messages) {
        let mut body = vec![if set.family == Family::V4 { 2 } else { 10 }, 0, 0, 0];
        attr(&mut body, 1, &[6]);
        attr(&mut body, 2, format!("{}\0", set.name()).as_bytes());
        attr(&mut body, 9, &0u32.to_ne_bytes());
        attr(&mut body, 8 | NESTED, &list);
        last_at = push(&mut sends, last_at, seq, (ADD, 0), &body);
    }
    Ok(sends)
}

/// Encodes a transaction of nf_tables as one send.
pub fn encode_transaction(transaction: &Transaction) -> Send {
    let messages = transaction.messages();
    // The message that ends a transaction is not acknowledged by every kernel.
    let last_command = messages.iter().rposition(|message| message.command.is_some()).unwrap_or_default();
    let mut send = Send { bytes: Vec::new(), last: 0 };
    for (index, (seq, message)) in (1..).zip(&messages).enumerate() {
        let mut body = Vec::new();
        message.write(&mut body);
        let ack = if index == last_command { 4 } else { 0 };
        send.last = if ack == 0 { send.last } else { seq };
        put_message(&mut send.bytes, seq, (message.kind(), message.flags() | 1 | ack), &body);
    }
    send
}

/// Removes every virtual server of this thread's network namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn flush_ipvs() -> Result<()> {
    let mut raw = RawSocket::open(SockProtocol::NetlinkGeneric)?;
    let family = raw.family()?;
    let mut sends = Vec::new();
    push(&mut sends, 0, 1, (family, 0), &[17, 1, 0, 0]);
    raw.send(&sends)
}

/// Removes a device of this thread's network namespace, with its addresses.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_device(index: u32) -> Result<()> {
    const REMOVE_LINK: u16 = 17;
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut sends = Vec::new();
    push(&mut sends, 0, 1, (REMOVE_LINK, 0), &body);
    RawSocket::open(SockProtocol::NetlinkRoute)?.send(&sends)
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
    // REQUEST | ACK, until another one follows
    put_message(&mut current.bytes, seq, (kind, flags | 5), body);
    at
}

/// Appends a message with its header.
fn put_message(out: &mut Vec<u8>, seq: u32, (kind, flags): (u16, u16), body: &[u8]) {
    out.extend_from_slice(&((16 + body.len()) as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(body);
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
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use kube_ipvs::core::model::Protocol;
    use kube_ipvs::core::model::sets::SetKind;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The lengths of the messages of a send and whether each asks for an acknowledgement.
    fn messages(send: &Send) -> Vec<(usize, bool)> {
        let (mut at, mut found) = (0, Vec::new());
        while at < send.bytes.len() {
            let length = word(&send.bytes, at) as usize;
            found.push((length, send.bytes[at + 6] & 4 != 0));
            at += length;
        }
        found
    }

    #[test]
    fn only_the_last_message_of_a_send_is_acknowledged() {
        let addresses: Vec<IpAddr> = (0..5000u32).map(|n| IpAddr::from(n.to_be_bytes())).collect();
        let sends = encode_addresses(7, &addresses);
        assert_eq!(sends.len(), 4, "40 bytes each, 64 KiB a send");
        assert_eq!(sends.iter().map(|send| messages(send).len()).sum::<usize>(), 5000);
        for send in &sends {
            let messages = messages(send);
            let (last, others) = messages.split_last().unwrap();
            assert!(*last == (40, true) && others.iter().all(|message| *message == (40, false)));
        }
        assert_eq!(sends[3].last, 5000);
    }

    #[test]
    fn entries_of_a_set_share_a_message() {
        let set = |kind| SetId { kind, family: Family::V4 };
        let (cluster, ips) = (set(SetKind::ClusterIp), set(SetKind::IpvsIps));
        let addr = IpAddr::from([10, 0, 0, 1]);
        let one = Op::AddEntry(cluster, Entry::IpPort(addr, Protocol::Tcp, 80));
        let two = Op::AddEntry(cluster, Entry::IpPort(addr, Protocol::Tcp, 81));
        let other = Op::AddEntry(ips, Entry::Ip(addr));
        let sends = encode_entries(&[&one, &two, &other]).unwrap();
        assert_eq!(sends.len(), 1);
        assert_eq!(messages(&sends[0]).iter().map(|m| m.1).collect::<Vec<_>>(), [false, true]);
        let port = Op::AddEntry(set(SetKind::NodePortTcp), Entry::Port(30_000));
        assert!(encode_entries(&[&port]).is_err(), "an entry left out would make the limit lower");
    }
}
