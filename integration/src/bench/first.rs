// SPDX-License-Identifier: Apache-2.0
//! The time until a client gets its first answers from a new node: the API server's Service and
//! the cluster's DNS must be programmed before all others.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::limit::clear;
use super::mode::Mode;
use super::node::Size;
use super::process::{Cluster, objects};
use crate::lab::traffic::{Backend, ask_tcp};
use crate::lab::{Lab, Netns};
use crate::objects::{placed, service, slice};

const API: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)), 443);
const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10)), 53);
/// Timeout of a request.
const TRY: Duration = Duration::from_millis(100);
/// Pause between two requests, which use time of the agent.
const PAUSE: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(120);

/// Time from the start of the process to the first answer.
#[derive(Clone, Copy, Debug)]
pub struct FirstAnswers {
    /// Of `default/kubernetes`.
    pub api: Duration,
    /// Of the cluster's DNS, over TCP.
    pub dns: Duration,
    /// Of the last Service in the API server's list, for comparison.
    pub last: Duration,
}

/// Starts the agent on a new node of a cluster of this size, and sends requests from a pod until all have answered.
///
/// # Errors
/// If one does not answer in two minutes.
pub fn measure(size: Size, mode: Mode) -> Result<FirstAnswers> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let (server, client) = (node.pod(5)?, node.pod(6)?);
    let _backend = Backend::new(&server.ns, "server").tcp(6443)?.tcp(5353)?.tcp(8080)?;
    let endpoint = server.v4.to_string();
    let mut all = objects(size);
    let dns = json!({"k8s-app": "kube-dns"});
    let last = SocketAddr::new([10, 97, 0, 1].into(), 80);
    all.extend([
        placed(service("kubernetes", &["10.96.0.1"], &[], &[("https", "TCP", 443)]), "default", json!({})),
        placed(slice("kubernetes", &[&endpoint], &[("https", "TCP", 6443)]), "default", json!({})),
        placed(
            service("kube-dns", &["10.96.0.10"], &[], &[("dns-tcp", "TCP", 53)]),
            "kube-system",
            dns.clone(),
        ),
        placed(slice("kube-dns", &[&endpoint], &[("dns-tcp", "TCP", 5353)]), "kube-system", dns),
        service("zz-last", &["10.97.0.1"], &[], &[("http", "TCP", 80)]),
        slice("zz-last", &[&endpoint], &[("http", "TCP", 8080)]),
    ]);
    let cluster = Cluster::new(node.ns(), all, &mode.config(Cluster::no_audits()))?;
    let start = Instant::now();
    let mut agent = cluster.spawn()?;
    let answers = std::thread::scope(|scope| {
        let threads = [API, DNS, last].map(|address| {
            let ns = &client.ns;
            scope.spawn(move || first_answer(ns, address, start))
        });
        threads.map(|thread| thread.join().unwrap_or_else(|_| bail!("an asking thread ended")))
    });
    let [api, dns, last] = answers;
    let answers = FirstAnswers { api: api?, dns: dns?, last: last? };
    ensure!(agent.ended()?.is_none(), "the agent ended:\n{}", agent.log_tail(20));
    agent.stop()?;
    node.ns().enter(clear)??;
    Ok(answers)
}

fn first_answer(ns: &Netns, address: SocketAddr, start: Instant) -> Result<Duration> {
    loop {
        if ask_tcp(ns, address, TRY).is_ok() {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < LIMIT, "{address} did not answer in {LIMIT:?}");
        std::thread::sleep(PAUSE);
    }
}
