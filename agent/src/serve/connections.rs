// SPDX-License-Identifier: Apache-2.0
//! How many connections a server has at once: no one asker, and not all together, can take its memory and its
//! file descriptors. Nor can they keep others out: where there are too many, a new one takes the place of the
//! one that is idle for longest.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// Connections of one server, or of several that share a limit.
#[derive(Clone, Debug)]
pub struct Connections {
    open: Arc<Mutex<Open>>,
    all: usize,
    of_one: usize,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asker {
    /// This node, kubelet among others. It does not count among all.
    Node,
    /// An IPv4 address, or the /64 of an IPv6 address: one host may have all of it.
    Other(IpAddr),
}

#[derive(Debug, Default)]
struct Open {
    /// By a number of their own.
    connections: BTreeMap<u64, Connection>,
    /// A clock that goes on whenever something happens.
    now: u64,
}

#[derive(Debug)]
struct Connection {
    asker: Asker,
    /// A request is being answered, until the last byte is on its way.
    is_answering: bool,
    /// Since when it is idle, or answering.
    since: u64,
    /// When this goes away, the connection ends.
    _stay: oneshot::Sender<()>,
}

/// The place of one connection, given back when this goes away.
#[derive(Debug)]
pub struct Place {
    usage: Usage,
    taken: oneshot::Receiver<()>,
}

/// Tells what a connection does.
#[derive(Clone, Debug)]
pub struct Usage {
    open: Arc<Mutex<Open>>,
    number: u64,
}

impl Connections {
    /// At most `all` connections of other hosts, and at most `of_one` of one asker. This node is an asker, too.
    pub fn new(all: usize, of_one: usize) -> Self {
        Self { open: Arc::default(), all, of_one }
    }

    /// A place for a connection from one address to another. Where there are too many, another one loses its
    /// place.
    pub fn take(&self, peer: IpAddr, local: IpAddr) -> Place {
        let asker = Asker::new(peer, local);
        let mut open = lock(&self.open);
        if let Some(loser) = open.loser(asker, self.all, self.of_one) {
            open.connections.remove(&loser);
        }
        let (stay, taken) = oneshot::channel();
        let number = open.tick();
        let connection = Connection { asker, is_answering: false, since: number, _stay: stay };
        open.connections.insert(number, connection);
        Place { usage: Usage { open: self.open.clone(), number }, taken }
    }
}

impl Asker {
    fn new(peer: IpAddr, local: IpAddr) -> Self {
        match peer {
            _ if peer.is_loopback() || peer == local => Asker::Node,
            IpAddr::V6(ip) => Asker::Other(Ipv6Addr::from(u128::from(ip) >> 64 << 64).into()),
            v4 => Asker::Other(v4),
        }
    }
}

impl Open {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// The connection that has to go before this asker gets one more: of this asker if it has all that it may
    /// have, else of those that have the most, if there are too many in all. Idle ones go first.
    fn loser(&self, asker: Asker, all: usize, of_one: usize) -> Option<u64> {
        let mut counts: HashMap<Asker, usize> = HashMap::new();
        for connection in self.connections.values() {
            *counts.entry(connection.asker).or_default() += 1;
        }
        let has_most = counts.get(&asker).is_some_and(|count| *count >= of_one);
        counts.remove(&Asker::Node);
        let most = counts.values().copied().max().unwrap_or(0);
        let too_many = asker != Asker::Node && counts.values().sum::<usize>() >= all;
        let may_lose = |connection: &Connection| {
            if has_most {
                connection.asker == asker
            } else {
                too_many && counts.get(&connection.asker) == Some(&most)
            }
        };
        let losers = self.connections.iter().filter(|(_, connection)| may_lose(connection));
        losers.min_by_key(|(_, c)| (c.is_answering, c.since)).map(|(number, _)| *number)
    }
}

impl Place {
    /// For whoever reads and writes.
    pub fn usage(&self) -> Usage {
        self.usage.clone()
    }

    /// Returns when another connection took the place.
    pub async fn lost(&mut self) {
        let _ = (&mut self.taken).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.usage.open).connections.remove(&self.usage.number);
    }
}

impl Usage {
    /// A request is here completely and is being answered.
    pub fn answers(&self) {
        self.set(true);
    }

    fn set(&self, is_answering: bool) {
        let mut open = lock(&self.open);
        let now = open.tick();
        if let Some(connection) = open.connections.get_mut(&self.number)
            && (is_answering || connection.is_answering)
        {
            (connection.is_answering, connection.since) = (is_answering, now);
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream whose connection is idle again when all that was written is on its way.
pub struct Watched<S> {
    stream: S,
    usage: Usage,
}

impl<S> Watched<S> {
    /// Tells `usage`.
    pub fn new(stream: S, usage: Usage) -> Self {
        Self { stream, usage }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Is called when nothing is left to be written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.usage.set(false);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "10.0.0.1";

    fn take(connections: &Connections, peer: &str) -> Place {
        connections.take(peer.parse().unwrap(), NODE.parse().unwrap())
    }

    fn has_lost(place: &mut Place) -> bool {
        place.taken.try_recv() != Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn an_asker_with_too_many_loses_the_one_that_is_idle_for_longest() {
        let connections = Connections::new(8, 3);
        let mut places = ["fd00::1", "fd00::2", "fd00::3"].map(|ip| take(&connections, ip));
        let mut other = take(&connections, "10.0.0.9");
        places[0].usage().answers();
        places[1].usage().answers();
        places[1].usage().set(false);
        // The first is being answered, the second was just now.
        let mut fourth = take(&connections, "fd00::4");
        assert_eq!(places.each_mut().map(has_lost), [false, false, true]);
        let mut fifth = take(&connections, "fd00::5");
        assert_eq!(places.each_mut().map(has_lost), [false, true, true]);
        assert!(![&mut fourth, &mut fifth, &mut other].into_iter().any(has_lost), "one host is one /64");
        // None is idle: the one that takes the longest.
        for place in [&fourth, &fifth] {
            place.usage().answers();
        }
        let _sixth = take(&connections, "fd00::6");
        assert!(has_lost(&mut places[0]) && !has_lost(&mut fourth));
    }

    #[test]
    fn where_all_places_are_taken_those_with_the_most_lose_one() {
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
    fn the_node_itself_has_room_of_its_own() {
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
    fn places_are_given_back() {
        let connections = Connections::new(2, 2);
        drop([take(&connections, "10.0.0.2"), take(&connections, "127.0.0.1")]);
        assert!(connections.open.lock().unwrap().connections.is_empty());
    }
}
