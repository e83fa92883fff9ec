// SPDX-License-Identifier: Apache-2.0
//! Reads the folders of a corpus.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::Subsystem;

/// One recorded scenario.
#[derive(Debug)]
pub struct Scenario {
    /// The folder's name.
    pub name: String,
    /// Shell commands to run in the node's namespace before the agent starts.
    pub pre: Vec<String>,
    /// The text of the configuration file.
    pub config: String,
    /// The Node object of the node.
    pub node: Value,
    /// The steps in order.
    pub steps: Vec<Step>,
}

/// One step of a scenario: the objects, and the resulting state.
#[derive(Debug)]
pub struct Step {
    /// A v1.List.
    pub objects: Value,
    /// The recordings, in the order of [`Subsystem::ALL`].
    pub expected: Vec<(Subsystem, String)>,
    /// The reason why the recording was made during a sync, if it was: not compared.
    pub unsettled: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    pre: Vec<String>,
    steps: usize,
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read(path)?).with_context(|| format!("{} is not JSON", path.display()))
}

/// The folders of a corpus that hold a scenario, sorted by name.
///
/// # Errors
/// When the corpus cannot be read.
pub fn find(corpus: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(corpus).with_context(|| format!("cannot read {}", corpus.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", corpus.display()))?.path();
        if path.join("scenario.json").is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads one scenario, without the subsystems in `skip`.
///
/// # Errors
/// When a file is missing or malformed.
pub fn load(folder: &Path, skip: &[Subsystem]) -> Result<Scenario> {
    let name = folder.file_name().context("a folder with a name")?.to_string_lossy().into_owned();
    let header = folder.join("scenario.json");
    let header: Header =
        serde_json::from_str(&read(&header)?).with_context(|| format!("{} is broken", header.display()))?;
    ensure!(header.steps > 0, "{name} has no steps");
    let mut steps = Vec::new();
    for number in 1..=header.steps {
        let step = folder.join(format!("step-{number}"));
        let mut expected = Vec::new();
        for subsystem in Subsystem::ALL {
            let path = step.join(format!("expected/{}.txt", subsystem.name()));
            if !skip.contains(&subsystem) && path.is_file() {
                expected.push((subsystem, read(&path)?));
            }
        }
        // Comparing nothing would always succeed.
        ensure!(!expected.is_empty(), "{name} step-{number}: nothing to compare");
        let objects = read_json(&step.join("objects.json"))?;
        let unsettled = unsettled(&objects, &expected);
        steps.push(Step { objects, expected, unsettled });
    }
    let config = read(&folder.join("config.yaml"))?;
    Ok(Scenario { name, pre: header.pre, config, node: read_json(&folder.join("node.json"))?, steps })
}

/// At the end of every sync kube-proxy unbinds the addresses that no Service has. A recording with such an address was
/// made during a sync.
fn unsettled(objects: &Value, expected: &[(Subsystem, String)]) -> Option<String> {
    let items = objects["items"].as_array()?;
    let mut known: BTreeSet<IpAddr> = BTreeSet::new();
    for service in items.iter().filter(|item| item["kind"] == "Service") {
        let lists = [&service["spec"]["clusterIPs"], &service["spec"]["externalIPs"]];
        let texts =
            lists.into_iter().filter_map(Value::as_array).flatten().chain([&service["spec"]["clusterIP"]]);
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
        let ingress = ingress.into_iter().flatten().map(|entry| &entry["ip"]);
        known.extend(texts.chain(ingress).filter_map(|text| text.as_str()?.parse::<IpAddr>().ok()));
    }
    let (_, addrs) = expected.iter().find(|(subsystem, _)| *subsystem == Subsystem::Addrs)?;
    let bound = addrs.lines().filter_map(|line| line.split(' ').nth(1)?.split('/').next()?.parse().ok());
    let orphans: Vec<String> =
        bound.filter(|ip: &IpAddr| !known.contains(ip)).map(|ip| ip.to_string()).collect();
    let list = orphans.join(", ");
    (!orphans.is_empty()).then(|| format!("recorded in the middle of a sync: no Service has {list}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn corpus() -> tempfile::TempDir {
        let corpus = tempfile::tempdir().unwrap();
        let one = corpus.path().join("one");
        write(&one.join("scenario.json"), r#"{"description": "x", "pre": ["true"], "steps": 1}"#);
        write(&one.join("config.yaml"), "mode: ipvs\n");
        write(&one.join("node.json"), r#"{"kind": "Node"}"#);
        write(&one.join("step-1/objects.json"), r#"{"kind": "List", "items": []}"#);
        write(&one.join("step-1/expected/link.txt"), "absent\n");
        write(&one.join("step-1/expected/health.txt"), "\n");
        write(&corpus.path().join("notes/README.md"), "no scenario\n");
        corpus
    }

    #[test]
    fn folders_without_a_scenario_are_ignored() {
        let corpus = corpus();
        let found = find(corpus.path()).unwrap();
        assert_eq!(found, [corpus.path().join("one")]);
        let scenario = load(&found[0], &[Subsystem::Health]).unwrap();
        assert_eq!((scenario.name.as_str(), scenario.pre.len()), ("one", 1));
        assert_eq!(scenario.steps[0].expected, [(Subsystem::Link, "absent\n".to_owned())]);
    }

    #[test]
    fn a_step_with_nothing_to_compare_is_an_error() {
        let corpus = corpus();
        let all = [Subsystem::Link, Subsystem::Health];
        let error = load(&corpus.path().join("one"), &all).unwrap_err();
        assert!(error.to_string().contains("nothing to compare"), "{error:#}");
    }

    #[test]
    fn a_recording_with_addresses_of_no_service_was_made_during_a_sync() {
        let objects = serde_json::json!({"items": [{"kind": "Service", "spec":
            {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "externalIPs": ["198.51.100.1"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}]});
        let addrs = |text: &str| [(Subsystem::Addrs, text.to_owned())];
        let settled = "inet 10.96.0.1/32 global\ninet 198.51.100.1/32 global\ninet 203.0.113.1/32 global\n";
        assert_eq!(unsettled(&objects, &addrs(settled)), None);
        assert_eq!(unsettled(&objects, &addrs("\n")), None);
        let early = unsettled(&objects, &addrs("inet 10.96.0.1/32 global\ninet 10.96.0.9/32 global\n"));
        assert!(early.unwrap().ends_with("no Service has 10.96.0.9"));
    }

    #[test]
    fn a_missing_corpus_is_an_error() {
        assert!(find(Path::new("no-such-folder")).is_err());
    }
}
