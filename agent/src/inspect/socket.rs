// SPDX-License-Identifier: Apache-2.0
//! The socket at which a running agent answers the commands that ask it. Its name is abstract: it belongs to the network
//! namespace, so a client reaches the agent of its own node, and no file remains. Only root may ask.
//!
//! A client sends one [`AgentRequest`] as a line of JSON. The answer is a JSON document, or says why there is none.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, socket, sockopt,
};
use serde::de::DeserializeOwned;

use super::answers::{AgentRequest, Answers};
use crate::words;

const NAME: &[u8] = b"kube-ipvs/agent";
/// The timeout of a client and of the agent.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest request in bytes.
const LONGEST: u64 = 4096;
/// The number of connects to a listener with a full queue.
const TRIES: usize = 10;
/// The time between two tries to bind a socket that a process other than an agent has.
const RETRY: Duration = Duration::from_secs(10);
/// After a question the next one waits this many times as long as the question held up the sync loop: clients in a loop
/// take at most a fifth of its time.
const REST: u32 = 4;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no kube-ipvs agent runs in this network namespace")]
    NoAgent,
    #[error("{0} has the socket @kube-ipvs/agent and is no kube-ipvs")]
    Stranger(String),
    #[error("only root may ask the agent: run this command as root")]
    NotRoot,
    #[error("the agent did not answer within 5 s")]
    Silent,
    #[error("{0}")]
    Refused(String),
    #[error("the agent's answer is not understood, it may be of another version: {0}")]
    Foreign(serde_json::Error),
}

fn address() -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// The process at the other end of a connection.
fn peer(stream: &UnixStream) -> std::io::Result<UnixCredentials> {
    Ok(getsockopt(stream, sockopt::PeerCredentials)?)
}

/// Agents run as root; in tests as the user of the test.
fn is_trusted(peer: &UnixCredentials) -> bool {
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
            Some(holder) if is_trusted(&holder) => bail!(
                "another kube-ipvs runs in this network namespace ({} has the socket @kube-ipvs/agent): \
                 stop it first",
                describe(&holder)
            ),
            holder => Ok(Claim::Taken(holder)),
        },
        Err(error) => Err(error).context("cannot open the socket @kube-ipvs/agent"),
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
/// The thread cannot be started.
pub fn serve(mut claimed: Claim, answers: Answers) -> anyhow::Result<()> {
    if let Claim::Taken(holder) = &claimed {
        let holder = holder.as_ref().map_or_else(|| "a process that does not answer".to_owned(), describe);
        tracing::warn!(
            "{holder} has the socket @kube-ipvs/agent and is no kube-ipvs: until that process is stopped, \
             `kube-ipvs status`, `explain` and `list -o wide` get no answer, and a second agent on this node is not \
             detected"
        );
    }
    std::thread::Builder::new().name("answers".to_owned()).spawn(move || {
        loop {
            if let Claim::Ours(listener) = claimed {
                return accept(&listener, &answers);
            }
            std::thread::sleep(RETRY);
            match claim() {
                Ok(claim) => claimed = claim,
                Err(error) => {
                    tracing::error!("{}", words::chain(&error));
                    return answers.inbox.stop();
                }
            }
            if matches!(claimed, Claim::Ours(_)) {
                tracing::info!("the socket @kube-ipvs/agent is free again: `kube-ipvs status` gets answers");
            }
        }
    })?;
    Ok(())
}

fn accept(listener: &UnixListener, answers: &Answers) {
    for stream in listener.incoming().flatten() {
        // Only the operators of this node may read its Services.
        if !peer(&stream).is_ok_and(|peer| is_trusted(&peer)) {
            continue;
        }
        // The client sees a closed connection.
        let _ = answer(stream, answers);
        std::thread::sleep(rest(answers.take_held()));
    }
}

/// The pause after a question.
fn rest(held: Duration) -> Duration {
    (held * REST).min(TIMEOUT)
}

fn answer(mut stream: UnixStream, answers: &Answers) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(&stream).take(LONGEST).read_line(&mut line)?;
    let answer = match serde_json::from_str::<AgentRequest>(&line) {
        Ok(request) => answers.answer(&request, TIMEOUT),
        Err(error) => Err(format!("the agent does not understand the request: {error}")),
    };
    match answer {
        Ok(document) => stream.write_all(document.as_bytes()),
        Err(refusal) => serde_json::to_writer(stream, &Refusal { refused: refusal }).map_err(Into::into),
    }
}

/// The answer to a request that cannot be met.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    refused: String,
}

/// Asks the agent of this network namespace.
///
/// # Errors
/// No agent runs, or it does not answer, or it refuses.
pub fn ask<T: DeserializeOwned>(request: &AgentRequest) -> Result<T, AskError> {
    let text = ask_text(request)?;
    if let Ok(Refusal { refused }) = serde_json::from_str(&text) {
        return Err(AskError::Refused(refused));
    }
    serde_json::from_str(&text).map_err(AskError::Foreign)
}

fn ask_text(request: &AgentRequest) -> Result<String, AskError> {
    let mut stream =
        address().and_then(|address| UnixStream::connect_addr(&address)).map_err(|_| AskError::NoAgent)?;
    let holder = peer(&stream).map_err(|_| AskError::NoAgent)?;
    if holder.uid() == 0 && !nix::unistd::geteuid().is_root() {
        return Err(AskError::NotRoot);
    }
    if !is_trusted(&holder) {
        return Err(AskError::Stranger(describe(&holder)));
    }
    let mut talk = || {
        stream.set_read_timeout(Some(TIMEOUT))?;
        writeln!(stream, "{}", serde_json::to_string(request)?)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(!text.is_empty());
        anyhow::Ok(text)
    };
    talk().map_err(|_| AskError::Silent)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::core::model::settings::RulesMode;
    use crate::core::plan::pass::Due;
    use crate::inbox::Inbox;
    use crate::inspect::answers::Setup;
    use crate::inspect::owners::OwnersPage;
    use crate::inspect::status::Status;
    use crate::testing::cluster::Cluster;
    use crate::testing::{Agent, kernel, reporting};

    fn answers(inbox: &Arc<Inbox>, agent: &Agent) -> Answers {
        let reporting = reporting();
        let setup = Setup {
            node: "n1".to_owned(),
            config: serde_json::json!({}),
            rules: RulesMode::Iptables,
            source: "files".to_owned(),
            version: "0".to_owned(),
            pid: 1,
            started: std::time::SystemTime::now(),
        };
        let (health, metrics) = (reporting.health, reporting.metrics);
        Answers {
            inbox: inbox.clone(),
            store: agent.store.clone(),
            health,
            metrics,
            setup,
            held: Arc::default(),
        }
    }

    fn talk(path: &std::path::Path, text: &str) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        // The agent may close a connection whose request is too long.
        let _ = stream.write_all(text.as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn requests_are_answered_and_nonsense_is_refused() {
        let spec = serde_json::json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]});
        let mut agent = Agent::start(kernel(), &Cluster::default().service("a", spec, &[]));
        agent.converge(Due::Changes, 6);
        let inbox = Arc::new(Inbox::default());
        let answers = answers(&inbox, &agent);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || accept(&listener, &answers));
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let client = std::thread::spawn(move || {
            let requests = [
                "{\"owners\": {\"after\": null, \"of\": {\"namespace\": \"d\", \"name\": null}}}\n"
                    .to_owned(),
                "\"status\"\n".to_owned(),
                "{\"shutDown\": 1}\n".to_owned(),
                "{\"explain\": {\"target\": \"a/b/c\", \"from\": null}}\n".to_owned(),
                "x".repeat(LONGEST as usize + 9) + "\n",
            ];
            let answers = requests.map(|request| talk(&path, &request));
            ended.store(true, Ordering::Relaxed);
            answers
        });
        while !over.load(Ordering::Relaxed) {
            let mail = inbox.wait(Some(Duration::from_millis(5)));
            let state = agent.reconciler.state(agent.now);
            mail.questions.into_iter().for_each(|question| question(&state));
        }
        let [owners, status, nonsense, wrong, long] = client.join().unwrap();
        let page: OwnersPage = serde_json::from_str(&owners).unwrap();
        assert_eq!(page.lines, ["TCP 10.96.0.1:80 d/a:p"]);
        let status: Status = serde_json::from_str(&status).unwrap();
        assert_eq!((status.services, &*status.node), (1, "n1"));
        for refused in [nonsense, wrong] {
            assert!(serde_json::from_str::<Refusal>(&refused).is_ok(), "{refused}");
        }
        assert!(long.is_empty() || serde_json::from_str::<Refusal>(&long).is_ok(), "{long}");
    }

    #[test]
    fn clients_in_a_loop_take_a_fifth_of_the_loops_time() {
        for micros in [0, 100, 5_000, 900_000] {
            let held = Duration::from_micros(micros);
            assert_eq!(rest(held), held * 4, "a fifth: one part of five");
        }
        assert_eq!(rest(Duration::from_secs(60)), TIMEOUT, "a slow question blocks no others for ever");
    }
}
