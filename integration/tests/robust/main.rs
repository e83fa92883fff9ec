// SPDX-License-Identifier: Apache-2.0
//! Improvements over kube-proxy: failures are retried, no address is bound before the
//! access filter, drift is repaired at once, and permanent failures are reported.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod adopt;
mod bad_day;
mod cut_off;
mod fail;
mod kill;
mod nft_table;
mod strangers;
mod tell;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use integration::lab::{Agent, AgentSpec, Netns, agent_binary, write_objects};
use integration::objects::{config, list, service, slice};
use serde_json::{Value, json};

/// Limit for a change in an emulated guest. Generous: no test measures it.
const LIMIT: Duration = Duration::from_secs(40);
const PORT: [(&str, &str, u16); 1] = [("http", "TCP", 80)];

/// A folder with a configuration and objects, from which agents are started.
struct Files {
    dir: tempfile::TempDir,
    wrapper: Option<PathBuf>,
}

impl Files {
    fn new(more: &Value, objects: Vec<Value>) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap(), wrapper: None };
        std::fs::write(files.path("config.yaml"), config("node-a", more).to_string()).unwrap();
        files.write(objects);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, objects: Vec<Value>) {
        write_objects(&self.path("objects.json"), &list(objects)).unwrap();
    }

    /// Writes a program into the folder.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Starts the agent by these shell commands, the last of which is to `exec "$AGENT" "$@"`.
    fn wrap(&mut self, commands: &str) {
        let agent = agent_binary().unwrap();
        let text = format!("AGENT={}\nPATH={}:$PATH\n{commands}", agent.display(), self.dir.path().display());
        self.wrapper = Some(self.script("wrapper", &text));
    }

    fn start(&self, ns: &Netns) -> Agent {
        let spec = AgentSpec {
            config: self.path("config.yaml"),
            objects: Some(self.path("objects.json")),
            args: vec!["-v=6".to_owned()],
            binary: self.wrapper.clone(),
            ..AgentSpec::default()
        };
        Agent::start(ns, &spec).unwrap()
    }
}

/// No periodic audit while a test runs.
fn no_audits() -> Value {
    json!({"ipvs": {"syncPeriod": "1h"}})
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

/// Waits until the agent logs nothing for two seconds.
fn wait_until_quiet(agent: &Agent) {
    let (mut length, mut since) = (0, Instant::now());
    wait_for("end of the log", agent, || {
        let now = agent.log().len();
        if std::mem::replace(&mut length, now) != now {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_secs(2)
    });
}

fn run(ns: &Netns, command: &[&str]) -> String {
    ns.try_exec(command, None).unwrap().stdout
}

fn is_bound(ns: &Netns, address: &str) -> bool {
    run(ns, &["ip", "-o", "addr", "show", "dev", "kube-ipvs0"]).contains(&format!(" {address} "))
}
