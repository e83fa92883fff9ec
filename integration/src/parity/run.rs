// SPDX-License-Identifier: Apache-2.0
//! Runs an agent on a new node through one scenario.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Subsystem;
use super::diff::unified;
use super::normal::normal;
use super::scenario::{Scenario, Step};
use crate::apiserver::ApiServer;
use crate::lab::{Agent, AgentSpec, Netns, conformance_node, oracle, write_objects};
use crate::objects::{in_nftables, rules_mode};

/// A correct state must still be correct after this time.
const STAYS: Duration = Duration::from_millis(300);
const FIRST_LOOK: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The source of the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder of files.
    Files,
    /// An API server.
    Api,
}

impl Source {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Api => "api",
        }
    }

    /// The source with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Files, Self::Api].into_iter().find(|source| source.name() == name)
    }
}

/// Options of all scenarios.
#[derive(Clone, Debug)]
pub struct Options {
    /// The path of the agent, if it is not the default.
    pub agent: Option<PathBuf>,
    /// The time for a step to reach its state.
    pub deadline: Duration,
}

/// The failure of a scenario.
#[derive(Debug)]
pub struct Failure {
    /// The step, from 1; 0 before the first step.
    pub step: usize,
    /// The differences, or the error.
    pub text: String,
    /// The last lines of the agent's log.
    pub log: String,
}

/// Delivers objects to the agent.
enum Feed {
    Files(PathBuf),
    Api(Box<ApiServer>),
}

impl Feed {
    fn apply(&self, node: &Value, objects: &Value) -> Result<()> {
        match self {
            Self::Files(folder) => {
                write_objects(&folder.join("node.json"), node)?;
                write_objects(&folder.join("objects.json"), objects)
            }
            Self::Api(server) => {
                let items = objects["items"].as_array().context("objects.json is no list")?;
                let all = std::iter::once(node).chain(items).cloned().collect();
                server.replace_all(all);
                Ok(())
            }
        }
    }
}

/// Runs all steps of the scenario.
///
/// # Errors
/// When a step does not reach its recorded state, or the run fails.
pub fn play(scenario: &Scenario, source: Source, options: &Options) -> Result<(), Failure> {
    let broken = |error: anyhow::Error| Failure { step: 0, text: format!("{error:#}\n"), log: String::new() };
    let node = conformance_node().map_err(broken)?;
    let folder = TempDir::with_prefix("parity-").context("temporary folder").map_err(broken)?;
    let (feed, spec) = prepare(scenario, source, options, &node.ns, folder.path()).map_err(broken)?;
    let mut agent = None;
    for (index, step) in scenario.steps.iter().enumerate() {
        let result = play_step(scenario, step, &feed, &spec, &node.ns, &mut agent, options);
        if let Err(error) = result {
            let log = agent.as_ref().map(|agent: &Agent| agent.log_tail(30)).unwrap_or_default();
            return Err(Failure { step: index + 1, text: format!("{error:#}\n"), log });
        }
    }
    Ok(())
}

fn play_step(
    scenario: &Scenario,
    step: &Step,
    feed: &Feed,
    spec: &AgentSpec,
    ns: &Netns,
    agent: &mut Option<Agent>,
    options: &Options,
) -> Result<()> {
    feed.apply(&scenario.node, &step.objects)?;
    // The agent starts with the objects of the first step and keeps running.
    let agent = match agent {
        Some(agent) => agent,
        None => agent.insert(Agent::start(ns, spec)?),
    };
    if step.unsettled.is_some() {
        // There is no state to compare, but the agent must keep running.
        thread::sleep(STAYS);
        anyhow::ensure!(agent.ended()?.is_none(), "the agent ended");
        return Ok(());
    }
    settle(ns, step, agent, options.deadline)
}

/// Runs the scenario's `pre` commands and writes what the agent reads.
fn prepare(
    scenario: &Scenario,
    source: Source,
    options: &Options,
    ns: &Netns,
    folder: &Path,
) -> Result<(Feed, AgentSpec)> {
    for command in &scenario.pre {
        ns.exec(&["sh", "-c", command])?;
    }
    let config = folder.join("config.yaml");
    let mut spec =
        AgentSpec { config: config.clone(), binary: options.agent.clone(), ..AgentSpec::default() };
    let (feed, text) = match source {
        Source::Files => {
            let objects = folder.join("objects");
            fs::create_dir(&objects).context("objects folder")?;
            spec.objects = Some(objects.clone());
            (Feed::Files(objects), with_rules(&scenario.config, rules_mode())?)
        }
        Source::Api => {
            let server = ApiServer::start(ns.listen("127.0.0.1:0")?)?;
            let kubeconfig = folder.join("kubeconfig");
            fs::write(&kubeconfig, server.kubeconfig()).context("kubeconfig")?;
            let text = with_rules(&with_kubeconfig(&scenario.config, &kubeconfig)?, rules_mode())?;
            (Feed::Api(Box::new(server)), text)
        }
    };
    fs::write(&config, text).context("configuration")?;
    Ok((feed, spec))
}

/// The configuration, YAML or JSON, with another kubeconfig, as JSON.
fn with_kubeconfig(config: &str, kubeconfig: &Path) -> Result<String> {
    let mut config: Value = serde_saphyr::from_str(config).context("the scenario's configuration")?;
    config["clientConnection"]["kubeconfig"] = json!(kubeconfig.to_string_lossy());
    Ok(config.to_string())
}

/// The configuration with a rules mode, if there is one.
fn with_rules(config: &str, mode: Option<String>) -> Result<String> {
    let Some(mode) = mode else { return Ok(config.to_owned()) };
    let mut config: Value = serde_saphyr::from_str(config).context("the scenario's configuration")?;
    config["kubeIPVS"]["rules"] = json!(mode);
    Ok(config.to_string())
}

/// The difference of one subsystem, if any. kube-proxy's rules are those of iptables.
fn look(ns: &Netns, subsystem: Subsystem, want: &str) -> Result<Option<String>> {
    let of_iptables = matches!(subsystem, Subsystem::Iptables | Subsystem::Ip6tables);
    if of_iptables && in_nftables() {
        return Ok(None);
    }
    let got = normal(subsystem, &oracle::raw(ns, subsystem, want)?);
    Ok(unified(subsystem.name(), want, &got))
}

/// Waits until the node is in the recorded state and stays there.
fn settle(ns: &Netns, step: &Step, agent: &mut Agent, deadline: Duration) -> Result<()> {
    let end = Instant::now() + deadline;
    // Reading the state is slow in an emulated guest: read only the parts that differed, at growing intervals.
    let mut open: Vec<&(Subsystem, String)> = step.expected.iter().collect();
    let mut pause = FIRST_LOOK;
    loop {
        thread::sleep(pause);
        if let Some(status) = agent.ended()? {
            anyhow::bail!("the agent ended: {status}");
        }
        open = still_different(ns, &open)?.0;
        if open.is_empty() {
            thread::sleep(STAYS);
            open = still_different(ns, &step.expected.iter().collect::<Vec<_>>())?.0;
            if open.is_empty() && agent.ended()?.is_none() {
                return Ok(());
            }
        }
        if Instant::now() >= end {
            let (open, diffs) = still_different(ns, &step.expected.iter().collect::<Vec<_>>())?;
            if open.is_empty() {
                return Ok(());
            }
            anyhow::bail!("not equal after {deadline:?}\n{diffs}");
        }
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

type Recording = (Subsystem, String);

/// The `candidates` that differ from the kernel, and the differences as text.
fn still_different<'a>(ns: &Netns, candidates: &[&'a Recording]) -> Result<(Vec<&'a Recording>, String)> {
    let (mut open, mut diffs) = (Vec::new(), String::new());
    for recording in candidates {
        if let Some(diff) = look(ns, recording.0, &recording.1)? {
            open.push(*recording);
            diffs.push_str(&diff);
        }
    }
    Ok((open, diffs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_gets_the_kubeconfig() {
        let path = Path::new("/tmp/x/kubeconfig");
        let config = with_kubeconfig(r#"{"mode": "ipvs", "clientConnection": {"qps": 5}}"#, path).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["clientConnection"], json!({"qps": 5, "kubeconfig": "/tmp/x/kubeconfig"}));
        let config = with_kubeconfig("mode: ipvs\n", path).unwrap();
        assert!(config.contains("/tmp/x/kubeconfig"));
    }

    #[test]
    fn a_configuration_gets_the_rules_mode() {
        let config = "mode: ipvs\n";
        assert_eq!(with_rules(config, None).unwrap(), config);
        let config: Value = serde_json::from_str(&with_rules(config, Some("x".to_owned())).unwrap()).unwrap();
        assert_eq!(config, json!({"mode": "ipvs", "kubeIPVS": {"rules": "x"}}));
    }

    #[test]
    fn sources_have_names() {
        assert_eq!(Source::from_name("api"), Some(Source::Api));
        assert_eq!(Source::from_name("files"), Some(Source::Files));
        assert_eq!(Source::from_name("etcd"), None);
    }
}
