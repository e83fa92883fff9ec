// SPDX-License-Identifier: Apache-2.0
//! Backends that answer with their name and the client's address, and their clients.
//!
//! Every TCP connection, SCTP association and UDP datagram is answered with one line, `NAME CLIENT_IP`.
//! A backend is a thread inside of its namespace, not a process.

mod backend;
mod client;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getsockopt,
    listen, setsockopt, socket, sockopt,
};

pub use backend::Backend;
pub use client::{Connection, UdpFlow, ask_sctp, ask_tcp, ask_udp};

/// One answer of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The backend's name.
    pub name: String,
    /// The client's address as the backend sees it.
    pub seen_source: IpAddr,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// Refused: a reset, or an ICMP "port unreachable".
    Refused,
    /// The other side closed the connection.
    Closed,
    /// No answer in time.
    Timeout,
    /// Anything else, such as no route.
    Failed(io::Error),
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Closed => f.write_str("closed by the other side"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for NoAnswer {}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Timeout,
            _ => Self::Failed(error),
        }
    }
}

/// A socket in the style of TCP: the standard library's TCP types work on one of SCTP, too.
fn stream_socket(protocol: SockProtocol, address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, protocol)?)
}

fn sctp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = stream_socket(SockProtocol::Sctp, &address)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(TcpListener::from(fd))
}

fn sctp_connect(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    connect_within(stream_socket(SockProtocol::Sctp, &address)?, address, limit)
}

/// Connects from a source port; 0 stands for one that no other socket of the namespace has. Left alone, the
/// kernel may give one port to connections to different addresses, and IPVS confuses two of them that one
/// real server has.
fn tcp_connect(source_port: u16, address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let fd = stream_socket(SockProtocol::Tcp, &address)?;
    setsockopt(&fd, sockopt::ReuseAddr, &(source_port != 0))?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(any(address, source_port)))?;
    connect_within(fd, address, limit)
}

fn connect_within(fd: OwnedFd, address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            let mut waiting = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
            let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
            if poll(&mut waiting, limit)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let code = getsockopt(&fd, sockopt::SocketError)?;
            if code != 0 {
                return Err(io::Error::from_raw_os_error(code));
            }
        }
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A port of any address of a family.
fn any(like: SocketAddr, port: u16) -> SocketAddr {
    if like.is_ipv4() { ([0; 4], port).into() } else { ([0; 8], port).into() }
}

/// A UDP socket that talks to one address and hears its ICMP errors.
fn udp_socket(address: SocketAddr, limit: Duration) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(address, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(limit))?;
    Ok(socket)
}

fn parse_answer(line: &str) -> Result<Answer, NoAnswer> {
    let parsed = line
        .trim_end()
        .split_once(' ')
        .and_then(|(name, source)| Some(Answer { name: name.to_owned(), seen_source: source.parse().ok()? }));
    parsed.ok_or_else(|| NoAnswer::Failed(io::Error::other(format!("not a backend's answer: {line:?}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_name_and_source() {
        let answer = parse_answer("web 10.244.1.5\n").unwrap();
        assert_eq!(answer, Answer { name: "web".into(), seen_source: "10.244.1.5".parse().unwrap() });
        assert!(matches!(parse_answer("SSH-2.0-x"), Err(NoAnswer::Failed(_))));
    }

    #[test]
    fn tcp_and_udp_are_answered_without_a_namespace() {
        let limit = Duration::from_secs(5);
        let backend = Backend::here("self").tcp(0).unwrap().udp(0).unwrap();
        let ports = backend.ports();
        let (tcp, udp) = (ports[0], ports[1]);
        let answer = Connection::open_here(([127, 0, 0, 1], tcp).into(), limit).unwrap().ask().unwrap();
        assert_eq!(answer.name, "self");
        assert_eq!(answer.seen_source, IpAddr::from([127, 0, 0, 1]));
        let flow = UdpFlow::open_here(([127, 0, 0, 1], udp).into(), limit).unwrap();
        assert_eq!(flow.ask().unwrap().name, "self");
        drop(backend);
        assert!(matches!(Connection::open_here(([127, 0, 0, 1], tcp).into(), limit), Err(NoAnswer::Refused)));
        assert!(matches!(flow.ask(), Err(NoAnswer::Refused)));
    }
}
