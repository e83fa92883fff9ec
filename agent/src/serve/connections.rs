// SPDX-License-Identifier: Apache-2.0
//! Limits the connections of a server, in total and per client, so that clients can exhaust neither memory nor file
//! descriptors. A new connection is always accepted: with too many, the one that is idle for longest is closed.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

use crate::lock::lock;

/// Connections of one server, or of several that share a limit.
#[derive(Clone, Debug)]
pub struct Connections {
    open: Arc<Mutex<Open>>,
    all: usize,
    per_client: usize,
}

/// The client of a connection: an IPv4 address, or the /64 of an IPv6 address, because one host may own a whole /64.
/// `None`: this node, for example kubelet, which is not counted in the total.
type Client = Option<IpAddr>;

#[derive(Debug, Default)]
struct Open {
    /// By a unique number.
    connections: BTreeMap<u64, Connection>,
    /// A logical clock.
    now: u64,
}

#[derive(Debug)]
struct Connection {
    client: Client,
    /// True from a complete request until the last byte of its answer is sent.
    is_answering: bool,
    /// Start of the current state.
    since: u64,
    /// Dropping this ends the connection.
    _keep: oneshot::Sender<()>,
}

/// The slot of one connection, released on drop.
#[derive(Debug)]
pub struct Slot {
    /// For the writer of the connection.
    pub usage: Usage,
    /// Ends when another connection takes the slot.
    pub revoked: oneshot::Receiver<()>,
}

/// Reports whether a connection is idle.
#[derive(Clone, Debug)]
pub struct Usage {
    open: Arc<Mutex<Open>>,
    number: u64,
}

impl Connections {
    /// At most `all` connections of other hosts, and at most `per_client` of one client, this node included.
    pub fn new(all: usize, per_client: usize) -> Self {
        Self { open: Arc::default(), all, per_client }
    }

    /// A slot for a connection. With too many connections, another one loses its slot.
    pub fn take(&self, peer: IpAddr, local: IpAddr) -> Slot {
        let client = client_of(peer, local);
        let mut open = lock(&self.open);
        if let Some(victim) = open.victim(client, self.all, self.per_client) {
            open.connections.remove(&victim);
        }
        let (keep, revoked) = oneshot::channel();
        let number = open.tick();
        let connection = Connection { client, is_answering: false, since: number, _keep: keep };
        open.connections.insert(number, connection);
        Slot { usage: Usage { open: self.open.clone(), number }, revoked }
    }
}

fn client_of(peer: IpAddr, local: IpAddr) -> Client {
    match peer {
        _ if peer.is_loopback() || peer == local => None,
        IpAddr::V6(ip) => Some(Ipv6Addr::from(u128::from(ip) >> 64 << 64).into()),
        v4 => Some(v4),
    }
}

impl Open {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// The connection to close before this client gets one more: one of the client's own if it has its maximum, else
    /// one of the client with the most if the total is reached. Idle connections are closed first.
    fn victim(&self, client: Client, all: usize, per_client: usize) -> Option<u64> {
        let mut counts: HashMap<Client, usize> = HashMap::new();
        for connection in self.connections.values() {
            *counts.entry(connection.client).or_default() += 1;
        }
        let has_most = counts.get(&client).is_some_and(|count| *count >= per_client);
        counts.remove(&None);
        let most = counts.values().copied().max().unwrap_or(0);
        let too_many = client.is_some() && counts.values().sum::<usize>() >= all;
        let may_close = |connection: &Connection| {
            if has_most {
                connection.client == client
            } else {
                too_many && counts.get(&connection.client) == Some(&most)
            }
        };
        let candidates = self.connections.iter().filter(|(_, connection)| may_close(connection));
        candidates.min_by_key(|(_, c)| (c.is_answering, c.since)).map(|(number, _)| *number)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.usage.open).connections.remove(&self.usage.number);
    }
}

impl Usage {
    /// True when a complete request was read and is being answered.
    pub fn set_answering(&self, is_answering: bool) {
        let mut open = lock(&self.open);
        let now = open.tick();
        if let Some(connection) = open.connections.get_mut(&self.number)
            && (is_answering || connection.is_answering)
        {
            (connection.is_answering, connection.since) = (is_answering, now);
        }
    }
}

/// A writer that reports its connection as idle when everything written is sent.
pub struct TrackedWriter<W> {
    pub writer: W,
    pub usage: Usage,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for TrackedWriter<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    /// hyper flushes when an answer is complete.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.writer).poll_flush(cx);
        if flushed.is_ready() {
            self.usage.set_answering(false);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "10.0.0.1";

    fn take(connections: &Connections, peer: &str) -> Slot {
        connections.take(peer.parse().unwrap(), NODE.parse().unwrap())
    }

    fn has_lost(slot: &mut Slot) -> bool {
        slot.revoked.try_recv() != Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn a_client_with_too_many_loses_the_one_that_is_idle_for_longest() {
        let connections = Connections::new(8, 3);
        let mut slots = ["fd00::1", "fd00::2", "fd00::3"].map(|ip| take(&connections, ip));
        let mut other = take(&connections, "10.0.0.9");
        slots[0].usage.set_answering(true);
        slots[1].usage.set_answering(true);
        slots[1].usage.set_answering(false);
        // The first is being answered, the second was just now.
        let mut fourth = take(&connections, "fd00::4");
        assert_eq!(slots.each_mut().map(has_lost), [false, false, true]);
        let mut fifth = take(&connections, "fd00::5");
        assert_eq!(slots.each_mut().map(has_lost), [false, true, true]);
        assert!(![&mut fourth, &mut fifth, &mut other].into_iter().any(has_lost), "one host is one /64");
        // None is idle: the one that takes the longest.
        for slot in [&fourth, &fifth] {
            slot.usage.set_answering(true);
        }
        let _sixth = take(&connections, "fd00::6");
        assert!(has_lost(&mut slots[0]) && !has_lost(&mut fourth));
    }

    #[test]
    fn with_all_slots_taken_the_client_with_the_most_loses_one() {
        let connections = Connections::new(5, 3);
        let mut one = take(&connections, "10.0.0.2");
        let mut many = ["10.0.0.3"; 3].map(|ip| take(&connections, ip));
        let mut another = take(&connections, "10.0.0.4");
        let mut new = take(&connections, "10.0.0.5");
        assert_eq!(many.each_mut().map(has_lost), [true, false, false]);
        drop(many);
        let mut more = ["10.0.0.6", "10.0.0.7"].map(|ip| take(&connections, ip));
        let _last = take(&connections, "10.0.0.8");
        assert!(has_lost(&mut one), "all have one: the one that is idle for longest goes");
        assert!(![&mut another, &mut new].into_iter().chain(&mut more).any(has_lost));
    }

    #[test]
    fn this_node_has_slots_of_its_own() {
        let connections = Connections::new(2, 2);
        let mut own = take(&connections, "127.0.0.1");
        let mut others = ["10.0.0.2", "10.0.0.3"].map(|ip| take(&connections, ip));
        let mut third = take(&connections, "10.0.0.4");
        assert!(has_lost(&mut others[0]) && !has_lost(&mut own), "it does not count among others");
        let mut by_address = take(&connections, NODE);
        assert!(![&mut others[1], &mut third, &mut own].into_iter().any(has_lost));
        let _fourth = take(&connections, "::1");
        assert!(has_lost(&mut own) && !has_lost(&mut by_address), "its own room has an end, too");
    }

    #[test]
    fn slots_are_released() {
        let connections = Connections::new(2, 2);
        drop([take(&connections, "10.0.0.2"), take(&connections, "127.0.0.1")]);
        assert!(connections.open.lock().unwrap().connections.is_empty());
    }
}
