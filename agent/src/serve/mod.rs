// SPDX-License-Identifier: Apache-2.0
//! The HTTP servers of the agent.

pub mod connections;
pub mod health;
pub mod http;
pub mod node_ports;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response};

use crate::events::{About, EventRequest, EventSink, Reason};
use crate::kernel::host::sockets;
use crate::lock::lock;
use crate::log::Verbosity;
use crate::metrics::{self, Metrics};
use crate::words;
use connections::Connections;
use health::{Probe, SharedHealth};
use http::{Ends, Handler, json, text};

/// Pause before a listener is tried again, as in kube-proxy.
const RETRY: Duration = Duration::from_secs(5);
/// The limit of connections of other hosts to one server, and of one client.
const CONNECTIONS: usize = 256;
const PER_CLIENT: usize = 32;
/// The time that a rendered text of metrics is reused, so that frequent scrapes cannot keep the agent busy.
const METRICS_AGE: Duration = Duration::from_millis(100);

/// The time for the last Event before the process exits.
const EXIT_DELAY: Duration = Duration::from_secs(1);

/// A server of the agent.
#[derive(Clone, Debug)]
pub struct HttpServer {
    pub address: SocketAddr,
    /// The configuration field of the address.
    pub setting: &'static str,
    /// The reason of the Event when listening fails.
    pub reason: Reason,
    /// Exit when listening fails (`bindAddressHardFail`).
    pub hard_fail: bool,
}

impl HttpServer {
    /// Serves until dropped. Retries while the port is in use.
    pub async fn run(self, events: EventSink, handler: Handler) {
        let Self { address, setting, .. } = self;
        let mut reported = false;
        loop {
            let error = match http::listen(address, false) {
                Ok(listener) => {
                    return http::serve(listener, handler, Connections::new(CONNECTIONS, PER_CLIENT)).await;
                }
                Err(error) => error,
            };
            if !reported {
                reported = true;
                let why = words::io_error(&error);
                let message = format!(
                    "cannot listen at {address}: {why}; free the port (does kube-proxy still run on this node?) or \
                     set {setting}"
                );
                tracing::error!("{message}");
                if self.hard_fail {
                    events.send([EventRequest { about: About::Node, reason: self.reason, message }]);
                    tokio::time::sleep(EXIT_DELAY).await;
                    tracing::error!("bindAddressHardFail is set: exiting");
                    std::process::exit(1);
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn not_found() -> Response<String> {
    text(404, "404 page not found\n")
}

/// `/healthz` and `/livez` as in kube-proxy, and `/readyz`; `?verbose` lists unprogrammed objects. See [`health`].
pub fn health_handler(health: SharedHealth, metrics: Metrics) -> Handler {
    Arc::new(move |request, _| {
        let (probe, answers) = match request.uri().path() {
            "/healthz" => (Probe::Healthz, &metrics.proxy.healthz),
            "/livez" => (Probe::Livez, &metrics.proxy.livez),
            "/readyz" => return readyz(request, &health),
            _ => return not_found(),
        };
        let (code, body) = health.answer(probe);
        answers.with_label_values(&[code.to_string()]).inc();
        json(code, body)
    })
}

fn readyz(request: &Request<String>, health: &SharedHealth) -> Response<String> {
    let query = request.uri().query().unwrap_or_default();
    let verbose = query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
    let (ready, checks) = health.with(|health| (health.is_ready(), health.readiness()));
    match (ready, verbose) {
        (true, false) => text(200, "ok"),
        (true, true) => text(200, checks),
        (false, _) => text(503, checks),
    }
}

/// `/metrics`, `/proxyMode`, `/configz`, `/healthz`, and from this node `/debug/flags/v`.
pub fn metrics_handler(metrics: Metrics, configz: String, verbosity: Verbosity) -> Handler {
    let rendered = Rendered { metrics, last: Mutex::new(None) };
    Arc::new(move |request, ends| match request.uri().path() {
        "/metrics" | "/proxyMode" | "/configz" | "/healthz"
            if ![Method::GET, Method::HEAD].contains(request.method()) =>
        {
            let mut answer = text(405, "only GET and HEAD\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            answer
        }
        "/metrics" => rendered.answer(),
        "/proxyMode" => text(200, "ipvs"),
        "/configz" => json(200, configz.clone()),
        "/healthz" => text(200, "ok"),
        "/debug/flags/v" if ends.peer.ip().is_loopback() => answer_verbosity(request, ends, &verbosity),
        "/debug/flags/v" => text(403, "only from this node: use 127.0.0.1\n"),
        _ => not_found(),
    })
}

/// The metrics, rendered at most ten times a second.
struct Rendered {
    metrics: Metrics,
    last: Mutex<Option<(Instant, Response<String>)>>,
}

impl Rendered {
    fn answer(&self) -> Response<String> {
        let mut last = lock(&self.last);
        if let Some((at, answer)) = &*last
            && at.elapsed() < METRICS_AGE
        {
            return answer.clone();
        }
        let answer = match self.metrics.render() {
            Ok(metrics) => {
                let mut answer = text(200, metrics);
                let content_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
                answer.headers_mut().insert(CONTENT_TYPE, content_type);
                answer
            }
            Err(error) => text(500, error.to_string()),
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

/// Whether the client is root, or the user that the agent runs as.
fn may_change(ends: Ends) -> Result<(), String> {
    let me = nix::unistd::geteuid().as_raw();
    match sockets::owner(ends.peer, ends.local) {
        Ok(Some(user)) if user == 0 || user == me => Ok(()),
        Ok(Some(user)) => Err(format!("user {user} may not change the log level: use root\n")),
        Ok(None) => Err("the client is not a process of this node: use root on this node\n".to_owned()),
        Err(error) => Err(format!(
            "cannot find the user of the client ({}): load the kernel module with `modprobe tcp_diag`\n",
            words::causes(&error)
        )),
    }
}

/// `GET` returns the log level, `PUT` by root changes it.
fn answer_verbosity(request: &Request<String>, ends: Ends, verbosity: &Verbosity) -> Response<String> {
    if request.method() == Method::GET {
        return text(200, format!("{}\n", verbosity.get()));
    }
    if let Err(why) = may_change(ends) {
        return text(403, why);
    }
    match request.body().trim().parse::<u32>() {
        Ok(level) if request.method() == Method::PUT => {
            verbosity.set(level);
            tracing::info!(level, "the log level was changed to {level}");
            text(200, format!("successfully set the level to {level}\n"))
        }
        _ => text(400, "PUT a number, for example: curl -X PUT -d 4 http://127.0.0.1:10249/debug/flags/v\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::Family;
    use health::Health;

    fn request(method: Method, path: &str, body: &str) -> Request<String> {
        Request::builder().method(method).uri(path).body(body.to_owned()).unwrap()
    }

    fn ends(peer: [u8; 4]) -> Ends {
        Ends { peer: (peer, 1).into(), local: (HERE, 1).into() }
    }

    const HERE: [u8; 4] = [127, 0, 0, 1];

    #[test]
    fn the_metrics_port_answers_kube_proxys_paths() {
        let verbosity = crate::log::start(crate::log::LogFormat::Text, 0);
        let handler = metrics_handler(Metrics::new().unwrap(), "{}".to_owned(), verbosity.clone());
        let get = |path| handler(&request(Method::GET, path, ""), ends(HERE));
        for (path, code, body) in [
            ("/proxyMode", 200, "ipvs"),
            ("/configz", 200, "{}"),
            ("/healthz", 200, "ok"),
            ("/livez", 404, "404"),
        ] {
            let answer = get(path);
            assert!(answer.status() == code && answer.body().starts_with(body), "{path}: {answer:?}");
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff", "{path}");
        }
        let shown = get("/metrics");
        assert_eq!(shown.headers()[CONTENT_TYPE], metrics::CONTENT_TYPE);
        assert!(shown.body().contains("# TYPE "));
        let code = |method| handler(&request(method, "/metrics", ""), ends(HERE)).status().as_u16();
        assert_eq!((code(Method::HEAD), code(Method::POST), code(Method::DELETE)), (200, 405, 405));
        let put =
            |body, peer| handler(&request(Method::PUT, "/debug/flags/v", body), ends(peer)).status().as_u16();
        assert_eq!((put("5", [192, 0, 2, 1]), put("5", HERE)), (403, 403), "no process has these sockets");
        // A connection of this process, which is the agent's user.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = Ends { peer: client.local_addr().unwrap(), local: listener.local_addr().unwrap() };
        let by_me = |method: Method, body: &str| {
            handler(&request(method, "/debug/flags/v", body), ends).status().as_u16()
        };
        assert_eq!((by_me(Method::PUT, "much"), by_me(Method::PUT, "5\n")), (400, 200));
        assert_eq!(by_me(Method::POST, "5"), 400);
    }

    #[test]
    fn frequent_scrapes_get_the_same_text() {
        let metrics = Metrics::new().unwrap();
        let rendered = Rendered { metrics: metrics.clone(), last: Mutex::default() };
        let (start, first) = (Instant::now(), rendered.answer().into_body());
        metrics.work.repaired(crate::core::plan::op::OpKind::Bind);
        let second = rendered.answer().into_body();
        assert!(second == first || start.elapsed() >= METRICS_AGE);
        std::thread::sleep(METRICS_AGE);
        assert_ne!(*rendered.answer().body(), first);
    }

    #[test]
    fn ready_is_after_the_first_sync() {
        let health = SharedHealth::new(Health::new(&[Family::V4], Duration::from_secs(60)));
        let metrics = Metrics::new().unwrap();
        let handler = health_handler(health.clone(), metrics.clone());
        let get = |path| handler(&request(Method::GET, path, ""), ends(HERE));
        let code = |path| get(path).status().as_u16();
        assert_eq!((code("/readyz"), code("/livez"), code("/healthz"), code("/")), (503, 200, 503, 404));
        health.with(|h| h.tried(&[Family::V4], &[Family::V4], std::time::SystemTime::now()));
        health.with(|h| h.eligible = true);
        assert_eq!((code("/readyz"), code("/livez"), code("/healthz")), (200, 200, 200));
        let body = |path| get(path).into_body();
        assert_eq!(body("/readyz"), "ok");
        assert!(body("/readyz?verbose").contains("[+]guard-IPv4 ok"));
        let text = metrics.render().unwrap();
        for line in
            ["healthz_total{code=\"200\"} 1", "healthz_total{code=\"503\"} 1", "livez_total{code=\"200\"} 2"]
        {
            assert!(text.contains(line), "{text}");
        }
    }
}
