// SPDX-License-Identifier: Apache-2.0
//! Every row of the tables in `docs/traffic.md`, measured with real connections over IPv4 and IPv6. The
//! document alone defines the expectations and the Services.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use integration::lab::traffic::{Answer, Backend, NoAnswer, ask_tcp};
use integration::lab::{Host, Lab, Netns, Node, Setup, agent_binary, at, bound};
use integration::objects::{Port, ServiceBuilder, slice};
use serde_json::{Value, json};

const DOCUMENT: &str = include_str!("../../docs/traffic.md");
/// Headings of the tables: where the client is.
const CLIENTS: [&str; 3] =
    ["A client in a pod of this node", "A client on this node itself", "A client outside"];
const FRONTENDS: [&str; 4] = ["ClusterIP", "NodePort", "external IP", "LB IP"];
/// An extra kind of row: the policy of the ClusterIP of a Service that has more than a ClusterIP.
const CLUSTER_IP_OF_NODE_PORT: &str = "ClusterIP (*)";
const POLICIES: [&str; 2] = ["Cluster", "Local"];
const ENDPOINTS: [&str; 4] = ["local", "remote", "both", "none"];
/// Limit for an expected answer: long, because the guest is slow.
const ANSWER: Duration = Duration::from_secs(15);
/// How long to wait if no answer is expected: includes the first retransmission after 1 s.
const SILENCE: Duration = Duration::from_millis(2500);
/// Parallel clients: they spend most of their time waiting for answers that do not come.
const ASKERS: usize = 8;

/// A row of the document with the text of its cells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    client: usize,
    /// Frontend, policy and endpoints: what the Service is like.
    service: [String; 3],
    /// The backends that answer, the source that they see, and whether a refusal is immediate.
    result: [String; 3],
}

fn rows(document: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut client = None;
    for line in document.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            client = CLIENTS.iter().position(|name| *name == heading);
        }
        let (Some(client), Some(line)) = (client, line.strip_prefix('|')) else { continue };
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells.len() < 6 || cells[0] == "to" || cells[0].starts_with('-') {
            continue;
        }
        let cell = |index: usize| cells[index].to_owned();
        rows.push(Row { client, service: [0, 1, 2].map(cell), result: [3, 4, 5].map(cell) });
    }
    rows
}

/// Every row of the matrix is in the document exactly once.
#[test]
fn the_document_has_every_row() {
    let rows = rows(DOCUMENT);
    for (client, heading) in CLIENTS.iter().enumerate() {
        for frontend in FRONTENDS {
            for policy in POLICIES {
                for endpoints in ENDPOINTS {
                    let service = [frontend, policy, endpoints].map(str::to_owned);
                    let found = rows.iter().filter(|row| row.client == client && row.service == service);
                    assert_eq!(found.count(), 1, "{heading}: {service:?}");
                }
            }
        }
    }
}

/// The Services of the document with the addresses to connect to.
struct Services {
    kinds: Vec<[String; 3]>,
}

impl Services {
    fn of(rows: &[Row]) -> Self {
        let kinds: BTreeSet<_> = rows.iter().map(|row| row.service.clone()).collect();
        Self { kinds: kinds.into_iter().collect() }
    }

    fn addresses(index: usize, frontend: &str) -> [String; 2] {
        let n = index + 1;
        match frontend {
            "external IP" => [format!("198.51.100.{n}"), format!("2001:db8:e::{n}")],
            "LB IP" => [format!("203.0.113.{n}"), format!("2001:db8:b::{n}")],
            _ => [format!("10.96.1.{n}"), format!("fd00:96::1:{n}")],
        }
    }

    fn node_port(index: usize) -> u16 {
        30001 + u16::try_from(index).unwrap()
    }

    /// The address to connect to for a row, of one family.
    fn target(&self, row: &Row, node: &Node, family: usize) -> SocketAddr {
        let index = self.kinds.iter().position(|kind| *kind == row.service).unwrap();
        if row.service[0] == "NodePort" {
            let node = [IpAddr::from(node.host.v4), IpAddr::from(node.host.v6)];
            return (node[family], Self::node_port(index)).into();
        }
        at(&Self::addresses(index, &row.service[0])[family], 80)
    }

    fn objects(&self) -> Vec<Value> {
        self.kinds.iter().enumerate().flat_map(|(index, kind)| Self::object(index, kind)).collect()
    }

    fn object(index: usize, [frontend, policy, endpoints]: &[String; 3]) -> Vec<Value> {
        const PORT: [Port<'_>; 1] = [("web", "TCP", 80)];
        const TARGET: [Port<'_>; 1] = [("web", "TCP", 8080)];
        let name = format!("svc-{index}");
        let cluster = Self::addresses(index, "ClusterIP");
        let service = ServiceBuilder::new(&name, &cluster.each_ref().map(String::as_str), &PORT);
        let own = Self::addresses(index, frontend);
        let own = own.each_ref().map(String::as_str);
        let service = match frontend.as_str() {
            "ClusterIP" => service.internal_policy(policy),
            CLUSTER_IP_OF_NODE_PORT => service.internal_policy(policy).node_ports(&[Self::node_port(index)]),
            "NodePort" => service.node_ports(&[Self::node_port(index)]).external_policy(policy),
            "external IP" => service.external_ips(&own).external_policy(policy),
            "LB IP" => service.load_balancer(&own).external_policy(policy),
            other => panic!("{other} is no frontend"),
        };
        let (near, far) =
            (["10.244.1.5@node-a", "fd00:244:1::5@node-a"], ["10.244.2.6@node-b", "fd00:244:2::6@node-b"]);
        let slices = [0, 1].map(|family| {
            let addresses: &[&str] = match endpoints.as_str() {
                "local" => &[near[family]],
                "remote" => &[far[family]],
                "both" => &[near[family], far[family]],
                "none" => &[],
                other => panic!("{other} is no set of endpoints"),
            };
            (!addresses.is_empty()).then(|| slice(&name, addresses, &TARGET))
        });
        std::iter::once(service.build()).chain(slices.into_iter().flatten()).collect()
    }

    /// The addresses that the agent must bind.
    fn vips(&self) -> Vec<String> {
        let of = |(index, kind): (usize, &[String; 3])| {
            [Self::addresses(index, "ClusterIP"), Self::addresses(index, &kind[0])].concat()
        };
        self.kinds.iter().enumerate().flat_map(of).collect()
    }
}

/// The source that a backend sees, in the terms of the document.
fn source(answer: &Answer, target: SocketAddr, node: &Node, client: &Host) -> &'static str {
    let pods_gateway = [IpAddr::from([10, 244, 1, 1]), "fd00:244:1::1".parse().unwrap()];
    let of_node = [IpAddr::from(node.host.v4), IpAddr::from(node.host.v6)];
    match answer.seen_source {
        seen if of_node.contains(&seen) || pods_gateway.contains(&seen) => "node",
        seen if seen == IpAddr::from(client.v4) || seen == IpAddr::from(client.v6) => "client",
        seen if seen == target.ip() => "VIP",
        seen => panic!("{target}: {} saw {seen}", answer.name),
    }
}

/// Connects often enough to reach every possible backend, and renders the results as the three cells.
fn measure(ns: &Netns, row: &Row, target: SocketAddr, seen: impl Fn(&Answer) -> &'static str) -> [String; 3] {
    let (mut who, mut sources, mut refused) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let silence = row.result[0] == "nobody" && row.result[2] == "no";
    let times = if silence { 1 } else { 4 };
    for _ in 0..times {
        match ask_tcp(ns, target, if silence { SILENCE } else { ANSWER }) {
            Ok(answer) => {
                sources.insert(seen(&answer).to_owned());
                who.insert(answer.name);
            }
            Err(error) => {
                who.insert("nobody".to_owned());
                refused.insert(match error {
                    NoAnswer::Refused | NoAnswer::Closed => "yes".to_owned(),
                    NoAnswer::Timeout => "no".to_owned(),
                    NoAnswer::Failed(error) => error.to_string(),
                });
                // One timeout is enough.
                break;
            }
        }
    }
    [who, sources, refused].map(|words| {
        let words: Vec<String> = words.into_iter().collect();
        if words.is_empty() { "-".to_owned() } else { words.join(" or ") }
    })
}

/// Measures all rows over both families, several at a time; returns those that the document has wrong.
fn wrong_rows(rows: &[Row], askers: usize, ask: impl Fn(&Row, usize) -> [String; 3] + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut wrong = Vec::new();
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            let Some(row) = rows.get(job / 2) else { return wrong };
            let (family, measured) = (job % 2, ask(row, job % 2));
            if measured != row.result {
                let (client, service) = (CLIENTS[row.client], row.service.join(" | "));
                let family = ["IPv4", "IPv6"][family];
                let (is, says) = (measured.join(" | "), row.result.join(" | "));
                wrong.push(format!(
                    "{client}, {family}: | {service} | is | {is} | but the document says | {says} |"
                ));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..askers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

#[test]
fn every_row_of_the_document_is_true() {
    measure_every_row(&json!({}), |_| true);
}

/// ClusterIPs are local by a route, and not bound.
#[test]
fn every_row_of_the_document_is_true_with_routes() {
    let routes = json!({"clusterIPs": "route", "serviceCIDRs": ["10.96.0.0/16", "fd00:96::/64"]});
    measure_every_row(&json!({"kubeIPVS": routes}), |vip| {
        !vip.starts_with("10.96.") && !vip.starts_with("fd00:96:")
    });
}

/// Runs an agent with `more` in its configuration. `is_bound`: whether a VIP must be on `kube-ipvs0`.
fn measure_every_row(more: &Value, is_bound: impl Fn(&str) -> bool) {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let outside = lab.client("outside").unwrap();
    for network in ["10.96.0.0/16", "198.51.100.0/24", "203.0.113.0/24", "fd00:96::/64", "2001:db8::/32"] {
        outside.route(network, &node.host).unwrap();
    }
    let (near, far, pod) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let _backends = [(&near, "local"), (&far, "remote")]
        .map(|(pod, name)| Backend::new(&pod.ns, name).tcp(8080).unwrap());

    let rows = rows(DOCUMENT);
    let services = Services::of(&rows);
    let setup = Setup::start(&node, more, services.objects()).unwrap();
    let vips = services.vips();
    let expected: Vec<&str> = vips.iter().map(String::as_str).filter(|vip| is_bound(vip)).collect();
    setup.wait_bound(&expected).unwrap();
    setup.wait("the first sync", || setup.agent.log().contains("ready: ")).unwrap();
    assert_eq!(bound(node.ns()).len(), expected.iter().collect::<BTreeSet<_>>().len());

    let clients = [&pod, &node.host, &outside];
    let wrong = wrong_rows(&rows, ASKERS, |row, family| {
        let (client, target) = (clients[row.client], services.target(row, &node, family));
        measure(&client.ns, row, target, |answer| source(answer, target, &node, client))
    });
    assert!(wrong.is_empty(), "{} rows differ:\n{}", wrong.len(), wrong.join("\n"));
    // Each question is a process.
    let wrong = wrong_rows(&rows, 2, |row, family| {
        let from = match row.client {
            1 => "node".to_owned(),
            client => {
                [IpAddr::from(clients[client].v4), IpAddr::from(clients[client].v6)][family].to_string()
            }
        };
        explained(node.ns(), services.target(row, &node, family), &from)
    });
    assert!(wrong.is_empty(), "{} rows are explained wrongly:\n{}", wrong.len(), wrong.join("\n"));
}

/// What `kube-ipvs explain` says about a row, as the three cells.
fn explained(ns: &Netns, target: SocketAddr, from: &str) -> [String; 3] {
    let binary = agent_binary().unwrap();
    let target = target.to_string();
    let command = [binary.to_str().unwrap(), "explain", &target, "--from", from, "-o", "json"];
    let output = ns.exec(&command).unwrap().stdout;
    let answer: Value = serde_json::from_str(&output).unwrap();
    let [frontend] = &answer["frontends"].as_array().unwrap()[..] else { panic!("{output}") };
    let [path] = &frontend["paths"].as_array().unwrap()[..] else { panic!("{output}") };
    let text = |field: &str| path[field].as_str().unwrap_or("-").to_owned();
    let refused = match path["refused"].as_bool() {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    };
    [text("answers"), text("sourceSeen"), refused.to_owned()]
}
