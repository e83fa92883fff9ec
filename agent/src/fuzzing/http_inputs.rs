// SPDX-License-Identifier: Apache-2.0
//! Requests to the health and metrics servers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

use super::Target;
use crate::core::model::Family;
use crate::metrics::Metrics;
use crate::serve::health::{Health, SharedHealth};
use crate::serve::http::{Ends, Handler, talk};
use crate::serve::{health_handler, metrics_handler};

pub(super) const TARGETS: &[Target] = &[("http", http)];

/// The client is another host, so the kernel is not asked for its user.
const ENDS: Ends = {
    use std::net::{IpAddr, Ipv4Addr};
    let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 40000);
    Ends { peer, local: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 10256) }
};

/// Bytes in flight in one direction.
const PIPE: usize = 64 * 1024;

thread_local! {
    static SERVER: (Runtime, [Handler; 2]) =
        (Builder::new_current_thread().enable_time().build().unwrap(), handlers());
}

/// The handlers of both servers; the first byte of an input selects one.
fn handlers() -> [Handler; 2] {
    let health = SharedHealth::new(Health::new(&Family::ALL, Duration::from_secs(60)));
    let metrics = Metrics::new().unwrap();
    let verbosity = crate::log::start(crate::log::LogFormat::Text, 0);
    [health_handler(health, metrics.clone()), metrics_handler(metrics, "{}".to_owned(), verbosity)]
}

/// Every answer has a known status.
fn http(bytes: &[u8]) {
    let Some((which, request)) = bytes.split_first() else { return };
    let answers = SERVER.with(|(runtime, handlers)| {
        let handler = handlers[usize::from(which % 2)].clone();
        runtime.block_on(async {
            let (server, mut client) = tokio::io::duplex(PIPE);
            let mut answers = Vec::new();
            let client_side = async {
                let _ = client.write_all(request).await;
                let _ = client.shutdown().await;
                let _ = client.read_to_end(&mut answers).await;
            };
            tokio::join!(talk(server, ENDS, handler), client_side);
            answers
        })
    });
    if answers.is_empty() {
        return;
    }
    let head = String::from_utf8_lossy(&answers).into_owned();
    let code = head.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
    let known = [100, 200, 400, 403, 404, 405, 414, 431, 503];
    assert!(head.starts_with("HTTP/1.") && code.is_some_and(|code| known.contains(&code)), "{head}");
}
