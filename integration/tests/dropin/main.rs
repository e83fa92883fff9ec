// SPDX-License-Identifier: Apache-2.0
//! Drop-in replacement of kube-proxy: its ConfigMap and DaemonSet start the agent, the health endpoints
//! answer, its configuration file restarts it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod health;
mod start;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use integration::lab::{Agent, AgentSpec, Netns, oracle, write_objects};
use integration::objects::{config, list, service, slice};
use serde_json::{Value, json};

/// Limit for a change in an emulated guest. Generous: no test measures it.
const LIMIT: Duration = Duration::from_secs(40);
const PORT: [(&str, &str, u16); 1] = [("http", "TCP", 80)];

/// A folder with a configuration and objects for an agent.
struct Files(tempfile::TempDir);

impl Files {
    fn new(more: &Value, objects: Vec<Value>) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        std::fs::write(files.path("config.yaml"), config("node-a", more).to_string()).unwrap();
        files.write(objects);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, objects: Vec<Value>) {
        write_objects(&self.path("objects.json"), &list(objects)).unwrap();
    }

    fn start(&self, ns: &Netns) -> Agent {
        let spec = AgentSpec {
            config: self.path("config.yaml"),
            objects: Some(self.path("objects.json")),
            ..AgentSpec::default()
        };
        Agent::start(ns, &spec).unwrap()
    }
}

fn one_service() -> Vec<Value> {
    vec![
        service("web", &["10.96.0.10"], &[], &PORT),
        slice("web", &["10.244.1.5@node-a"], &[("http", "TCP", 8080)]),
    ]
}

fn wait_for(what: &str, agent: &Agent, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "no {what} in time; the log of the agent:\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn run(ns: &Netns, command: &[&str]) -> String {
    ns.try_exec(command, None).unwrap().stdout
}

fn is_bound(ns: &Netns, address: &str) -> bool {
    run(ns, &["ip", "-o", "addr", "show", "dev", "kube-ipvs0"]).contains(&format!(" {address} "))
}

/// Status code and the rest of the answer; code 0 without an answer.
fn get(ns: &Netns, port: u16, path: &str) -> (u16, String) {
    let answer = ns.enter(|| oracle::http_get(port, path)).unwrap().unwrap_or_default();
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, answer)
}
