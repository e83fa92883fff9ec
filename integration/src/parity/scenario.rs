// SPDX-License-Identifier: Apache-2.0
//! Reading the folders of a corpus.

use std::fs;
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
    /// The configuration, as it stands in the file.
    pub config: String,
    /// The Node object of the node.
    pub node: Value,
    /// What happens one after the other.
    pub steps: Vec<Step>,
}

/// One step of a scenario: the objects that exist, and the state they lead to.
#[derive(Debug)]
pub struct Step {
    /// A v1.List.
    pub objects: Value,
    /// The recordings, in the order of [`Subsystem::ALL`].
    pub expected: Vec<(Subsystem, String)>,
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
/// When a file is missing or broken.
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
        steps.push(Step { objects: read_json(&step.join("objects.json"))?, expected });
    }
    let config = read(&folder.join("config.yaml"))?;
    Ok(Scenario { name, pre: header.pre, config, node: read_json(&folder.join("node.json"))?, steps })
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
    fn only_folders_with_a_scenario_count() {
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
    fn a_missing_corpus_is_an_error() {
        assert!(find(Path::new("no-such-folder")).is_err());
    }
}
