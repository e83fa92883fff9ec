// SPDX-License-Identifier: Apache-2.0
//! A stress test: objects change at random, traffic flows, and meanwhile agents are killed, the API
//! server fails, programs fail and other programs flush the agent's objects. Failures that users notice are counted.

mod damage;
mod judge;
mod tally;
mod traffic;
mod world;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use serde_json::json;

use crate::apiserver::ApiServer;
use crate::lab::oracle;
use crate::lab::traffic::Backend;
use crate::lab::{Agent, Host, Lab, Node, Pod, agent_binary, at};
use crate::objects;
use damage::Programs;
use judge::{Judge, footprint};
use tally::{Findings, LogCount, Tally};
use traffic::{Client, Stage};
use world::{NODE_PORTS, POD_TCP, POD_UDP, Phase, World};

/// Limit for reaching the expected state. A request to a silent API server is given up after 45 s, a pause
/// is up to 45 s long, and both may happen twice: before a watch and before the list after it.
const LIMIT: Duration = Duration::from_secs(240);
/// Pause between reads of the state, which start programs.
const LOOK: Duration = Duration::from_millis(50);
/// Number of kills between two checks of the state.
const SERIES: u64 = 10;
/// Most series of changes during the life of the agent that is not killed.
const LONG: u64 = 40;
/// First version of objects: high enough for a store to be restored to earlier versions.
/// A client cannot recognise a repeated version that stands for another change.
const FIRST_VERSION: u64 = 1_000_000;
/// Longest life of an agent before it is killed.
const LIFE: Duration = Duration::from_millis(2500);
/// Time from a start to the measurement of memory: by then, memory of the start has been freed.
const REST: Duration = Duration::from_secs(10);

/// Options of a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of agents to kill.
    pub kills: u64,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Namespaces that the traffic needs.
struct Network {
    node: Node,
    /// On both nodes alternately; the first two are never killed.
    pods: Vec<Pod>,
    asker: Pod,
    outside: Host,
    stranger: Host,
}

impl Network {
    fn new(lab: &Lab) -> Result<(Self, Node)> {
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let mut pods = Vec::new();
        for host in 10..13 {
            pods.extend([a.pod(host)?, b.pod(host)?]);
        }
        let asker = a.pod(99)?;
        let (outside, stranger) = (lab.client("outside")?, lab.client("stranger")?);
        for client in [&outside, &stranger] {
            for network in ["10.96.0.0/16", "203.0.113.0/24", "198.51.100.0/24"] {
                client.route(network, &a.host)?;
            }
            for network in ["fd00:96::/64", "2001:db8:113::/64", "2001:db8:100::/64"] {
                client.route(network, &a.host)?;
            }
        }
        Ok((Self { node: a, pods, asker, outside, stranger }, b))
    }

    /// One client for each place and family.
    fn clients(&self) -> Vec<Client<'_>> {
        let mut clients = Vec::new();
        let node = [IpAddr::from(self.node.host.v4), IpAddr::from(self.node.host.v6)];
        let cluster = ["10.96.0.10", "fd00:96::10"];
        let external = ["203.0.113.10", "2001:db8:113::10"];
        let balancer = ["203.0.113.20", "2001:db8:113::20"];
        for family in 0..2 {
            for (name, ns) in [("node", self.node.ns()), ("pod", &self.asker.ns)] {
                clients.push(Client {
                    name: name.to_owned(),
                    ns,
                    node: self.node.ns(),
                    tcp: vec![at(cluster[family], 80)],
                    udp: vec![at(cluster[family], 53)],
                });
            }
            let node_port = |port| SocketAddr::new(node[family], port);
            clients.push(Client {
                name: "outside".to_owned(),
                ns: &self.outside.ns,
                node: self.node.ns(),
                tcp: vec![at(external[family], 80), at(balancer[family], 80), node_port(NODE_PORTS[0])],
                udp: vec![at(external[family], 53), node_port(NODE_PORTS[1])],
            });
        }
        clients
    }
}

/// A running stress test.
struct Chaos<'a> {
    network: &'a Network,
    stage: &'a Stage,
    server: ApiServer,
    programs: Programs,
    dir: tempfile::TempDir,
    judge: Judge<'a>,
    world: World,
    rng: Rng,
    /// The backend of each pod; `None`: it died.
    backends: Vec<Option<(String, Backend<'a>)>>,
    born: u64,
    agent: Option<(Agent, Instant)>,
    /// Faults since the last check of the state.
    recent: Vec<&'static str>,
    findings: Findings,
}

/// The end of the traffic.
struct Stop<'a>(&'a Stage);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs the stress test. Returns the report and the exceeded limits.
///
/// # Errors
/// If the machine lacks something, or the expected state is not reached.
pub fn run(options: Options) -> Result<(String, Vec<String>)> {
    let started = Instant::now();
    let lab = Lab::new()?;
    let (network, other) = Network::new(&lab)?;
    let stage =
        Stage { tally: Tally::default(), gate: Default::default(), flushes: 0.into(), stop: false.into() };
    let mut chaos = Chaos::new(&network, &other, &stage, options.seed)?;
    let result = thread::scope(|scope| {
        // Clients stop even after an error.
        let _stop = Stop(&stage);
        chaos.run(scope, options.kills)
    });
    let tail = chaos.agent.as_ref().map(|(agent, _)| agent.log_tail(30)).unwrap_or_default();
    let (mut text, wrong) = chaos.findings.report(&stage.tally, started);
    for note in stage.tally.notes() {
        text.push_str(&format!("  violated: {note}\n"));
    }
    result.with_context(|| format!("{text}the agent's log:\n{tail}"))?;
    Ok((text, wrong))
}

impl<'a> Chaos<'a> {
    fn new(network: &'a Network, other: &Node, stage: &'a Stage, seed: u64) -> Result<Self> {
        let ns = network.node.ns();
        let dir = tempfile::tempdir().context("folder")?;
        // A flush without a notification is detected by probes, not by audits.
        let config = objects::config("node-a", &json!({"ipvs": {"syncPeriod": "30s"}}));
        std::fs::write(dir.path().join("config.yaml"), config.to_string()).context("configuration")?;
        let addresses = |host: &Host| [IpAddr::from(host.v4), IpAddr::from(host.v6)];
        let pods: Vec<[IpAddr; 2]> = network.pods.iter().map(addresses).collect();
        let world = World::new(pods, [addresses(&network.node.host), addresses(&other.host)]);
        let server = ApiServer::start(ns.listen("127.0.0.1:0")?)?;
        server.restore(world.objects(), FIRST_VERSION);
        let mut chaos = Self {
            network,
            stage,
            server,
            programs: Programs::new(dir.path())?,
            dir,
            judge: Judge::new(ns, addresses(&network.stranger))?,
            world,
            rng: Rng::with_seed(seed),
            backends: network.pods.iter().map(|_| None).collect(),
            born: 0,
            agent: None,
            recent: Vec::new(),
            findings: Findings::default(),
        };
        chaos.revive()?;
        Ok(chaos)
    }

    fn run<'scope>(&mut self, scope: &'scope Scope<'scope, '_>, kills: u64) -> Result<()>
    where
        'a: 'scope,
    {
        self.start()?;
        self.settle()?;
        self.judge.learn()?;
        self.begin_traffic(scope);
        for kill in 1..=kills {
            self.trouble()?;
            thread::sleep(self.rng_time(LIFE));
            self.kill_and_start(0)?;
            if kill % SERIES == 0 || kill == kills {
                self.heal(kill)?;
            }
        }
        self.live_on(kills)
    }

    /// Measures the growth of one agent that is not killed.
    fn live_on(&mut self, rounds: u64) -> Result<()> {
        self.kill_and_start(0)?;
        self.settle()?;
        thread::sleep(REST);
        let pid = self.agent.as_ref().map(|(agent, _)| agent.pid()).context("no agent")?;
        self.findings.footprint[0] = footprint(pid)?;
        for round in 1..=rounds.div_ceil(SERIES).min(LONG) {
            for _ in 0..SERIES {
                self.trouble()?;
                thread::sleep(self.rng_time(LIFE / 2));
            }
            self.heal(round)?;
        }
        thread::sleep(REST);
        self.findings.footprint[1] = footprint(pid)?;
        self.count_log(1);
        Ok(())
    }

    fn begin_traffic<'scope>(&mut self, scope: &'scope Scope<'scope, '_>)
    where
        'a: 'scope,
    {
        let (network, stage) = (self.network, self.stage);
        for client in network.clients() {
            let rng = self.rng.fork();
            scope.spawn(move || client.run(stage, rng));
        }
        for v6 in [false, true] {
            scope.spawn(move || traffic::knock(&network.outside.ns, v6, stage));
        }
        let vips: Vec<IpAddr> =
            [false, true].iter().flat_map(|v6| world::all_vips(*v6)[3..4].to_vec()).collect();
        scope.spawn(move || traffic::trespass(&network.stranger.ns, &vips, stage));
    }

    fn rng_time(&mut self, limit: Duration) -> Duration {
        // Short times are more likely, because a start does the most work.
        limit.mul_f64(self.rng.f64().powi(3))
    }

    /// A few changes, and perhaps a fault that lasts until [`Chaos::heal`].
    fn trouble(&mut self) -> Result<()> {
        let alive: Vec<bool> = self.backends.iter().map(Option::is_some).collect();
        for _ in 0..self.rng.u8(1..4) {
            self.world.change(&mut self.rng, &alive);
            self.findings.changes += 1;
        }
        self.server.replace_all(self.world.objects());
        if self.rng.u8(..3) == 0 {
            damage::end(&self.server, &self.programs)?;
            let name = damage::begin(&mut self.rng, &self.server, &self.world.objects(), &self.programs)?;
            *self.findings.faults.entry(name).or_default() += 1;
            self.recent.push(name);
        }
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new(agent_binary()?);
        command.arg(format!("--config={}", self.dir.path().join("config.yaml").display()));
        command.arg(format!("--master={}", self.server.url()));
        command.env("PATH", self.programs.path());
        self.agent = Some((Agent::spawn(self.network.node.ns(), command)?, Instant::now()));
        Ok(())
    }

    fn kill_and_start(&mut self, phase: usize) -> Result<()> {
        if let Some((agent, _)) = &mut self.agent {
            if let Some(status) = agent.ended()? {
                bail!("the agent ended by itself: {status}");
            }
            agent.kill9();
            self.findings.kills += 1;
        }
        self.count_log(phase);
        self.start()
    }

    fn count_log(&mut self, phase: usize) {
        if let Some((agent, since)) = &self.agent {
            let log: &mut LogCount = &mut self.findings.logs[phase];
            log.add(&agent.log(), since.elapsed());
        }
    }

    /// Waits for the expected state. Returns the time that it took.
    fn settle(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let wanted = self.world.wanted();
        while let Some(difference) = self.judge.difference(&wanted)? {
            if start.elapsed() > LIMIT {
                let (faults, watches) = (self.recent.join(", "), self.watches());
                bail!(
                    "after {LIMIT:?} the state is not the expected one: {difference}; faults: {faults}; {watches}"
                );
            }
            thread::sleep(LOOK);
        }
        Ok(start.elapsed())
    }

    /// The agent's metrics about watches of the API.
    fn watches(&self) -> String {
        let answer = self.network.node.ns().enter(|| oracle::http_get(10249, "metrics"));
        let text = answer.ok().and_then(Result::ok).unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with("kube_ipvs_watch"));
        lines.collect::<Vec<_>>().join("; ")
    }

    /// Ends all faults, waits for the expected state, flushes objects as another program does, and lets pods die and
    /// restart.
    fn heal(&mut self, round: u64) -> Result<()> {
        damage::end(&self.server, &self.programs)?;
        let took = self.settle()?;
        self.findings.settled.push(took);
        self.check_filters("changes and kills")?;
        self.flush()?;
        self.bury();
        self.revive()?;
        let (kills, faults) = (self.findings.kills, std::mem::take(&mut self.recent).join(", "));
        eprintln!("chaos: round {round}: {kills} kills, expected state after {took:.1?}; {faults}");
        Ok(())
    }

    /// Flushes objects as another program does. Half of the time the agent is also killed.
    fn flush(&mut self) -> Result<()> {
        let stage = self.stage;
        let _closed = stage.gate.write();
        let (name, of_servers) = damage::flush(&mut self.rng, self.network.node.ns())?;
        stage.flushes.fetch_add(u64::from(of_servers), Ordering::Relaxed);
        *self.findings.faults.entry(name).or_default() += 1;
        if self.rng.bool() && self.findings.footprint[0].memory == 0 {
            self.kill_and_start(0)?;
        }
        let took = self.settle().with_context(|| format!("after {name}"))?;
        self.findings.repaired.push(took);
        eprintln!("chaos: {name}: repaired after {took:.1?}");
        // Packets that passed while the filter was flushed do not count.
        self.judge.excuse()
    }

    fn check_filters(&mut self, meanwhile: &str) -> Result<()> {
        let passed = self.judge.newly_passed()?;
        if passed > 0 {
            self.stage.tally.unfiltered.fetch_add(passed, Ordering::Relaxed);
            self.stage.tally.note(format!("{passed} packets passed the filters during {meanwhile}"));
        }
        Ok(())
    }

    /// Stops pods that are no longer in a slice, as after their grace period.
    fn bury(&mut self) {
        let _closed = self.stage.gate.write();
        for (backend, phase) in self.backends.iter_mut().zip(&self.world.phases) {
            if *phase == Phase::Gone
                && let Some((name, backend)) = backend.take()
            {
                self.stage.tally.set_alive(&name, false);
                drop(backend);
            }
        }
    }

    /// Restarts pods that died, for the next change.
    fn revive(&mut self) -> Result<()> {
        for (pod, backend) in self.network.pods.iter().zip(&mut self.backends) {
            if backend.is_none() {
                self.born += 1;
                let name = format!("{}-{}", pod.v4, self.born);
                let answering = Backend::new(&pod.ns, &name).tcp(POD_TCP)?.udp(POD_UDP)?;
                self.stage.tally.set_alive(&name, true);
                *backend = Some((name, answering));
            }
        }
        Ok(())
    }
}
