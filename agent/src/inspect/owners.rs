// SPDX-License-Identifier: Apache-2.0
//! Which Service is behind a virtual server: the running agent knows, and tells over a socket in
//! the abstract namespace. That namespace belongs to the network namespace, so an asker reaches the
//! agent of its own node, and no file is left behind.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;

use crate::inbox::Inbox;

const NAME: &[u8] = b"kube-ipvs/owners";
const TIMEOUT: Duration = Duration::from_secs(5);

fn address() -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// Takes the place of the one agent that may run in this network namespace, until it is dropped.
///
/// # Errors
/// When an agent runs.
pub fn claim() -> anyhow::Result<UnixListener> {
    address().and_then(|address| UnixListener::bind_addr(&address)).context(
        "cannot open the socket @kube-ipvs/owners: another kube-ipvs runs in this network namespace; stop it first",
    )
}

/// Answers askers until the process ends.
///
/// # Errors
/// When another agent already runs in this network namespace.
pub fn serve(inbox: Arc<Inbox>) -> anyhow::Result<()> {
    let listener = claim()?;
    std::thread::Builder::new().name("owners".to_owned()).spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (sender, receiver) = mpsc::channel();
            inbox.ask(sender);
            // An asker that is gone, or a loop that is busy for long, is the asker's problem.
            let _ = stream.set_write_timeout(Some(TIMEOUT));
            if let Ok(text) = receiver.recv_timeout(TIMEOUT) {
                let _ = stream.write_all(text.as_bytes());
            }
        }
    })?;
    Ok(())
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
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("the agent did not answer")?;
        Ok(Self::parse(&text))
    }

    /// Lines of `PROTO ADDR:PORT NAMESPACE/NAME[:PORT]`.
    fn parse(text: &str) -> Self {
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
}
