// SPDX-License-Identifier: Apache-2.0
//! Sockets of programs on this node, by sock_diag(7): where they listen, and whose one is.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::core::mirror::OpenPort;
use crate::core::model::Protocol;

const RECV_BYTES: usize = 64 * 1024;
const RECV_TIMEOUT: Duration = Duration::from_secs(2);
/// Any socket with this identity.
const NO_COOKIE: [u8; 8] = [0xff; 8];

fn unreadable(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's answer cannot be read: {error}"))
}

/// Asks and reads all answers: to the end of a list, or one.
fn ask(request: InetRequest, list: bool) -> io::Result<Vec<InetResponse>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    let (seconds, micros) = (RECV_TIMEOUT.as_secs(), RECV_TIMEOUT.subsec_micros());
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds as i64, i64::from(micros)))?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | if list { NLM_F_DUMP } else { 0 };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    let mut buffer = Vec::with_capacity(RECV_BYTES);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        if read_answers(&buffer, list, &mut answers)? {
            return Ok(answers);
        }
    }
}

/// Adds the answers in a datagram; true when no more will come.
pub(in crate::kernel) fn read_answers(
    datagram: &[u8],
    list: bool,
    answers: &mut Vec<InetResponse>,
) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(unreadable)?;
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) => answers.push(*answer),
            NetlinkPayload::Error(error) => match error.code {
                Some(code) => return Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                None => return Ok(true),
            },
            _ => return Ok(true),
        }
        if !list {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where programs listen, over TCP and UDP; sorted, each once. An IPv6 socket that takes IPv4, too, counts for
/// both.
///
/// # Errors
/// When the kernel has no `sock_diag`, or does not answer.
pub fn listeners() -> io::Result<Vec<OpenPort>> {
    let mut ports = Vec::new();
    for (number, protocol, states) in [
        (IPPROTO_TCP, Protocol::Tcp, StateFlags::LISTEN),
        // A UDP socket without a peer.
        (IPPROTO_UDP, Protocol::Udp, StateFlags::CLOSE),
    ] {
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let extensions = ExtensionFlags::empty();
            let request =
                InetRequest { family, protocol: number, extensions, states: states.clone(), socket_id };
            for answer in ask(request, true)? {
                add(&mut ports, protocol, &answer);
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

pub(in crate::kernel) fn add(ports: &mut Vec<OpenPort>, protocol: Protocol, answer: &InetResponse) {
    let id = &answer.header.socket_id;
    let addr = id.source_address.to_canonical();
    ports.push(OpenPort { protocol, port: id.source_port, addr });
    let only_v6 = answer.nlas.iter().any(|nla| matches!(nla, Nla::SkV6Only(true)));
    if addr == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !only_v6 {
        ports.push(OpenPort { protocol, port: id.source_port, addr: IpAddr::from([0, 0, 0, 0]) });
    }
}

/// The user whose TCP socket of this network namespace goes from `local` to `remote`; `None`: there is none,
/// so it is on another host or in another namespace.
///
/// # Errors
/// When the kernel has no `sock_diag`, or does not answer.
pub fn owner(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let (source, destination) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let (family, id) =
        if source.is_ipv4() { (AF_INET, SocketId::new_v4()) } else { (AF_INET6, SocketId::new_v6()) };
    let socket_id = SocketId {
        source_port: local.port(),
        destination_port: remote.port(),
        source_address: source,
        destination_address: destination,
        cookie: NO_COOKIE,
        ..id
    };
    let states = StateFlags::all();
    let request =
        InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id };
    match ask(request, false) {
        // A listener may stand in for a connection that is not there.
        Ok(answers) => Ok(answers.first().filter(|a| is_from(a, local, remote)).map(|a| a.header.uid)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_from(answer: &InetResponse, local: SocketAddr, remote: SocketAddr) -> bool {
    let id = &answer.header.socket_id;
    let same = |addr: IpAddr, port: u16, wanted: SocketAddr| {
        addr.to_canonical() == wanted.ip().to_canonical() && port == wanted.port()
    };
    same(id.source_address, id.source_port, local)
        && same(id.destination_address, id.destination_port, remote)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn listeners_of_all_kinds_are_found_and_nobody_else() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let both = TcpListener::bind("[::]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let found = listeners().unwrap();
        let has = |protocol, addr: &str, port| {
            found.contains(&OpenPort { protocol, port, addr: addr.parse().unwrap() })
        };
        let port = |address: io::Result<SocketAddr>| address.unwrap().port();
        assert!(has(Protocol::Tcp, "127.0.0.1", port(tcp.local_addr())), "{found:?}");
        assert!(
            has(Protocol::Tcp, "::", port(both.local_addr()))
                && has(Protocol::Tcp, "0.0.0.0", port(both.local_addr()))
        );
        assert!(has(Protocol::Udp, "127.0.0.1", port(udp.local_addr())));
        assert!(!has(Protocol::Tcp, "127.0.0.1", port(connected.local_addr())));
        assert!(found.is_sorted());
    }

    #[test]
    fn a_refusal_is_its_errno_whatever_the_number() {
        for (code, errno) in [(-2, 2), (i32::MIN, i32::MAX)] {
            let mut datagram = [36u32, 2, 0, 0].map(u32::to_ne_bytes).concat();
            datagram.extend_from_slice(&i32::to_ne_bytes(code));
            datagram.resize(36, 0);
            let error = read_answers(&datagram, true, &mut Vec::new()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno));
        }
    }

    #[test]
    fn a_connection_has_the_user_who_made_it() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let to = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
            let client = TcpStream::connect(to).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let me = nix::unistd::geteuid().as_raw();
            assert_eq!(owner(peer, server.local_addr().unwrap()).unwrap(), Some(me));
            assert_eq!(owner(client.local_addr().unwrap(), to).unwrap(), Some(me));
            let nobody = SocketAddr::from(([127, 0, 0, 9], 9));
            assert_eq!(owner(nobody, to).unwrap(), None, "{address}");
        }
    }
}
