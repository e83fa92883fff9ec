// SPDX-License-Identifier: Apache-2.0
//! An agent on a node with objects from a file, and functions that wait for its effects.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::agent::{Agent, AgentSpec, write_objects};
use super::netns::Netns;
use super::topology::Node;
use crate::objects::{self, config, list};

/// Limit for a change by the agent. Generous, because emulated guests are slow.
const LIMIT: Duration = Duration::from_secs(30);
/// Pause between checks of a condition, which start a process.
const PAUSE: Duration = Duration::from_millis(50);

/// A node with a running agent, which follows a file of objects.
#[derive(Debug)]
pub struct Setup<'a> {
    node: &'a Node,
    dir: tempfile::TempDir,
    /// The agent.
    pub agent: Agent,
}

impl<'a> Setup<'a> {
    /// Starts an agent on `node` with `objects` and the Node object. `more` is added to the
    /// configuration.
    ///
    /// # Errors
    /// When there is no agent, or files cannot be written.
    pub fn start(node: &'a Node, more: &Value, objects: Vec<Value>) -> Result<Self> {
        let dir = tempfile::tempdir().context("folder")?;
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, config(&node.name, more).to_string()).context("configuration")?;
        let file = objects_file(&dir);
        write_objects(&file, &with_node(node, objects))?;
        let args = vec!["-v=6".to_owned()];
        let spec = AgentSpec { config: path, objects: Some(file), args, ..AgentSpec::default() };
        let agent = Agent::start(node.ns(), &spec)?;
        Ok(Self { node, dir, agent })
    }

    /// The folder of its files, for more of them.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// The file of its objects.
    pub fn objects(&self) -> PathBuf {
        objects_file(&self.dir)
    }

    /// The arguments that name its configuration and its objects.
    pub fn arguments(&self) -> Vec<String> {
        let config = self.dir.path().join("config.yaml");
        vec![format!("--config={}", config.display()), format!("--objects={}", self.objects().display())]
    }

    /// Starts the agent again. One that runs is killed.
    ///
    /// # Errors
    /// As [`Setup::start`].
    pub fn restart(mut self) -> Result<Self> {
        let config = self.dir.path().join("config.yaml");
        let args = vec!["-v=6".to_owned()];
        let spec = AgentSpec { config, objects: Some(self.objects()), args, ..AgentSpec::default() };
        self.agent.kill9();
        self.agent = Agent::start(self.node.ns(), &spec)?;
        Ok(self)
    }

    /// Replaces the objects.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, objects: Vec<Value>) -> Result<()> {
        write_objects(&objects_file(&self.dir), &with_node(self.node, objects))
    }

    /// Waits until `done`; after half a minute the agent's log is the error.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait(&self, what: &str, done: impl FnMut() -> bool) -> Result<()> {
        self.wait_within(LIMIT, what, done)
    }

    /// As [`Setup::wait`], with another limit.
    ///
    /// # Errors
    /// When it takes longer than `limit`.
    pub fn wait_within(&self, limit: Duration, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !done() {
            if start.elapsed() > limit {
                bail!(
                    "{what} did not happen; IPVS:\n{}agent's log:\n{}",
                    ipvsadm(self.node.ns()),
                    self.agent.log()
                );
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Waits until these addresses are on `kube-ipvs0`, which the agent does last.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait_bound(&self, addresses: &[&str]) -> Result<()> {
        let wanted: BTreeSet<IpAddr> = addresses.iter().filter_map(|text| text.parse().ok()).collect();
        self.wait(&format!("binding {addresses:?}"), || wanted.is_subset(&bound(self.node.ns())))
    }

    /// Waits until a line of `ipvsadm -Sn` starts with this text, or until none does.
    ///
    /// All namespaces share one table, and a dump counts positions in it: what another test adds or
    /// removes meanwhile can hide a line. So only a second look in a row that misses it counts.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait_ipvs(&self, line: &str, there: bool) -> Result<()> {
        let what = format!("{} {line:?}", if there { "appearance of" } else { "end of" });
        let seen = || ipvsadm(self.node.ns()).lines().any(|l| l.starts_with(line));
        self.wait(&what, || if there { seen() } else { !seen() && !seen() })
    }
}

fn objects_file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("objects.json")
}

fn with_node(node: &Node, mut objects: Vec<Value>) -> Value {
    let (v4, v6) = (node.host.v4.to_string(), node.host.v6.to_string());
    objects.push(objects::node(&node.name, &[&v4, &v6]));
    list(objects)
}

/// The output of `ipvsadm -Sn`; empty if it fails.
pub fn ipvsadm(ns: &Netns) -> String {
    ns.exec(&["ipvsadm", "-Sn"]).map(|output| output.stdout).unwrap_or_default()
}

/// The addresses on `kube-ipvs0`; none without the device.
pub fn bound(ns: &Netns) -> BTreeSet<IpAddr> {
    let shown = ns.try_exec(&["ip", "-o", "addr", "show", "dev", "kube-ipvs0"], None);
    let shown = shown.map(|output| output.stdout).unwrap_or_default();
    let words = shown.lines().filter_map(|line| line.split_whitespace().nth(3));
    words.filter_map(|word| word.split('/').next()?.parse().ok()).collect()
}

/// `ADDRESS:PORT`, with brackets around IPv6.
///
/// # Panics
/// When `address` is none.
pub fn at(address: &str, port: u16) -> SocketAddr {
    let address: IpAddr = address.parse().unwrap_or_else(|_| panic!("{address} is no address"));
    (address, port).into()
}
