// SPDX-License-Identifier: Apache-2.0
//! Sockets of programs on this node, by sock_diag(7): listening ports, and the user of a connection.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netlink_batch::{Errno, Error, Packet, Socket, protocols};
use netlink_packet_core::Parseable;
use netlink_packet_sock_diag::SOCK_DIAG_BY_FAMILY;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};

use crate::core::mirror::OpenPort;
use crate::core::model::Protocol;

const TIMEOUT: Duration = Duration::from_secs(2);
/// Matches a socket with any cookie.
const NO_COOKIE: [u8; 8] = [0xff; 8];

fn open() -> Result<Socket, Error> {
    let mut socket = Socket::open(protocols::NETLINK_SOCK_DIAG)?;
    socket.set_timeout(TIMEOUT)?;
    Ok(socket)
}

fn parse(payload: &[u8]) -> Result<InetResponse, Error> {
    InetResponse::parse(payload).map_err(|_| Error::Malformed("a sock_diag message has an unknown format"))
}

/// The TCP and UDP ports on which programs listen; sorted, each once. An IPv6 socket that also accepts IPv4 is
/// listed for both.
///
/// # Errors
/// When the kernel has no `sock_diag`, or does not answer.
pub fn listeners() -> Result<Vec<OpenPort>, Error> {
    let mut socket = open()?;
    let mut ports: Vec<OpenPort> = Vec::new();
    for (number, protocol, states) in [
        (IPPROTO_TCP, Protocol::Tcp, StateFlags::LISTEN),
        // A UDP socket without a peer.
        (IPPROTO_UDP, Protocol::Udp, StateFlags::CLOSE),
    ] {
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let extensions = ExtensionFlags::empty();
            let request =
                InetRequest { family, protocol: number, extensions, states: states.clone(), socket_id };
            let request = Packet::new(SOCK_DIAG_BY_FAMILY, request);
            ports.extend(socket.dump(&request, |found, payload| {
                add(found, protocol, &parse(payload)?);
                Ok::<(), Error>(())
            })?);
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

/// The user of the TCP socket of this network namespace that is connected from `local` to `remote`; `None`: there is
/// no such socket, so the client is on another host or in another namespace.
///
/// # Errors
/// When the kernel has no `sock_diag`, or does not answer.
pub fn owner(local: SocketAddr, remote: SocketAddr) -> Result<Option<u32>, Error> {
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
    match open()?.ask(&Packet::new(SOCK_DIAG_BY_FAMILY, request))? {
        // Without such a connection the kernel may return a listener.
        Ok(answer) => Ok(Some(parse(&answer)?).filter(|a| is_from(a, local, remote)).map(|a| a.header.uid)),
        Err(refusal) if refusal.errno() == Errno::ENOENT => Ok(None),
        Err(refusal) => Err(refusal.into()),
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
    fn listeners_are_found_and_connected_sockets_are_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let both = TcpListener::bind("[::]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let found = listeners().unwrap();
        let has = |protocol, addr: &str, port| {
            found.contains(&OpenPort { protocol, port, addr: addr.parse().unwrap() })
        };
        let port = |address: std::io::Result<SocketAddr>| address.unwrap().port();
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
    fn the_owner_of_a_connection_is_the_user_who_opened_it() {
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
