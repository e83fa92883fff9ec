// SPDX-License-Identifier: Apache-2.0
//! One check: a TCP connect.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time;

use super::state::Reply;
use crate::core::model::RsKey;

/// Connects from the network namespace of the process and closes at once.
///
/// # Errors
/// Those of the connect; `TimedOut` after `timeout`.
pub(super) async fn connect(key: RsKey, timeout: Duration) -> io::Result<()> {
    let address = SocketAddr::new(key.addr, key.port);
    let connected = time::timeout(timeout, TcpStream::connect(address)).await;
    let stream = connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))?;
    // On loopback, a connect to a closed port can get that port as its own, and then TCP connects it to itself.
    if stream.local_addr().is_ok_and(|own| own == address) {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    // Closed by a reset. A normal close leaves a socket for 60 s and a connection of conntrack for 120 s: at 500 checks
    // a second 30,000 and 60,000 of them. A linger time, as in kubelet, makes `close` block the thread. If the option
    // fails, the close is a normal one.
    let _ = stream.set_zero_linger();
    Ok(())
}

/// What the result of a connect says about the endpoint.
///
/// Only errors that the network or the endpoint causes count. All others are faults of the node, such as a lack of file
/// descriptors, ports or buffers, or a rule that forbids the connect: they would hit healthy endpoints.
/// - "Host unreachable" counts. Nobody answers ARP or neighbour discovery for the pod or for its node, or another node
///   says that the pod is gone. Dead pods and nodes look like this. If the node loses its own network, it
///   sees all others as dead; it could not send them traffic either, and one answer makes each alive.
/// - "Network unreachable" does not count. The node has no route, e.g. while its network plugin restarts, which says
///   nothing about the endpoint. The invalid argument (`EINVAL`) of a blackhole route is such a fault too.
pub(super) fn judge(result: &io::Result<()>) -> Reply {
    match result.as_ref().map_err(io::Error::kind) {
        Ok(()) => Reply::Answered,
        Err(
            ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable,
        ) => Reply::Failed,
        Err(_) => Reply::Fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_network_or_the_endpoint_causes_is_a_failure() {
        let of = |errno| judge(&Err(io::Error::from_raw_os_error(errno)));
        for errno in [libc::ECONNREFUSED, libc::ECONNRESET, libc::ETIMEDOUT, libc::EHOSTUNREACH] {
            assert_eq!(of(errno), Reply::Failed, "{errno}");
        }
        for errno in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EADDRNOTAVAIL,
            libc::EADDRINUSE,
            libc::EAFNOSUPPORT,
            libc::EACCES,
            libc::EPERM,
            libc::EINVAL,
            libc::EAGAIN,
            libc::ENETUNREACH,
            libc::ENETDOWN,
        ] {
            assert_eq!(of(errno), Reply::Fault, "{errno}");
        }
        assert_eq!(judge(&Ok(())), Reply::Answered);
    }
}
