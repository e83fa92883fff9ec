// SPDX-License-Identifier: Apache-2.0
//! Clients.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::super::netns::Netns;
use super::{Answer, NoAnswer, parse_answer, sctp_connect, tcp_connect, udp_socket};

/// One request over a new TCP connection.
///
/// # Errors
/// See [`NoAnswer`].
pub fn ask_tcp(ns: &Netns, address: SocketAddr, limit: Duration) -> Result<Answer, NoAnswer> {
    Connection::open(ns, address, limit)?.ask()
}

/// One request over a new SCTP association.
///
/// # Errors
/// See [`NoAnswer`].
pub fn ask_sctp(ns: &Netns, address: SocketAddr, limit: Duration) -> Result<Answer, NoAnswer> {
    Connection::open_sctp(ns, address, limit)?.ask()
}

/// One datagram from a new port.
///
/// # Errors
/// See [`NoAnswer`].
pub fn ask_udp(ns: &Netns, address: SocketAddr, limit: Duration) -> Result<Answer, NoAnswer> {
    UdpFlow::open(ns, address, limit)?.ask()
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    greeted: bool,
}

/// Enters the namespace only for as long as it takes to make the socket.
fn inside<T: Send>(ns: &Netns, make: impl FnOnce() -> io::Result<T> + Send) -> Result<T, NoAnswer> {
    let made = ns.enter(make).map_err(|error| NoAnswer::Failed(io::Error::other(format!("{error:#}"))))?;
    Ok(made?)
}

impl Connection {
    /// Opens a TCP connection. `limit`: for opening it and for every answer.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn open(ns: &Netns, address: SocketAddr, limit: Duration) -> Result<Self, NoAnswer> {
        Self::open_from(ns, 0, address, limit)
    }

    /// Opens a TCP connection from a source port that connections to other addresses may have, too.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn open_from(ns: &Netns, port: u16, address: SocketAddr, limit: Duration) -> Result<Self, NoAnswer> {
        Self::over(inside(ns, || tcp_connect(port, address, limit))?, limit)
    }

    /// Opens an SCTP association.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn open_sctp(ns: &Netns, address: SocketAddr, limit: Duration) -> Result<Self, NoAnswer> {
        Self::over(inside(ns, || sctp_connect(address, limit))?, limit)
    }

    /// Opens a TCP connection in the namespace of this process.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn open_here(address: SocketAddr, limit: Duration) -> Result<Self, NoAnswer> {
        Self::over(tcp_connect(0, address, limit)?, limit)
    }

    fn over(stream: TcpStream, limit: Duration) -> Result<Self, NoAnswer> {
        stream.set_read_timeout(Some(limit))?;
        Ok(Self { stream: BufReader::new(stream), greeted: false })
    }

    /// The next answer. The backend sends the first one by itself, and each later one after a request.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn ask(&mut self) -> Result<Answer, NoAnswer> {
        if self.greeted {
            self.stream.get_mut().write_all(b"?\n").map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => NoAnswer::Closed,
                _ => error.into(),
            })?;
        }
        self.greeted = true;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(NoAnswer::Closed);
        }
        parse_answer(&line)
    }

    /// The client's own address and port.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().local_addr()
    }

    /// Ends the connection with a reset. The kernel forgets it within seconds; one that ends politely
    /// it remembers for two minutes.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn abort(self) -> io::Result<()> {
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        Ok(setsockopt(self.stream.get_ref(), sockopt::Linger, &at_once)?)
    }
}

/// Datagrams from one port: one connection for the kernel.
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
}

impl UdpFlow {
    /// A flow to `address`. `limit`: for every answer.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn open(ns: &Netns, address: SocketAddr, limit: Duration) -> Result<Self, NoAnswer> {
        Ok(Self { socket: inside(ns, || udp_socket(address, limit))? })
    }

    /// A flow in the namespace of this process.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn open_here(address: SocketAddr, limit: Duration) -> Result<Self, NoAnswer> {
        Ok(Self { socket: udp_socket(address, limit)? })
    }

    /// Sends one datagram and waits for the answer, without a retransmission.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn ask(&self) -> Result<Answer, NoAnswer> {
        self.socket.send(b"?")?;
        let mut buffer = [0; 2048];
        let length = self.socket.recv(&mut buffer)?;
        parse_answer(&String::from_utf8_lossy(&buffer[..length]))
    }

    /// The client's own address and port.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}
