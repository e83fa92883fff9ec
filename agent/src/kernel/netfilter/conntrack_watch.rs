// SPDX-License-Identifier: Apache-2.0
//! Notifications of connection tracking (`<linux/netfilter/nfnetlink_conntrack.h>`) about connections to some virtual
//! servers, for a trace. They tell which real server answers, and which source address it sees.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netlink_batch::{AttributeIter, Error, Listener, Received, protocols};

use super::conntrack::{CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, MSG_DELETE, SUBSYSTEM, Tuple, parse_tuple};
use super::nfnetlink::attributes;
use crate::core::model::{Protocol, VsKey};
use crate::lock::lock;

/// `NFNLGRP_CONNTRACK_NEW`, `_UPDATE` and `_DESTROY`.
const GROUPS: [u32; 3] = [1, 2, 3];
const MSG_NEW: u16 = 0;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
/// Attributes of `CTA_PROTOINFO`, and in each the attribute of the state.
const PROTOINFO_TCP: u16 = 1;
const PROTOINFO_SCTP: u16 = 3;
const PROTOINFO_STATE: u16 = 1;
/// `IPS_SEEN_REPLY`: packets went in both directions.
const SEEN_REPLY: u32 = 1 << 1;
/// `enum tcp_conntrack`.
const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];
/// `enum sctp_conntrack`.
const SCTP_STATES: [&str; 9] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
];
/// The state of a connection that is tracked no more.
pub const ENDED: &str = "ended";
/// Most events that are kept: the latest.
const KEPT: usize = 4096;
/// How long the thread waits before it looks whether it should end.
const WAIT: Duration = Duration::from_millis(100);

/// A change of a tracked connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConntrackEvent {
    pub protocol: Protocol,
    pub client: SocketAddr,
    /// Where the client sends to.
    pub destination: SocketAddr,
    /// Who answers: the real server, once it is chosen.
    pub answered_by: SocketAddr,
    /// Whom it answers: another address than the client's if the connection is masqueraded.
    pub answers_to: SocketAddr,
    /// Its state; of UDP whether it was answered.
    pub state: &'static str,
}

impl ConntrackEvent {
    /// Reads a notification; `None`: of another kind, or of a protocol without ports.
    ///
    /// # Errors
    /// [`Error::Malformed`]
    pub fn parse(received: &Received<'_>) -> Result<Option<Self>, Error> {
        let ended = received.kind == SUBSYSTEM | MSG_DELETE;
        if !ended && received.kind != SUBSYSTEM | MSG_NEW {
            return Ok(None);
        }
        let (mut orig, mut reply) = (Tuple::default(), Tuple::default());
        let (mut status, mut info) = (0, None);
        for attribute in AttributeIter::new(attributes(received.payload)) {
            match attribute? {
                (CTA_TUPLE_ORIG, value) => orig = parse_tuple(value)?,
                (CTA_TUPLE_REPLY, value) => reply = parse_tuple(value)?,
                (CTA_STATUS, value) => status = value.try_into().map_or(0, u32::from_be_bytes),
                (CTA_PROTOINFO, value) => info = protocol_state(value)?,
                _ => {}
            }
        }
        let protocol = orig.protocol.and_then(Protocol::from_number);
        let (Some(protocol), Some(client), Some(destination), Some(answered_by), Some(answers_to)) =
            (protocol, orig.src, orig.dst, reply.src, reply.dst)
        else {
            return Ok(None);
        };
        let state = match (ended, info) {
            (true, _) => ENDED,
            (false, Some(state)) => state,
            (false, None) if status & SEEN_REPLY != 0 => "answered",
            (false, None) => "not answered",
        };
        Ok(Some(Self {
            protocol,
            client: client.into(),
            destination: destination.into(),
            answered_by: answered_by.into(),
            answers_to: answers_to.into(),
            state,
        }))
    }
}

/// The name of the state in `CTA_PROTOINFO`, if it is there and known.
fn protocol_state(info: &[u8]) -> Result<Option<&'static str>, Error> {
    for attribute in AttributeIter::new(info) {
        let (names, inner) = match attribute? {
            (PROTOINFO_TCP, inner) => (&TCP_STATES[..], inner),
            (PROTOINFO_SCTP, inner) => (&SCTP_STATES[..], inner),
            _ => continue,
        };
        for attribute in AttributeIter::new(inner) {
            if let (PROTOINFO_STATE, [state]) = attribute? {
                return Ok(names.get(usize::from(*state)).copied());
            }
        }
    }
    Ok(None)
}

/// The connections of a trace.
#[derive(Debug)]
struct Wanted {
    targets: Vec<VsKey>,
    /// Only those of this client.
    from: Option<IpAddr>,
}

impl Wanted {
    fn has(&self, event: &ConntrackEvent) -> bool {
        let is_target = |target: &VsKey| {
            let destination = SocketAddr::new(target.addr, target.port);
            (event.protocol, event.destination) == (target.protocol, destination)
        };
        self.from.is_none_or(|from| from == event.client.ip()) && self.targets.iter().any(is_target)
    }
}

/// What came in the time of a trace.
#[derive(Debug, Default)]
pub struct Collected {
    /// The latest ones, the oldest first.
    pub events: VecDeque<ConntrackEvent>,
    /// Some were dropped, by the kernel or because there were too many.
    pub lost: bool,
    /// The kernel reported something, if only about other connections.
    pub heard: bool,
}

impl Collected {
    fn add(&mut self, event: Option<ConntrackEvent>, wanted: &Wanted) {
        self.heard = true;
        let Some(event) = event.filter(|event| wanted.has(event)) else { return };
        if self.events.len() >= KEPT {
            self.events.pop_front();
            self.lost = true;
        }
        self.events.push_back(event);
    }
}

/// Collects events in a thread of its own, so that a busy node does not delay the trace of rules.
#[derive(Debug)]
pub struct ConntrackWatch {
    collected: Arc<Mutex<Collected>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl ConntrackWatch {
    /// Begins to collect events of connections to these virtual servers, of all clients or of one, in the current network
    /// namespace. A kernel without events is no error: none come.
    ///
    /// # Errors
    /// There is no socket for them, or the process may not receive them.
    pub fn start(targets: Vec<VsKey>, from: Option<IpAddr>) -> Result<Self, Error> {
        let wanted = Wanted { targets, from };
        let mut listener = Listener::open(protocols::NETLINK_NETFILTER, &GROUPS)?;
        listener.set_timeout(WAIT)?;
        let (collected, stop) = (Arc::<Mutex<Collected>>::default(), Arc::new(AtomicBool::new(false)));
        let (into, end) = (collected.clone(), stop.clone());
        let thread = thread::Builder::new().name("conntrack".to_owned()).spawn(move || {
            // What came before the end was asked for is read; on a busy node more comes without an end.
            let mut last = None;
            loop {
                if end.load(Ordering::Relaxed)
                    && Instant::now() >= *last.get_or_insert_with(|| Instant::now() + WAIT)
                {
                    return;
                }
                match receive(&mut listener, &wanted, &into) {
                    Ok(()) => {}
                    Err(Error::Timeout) if last.is_some() => return,
                    Err(Error::Timeout) => {}
                    Err(Error::Overrun | Error::Truncated) => {
                        let mut collected = lock(&into);
                        (collected.lost, collected.heard) = (true, true);
                    }
                    Err(_) => return lock(&into).lost = true,
                }
            }
        })?;
        Ok(Self { collected, stop, thread })
    }

    /// What came.
    pub fn finish(self) -> Collected {
        self.stop.store(true, Ordering::Relaxed);
        let is_whole = self.thread.join().is_ok();
        let mut collected = std::mem::take(&mut *lock(&self.collected));
        collected.lost |= !is_whole;
        collected
    }
}

fn receive(listener: &mut Listener, wanted: &Wanted, into: &Mutex<Collected>) -> Result<(), Error> {
    for message in listener.receive()? {
        let event = ConntrackEvent::parse(&message?)?;
        lock(into).add(event, wanted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use netlink_batch::Attributes;

    use super::*;

    fn tuple(src: &str, dst: &str, protocol: u8) -> Attributes {
        let [src, dst]: [SocketAddr; 2] = [src, dst].map(|text| text.parse().unwrap());
        let mut attributes = Attributes::default();
        attributes.nest_with(1, |ip| {
            for (kind, addr) in [(1, src), (2, dst)] {
                match addr.ip() {
                    std::net::IpAddr::V4(addr) => ip.put(kind, &addr.octets()),
                    std::net::IpAddr::V6(addr) => ip.put(kind + 2, &addr.octets()),
                };
            }
        });
        attributes.nest_with(2, |ports| {
            ports.put(1, &[protocol]);
            ports.put(2, &src.port().to_be_bytes()).put(3, &dst.port().to_be_bytes());
        });
        attributes
    }

    fn read(kind: u16, protocol: u8, fill: impl FnOnce(&mut Attributes)) -> Option<ConntrackEvent> {
        let mut attributes = Attributes::default();
        attributes.nest(CTA_TUPLE_ORIG, &tuple("10.244.1.9:41000", "10.96.0.10:80", protocol));
        attributes.nest(CTA_TUPLE_REPLY, &tuple("10.244.1.5:8080", "10.0.0.1:41000", protocol));
        fill(&mut attributes);
        let payload = [&[2, 0, 0, 0], attributes.as_bytes()].concat();
        let received = Received { kind, flags: 0, seq: 0, port: 0, payload: &payload };
        ConntrackEvent::parse(&received).unwrap()
    }

    #[test]
    fn an_event_has_both_directions_and_the_state() {
        let tcp = read(0x100, 6, |event| {
            event.nest_with(CTA_PROTOINFO, |info| {
                info.nest_with(PROTOINFO_TCP, |tcp| _ = tcp.put(PROTOINFO_STATE, &[3]));
            });
        });
        let tcp = tcp.unwrap();
        assert_eq!((tcp.protocol, tcp.state), (Protocol::Tcp, "ESTABLISHED"));
        assert_eq!(tcp.answered_by, "10.244.1.5:8080".parse().unwrap());
        assert_eq!(tcp.answers_to, "10.0.0.1:41000".parse().unwrap());
        let udp = |status: u32| {
            read(0x100, 17, |event| _ = event.put(CTA_STATUS, &status.to_be_bytes())).unwrap().state
        };
        assert_eq!((udp(0), udp(SEEN_REPLY)), ("not answered", "answered"));
        assert_eq!(read(0x102, 6, |_| {}).unwrap().state, "ended");
    }

    fn event(client: &str) -> ConntrackEvent {
        let client = client.parse().unwrap();
        ConntrackEvent { client, ..read(0x100, 6, |_| {}).unwrap() }
    }

    fn wanted(protocol: Protocol, from: Option<&str>) -> Wanted {
        let target = VsKey { protocol, addr: "10.96.0.10".parse().unwrap(), port: 80 };
        Wanted { targets: vec![target], from: from.map(|from| from.parse().unwrap()) }
    }

    #[test]
    fn only_connections_of_the_trace_are_kept() {
        for (protocol, from, count) in [
            (Protocol::Tcp, None, 1),
            (Protocol::Tcp, Some("10.244.1.9"), 1),
            (Protocol::Tcp, Some("10.244.1.8"), 0),
            (Protocol::Udp, None, 0),
        ] {
            let mut collected = Collected::default();
            collected.add(Some(event("10.244.1.9:41000")), &wanted(protocol, from));
            assert_eq!((collected.events.len(), collected.lost), (count, false), "{protocol} {from:?}");
            assert!(collected.heard, "also of other connections");
        }
        assert!(!Collected::default().heard);
    }

    #[test]
    fn many_other_clients_do_not_displace_the_client_of_a_trace() {
        let wanted = wanted(Protocol::Tcp, Some("10.244.1.9"));
        let mut collected = Collected::default();
        for _ in 0..=KEPT {
            collected.add(Some(event("10.244.1.8:41000")), &wanted);
        }
        collected.add(Some(event("10.244.1.9:41000")), &wanted);
        assert_eq!((collected.events.len(), collected.lost), (1, false));
    }

    #[test]
    fn the_latest_events_are_kept() {
        let wanted = wanted(Protocol::Tcp, None);
        let mut collected = Collected::default();
        for port in 0..KEPT + 2 {
            assert_eq!(collected.lost, port > KEPT);
            collected.add(Some(event(&format!("10.244.1.9:{port}"))), &wanted);
        }
        let ports = |event: &ConntrackEvent| usize::from(event.client.port());
        assert!(collected.events.iter().map(ports).eq(2..KEPT + 2));
    }

    #[test]
    fn what_is_no_connection_with_ports_is_ignored() {
        assert_eq!(read(0x100, 1, |_| {}), None);
        assert_eq!(read(0x101, 6, |_| {}), None);
        let unknown = read(0x100, 6, |event| {
            event.nest_with(CTA_PROTOINFO, |info| {
                info.nest_with(PROTOINFO_TCP, |tcp| _ = tcp.put(PROTOINFO_STATE, &[200]));
            });
        });
        assert_eq!(unknown.unwrap().state, "not answered");
    }
}
