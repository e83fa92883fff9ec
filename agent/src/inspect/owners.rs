// SPDX-License-Identifier: Apache-2.0
//! Which Service is behind a virtual server: the running agent knows, and tells over a socket in
//! the abstract namespace. That namespace belongs to the network namespace, so an asker reaches the
//! agent of its own node, and no file is left behind.

use std::collections::HashMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};

use crate::inbox::Inbox;
use crate::words;

const NAME: &[u8] = b"kube-ipvs/owners";
/// How long an asker and the loop may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is good for so long: the loop is asked at most once in it, whatever askers do.
const AGE: Duration = Duration::from_secs(1);
/// A listener with a full queue is asked so many times.
const TRIES: usize = 10;
/// Time between two tries to get the socket from somebody who has no right to it.
const RETRY: Duration = Duration::from_secs(10);

fn address() -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// The process at the other end of a socket; of a connection to a listener the one that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its user.
    user: u32,
    /// Its process.
    process: i32,
}

impl Holder {
    fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let peer = getsockopt(stream, sockopt::PeerCredentials)?;
        Ok(Self { user: peer.uid(), process: peer.pid() })
    }

    /// Root runs agents. Tests run them as themselves.
    fn may_be_agent(self) -> bool {
        self.user == 0 || self.user == nix::unistd::geteuid().as_raw()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of user {}", self.process, self.user)
    }
}

/// The place of the one agent that may run in a network namespace.
#[derive(Debug)]
pub enum Claim {
    /// It is ours until it is dropped.
    Ours(UnixListener),
    /// Somebody who is no agent has it: any user may open a socket of any name. The holder, if it answers.
    Taken(Option<Holder>),
}

/// Takes the place of the one agent that may run in this network namespace.
///
/// # Errors
/// When an agent runs.
pub fn claim() -> anyhow::Result<Claim> {
    let address = address()?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Claim::Ours(listener)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => match holder() {
            Some(holder) if holder.may_be_agent() => anyhow::bail!(
                "another kube-ipvs runs in this network namespace ({holder} has the socket @kube-ipvs/owners): \
                 stop it first"
            ),
            holder => Ok(Claim::Taken(holder)),
        },
        Err(error) => Err(error).context("cannot open the socket @kube-ipvs/owners"),
    }
}

/// Who listens at the socket. One that does not take connections is no agent: an agent takes them at once.
fn holder() -> Option<Holder> {
    let address = UnixAddr::new_abstract(NAME).ok()?;
    for _ in 0..TRIES {
        // Waiting for room in the queue of a listener could last for ever.
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => return Holder::of(&UnixStream::from(socket)).ok(),
            Err(Errno::EAGAIN) => std::thread::sleep(RETRY / 100),
            Err(_) => return None,
        }
    }
    None
}

/// Answers askers until the process ends. When somebody who is no agent has the socket, it is tried again
/// and again, and everything else goes on.
///
/// # Errors
/// When another agent already runs in this network namespace.
pub fn serve(inbox: Arc<Inbox>) -> anyhow::Result<()> {
    let mut place = claim()?;
    if let Claim::Taken(holder) = &place {
        let holder = holder.map_or_else(|| "a process that does not answer".to_owned(), |h| h.to_string());
        tracing::warn!(
            "{holder} has the socket @kube-ipvs/owners and is no kube-ipvs: until it is stopped, \
             `kube-ipvs list` shows no Services, and a second agent on this node would not be noticed"
        );
    }
    std::thread::Builder::new().name("owners".to_owned()).spawn(move || {
        loop {
            if let Claim::Ours(listener) = place {
                return answer(&listener, &inbox);
            }
            std::thread::sleep(RETRY);
            place = match claim() {
                Ok(Claim::Ours(listener)) => {
                    tracing::info!(
                        "the socket @kube-ipvs/owners is free again: `kube-ipvs list` shows Services"
                    );
                    Claim::Ours(listener)
                }
                Ok(taken) => taken,
                Err(error) => {
                    tracing::error!("{}", words::chain(&error));
                    return inbox.stop();
                }
            };
        }
    })?;
    Ok(())
}

fn answer(listener: &UnixListener, inbox: &Inbox) {
    let mut last: Option<(Instant, String)> = None;
    for mut stream in listener.incoming().flatten() {
        // Names of Services are for those who run this node.
        if !Holder::of(&stream).is_ok_and(Holder::may_be_agent) {
            continue;
        }
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() >= AGE) {
            let (sender, receiver) = mpsc::channel();
            inbox.request_owners(sender);
            last = receiver.recv_timeout(TIMEOUT).ok().map(|text| (Instant::now(), text));
        }
        // An asker that is gone, or a loop that is busy for long, is the asker's problem.
        let _ = stream.set_write_timeout(Some(TIMEOUT));
        if let Some((_, text)) = &last {
            let _ = stream.write_all(text.as_bytes());
        }
    }
}

/// The Services behind virtual servers, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners(HashMap<String, String>);

impl Owners {
    /// Asks the agent that runs in this network namespace.
    ///
    /// # Errors
    /// When none runs, or it does not answer.
    pub fn ask() -> anyhow::Result<Self> {
        let stream = address().and_then(|address| UnixStream::connect_addr(&address));
        let mut stream = stream.context("no kube-ipvs agent runs in this network namespace")?;
        let holder = Holder::of(&stream)?;
        ensure!(holder.may_be_agent(), "{holder} has the socket @kube-ipvs/owners and is no kube-ipvs");
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

    /// The Service behind a virtual server given as `PROTO ADDR:PORT`.
    pub fn get(&self, server: &str) -> Option<&str> {
        self.0.get(server).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_lines() {
        let owners = Owners::parse("TCP 10.96.0.1:443 default/kubernetes:https\nUDP [fd00::1]:53 a/b\n");
        assert_eq!(owners.get("TCP 10.96.0.1:443"), Some("default/kubernetes:https"));
        assert_eq!(owners.get("UDP [fd00::1]:53"), Some("a/b"));
        assert_eq!(owners.get("TCP 1.1.1.1:1"), None);
    }

    #[test]
    fn whoever_asks_again_and_again_is_answered_from_memory() {
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
