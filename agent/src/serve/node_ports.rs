// SPDX-License-Identifier: Apache-2.0
//! Health-check node ports: a load balancer queries them for the local endpoints of a Service.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::Response;
use hyper::header::HeaderValue;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connections::Connections;
use super::health::SharedHealth;
use super::http;
use crate::core::model::{Family, ObjectName, PerFamily};
use crate::core::service::fragment::HealthCheck;
use crate::events::{About, EventRequest, EventSink, Reason};
use crate::words;

/// Pause before a failed port is retried.
const RETRY: Duration = Duration::from_secs(30);

/// The answers of all health-check node ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// Every Service with a health-check node port.
    pub services: BTreeMap<ObjectName, HealthCheck>,
    /// The addresses to listen at; `None`: all addresses.
    pub addresses: PerFamily<Option<Vec<IpAddr>>>,
}

type PortKey = (ObjectName, Family, u16);
/// The addresses of each open port, and its tasks, which end when dropped.
type Listeners = BTreeMap<PortKey, (Option<Vec<IpAddr>>, JoinSet<()>)>;

/// The servers of one node.
pub struct NodePorts {
    /// The newest answers.
    pub wanted: watch::Receiver<HealthChecks>,
    pub health: SharedHealth,
    /// Gets an Event when a port cannot be opened.
    pub events: EventSink,
    pub node: String,
    /// The limit that all node ports share.
    pub connections: Connections,
}

impl NodePorts {
    /// Opens and closes listeners as `wanted` changes, until its sender is dropped.
    pub async fn run(mut self) {
        let mut listeners = Listeners::new();
        loop {
            let checks = self.wanted.borrow_and_update().clone();
            listeners.retain(|(name, family, port), (addresses, _)| {
                let check = checks.services.get(name);
                let same = check.is_some_and(|c| c.port == *port && c.local[family].is_some());
                same && *addresses == checks.addresses[family]
            });
            // An aborted task closes its socket when it is next polled.
            tokio::task::yield_now().await;
            let failed = self.open_missing(&checks, &mut listeners);
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if failed => {}
            }
        }
    }

    /// True when a listener could not be opened.
    fn open_missing(&self, checks: &HealthChecks, listeners: &mut Listeners) -> bool {
        let mut failed = false;
        for (name, check) in &checks.services {
            for family in Family::ALL.into_iter().filter(|f| check.local[f].is_some()) {
                let key = (name.clone(), family, check.port);
                if listeners.contains_key(&key) {
                    continue;
                }
                let addresses = checks.addresses[family].clone();
                match self.open(&key, addresses.as_deref()) {
                    Ok(tasks) => _ = listeners.insert(key, (addresses, tasks)),
                    Err(error) => {
                        failed = true;
                        let (node, port, why) = (&self.node, check.port, words::io_error(&error));
                        let message = format!(
                            "node {node} failed to start healthcheck \"{name}\" on port {port}: {why}"
                        );
                        let (about, reason) =
                            (About::Service(name.clone()), Reason::FailedToStartServiceHealthcheck);
                        self.events.send([EventRequest { about, reason, message }]);
                    }
                }
            }
        }
        failed
    }

    /// Listens at these addresses; `None`: all addresses.
    fn open(&self, key: &PortKey, addresses: Option<&[IpAddr]>) -> std::io::Result<JoinSet<()>> {
        let (name, family, port) = (&key.0, key.1, key.2);
        let everywhere = match family {
            Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let ips = addresses.unwrap_or(std::slice::from_ref(&everywhere));
        let mut tasks = JoinSet::new();
        for ip in ips {
            let socket = http::listen(SocketAddr::new(*ip, port), true)?;
            let (name, checks, health) = (name.clone(), self.wanted.clone(), self.health.clone());
            let answer = move |_: &_, _| {
                let check = checks.borrow().services.get(&name).copied();
                let local = check.and_then(|c| c.local[family]).unwrap_or(0);
                let lag = health.lag();
                let healthy = health.with(|h| h.is_family_healthy(family, SystemTime::now(), lag));
                build_answer(&name, local, healthy)
            };
            tasks.spawn(http::serve(socket, Arc::new(answer), self.connections.clone()));
        }
        Ok(tasks)
    }
}

/// As in kube-proxy: 200 with a local endpoint and a healthy proxy.
fn build_answer(name: &ObjectName, local: u32, healthy: bool) -> Response<String> {
    let service = json!({"namespace": &*name.namespace, "name": &*name.name});
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {local},\n\t\
         \"serviceProxyHealthy\": {healthy}\n}}",
        service["namespace"], service["name"]
    );
    let mut answer = http::json(if local > 0 && healthy { 200 } else { 503 }, body);
    answer.headers_mut().insert("x-load-balancing-endpoint-weight", HeaderValue::from(local));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::health::Health;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_answer_is_kube_proxys() {
        let name = ObjectName::new("shop", "web");
        let answer = build_answer(&name, 2, true);
        assert_eq!(answer.status(), 200);
        assert_eq!(
            *answer.body(),
            "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\
             \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
        assert_eq!(answer.headers()["x-load-balancing-endpoint-weight"], "2");
        assert_eq!(build_answer(&name, 0, true).status(), 503);
        assert_eq!(build_answer(&name, 2, false).status(), 503);
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// The answer of the port; empty without a listener.
    fn ask(port: u16) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
        let mut text = String::new();
        // A listener that closes in this moment resets the connection.
        let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ = asked.and_then(|()| stream.read_to_string(&mut text));
        text
    }

    async fn wait_for(what: impl Fn() -> bool) {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn listeners_follow_the_services() {
        let here = || PerFamily::new(Some(vec![Ipv4Addr::LOCALHOST.into()]), Some(Vec::new()));
        let checks = |port: u16, local: u32| HealthChecks {
            services: [(
                ObjectName::new("shop", "web"),
                HealthCheck { port, local: PerFamily::new(Some(local), Some(9)) },
            )]
            .into(),
            addresses: here(),
        };
        let health = SharedHealth::new(Health::new(&[Family::V4], Duration::from_secs(60)));
        let (sender, wanted) = watch::channel(HealthChecks::default());
        let events = EventSink::log_only();
        let servers = NodePorts {
            wanted,
            health: health.clone(),
            events,
            node: "n".to_owned(),
            connections: Connections::new(8, 8),
        };
        let running = tokio::spawn(servers.run());
        let (one, two) = (free_port(), free_port());
        sender.send_replace(checks(one, 1));
        wait_for(|| ask(one).starts_with("HTTP/1.1 200")).await;
        assert!(ask(one).contains("x-load-balancing-endpoint-weight: 1"));
        sender.send_replace(checks(one, 0));
        assert!(ask(one).starts_with("HTTP/1.1 503"), "the newest value counts at once");
        sender.send_replace(checks(two, 1));
        wait_for(|| ask(two).starts_with("HTTP/1.1 200")).await;
        wait_for(|| ask(one).is_empty()).await;
        health.with(|health| health.changed(SystemTime::UNIX_EPOCH));
        assert!(ask(two).contains("\"serviceProxyHealthy\": false"));
        drop(sender);
        running.await.unwrap();
        wait_for(|| ask(two).is_empty()).await;
    }
}
