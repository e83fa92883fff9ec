// SPDX-License-Identifier: Apache-2.0
//! Small plain HTTP servers: one listener, one function that answers.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};

use super::connections::{Connections, Place, Watched};

/// A client that sends no request for so long is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A body that takes longer is none.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection ends after so long, whatever it is used for: a new one costs next to nothing.
const LIFETIME: Duration = Duration::from_secs(120);
/// Pause after a failed accept: out of descriptors, usually.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: u32 = 128;
/// No request has more to say.
const MAX_BODY: usize = 1024;

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Method.
    pub method: Method,
    /// Path without query.
    pub path: String,
    /// Query; empty where there is none.
    pub query: String,
    /// Body; empty when it is longer than any that is of use.
    pub body: String,
    /// Who asks.
    pub peer: SocketAddr,
    /// At which address.
    pub local: SocketAddr,
}

impl Ask {
    /// Whether the method is one that only asks.
    pub fn reads(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }
}

/// What a server does.
pub type Handler = Arc<dyn Fn(&Ask) -> Answer + Send + Sync>;

/// An answer: code, content type, further headers, body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status code.
    pub code: u16,
    /// Content type.
    pub kind: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: String,
}

/// The type of an answer is what it says, as in Go's servers.
fn nosniff() -> (&'static str, String) {
    ("x-content-type-options", "nosniff".to_owned())
}

impl Answer {
    /// Plain text.
    pub fn text(code: u16, body: impl Into<String>) -> Self {
        Self { code, kind: "text/plain; charset=utf-8", headers: vec![nosniff()], body: body.into() }
    }

    /// JSON as kube-proxy's health endpoints send it.
    pub fn json(code: u16, body: String) -> Self {
        Self { code, kind: "application/json", headers: vec![nosniff()], body }
    }

    fn into_response(self) -> Response<String> {
        let mut response = Response::new(self.body);
        *response.status_mut() = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        response
    }
}

/// Opens a listener. `0.0.0.0` stands for every address of both families, as in Go; where IPv6 is
/// absent, for IPv4. `only`: exactly the address's own family.
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

/// Whether of two listeners at these addresses only one can be: one port, and the same address or one that
/// stands for all of both families.
pub fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let all = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (all || one.ip().to_canonical() == other.ip().to_canonical())
}

/// Answers on a listener until dropped. Every connection is taken; where there are too many, an idle one is closed.
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
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        let place = connections.take(peer.ip(), local.ip());
        tokio::spawn(talk_in(place, stream, (peer, local), handler.clone()));
    }
}

/// Answers the requests of one connection as long as it has its place.
async fn talk_in(
    mut place: Place,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    ends: (SocketAddr, SocketAddr),
    handler: Handler,
) {
    let (stream, usage) = (Watched::new(stream, place.usage()), place.usage());
    let handler: Handler = Arc::new(move |ask: &Ask| {
        usage.answers();
        handler(ask)
    });
    tokio::select! {
        () = talk(stream, ends, handler) => {}
        () = place.lost() => {}
    }
}

/// Answers the requests of one connection.
pub(crate) async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    ends: (SocketAddr, SocketAddr),
    handler: Handler,
) {
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

async fn answer(
    request: Request<Incoming>,
    (peer, local): (SocketAddr, SocketAddr),
    handler: &Handler,
) -> Response<String> {
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    let body = String::from_utf8_lossy(&body).into_owned();
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
    let ask = Ask { method: head.method, path, query, body, peer, local };
    handler(&ask).into_response()
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
        let handler: Handler = Arc::new(|ask: &Ask| Answer::text(200, format!("{} bytes", ask.body.len())));
        let (start, end) = (Instant::now(), tokio::spawn(talk(server, (here, here), handler)));
        client.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        end.await.unwrap();
        (answer, start.elapsed())
    }

    #[test]
    fn an_address_that_stands_for_all_collides_with_every_one_of_its_port() {
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
    async fn idle_connections_keep_nobody_out_and_an_answer_is_completed() {
        // More than the kernel keeps for a connection whose other end does not read.
        const LARGE: usize = 32 << 20;
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), true).unwrap();
        let here = listener.local_addr().unwrap();
        let handler: Handler = Arc::new(|_: &Ask| Answer::text(200, "x".repeat(LARGE)));
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
    async fn no_connection_lives_for_ever() {
        let (mut client, server) = tokio::io::duplex(65536);
        let here = SocketAddr::from(([127, 0, 0, 1], 10256));
        let handler: Handler = Arc::new(|_: &Ask| Answer::text(200, "ok"));
        let start = Instant::now();
        let end = tokio::spawn(talk(server, (here, here), handler));
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
