// SPDX-License-Identifier: Apache-2.0
//! Requests to the API server, counted as client-go does.
//!
//! [`CountRequests`] is a layer for the client's stack:
//! `kube::client::ClientBuilder::try_from(config)?.with_layer(&layer).build()`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::{Method, Request, Response};
use prometheus::{HistogramVec, IntCounterVec, Registry};
use tower::{Layer, Service};

use super::{Metrics, register_counters, register_histogram};

/// The code of a request that got no answer, as in client-go.
const NO_ANSWER: &str = "<error>";

/// Servers are upgraded while agents run.
const VERSION_PERIOD: Duration = Duration::from_secs(3600);
const VERSION_RETRY: Duration = Duration::from_secs(60);

/// Tells the version of the API server, and asks again every hour.
pub async fn follow_version(client: kube::Client, metrics: Metrics) {
    loop {
        let pause = match client.apiserver_version().await {
            Ok(info) => {
                metrics.set_kubernetes(&info);
                VERSION_PERIOD
            }
            Err(error) => {
                tracing::debug!("the API server does not tell its version: {error}");
                VERSION_RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

#[derive(Debug)]
pub(super) struct Rest {
    requests: IntCounterVec,
    duration: HistogramVec,
}

impl Rest {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            requests: register_counters(
                registry,
                "rest_client_requests_total",
                "Requests to the API server by code, method and host; without an answer the code is <error>.",
                &["code", "method", "host"],
            )?,
            duration: register_histogram(
                registry,
                "rest_client_request_duration_seconds",
                "Time to the head of the API server's answer, by method and host.",
                &["verb", "host"],
                vec![0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0],
            )?,
        })
    }

    pub fn layer(&self, host: &str) -> CountRequests {
        let (requests, duration) = (self.requests.clone(), self.duration.clone());
        CountRequests { requests, duration, host: host.to_owned() }
    }
}

/// A layer that counts requests to one server.
#[derive(Clone, Debug)]
pub struct CountRequests {
    requests: IntCounterVec,
    duration: HistogramVec,
    host: String,
}

impl CountRequests {
    pub(super) fn count(&self, method: &'static str, code: &str, start: Instant) {
        self.requests.with_label_values(&[code, method, &self.host]).inc();
        let took = start.elapsed().as_secs_f64();
        self.duration.with_label_values(&[method, &self.host]).observe(took);
    }
}

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, counter: self.clone() }
    }
}

/// A client's stack whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    counter: CountRequests,
}

impl<S, Q, A> Service<Request<Q>> for Counted<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (method, start, counter) = (name(request.method()), Instant::now(), self.counter.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            match &answer {
                Ok(answer) => counter.count(method, answer.status().as_str(), start),
                Err(_) => counter.count(method, NO_ANSWER, start),
            }
            answer
        })
    }
}

/// Labels come from a closed set.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the code in the path, or not at all.
    struct Server;

    impl Service<Request<()>> for Server {
        type Response = Response<()>;
        type Error = String;
        type Future = Pin<Box<dyn Future<Output = Result<Response<()>, String>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), String>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            let answer = match request.uri().path()[1..].parse() {
                Ok(code) => Ok(Response::builder().status::<u16>(code).body(()).unwrap()),
                Err(_) => Err("unreachable".to_owned()),
            };
            Box::pin(std::future::ready(answer))
        }
    }

    #[tokio::test]
    async fn requests_are_counted_by_code_method_and_host() {
        let rest = Rest::new(&Registry::new()).unwrap();
        let mut client = rest.layer("10.0.0.1:6443").layer(Server);
        for (method, path) in [("GET", "/200"), ("GET", "/200"), ("PATCH", "/403"), ("GET", "/away")] {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            let answer = client.call(request).await;
            assert_eq!(answer.is_err(), path == "/away");
        }
        let count = |code, method| rest.requests.with_label_values(&[code, method, "10.0.0.1:6443"]).get();
        assert_eq!((count("200", "GET"), count("403", "PATCH"), count("<error>", "GET")), (2, 1, 1));
        let timed = rest.duration.with_label_values(&["GET", "10.0.0.1:6443"]).get_sample_count();
        assert_eq!(timed, 3);
    }
}
