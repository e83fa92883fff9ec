// SPDX-License-Identifier: Apache-2.0
//! A layer of the HTTP client that sees every answer of the API server: it reports requests to the monitor and
//! keeps the pause that the server requested.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::header::RETRY_AFTER;
use hyper::{Request, Response, StatusCode};
use tower::{Layer, Service};

use super::monitor::Monitor;
use crate::lock::lock;

/// The pause that the server requested last (`Retry-After`).
#[derive(Clone, Debug, Default)]
pub struct RetryAfter(Arc<Mutex<Option<Instant>>>);

impl RetryAfter {
    fn note<B>(&self, response: &Response<B>) {
        if response.status() != StatusCode::TOO_MANY_REQUESTS && !response.status().is_server_error() {
            return;
        }
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(seconds) = seconds {
            *lock(&self.0) = Instant::now().checked_add(Duration::from_secs(seconds));
        }
    }

    /// The rest of the pause.
    pub fn left(&self, now: Instant) -> Duration {
        lock(&self.0).map(|until| until.saturating_duration_since(now)).unwrap_or_default()
    }
}

#[derive(Clone)]
pub(super) struct RequestLayer {
    pub monitor: Arc<dyn Monitor>,
    pub host: Arc<str>,
    pub retry_after: RetryAfter,
}

impl<S> Layer<S> for RequestLayer {
    type Service = Monitored<S>;

    fn layer(&self, inner: S) -> Monitored<S> {
        Monitored { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
pub(super) struct Monitored<S> {
    inner: S,
    layer: RequestLayer,
}

impl<S, Q, A> Service<Request<Q>> for Monitored<S>
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
        let (method, start, layer) = (request.method().clone(), Instant::now(), self.layer.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(Response::status);
            layer.monitor.request_done(&layer.host, &method, code, start.elapsed());
            if let Ok(answer) = &answer {
                layer.retry_after.note(answer);
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

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
                Ok(code) => {
                    Ok(Response::builder().status::<u16>(code).header(RETRY_AFTER, "60").body(()).unwrap())
                }
                Err(_) => Err("unreachable".to_owned()),
            };
            Box::pin(std::future::ready(answer))
        }
    }

    #[tokio::test]
    async fn requests_are_counted_by_code_method_and_host() {
        let metrics = Metrics::new().unwrap();
        let layer = RequestLayer {
            monitor: Arc::new(metrics.clone()),
            host: "10.0.0.1:6443".into(),
            retry_after: RetryAfter::default(),
        };
        let mut client = layer.layer(Server);
        let left = || layer.retry_after.left(Instant::now());
        for (method, path) in [("GET", "/200"), ("GET", "/200"), ("PATCH", "/403"), ("GET", "/away")] {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            let answer = client.call(request).await;
            assert_eq!(answer.is_err(), path == "/away");
        }
        assert_eq!(left(), Duration::ZERO);
        client.call(Request::builder().method("PUT").uri("/429").body(()).unwrap()).await.unwrap();
        assert!(left() > Duration::from_secs(50));
        let text = metrics.render().unwrap();
        for line in [
            r#"rest_client_requests_total{code="200",host="10.0.0.1:6443",method="GET"} 2"#,
            r#"rest_client_requests_total{code="403",host="10.0.0.1:6443",method="PATCH"} 1"#,
            r#"rest_client_requests_total{code="<error>",host="10.0.0.1:6443",method="GET"} 1"#,
            r#"rest_client_request_duration_seconds_count{host="10.0.0.1:6443",verb="GET"} 3"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    }
}
