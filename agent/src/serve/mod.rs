// SPDX-License-Identifier: Apache-2.0
//! What the agent answers over HTTP: `/metrics`.

pub mod health;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// Pause before a listener is tried again, as in kube-proxy.
const RETRY: Duration = Duration::from_secs(5);
/// A client that sends no request for so long is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `/metrics` at `address` for ever. A port that is taken is tried again and again.
pub async fn metrics(address: SocketAddr, metrics: Metrics) {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                told = false;
                accept(&listener, &metrics).await;
            }
            Err(error) if told => tracing::debug!("still no metrics at {address}: {error}"),
            Err(error) => {
                told = true;
                tracing::error!(
                    "cannot serve metrics at {address}: {error}; free the port or set metricsBindAddress; trying \
                     again"
                );
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn accept(listener: &TcpListener, metrics: &Metrics) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("metrics: {error}");
                return;
            }
        };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| std::future::ready(answer(&request, &metrics)));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                tracing::debug!("metrics: {error}");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Result<Response<String>, Infallible> {
    let (status, kind, body) = match request.uri().path() {
        "/metrics" => match metrics.render() {
            Ok(text) => (StatusCode::OK, crate::metrics::CONTENT_TYPE, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
        },
        _ => (StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}
