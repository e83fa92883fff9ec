// SPDX-License-Identifier: Apache-2.0
//! Addresses of all Nodes and of the API server. No standing watch: a list is asked for while any Service has
//! an external or load-balancer IP, and the more seldom the larger the cluster is.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::ACCEPT;
use kube::Client;
use serde::Deserialize;

use super::client::ApiClient;
use super::pauses::Limits;
use super::trouble::Trouble;
use crate::core::address;
use crate::core::protected::Peers;
use crate::store::{Kind, Store, Vips};
use crate::words;

/// All nodes of a cluster together take so many bytes a second from the API server, at most.
const BYTES_PER_SECOND: f64 = 5e6;
/// The shortest time between two lists without a reason for one.
const PERIOD: Duration = Duration::from_secs(60);
/// Time between two looks whether a list is due; a new VIP is noticed at once.
const TICK: Duration = Duration::from_secs(1);
/// The same while the first list of Services is read.
const FIRST_TICK: Duration = Duration::from_millis(20);
/// Nothing is bound before the first list, for so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses as `kubectl get nodes -o wide` shows them: some 400 bytes of each Node. An API server that knows
/// no tables answers with whole objects.
const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1,application/json";
/// Whole objects, in pages: a table has one address of each type, and that is hardly ever the IPv6 one.
const OBJECTS: &str = "application/json";
const PAGE: usize = 500;

/// Tells the store the peers, for ever.
pub(super) struct PeerWatch {
    api: ApiClient,
    /// Who besides the API server's host is asked on the way to it.
    hosts: Vec<(String, u16)>,
    store: Arc<Store>,
    limits: Limits,
    chance: RandomState,
    nodes: Arc<[IpAddr]>,
    api_servers: Arc<[SocketAddr]>,
    /// The last list, if there was one.
    last: Option<Listed>,
    failing: bool,
}

/// A list of Nodes.
#[derive(Clone, Copy, Debug)]
struct Listed {
    at: Instant,
    /// Which VIPs there were then.
    vips: Vips,
    /// How long all nodes of the cluster must take for one list each.
    spread: Duration,
}

impl PeerWatch {
    pub fn new(api: ApiClient, store: Arc<Store>, limits: Limits) -> Self {
        let hosts = api.route.hosts();
        Self {
            api,
            hosts,
            store,
            limits,
            chance: RandomState::new(),
            nodes: Arc::default(),
            api_servers: Arc::default(),
            last: None,
            failing: false,
        }
    }

    pub async fn run(mut self) {
        let mut came = self.store.watch_vips();
        let mut next = Instant::now();
        let mut trying_since = None;
        loop {
            if self.store.waiting_for().contains(&Kind::Service) {
                tokio::time::sleep(FIRST_TICK).await;
                continue;
            }
            let vips = self.store.vips();
            let now = Instant::now();
            if !vips.any || (now < next && !self.is_early(vips, now)) {
                // A sender that is gone says nothing; the clock goes on.
                let _ = tokio::time::timeout(TICK, came.changed()).await;
                continue;
            }
            let since = *trying_since.get_or_insert(now);
            let pause = match self.ask(vips).await {
                Ok(()) => self.period(),
                Err(trouble) => {
                    self.report(&trouble);
                    if self.last.is_none() {
                        self.limits.min_pause
                    } else {
                        PERIOD.min(self.limits.max_pause)
                    }
                }
            };
            next = Instant::now() + pause;
            if self.last.is_some() || since.elapsed() >= PATIENCE.min(self.limits.stall) {
                self.tell();
            }
        }
    }

    fn tell(&self) {
        let peers = Peers { api_servers: self.api_servers.clone(), nodes: self.nodes.clone() };
        self.store.update(|update| update.set_peers(peers));
    }

    fn period(&self) -> Duration {
        let spread = self.last.map(|last| last.spread).unwrap_or_default();
        // The nodes do not come all at once.
        PERIOD.max(spread).mul_f64(0.75 + self.random() / 2.0)
    }

    /// Whether a VIP came after the last list, and this node's turn to look has come.
    fn is_early(&self, vips: Vips, now: Instant) -> bool {
        self.last.is_some_and(|last| {
            let turn = last.spread.mul_f64(self.random());
            last.vips != vips && now.duration_since(last.at) >= turn
        })
    }

    /// From 0 to 1, the same until the next list.
    fn random(&self) -> f64 {
        (self.chance.hash_one(self.last.map(|last| last.at)) % 1000) as f64 / 1000.0
    }

    fn report(&mut self, trouble: &Trouble) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                "cannot list the addresses of other Nodes: {}; external and load-balancer IPs are bound to \
                 kube-ipvs0 even if another Node has them",
                trouble.text()
            );
        }
    }

    async fn ask(&mut self, vips: Vips) -> Result<(), Trouble> {
        self.api_servers = resolve(&self.hosts, self.api_servers.clone()).await;
        let at = Instant::now();
        let accept = if vips.any_v6 { OBJECTS } else { TABLE };
        let answer = tokio::time::timeout(self.limits.stall, list(&self.api.client, accept)).await;
        let (addresses, nodes, bytes) = answer
            .map_err(|_| Trouble::stalled(self.limits.stall))?
            .map_err(|error| Trouble::of(&error, &self.api.route))?;
        let spread = Duration::from_secs_f64(nodes as f64 * bytes as f64 / BYTES_PER_SECOND);
        if std::mem::take(&mut self.failing) {
            tracing::info!("the addresses of {} are known again", words::count(nodes, "Node"));
        }
        self.last = Some(Listed { at, vips, spread });
        self.nodes = addresses.into_iter().collect();
        Ok(())
    }
}

/// All addresses of these hosts, sorted; those known before where a name cannot be resolved now.
async fn resolve(hosts: &[(String, u16)], before: Arc<[SocketAddr]>) -> Arc<[SocketAddr]> {
    let mut found = BTreeSet::new();
    for (host, port) in hosts {
        let at = |address: IpAddr| SocketAddr::new(address.to_canonical(), *port);
        if let Ok(address) = host.parse() {
            found.insert(at(address));
            continue;
        }
        match tokio::net::lookup_host((host.as_str(), *port)).await {
            Ok(addresses) => found.extend(addresses.map(|address| at(address.ip()))),
            Err(error) => {
                tracing::debug!("cannot resolve {host}: {}", words::io_error(&error));
                found.extend(before.iter());
            }
        }
    }
    found.into_iter().collect()
}

/// The answer to a list of Nodes: a table, or objects.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeList {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    column_definitions: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default, rename = "continue")]
    token: String,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

#[derive(Deserialize)]
struct Row {
    cells: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    addresses: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
}

impl NodeList {
    /// Every address; host names are passed over.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let columns: Vec<usize> = self
            .column_definitions
            .iter()
            .enumerate()
            .filter(|(_, column)| matches!(column.name.as_str(), "Internal-IP" | "External-IP"))
            .map(|(index, _)| index)
            .collect();
        let cells = self.rows.iter().flat_map(move |row| {
            columns.clone().into_iter().filter_map(|column| row.cells.get(column)?.as_str())
        });
        let of_items = self.items.iter().flat_map(|item| &item.status.addresses).map(|a| a.address.as_str());
        cells.chain(of_items).filter_map(address::parse_ip)
    }
}

/// The addresses of all Nodes, how many Nodes there are, and how many bytes it took to hear of them.
async fn list(client: &Client, accept: &str) -> kube::Result<(BTreeSet<IpAddr>, usize, usize)> {
    let (mut addresses, mut nodes, mut bytes) = (BTreeSet::new(), 0, 0);
    let mut token = String::new();
    loop {
        // Without a limit a list of any version comes from the server's cache and not from its store.
        let page = match (accept, token.as_str()) {
            (TABLE, _) => "resourceVersion=0&includeObject=None".to_owned(),
            (_, "") => format!("limit={PAGE}"),
            (_, token) => format!("limit={PAGE}&continue={}", escape(token)),
        };
        let request = hyper::Request::get(format!("/api/v1/nodes?{page}"))
            .header(ACCEPT, accept)
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        let text = client.request_text(request).await?;
        let answer: NodeList = serde_json::from_str(&text).map_err(kube::Error::SerdeError)?;
        bytes += text.len();
        nodes += answer.rows.len() + answer.items.len();
        addresses.extend(answer.addresses());
        token = answer.metadata.token;
        if token.is_empty() {
            return Ok((addresses, nodes, bytes));
        }
    }
}

/// A token of the server in a query: it is base64, of which three characters mean something there.
fn escape(token: &str) -> String {
    token.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<String> {
        let answer: NodeList = serde_json::from_str(text).unwrap();
        answer.addresses().map(|address| address.to_string()).collect()
    }

    #[test]
    fn a_table_and_objects_have_the_addresses() {
        let table = r#"{"kind":"Table","columnDefinitions":[{"name":"Name"},{"name":"Internal-IP"},{"name":"External-IP"}],
            "rows":[{"cells":["a","10.0.0.1","<none>"],"object":null},{"cells":["b","10.0.0.2","203.0.113.2"]},{"cells":[7]}]}"#;
        assert_eq!(addresses(table), ["10.0.0.1", "10.0.0.2", "203.0.113.2"]);
        let objects = r#"{"kind":"NodeList","items":[{"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"},
            {"type":"InternalIP","address":"fd00::1"},{"type":"Hostname","address":"a"}]}},{"metadata":{}}]}"#;
        assert_eq!(addresses(objects), ["10.0.0.1", "fd00::1"]);
        assert!(addresses("{}").is_empty());
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_keeps_its_addresses() {
        let at = |host: u8| SocketAddr::from(([10, 0, 0, host], 6443));
        let hosts = [("10.0.0.1".to_owned(), 6443), ("nobody.invalid".to_owned(), 6443)];
        let found = resolve(&hosts, Arc::from([at(9)])).await;
        assert_eq!(*found, [at(1), at(9)]);
    }
}
