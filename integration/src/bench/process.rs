// SPDX-License-Identifier: Apache-2.0
//! The agent as a process, fed by an API server or by files: what a start, a restart and idling cost.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::node::{Size, sum};
use crate::apiserver::ApiServer;
use crate::lab::{Agent, Netns, agent_binary, oracle};
use crate::objects::{self, service, slice};

/// Limit for a start.
const LIMIT: Duration = Duration::from_secs(180);
/// Pause between requests for readiness.
const PAUSE: Duration = Duration::from_millis(20);
/// A tick of [`Cost`].
const TICK: Duration = Duration::from_millis(10);
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10256);

/// A node, Services, and a configuration.
pub struct Cluster<'a> {
    ns: &'a Netns,
    /// `None`: the Services are in a file.
    server: Option<ApiServer>,
    dir: tempfile::TempDir,
}

/// Resources of a process.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Resident memory now, KiB.
    pub resident: u64,
    /// Largest resident memory, KiB.
    pub peak: u64,
    /// CPU time so far, in ticks of 10 ms.
    pub ticks: u64,
    /// The same of the programs that it ran.
    pub program_ticks: u64,
}

/// One of this number of Services has an endpoint on this node: a node has some hundred pods.
pub const LOCAL: u32 = 100;
/// Number of nodes of the other endpoints.
const NODES: u32 = 1000;

/// Where endpoints begin with 100 and on; a loopback address is no endpoint, the kernel refuses 127.0.0.0.
fn first_octet(endpoint: u32) -> u32 {
    if endpoint < 27 { 100 + endpoint } else { 101 + endpoint }
}

/// Services with their endpoints, 100 of each at most.
pub fn objects(size: Size) -> Vec<Value> {
    let mut all = vec![objects::node("node-a", &["192.168.50.2"])];
    for n in 0..size.services {
        let dotted = |first: u32| format!("{first}.{}.{}.{}", (n >> 16) & 255, (n >> 8) & 255, n & 255);
        let name = format!("svc-{n}");
        all.push(service(&name, &[&dotted(11)], &[], &[("http", "TCP", 80)]));
        let addresses: Vec<String> = (0..size.endpoints)
            .map(|e| match e {
                0 if n.is_multiple_of(LOCAL) => format!("{}@node-a", dotted(100)),
                e => format!("{}@node-{}", dotted(first_octet(e)), (n + e) % NODES),
            })
            .collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        all.push(slice(&name, &addresses, &[("http", "TCP", 8080)]));
    }
    all
}

impl<'a> Cluster<'a> {
    /// A cluster of these objects, with its node in `ns`.
    ///
    /// # Errors
    /// When the API server cannot start.
    pub fn new(ns: &'a Netns, objects: Vec<Value>, more: &Value) -> Result<Self> {
        let server = ApiServer::start(ns.listen("127.0.0.1:0")?)?;
        server.replace_all(objects);
        Self::with(ns, Some(server), more)
    }

    /// A cluster whose objects are in a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn of_files(ns: &'a Netns, objects: &[Value], more: &Value) -> Result<Self> {
        let cluster = Self::with(ns, None, more)?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(cluster.objects(), list.to_string()).context("objects")?;
        Ok(cluster)
    }

    fn with(ns: &'a Netns, server: Option<ApiServer>, more: &Value) -> Result<Self> {
        let dir = tempfile::tempdir().context("folder")?;
        std::fs::write(dir.path().join("config.yaml"), objects::config("node-a", more).to_string())?;
        Ok(Self { ns, server, dir })
    }

    /// Bookmarks come as often as from a real server: about once a minute.
    pub fn with_bookmarks_as_usual(self) -> Self {
        if let Some(server) = &self.server {
            server.set_bookmark_interval(Duration::from_secs(60));
        }
        self
    }

    fn objects(&self) -> PathBuf {
        self.dir.path().join("objects.json")
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.yaml")
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self) -> Result<Agent> {
        let mut command = Command::new(agent_binary()?);
        command.arg(format!("--config={}", self.config().display()));
        command.arg(match &self.server {
            Some(server) => format!("--master={}", server.url()),
            None => format!("--objects={}", self.objects().display()),
        });
        Agent::spawn(self.ns, command)
    }

    /// Starts the agent and waits until everything is programmed. Returns the time that it took.
    ///
    /// # Errors
    /// If not everything is programmed in time.
    pub fn start(&self) -> Result<(Agent, Duration)> {
        let start = Instant::now();
        let agent = self.spawn()?;
        let ready = self.ns.enter(|| {
            loop {
                let answer = oracle::http(HEALTH, "GET", "readyz", "").unwrap_or_default();
                if answer.starts_with("HTTP/1.1 200") {
                    return true;
                }
                if start.elapsed() > LIMIT {
                    return false;
                }
                std::thread::sleep(PAUSE);
            }
        })?;
        if !ready {
            bail!("not ready after {LIMIT:?}; its log:\n{}", agent.log_tail(20));
        }
        Ok((agent, start.elapsed()))
    }

    /// Ops that the agent carried out, in all.
    ///
    /// # Errors
    /// If the agent does not answer.
    pub fn operations(&self) -> Result<u64> {
        self.metric("kube_ipvs_operations_total{")
    }

    /// Audits so far, the first reading included.
    ///
    /// # Errors
    /// If the agent does not answer.
    pub fn audits(&self) -> Result<u64> {
        self.metric("kube_ipvs_passes_total{reason=\"audit\"")
    }

    /// The sum of the metrics whose lines begin with this text.
    fn metric(&self, start: &str) -> Result<u64> {
        Ok(sum(&self.ns.enter(|| oracle::http_get(10249, "metrics"))?.context("metrics")?, start))
    }

    /// Waits until one more audit than `before` has ended.
    ///
    /// # Errors
    /// When none does within `limit`.
    pub fn wait_audit(&self, before: u64, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while self.audits()? <= before {
            ensure!(start.elapsed() < limit, "no audit in {limit:?}");
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    /// The configuration without audits, so that nothing but the start is measured.
    pub fn no_audits() -> Value {
        json!({"ipvs": {"syncPeriod": "1h"}})
    }
}

/// Numbers of `/proc/PID/status`, by their names with the colon; memory is in KiB.
///
/// # Errors
/// When the process is gone, or there is no such number.
pub fn status<const N: usize>(pid: u32, names: [&str; N]) -> Result<[u64; N]> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("process status")?;
    let mut numbers = [0; N];
    for (number, name) in numbers.iter_mut().zip(names) {
        let found =
            status.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        *number = found.with_context(|| format!("no {name} in /proc/{pid}/status"))?;
    }
    Ok(numbers)
}

/// Memory and CPU time of a process.
///
/// # Errors
/// When it is gone.
pub fn cost(pid: u32) -> Result<Cost> {
    let [resident, peak] = status(pid, ["VmRSS:", "VmHWM:"])?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("process stat")?;
    // The name, in parentheses, may hold anything.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let words: Vec<&str> = after.split_whitespace().collect();
    let tick = |at: usize| words.get(at).and_then(|w| w.parse::<u64>().ok());
    let sum = |at: usize| Some(tick(at)? + tick(at + 1)?);
    let (Some(ticks), Some(program_ticks)) = (sum(11), sum(13)) else {
        bail!("cannot read /proc/{pid}/stat")
    };
    Ok(Cost { resident, peak, ticks, program_ticks })
}

/// CPU time of a process and of the programs that it ran. The process's own is exact.
///
/// # Errors
/// When it is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?)).context("no clock of the process")?;
    let own: Duration = clock_gettime(clock).context("no CPU time")?.into();
    Ok(own + TICK * u32::try_from(cost(pid)?.program_ticks)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_this_process_is_measured() {
        let cost = cost(std::process::id()).unwrap();
        assert!(cost.resident > 500 && cost.peak >= cost.resident, "{cost:?}");
        assert!(cpu_time(std::process::id()).unwrap() > Duration::ZERO);
    }

    #[test]
    fn the_number_of_objects_is_exact() {
        let all = objects(Size { services: 3, endpoints: 5 });
        assert_eq!(all.len(), 7);
        assert_eq!(all[2]["endpoints"].as_array().map(Vec::len), Some(5));
        assert_eq!(all[2]["endpoints"][0]["nodeName"], "node-a");
        let many = objects(Size { services: 1, endpoints: 100 });
        let endpoints = many[2]["endpoints"].as_array().unwrap();
        let mut addresses: Vec<std::net::IpAddr> =
            endpoints.iter().map(|e| e["addresses"][0].as_str().unwrap().parse().unwrap()).collect();
        assert!(addresses.iter().all(|addr| !addr.is_loopback() && !addr.is_multicast()));
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 100);
    }
}
