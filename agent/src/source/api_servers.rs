// SPDX-License-Identifier: Apache-2.0
//! The addresses of the API server that the agent connects to, and of the proxy to it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::timing::{RetryPauses, Timing};
use crate::store::Store;
use crate::words;

/// Timeout of the resolver for one name.
const LOOKUP: Duration = Duration::from_secs(5);
/// The interval at which names are resolved again.
const PERIOD: Duration = Duration::from_secs(60);

/// Keeps the addresses of these hosts in the store up to date.
pub(super) async fn follow(hosts: Vec<(String, u16)>, store: Arc<Store>, timing: Timing) {
    let mut pauses = RetryPauses::new(timing);
    let mut known: Arc<[SocketAddr]> = Arc::default();
    loop {
        let (found, all) = resolve(&hosts, known).await;
        known = found;
        store.update(|update| update.set_api_servers(known.clone()));
        let pause = if all { pauses.about(PERIOD) } else { pauses.next(Instant::now(), Duration::ZERO) };
        if all && hosts.iter().all(|(host, _)| host.parse::<IpAddr>().is_ok()) {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Returns all addresses of these hosts, sorted, and whether every name was resolved. The addresses known before stay
/// while a name cannot be resolved.
async fn resolve(hosts: &[(String, u16)], before: Arc<[SocketAddr]>) -> (Arc<[SocketAddr]>, bool) {
    let (mut found, mut all) = (BTreeSet::new(), true);
    for (host, port) in hosts {
        let at = |address: IpAddr| SocketAddr::new(address.to_canonical(), *port);
        if let Ok(address) = host.parse() {
            found.insert(at(address));
            continue;
        }
        let lookup = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host.as_str(), *port))).await;
        match lookup.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(addresses) => found.extend(addresses.map(|address| at(address.ip()))),
            Err(error) => {
                tracing::debug!("cannot resolve {host}: {}", words::io_error(&error));
                found.extend(before.iter());
                all = false;
            }
        }
    }
    (found.into_iter().collect(), all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_keeps_its_addresses() {
        let at = |host: u8| SocketAddr::from(([10, 0, 0, host], 6443));
        let hosts = [("10.0.0.1".to_owned(), 6443), ("nobody.invalid".to_owned(), 6443)];
        let (found, all) = resolve(&hosts, Arc::from([at(9)])).await;
        assert_eq!(*found, [at(1), at(9)]);
        assert!(!all);
    }
}
