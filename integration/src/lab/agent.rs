// SPDX-License-Identifier: Apache-2.0
//! The agent as a process in a node's namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::command::Process;
use super::netns::Netns;
use crate::messages::complaints;

/// How to start the agent.
#[derive(Clone, Debug, Default)]
pub struct AgentSpec {
    /// The configuration file.
    pub config: PathBuf,
    /// `--objects`: read objects from here instead of an API server.
    pub objects: Option<PathBuf>,
    /// `--hostname-override`.
    pub hostname_override: Option<String>,
    /// More arguments.
    pub args: Vec<String>,
    /// The program, if it is not the one of [`agent_binary`].
    pub binary: Option<PathBuf>,
}

/// A running agent; killed when dropped. Its log is printed if the test fails.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    log: NamedTempFile,
}

/// The agent's program: `KUBE_IPVS_BIN`, or `kube-ipvs` of the release build.
///
/// # Errors
/// When there is none.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KUBE_IPVS_BIN") {
        return Ok(path.into());
    }
    // Tests are target/debug/deps/NAME and programs are target/release/NAME: look upwards from there.
    let me = std::env::current_exe().context("own path")?;
    for folder in me.ancestors().skip(1).take(4) {
        let path = folder.join("release/kube-ipvs");
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("no release/kube-ipvs near {}; run `make build` or set KUBE_IPVS_BIN", me.display())
}

impl Agent {
    /// Starts the agent in a namespace.
    ///
    /// # Errors
    /// When the program is missing or cannot start.
    pub fn start(ns: &Netns, spec: &AgentSpec) -> Result<Self> {
        let binary = spec.binary.clone().map_or_else(agent_binary, Ok)?;
        let mut command = Command::new(&binary);
        command.arg("run").arg(format!("--config={}", spec.config.display()));
        if let Some(objects) = &spec.objects {
            command.arg(format!("--objects={}", objects.display()));
        }
        if let Some(name) = &spec.hostname_override {
            command.arg(format!("--hostname-override={name}"));
        }
        command.args(&spec.args);
        Self::spawn(ns, command)
    }

    /// Starts the agent by any command in a namespace.
    ///
    /// # Errors
    /// When the program is missing or cannot start.
    pub fn spawn(ns: &Netns, mut command: Command) -> Result<Self> {
        let log = NamedTempFile::with_prefix("agent-log-").context("log file")?;
        // Appending keeps the two from overwriting each other.
        let output = File::options().append(true).open(log.path()).context("log file")?;
        command.stdin(Stdio::null()).stdout(output.try_clone().context("log file")?).stderr(output);
        let process = ns.spawn(command)?;
        Ok(Self { process, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the kernel does not report it.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.ended()
    }

    /// Stops it with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// When it is gone already or does not end within 20 seconds.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(Duration::from_secs(20))
    }

    /// Kills it, as if it crashed.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Sends it any signal, for example SIGSTOP.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log.path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines it wrote.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- log of the agent:\n{log}--- end of the log");
            return;
        }
        // Every test checks the log for messages that an operator could not read.
        let wrong = complaints(&log);
        assert!(wrong.is_empty(), "messages that are wrong:\n{}", wrong.join("\n"));
    }
}

/// Puts objects into a file so that a reader sees all of them or none: written aside, then renamed.
///
/// # Errors
/// When the file cannot be written.
pub fn write_objects(path: &Path, objects: &Value) -> Result<()> {
    let folder = path.parent().context("a file in a folder")?;
    let name = path.file_name().context("a file name")?.to_string_lossy();
    // A hidden name, so that an agent following the folder does not read the unfinished file.
    let aside = folder.join(format!(".{name}.new"));
    fs::write(&aside, serde_json::to_vec(objects)?)
        .with_context(|| format!("cannot write {}", aside.display()))?;
    fs::rename(&aside, path).with_context(|| format!("cannot write {}", path.display()))
}
