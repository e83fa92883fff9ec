// SPDX-License-Identifier: Apache-2.0
//! Runs programs with a time limit and kills them afterwards.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Output and exit status of a program.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Reads all of a pipe on a thread, so that a program which prints much never waits.
fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A failed read ends the text here; the exit status reports the failure.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a program to its end, whatever its exit status. Fails when it cannot start or takes too long.
pub(super) fn run(command: &mut Command, input: Option<&str>, limit: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let mut process = Process { child, shown };
    let stdout = collect(process.child.stdout.take());
    let stderr = collect(process.child.stderr.take());
    if let (Some(input), Some(mut pipe)) = (input, process.child.stdin.take()) {
        // A program that ends early closes its side; its status says why.
        let _ = pipe.write_all(input.as_bytes());
    }
    let status = process.wait(limit)?;
    let text = |thread: thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

impl Output {
    /// The standard output, or an error with the command and its standard error.
    ///
    /// # Errors
    /// When the program failed.
    pub fn success(self, command: &str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{command}: {}: {}", self.status, self.stderr.trim());
    }
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    shown: String,
}

impl Process {
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let shown = format!("{command:?}");
        let child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        Ok(Self { child, shown })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the kernel does not report it.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.shown))
    }

    /// Waits for its end; kills it and fails after `limit`.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                self.kill();
                bail!("{} took longer than {limit:?} and was killed", self.shown);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to {}", self.shown))
    }

    /// Kills it at once (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
