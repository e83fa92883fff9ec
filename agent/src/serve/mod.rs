// SPDX-License-Identifier: Apache-2.0
//! What the agent answers over HTTP.

pub mod connections;
pub mod health;
pub mod http;
pub mod node_ports;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::Method;

use crate::events::{About, EventSink, Notice, Reason};
use crate::kernel::host::sockets;
use crate::log::Verbosity;
use crate::metrics::{self, Metrics};
use crate::words;
use connections::Connections;
use health::{Probe, SharedHealth};
use http::{Answer, Ask, Handler};

/// Pause before a listener is tried again, as in kube-proxy.
const RETRY: Duration = Duration::from_secs(5);
/// Connections of other hosts that one server has at once, and of one asker.
const CONNECTIONS: usize = 256;
const OF_ONE: usize = 32;
/// A text of metrics is good for so long: whoever may read them may not keep the agent busy with it.
const METRICS_AGE: Duration = Duration::from_millis(100);

/// How long the last Event gets before the process ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// A server of the agent.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The field of the configuration that says so.
    pub setting: &'static str,
    /// The Event when it cannot.
    pub reason: Reason,
    /// A port that is taken ends the process (`bindAddressHardFail`).
    pub hard_fail: bool,
}

impl Server {
    /// Serves for ever. A port that is taken is tried again and again.
    pub async fn run(self, events: EventSink, handler: Handler) {
        let Self { address, setting, .. } = self;
        let mut told = false;
        loop {
            let error = match http::listen(address, false) {
                Ok(listener) => {
                    return http::serve(listener, handler, Connections::new(CONNECTIONS, OF_ONE)).await;
                }
                Err(error) => error,
            };
            if !told {
                told = true;
                let why = words::io_error(&error);
                let message = format!(
                    "cannot listen at {address}: {why}; free the port (does kube-proxy still run on this node?) or \
                     set {setting}"
                );
                tracing::error!("{message}");
                if self.hard_fail {
                    events.send([Notice { about: About::Node, reason: self.reason, message }]);
                    tokio::time::sleep(FAREWELL).await;
                    tracing::error!("bindAddressHardFail is set: exiting");
                    std::process::exit(1);
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn not_found() -> Answer {
    Answer::text(404, "404 page not found\n")
}

/// `/healthz` and `/livez` as kube-proxy answers them, and `/readyz`, with a list of what is not programmed
/// for `?verbose`. See [`health`].
pub fn health_handler(health: SharedHealth, metrics: Metrics) -> Handler {
    Arc::new(move |ask: &Ask| {
        let (code, body) = match ask.path.as_str() {
            "/healthz" => health.answer(Probe::Healthz),
            "/livez" => health.answer(Probe::Livez),
            "/readyz" => return readyz(ask, &health),
            _ => return not_found(),
        };
        if ask.path == "/healthz" {
            metrics.answered_healthz(code)
        } else {
            metrics.answered_livez(code)
        }
        Answer::json(code, body)
    })
}

fn readyz(ask: &Ask, health: &SharedHealth) -> Answer {
    let verbose = ask.query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
    let (ready, text) = health.with(|health| (health.is_ready(), health.readiness()));
    match (ready, verbose) {
        (true, false) => Answer::text(200, "ok"),
        (true, true) => Answer::text(200, text),
        (false, _) => Answer::text(503, text),
    }
}

/// `/metrics`, `/proxyMode`, `/configz`, `/healthz`, and from this node `/debug/flags/v`.
pub fn metrics_handler(metrics: Metrics, configz: String, verbosity: Verbosity) -> Handler {
    let rendered = Rendered { metrics, last: Mutex::new(None) };
    Arc::new(move |ask: &Ask| match ask.path.as_str() {
        "/metrics" | "/proxyMode" | "/configz" | "/healthz" if !ask.reads() => {
            let mut answer = Answer::text(405, "only GET and HEAD\n");
            answer.headers.push(("allow", "GET, HEAD".to_owned()));
            answer
        }
        "/metrics" => rendered.answer(),
        "/proxyMode" => Answer::text(200, "ipvs"),
        "/configz" => Answer::json(200, configz.clone()),
        "/healthz" => Answer::text(200, "ok"),
        "/debug/flags/v" if ask.peer.ip().is_loopback() => set_verbosity(ask, &verbosity),
        "/debug/flags/v" => Answer::text(403, "only from this node: ask through 127.0.0.1\n"),
        _ => not_found(),
    })
}

/// The metrics, rendered at most ten times a second.
struct Rendered {
    metrics: Metrics,
    last: Mutex<Option<(Instant, Answer)>>,
}

impl Rendered {
    fn answer(&self) -> Answer {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, answer)) = &*last
            && at.elapsed() < METRICS_AGE
        {
            return answer.clone();
        }
        let answer = match self.metrics.render() {
            Ok(text) => Answer { kind: metrics::CONTENT_TYPE, ..Answer::text(200, text) },
            Err(error) => Answer::text(500, error.to_string()),
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

/// Whether root asks, or the user that the agent runs as.
fn may_change(ask: &Ask) -> Result<(), String> {
    let me = nix::unistd::geteuid().as_raw();
    match sockets::owner(ask.peer, ask.local) {
        Ok(Some(user)) if user == 0 || user == me => Ok(()),
        Ok(Some(user)) => Err(format!("user {user} may not change the level of the log: ask as root\n")),
        Ok(None) => Err("nobody of this node asks: ask as root from this node\n".to_owned()),
        Err(error) => Err(format!(
            "the kernel does not tell who asks ({}): load its module with `modprobe tcp_diag`\n",
            words::io_error(&error)
        )),
    }
}

/// `PUT` of root changes the level of the log, `GET` tells it.
fn set_verbosity(ask: &Ask, verbosity: &Verbosity) -> Answer {
    if ask.method == Method::GET {
        return Answer::text(200, format!("{}\n", verbosity.get()));
    }
    if let Err(why) = may_change(ask) {
        return Answer::text(403, why);
    }
    match ask.body.trim().parse::<u32>() {
        Ok(level) if ask.method == Method::PUT => {
            verbosity.set(level);
            tracing::info!(level, "the level of the log was changed");
            Answer::text(200, format!("successfully set the level to {level}\n"))
        }
        _ => Answer::text(400, "PUT a number, e.g. curl -X PUT -d 4 http://127.0.0.1:10249/debug/flags/v\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::Family;
    use health::Health;

    fn ask(method: Method, path: &str, body: &str, peer: [u8; 4]) -> Ask {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (path, query) = (path.to_owned(), query.to_owned());
        let (peer, local) = ((peer, 1).into(), (HERE, 1).into());
        Ask { method, path, query, body: body.to_owned(), peer, local }
    }

    const HERE: [u8; 4] = [127, 0, 0, 1];

    #[test]
    fn the_metrics_port_answers_kube_proxys_paths() {
        let verbosity = crate::log::start(crate::log::Format::Text, 0);
        let handler = metrics_handler(Metrics::new().unwrap(), "{}".to_owned(), verbosity.clone());
        let get = |path| handler(&ask(Method::GET, path, "", HERE));
        for (path, code, body) in [
            ("/proxyMode", 200, "ipvs"),
            ("/configz", 200, "{}"),
            ("/healthz", 200, "ok"),
            ("/livez", 404, "404"),
        ] {
            let answer = get(path);
            assert!(answer.code == code && answer.body.starts_with(body), "{path}: {answer:?}");
            assert!(answer.headers.contains(&("x-content-type-options", "nosniff".to_owned())), "{path}");
        }
        let shown = get("/metrics");
        assert!(shown.kind.starts_with("text/plain; version=0.0.4") && shown.body.contains("# TYPE "));
        let code = |method| handler(&ask(method, "/metrics", "", HERE)).code;
        assert_eq!((code(Method::HEAD), code(Method::POST), code(Method::DELETE)), (200, 405, 405));
        let put = |body, peer| handler(&ask(Method::PUT, "/debug/flags/v", body, peer)).code;
        assert_eq!((put("5", [192, 0, 2, 1]), put("5", HERE)), (403, 403), "nobody has these sockets");
        // A connection of this process, which is the agent's user.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = (client.local_addr().unwrap(), listener.local_addr().unwrap());
        let by_me = |method: Method, body: &str| {
            let (peer, local) = ends;
            handler(&Ask { peer, local, ..ask(method, "/debug/flags/v", body, HERE) }).code
        };
        assert_eq!((by_me(Method::PUT, "much"), by_me(Method::PUT, "5\n")), (400, 200));
        assert_eq!(by_me(Method::POST, "5"), 400);
    }

    #[test]
    fn metrics_are_rendered_a_few_times_a_second_however_often_they_are_asked_for() {
        let metrics = Metrics::new().unwrap();
        let rendered = Rendered { metrics: metrics.clone(), last: Mutex::default() };
        let (start, first) = (Instant::now(), rendered.answer().body);
        metrics.repaired(crate::core::plan::op::OpKind::Bind);
        let second = rendered.answer().body;
        assert!(second == first || start.elapsed() >= METRICS_AGE);
        std::thread::sleep(METRICS_AGE);
        assert_ne!(rendered.answer().body, first);
    }

    #[test]
    fn ready_is_after_the_first_sync() {
        let health = SharedHealth::new(Health::new(&[Family::V4], Duration::from_secs(60)));
        let metrics = Metrics::new().unwrap();
        let handler = health_handler(health.clone(), metrics.clone());
        let code = |path| handler(&ask(Method::GET, path, "", HERE)).code;
        assert_eq!((code("/readyz"), code("/livez"), code("/healthz"), code("/")), (503, 200, 503, 404));
        health.with(|h| h.tried(&[Family::V4], &[Family::V4], std::time::SystemTime::now()));
        health.with(|h| h.set_eligible(true));
        assert_eq!((code("/readyz"), code("/livez"), code("/healthz")), (200, 200, 200));
        let body = |path| handler(&ask(Method::GET, path, "", HERE)).body;
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
