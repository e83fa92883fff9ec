// SPDX-License-Identifier: Apache-2.0
//! Requests to the API server, counted as client-go does, and its version.

use std::time::Duration;

use hyper::{Method, StatusCode};
use k8s_openapi::apimachinery::pkg::version::Info;
use prometheus::{HistogramVec, IntCounterVec};

use super::register::declare;

/// The code of a request without an answer, as in client-go.
const NO_ANSWER: &str = "<error>";

/// The buckets of client-go.
const SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// The version is read every hour, because servers are upgraded while agents run.
const VERSION_PERIOD: Duration = Duration::from_secs(3600);
const VERSION_RETRY: Duration = Duration::from_secs(60);

/// Reads the version of the API server again and again.
pub async fn follow_version(client: kube::Client, set: impl Fn(&Info)) {
    loop {
        let pause = match client.apiserver_version().await {
            Ok(info) => {
                set(&info);
                VERSION_PERIOD
            }
            Err(error) => {
                tracing::debug!("cannot read the version of the API server: {error}");
                VERSION_RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

declare! {
    pub(super) struct RequestMetrics {
        requests: IntCounterVec = "rest_client_requests_total" ["code", "method", "host"]
            => "Requests to the API server by code, method and host; without an answer the code is <error>.";
        duration: HistogramVec = "rest_client_request_duration_seconds" ["verb", "host"], SECONDS.to_vec()
            => "Time until the header of the API server's answer, by method and host.";
    }
}

impl RequestMetrics {
    pub fn count(&self, host: &str, method: &Method, code: Option<StatusCode>, time: Duration) {
        // Labels come from a closed set.
        let method = match method.as_str() {
            known @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE") => known,
            _ => "OTHER",
        };
        let code = code.as_ref().map_or(NO_ANSWER, StatusCode::as_str);
        self.requests.with_label_values(&[code, method, host]).inc();
        self.duration.with_label_values(&[method, host]).observe(time.as_secs_f64());
    }
}
