// SPDX-License-Identifier: Apache-2.0
//! Small HTTP servers: one listener, one function that answers.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::connections::{Connections, Slot, TrackedWriter};

/// A connection without a complete request header is closed after this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A body that takes longer counts as empty.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Every connection is closed after this time: a new one is cheap.
const LIFETIME: Duration = Duration::from_secs(120);
/// Pause after a failed accept, usually for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: u32 = 128;
/// Bytes; no request needs more.
const MAX_BODY: usize = 1024;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The client's.
    pub peer: SocketAddr,
    /// Ours.
    pub local: SocketAddr,
}

/// Answers a request. The body is empty when it was larger than `MAX_BODY` or too slow.
pub type Handler = Arc<dyn Fn(&Request<String>, Ends) -> Response<String> + Send + Sync>;

/// An answer of plain text.
pub fn text(code: u16, body: impl Into<String>) -> Response<String> {
    response(code, "text/plain; charset=utf-8", body.into())
}

/// An answer of JSON, with the content type of kube-proxy's health endpoints.
pub fn json(code: u16, body: String) -> Response<String> {
    response(code, "application/json", body)
}

fn response(code: u16, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // As Go's servers.
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Opens a listener. `0.0.0.0` means all addresses of both families, as in Go; without IPv6, those of IPv4. `only`:
/// exactly the family of the address.
///
/// # Errors
/// When the port is taken.
pub fn listen(address: SocketAddr, only: bool) -> io::Result<TcpListener> {
    let any_v4 = matches!(address.ip(), IpAddr::V4(ip) if ip.is_unspecified());
    if any_v4 && !only {
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        match open(both, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(_) => {}
            done => return done,
        }
    }
    open(address, only)
}

fn open(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &only_v6)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether two listeners at these addresses exclude each other: same port, and the same address or one that means
/// all addresses.
pub fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let all = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (all || one.ip().to_canonical() == other.ip().to_canonical())
}

/// Answers on a listener until dropped. Accepts every connection; with too many, closes an idle one.
pub async fn serve(listener: TcpListener, handler: Handler, connections: Connections) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, peer)) => (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
            Err(error) => {
                tracing::debug!("accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(local) = stream.local_addr() else { continue };
        let ends = Ends { peer, local: SocketAddr::new(local.ip().to_canonical(), local.port()) };
        let slot = connections.take(peer.ip(), ends.local.ip());
        tokio::spawn(talk_in(slot, stream, ends, handler.clone()));
    }
}

/// Answers the requests of one connection as long as it has its slot.
async fn talk_in(mut slot: Slot, mut stream: TcpStream, ends: Ends, handler: Handler) {
    let (reader, writer) = stream.split();
    let usage = slot.usage.clone();
    let stream = tokio::io::join(reader, TrackedWriter { writer, usage: usage.clone() });
    let handler: Handler = Arc::new(move |request, ends| {
        usage.set_answering(true);
        handler(request, ends)
    });
    tokio::select! {
        () = talk(stream, ends, handler) => {}
        _ = &mut slot.revoked => {}
    }
}

/// Answers the requests of one connection.
pub(crate) async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, ends: Ends, handler: Handler) {
    let answer = service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(answer(request, ends, &handler).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), answer);
    if let Ok(Err(error)) = tokio::time::timeout(LIFETIME, connection).await {
        tracing::debug!("HTTP: {error}");
    }
}

async fn answer(request: Request<Incoming>, ends: Ends, handler: &Handler) -> Response<String> {
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    handler(&Request::from_parts(head, String::from_utf8_lossy(&body).into_owned()), ends)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    /// What a client reads that sends this and then waits, and how long the connection stays open.
    async fn talk_to(sent: &str) -> (String, Duration) {
        let (mut client, server) = tokio::io::duplex(65536);
        let here = SocketAddr::from(([127, 0, 0, 1], 10256));
        let handler: Handler = Arc::new(|request, _| text(200, format!("{} bytes", request.body().len())));
        let (start, end) =
            (Instant::now(), tokio::spawn(talk(server, Ends { peer: here, local: here }, handler)));
        client.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        end.await.unwrap();
        (answer, start.elapsed())
    }

    #[test]
    fn a_wildcard_address_collides_with_every_address_of_its_port() {
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "[::ffff:127.0.0.1]:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", true),
            ("127.0.0.1:80", "[::]:80", true),
            ("0.0.0.0:80", "[::]:80", true),
            ("0.0.0.0:80", "[::]:81", false),
            ("127.0.0.1:80", "[::1]:80", false),
        ] {
            let (a, b) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((collide(a, b), collide(b, a)), (expected, expected), "{one} and {other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_and_large_requests_end() {
        let request = "PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: ";
        let (answer, time) = talk_to("GET / HTTP/1.1\r\nHost:").await;
        assert!(!answer.contains("200") && time >= HEADER_TIMEOUT && time < LIFETIME, "{answer} {time:?}");
        let (answer, time) = talk_to(&format!("{request}100\r\n\r\nabc")).await;
        assert!(answer.ends_with("0 bytes") && time >= BODY_TIMEOUT && time < LIFETIME, "{answer} {time:?}");
        let (answer, time) = talk_to(&format!("{request}5000\r\n\r\n{}", "x".repeat(5000))).await;
        assert!(answer.ends_with("0 bytes") && time < BODY_TIMEOUT, "{answer} {time:?}");
        let (answer, _) = talk_to(&format!("{request}3\r\n\r\nabc")).await;
        assert!(answer.ends_with("3 bytes"), "{answer}");
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[tokio::test]
    async fn idle_connections_block_no_client_and_an_answer_is_completed() {
        // More than the kernel keeps for a connection whose other end does not read.
        const LARGE: usize = 32 << 20;
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), true).unwrap();
        let here = listener.local_addr().unwrap();
        let handler: Handler = Arc::new(|_, _| text(200, "x".repeat(LARGE)));
        tokio::spawn(serve(listener, handler, Connections::new(4, 4)));
        let connect = || tokio::net::TcpStream::connect(here);
        let mut slow = connect().await.unwrap();
        slow.write_all(REQUEST).await.unwrap();
        slow.readable().await.unwrap();
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(connect().await.unwrap());
        }
        // The first idle ones were closed, the last ones not.
        assert_eq!(idle[0].read(&mut [0]).await.unwrap_or(0), 0);
        let last = idle.last_mut().unwrap();
        last.write_all(REQUEST).await.unwrap();
        let mut start = [0; 12];
        last.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
        let mut length = 0;
        let mut buffer = vec![0; 1 << 20];
        while length < LARGE {
            let read = slow.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the answer ends after {length} bytes");
            length += read;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_connection_has_a_maximum_age() {
        let (mut client, server) = tokio::io::duplex(65536);
        let here = SocketAddr::from(([127, 0, 0, 1], 10256));
        let handler: Handler = Arc::new(|_, _| text(200, "ok"));
        let start = Instant::now();
        let end = tokio::spawn(talk(server, Ends { peer: here, local: here }, handler));
        let mut buffer = [0; 1024];
        while client.write_all(REQUEST).await.is_ok() {
            if client.read(&mut buffer).await.unwrap_or(0) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        end.await.unwrap();
        assert!(start.elapsed() >= LIFETIME && start.elapsed() < LIFETIME * 2, "{:?}", start.elapsed());
    }
}
