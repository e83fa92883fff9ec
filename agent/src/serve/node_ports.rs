// SPDX-License-Identifier: Apache-2.0
//! Health-check node ports: load balancers ask them which nodes have local endpoints of a Service.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::health::Health;
use super::http::{self, Answer};
use crate::core::model::{Family, ObjectName};
use crate::events::{About, EventSink, Notice, Reason};

/// What one Service's health-check port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// Ready endpoints on this node of each family, by [`Family::index`]; `None`: not served there.
    pub local: [Option<u32>; 2],
}

/// Every Service that has a health-check port.
pub type HealthChecks = BTreeMap<ObjectName, HealthCheck>;

/// Which addresses listen, of each family, by [`Family::index`]. Empty: every address.
pub type Addresses = [Vec<IpAddr>; 2];

type Key = (ObjectName, Family);

struct Listener {
    port: u16,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Keeps the listeners as the newest value of `wanted` says, until its sender is gone.
pub async fn run(
    mut wanted: watch::Receiver<HealthChecks>,
    addresses: Addresses,
    health: Arc<Mutex<Health>>,
    events: EventSink,
    node: String,
) {
    let mut listeners: BTreeMap<Key, Listener> = BTreeMap::new();
    loop {
        let checks = wanted.borrow_and_update().clone();
        listeners.retain(|(name, family), listener| {
            checks.get(name).is_some_and(|c| c.port == listener.port && c.local[family.index()].is_some())
        });
        for (name, check) in &checks {
            for family in Family::ALL.into_iter().filter(|f| check.local[f.index()].is_some()) {
                let key = (name.clone(), family);
                if listeners.contains_key(&key) {
                    continue;
                }
                match open(name, family, check.port, &addresses, &wanted, &health) {
                    Ok(listener) => {
                        listeners.insert(key, listener);
                    }
                    Err(error) => events.send([refusal(&node, name, check.port, &error)]),
                }
            }
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

fn refusal(node: &str, name: &ObjectName, port: u16, error: &std::io::Error) -> Notice {
    Notice {
        about: About::Service(name.clone()),
        reason: Reason::FailedToStartServiceHealthcheck,
        message: format!("node {node} failed to start healthcheck \"{name}\" on port {port}: {error}"),
    }
}

fn open(
    name: &ObjectName,
    family: Family,
    port: u16,
    addresses: &Addresses,
    checks: &watch::Receiver<HealthChecks>,
    health: &Arc<Mutex<Health>>,
) -> std::io::Result<Listener> {
    let everywhere = match family {
        Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let own = &addresses[family.index()];
    let ips = if own.is_empty() { std::slice::from_ref(&everywhere) } else { own };
    let mut listener = Listener { port, tasks: Vec::new() };
    for ip in ips {
        let socket = http::listen(SocketAddr::new(*ip, port), true)?;
        let (name, checks, health) = (name.clone(), checks.clone(), health.clone());
        let answer = move |_: &_| {
            let local = checks.borrow().get(&name).and_then(|c| c.local[family.index()]).unwrap_or(0);
            let healthy = health.lock().unwrap_or_else(PoisonError::into_inner).is_healthy(SystemTime::now());
            build_answer(&name, local, healthy)
        };
        listener.tasks.push(tokio::spawn(http::serve(socket, Arc::new(answer))));
    }
    Ok(listener)
}

/// kube-proxy's answer: 200 where there is a local endpoint and the proxy works.
fn build_answer(name: &ObjectName, local: u32, healthy: bool) -> Answer {
    let service = json!({"namespace": &*name.namespace, "name": &*name.name});
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {local},\n\t\
         \"serviceProxyHealthy\": {healthy}\n}}",
        service["namespace"], service["name"]
    );
    let mut answer = Answer::json(if local > 0 && healthy { 200 } else { 503 }, body);
    answer.headers.push(("x-load-balancing-endpoint-weight", local.to_string()));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_kube_proxys() {
        let name = ObjectName::new("shop", "web");
        let answer = build_answer(&name, 2, true);
        assert_eq!(answer.code, 200);
        assert_eq!(
            answer.body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\
             \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
        assert!(answer.headers.contains(&("x-load-balancing-endpoint-weight", "2".to_owned())));
        assert_eq!(build_answer(&name, 0, true).code, 503);
        assert_eq!(build_answer(&name, 2, false).code, 503);
    }
}
