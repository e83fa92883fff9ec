// SPDX-License-Identifier: Apache-2.0
//! Backends.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::netns::Netns;

/// A backend in a namespace. It listens on all addresses of both families. When dropped, it ends with all its
/// connections, as a deleted pod.
#[derive(Debug)]
pub struct Backend<'a> {
    name: Arc<str>,
    ns: Option<&'a Netns>,
    ports: Vec<u16>,
    // One side of a pair: when it closes, the threads see that on the other and end.
    stop: Option<UnixStream>,
    stopped: Arc<UnixStream>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl<'a> Backend<'a> {
    /// A backend in `ns`, without a port yet.
    pub fn new(ns: &'a Netns, name: &str) -> Self {
        let mut backend = Self::here(name);
        backend.ns = Some(ns);
        backend
    }

    /// A backend in the namespace of this process.
    pub fn here(name: &str) -> Self {
        let (stop, stopped) = UnixStream::pair().expect("a pair of sockets");
        let stopped = Arc::new(stopped);
        Self {
            name: name.into(),
            ns: None,
            ports: Vec::new(),
            stop: Some(stop),
            stopped,
            threads: Vec::new(),
        }
    }

    /// Its ports, in the order they were added.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Answers TCP connections.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn tcp(self, port: u16) -> Result<Self> {
        let listener = self.make(port, TcpListener::bind)?;
        let port = listener.local_addr()?.port();
        Ok(self.serve_connections(port, listener))
    }

    /// Answers SCTP associations.
    ///
    /// # Errors
    /// If the port is in use or the kernel has no SCTP.
    pub fn sctp(self, port: u16) -> Result<Self> {
        let listener = self.make(port, super::sctp_listener)?;
        Ok(self.serve_connections(port, listener))
    }

    /// Answers UDP datagrams.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn udp(mut self, port: u16) -> Result<Self> {
        let socket = self.make(port, UdpSocket::bind)?;
        self.ports.push(socket.local_addr()?.port());
        let (name, stopped) = (Arc::clone(&self.name), Arc::clone(&self.stopped));
        self.threads.push(thread::spawn(move || {
            let mut buffer = [0; 2048];
            while readable(&socket, &stopped) {
                // An ICMP error of an earlier answer is reported here and ignored.
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(answer(&name, from).as_bytes(), from);
                }
            }
        }));
        Ok(self)
    }

    /// Makes a listening socket on all addresses, inside of the namespace.
    fn make<T: Send>(&self, port: u16, bind: fn(SocketAddr) -> std::io::Result<T>) -> Result<T> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let made = match self.ns {
            Some(ns) => ns.enter(|| bind(any))?,
            None => bind(any),
        };
        made.with_context(|| format!("backend {} cannot listen on port {port}", self.name))
    }

    fn serve_connections(mut self, port: u16, listener: TcpListener) -> Self {
        self.ports.push(port);
        let (name, stopped) = (Arc::clone(&self.name), Arc::clone(&self.stopped));
        self.threads.push(thread::spawn(move || {
            let mut connections = Vec::new();
            while readable(&listener, &stopped) {
                let Ok((stream, from)) = listener.accept() else { continue };
                let (name, stopped) = (Arc::clone(&name), Arc::clone(&stopped));
                // A thread that ended keeps its stack until its handle goes.
                connections.retain(|connection: &thread::JoinHandle<()>| !connection.is_finished());
                connections.push(thread::spawn(move || serve(stream, &answer(&name, from), &stopped)));
            }
            for connection in connections {
                let _ = connection.join();
            }
        }));
        self
    }
}

impl Drop for Backend<'_> {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Waits until there is something to read; false when the backend is to stop.
fn readable(socket: &impl AsFd, stopped: &UnixStream) -> bool {
    loop {
        let mut waiting =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::NONE).is_err() {
            continue;
        }
        if waiting[1].any() != Some(false) {
            return false;
        }
        if waiting[0].any() != Some(false) {
            return true;
        }
    }
}

/// Answers at once, and again after each request, until the client closes the connection.
fn serve(mut stream: TcpStream, answer: &str, stopped: &UnixStream) {
    let mut buffer = [0; 2048];
    loop {
        if stream.write_all(answer.as_bytes()).is_err() || !readable(&stream, stopped) {
            return;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// The line `NAME CLIENT_IP`; IPv4 clients of the double-stack socket keep their usual form.
fn answer(name: &str, from: SocketAddr) -> String {
    let source: IpAddr = from.ip().to_canonical();
    format!("{name} {source}\n")
}
