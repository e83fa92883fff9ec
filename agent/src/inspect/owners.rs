// SPDX-License-Identifier: Apache-2.0
//! The Services of virtual servers. The running agent serves them at a socket in the abstract namespace, which belongs
//! to the network namespace: a client reaches the agent of its own node, and no file remains.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, socket, sockopt,
};

use crate::inbox::Inbox;
use crate::words;

const NAME: &[u8] = b"kube-ipvs/owners";
/// The timeout of a client, and of the sync loop.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The time that an answer is reused, so that clients query the sync loop at most once in this time.
const AGE: Duration = Duration::from_secs(1);
/// The number of connects to a listener with a full queue.
const TRIES: usize = 10;
/// The time between two tries to bind a socket that a process other than an agent has.
const RETRY: Duration = Duration::from_secs(10);

fn address() -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// The process at the other end of a connection.
fn peer(stream: &UnixStream) -> std::io::Result<UnixCredentials> {
    Ok(getsockopt(stream, sockopt::PeerCredentials)?)
}

/// Agents run as root; in tests as the user of the test.
fn may_be_agent(peer: &UnixCredentials) -> bool {
    peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw()
}

fn describe(peer: &UnixCredentials) -> String {
    format!("process {} of user {}", peer.pid(), peer.uid())
}

/// The socket that only one agent per network namespace has.
#[derive(Debug)]
pub enum Claim {
    /// Bound until dropped.
    Ours(UnixListener),
    /// A process that is no agent has the socket, which any user may bind. The process, if it answers.
    Taken(Option<UnixCredentials>),
}

/// Binds the socket of the one agent that may run in this network namespace.
///
/// # Errors
/// When an agent runs.
pub fn claim() -> anyhow::Result<Claim> {
    let address = address()?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Claim::Ours(listener)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => match holder() {
            Some(holder) if may_be_agent(&holder) => anyhow::bail!(
                "another kube-ipvs runs in this network namespace ({} has the socket @kube-ipvs/owners): \
                 stop it first",
                describe(&holder)
            ),
            holder => Ok(Claim::Taken(holder)),
        },
        Err(error) => Err(error).context("cannot open the socket @kube-ipvs/owners"),
    }
}

/// The process that listens at the socket. `None` if it accepts no connection, which an agent does at once.
fn holder() -> Option<UnixCredentials> {
    let address = UnixAddr::new_abstract(NAME).ok()?;
    for _ in 0..TRIES {
        // A blocking connect could wait for ever for a full queue.
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => return peer(&UnixStream::from(socket)).ok(),
            Err(Errno::EAGAIN) => std::thread::sleep(RETRY / 100),
            Err(_) => return None,
        }
    }
    None
}

/// Answers clients until the process ends. While a process that is no agent has the socket, the bind is retried; the
/// rest of the agent works.
///
/// # Errors
/// When another agent already runs in this network namespace.
pub fn serve(inbox: Arc<Inbox>) -> anyhow::Result<()> {
    let mut claimed = claim()?;
    if let Claim::Taken(holder) = &claimed {
        let holder = holder.as_ref().map_or_else(|| "a process that does not answer".to_owned(), describe);
        tracing::warn!(
            "{holder} has the socket @kube-ipvs/owners and is no kube-ipvs: until that process is stopped, \
             `kube-ipvs list` shows no Services, and a second agent on this node is not detected"
        );
    }
    std::thread::Builder::new().name("owners".to_owned()).spawn(move || {
        loop {
            if let Claim::Ours(listener) = claimed {
                return answer(&listener, &inbox);
            }
            std::thread::sleep(RETRY);
            match claim() {
                Ok(claim) => claimed = claim,
                Err(error) => {
                    tracing::error!("{}", words::chain(&error));
                    return inbox.stop();
                }
            }
            if matches!(claimed, Claim::Ours(_)) {
                tracing::info!("the socket @kube-ipvs/owners is free again: `kube-ipvs list` shows Services");
            }
        }
    })?;
    Ok(())
}

fn answer(listener: &UnixListener, inbox: &Inbox) {
    let mut last: Option<(Instant, String)> = None;
    for mut stream in listener.incoming().flatten() {
        // Only the operators of this node may read the names of Services.
        if !peer(&stream).is_ok_and(|peer| may_be_agent(&peer)) {
            continue;
        }
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() >= AGE) {
            let (sender, receiver) = mpsc::channel();
            inbox.request_owners(sender);
            last = receiver.recv_timeout(TIMEOUT).ok().map(|text| (Instant::now(), text));
        }
        // The client sees the closed connection when the loop was too slow.
        let _ = stream.set_write_timeout(Some(TIMEOUT));
        if let Some((_, text)) = &last {
            let _ = stream.write_all(text.as_bytes());
        }
    }
}

/// The Services of virtual servers, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceOwners(HashMap<String, String>);

impl ServiceOwners {
    /// Queries the agent that runs in this network namespace.
    ///
    /// # Errors
    /// When no agent runs, or it does not answer.
    pub fn ask() -> anyhow::Result<Self> {
        let stream = address().and_then(|address| UnixStream::connect_addr(&address));
        let mut stream = stream.context("no kube-ipvs agent runs in this network namespace")?;
        let holder = peer(&stream)?;
        ensure!(
            may_be_agent(&holder),
            "{} has the socket @kube-ipvs/owners and is no kube-ipvs",
            describe(&holder)
        );
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("the agent did not answer")?;
        Ok(Self::parse(&text))
    }

    /// Lines of `PROTO ADDR:PORT NAMESPACE/NAME[:PORT]`.
    pub(crate) fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (server, service) = line.rsplit_once(' ')?;
            Some((server.to_owned(), service.to_owned()))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// The Service of a virtual server given as `PROTO ADDR:PORT`.
    pub fn get(&self, server: &str) -> Option<&str> {
        self.0.get(server).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_lines() {
        let owners =
            ServiceOwners::parse("TCP 10.96.0.1:443 default/kubernetes:https\nUDP [fd00::1]:53 a/b\n");
        assert_eq!(owners.get("TCP 10.96.0.1:443"), Some("default/kubernetes:https"));
        assert_eq!(owners.get("UDP [fd00::1]:53"), Some("a/b"));
        assert_eq!(owners.get("TCP 1.1.1.1:1"), None);
    }

    #[test]
    fn frequent_clients_get_the_same_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owners");
        let listener = UnixListener::bind(&path).unwrap();
        let inbox = Arc::new(Inbox::default());
        let asked = inbox.clone();
        std::thread::spawn(move || answer(&listener, &asked));
        let start = Instant::now();
        let answers = 20;
        let asking = std::thread::spawn(move || {
            for _ in 0..answers {
                let mut text = String::new();
                UnixStream::connect(&path).unwrap().read_to_string(&mut text).unwrap();
                assert_eq!(text, "TCP 10.96.0.1:443 a/b\n");
            }
        });
        let mut questions = 0;
        while !asking.is_finished() {
            for question in inbox.wait(Some(Duration::from_millis(10))).owner_requests {
                questions += 1;
                question.send("TCP 10.96.0.1:443 a/b\n".to_owned()).unwrap();
            }
        }
        asking.join().unwrap();
        let most = 1 + start.elapsed().as_secs();
        assert!(
            (1..=most).contains(&questions),
            "{questions} questions of {answers} in {:?}",
            start.elapsed()
        );
    }
}
