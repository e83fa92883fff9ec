// SPDX-License-Identifier: Apache-2.0
//! Output of the agent that goes to files, as a redirection of a shell or kube-log-runner (`/go-runner`) sends it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, PipeReader, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout};

/// Bytes of one read.
const CHUNK: usize = 16 * 1024;
/// What ends a container, and what kube-log-runner passes on, too.
const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// Where a stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the stream")]
pub enum OutputSink {
    Stdout,
    Stderr,
    File {
        path: PathBuf,
        /// `>>`. `>` empties the file first.
        append: bool,
    },
}

/// Where both streams go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// As the streams of this process are, or to files.
    Redirected {
        /// Standard output.
        stdout: OutputSink,
        /// Standard error.
        stderr: OutputSink,
    },
    /// To standard output and to a file.
    Copied {
        /// The file, which grows.
        file: PathBuf,
        /// Standard error, too.
        stderr: bool,
    },
}

impl Default for LogOutput {
    fn default() -> Self {
        Self::Redirected { stdout: OutputSink::Stdout, stderr: OutputSink::Stderr }
    }
}

impl LogOutput {
    /// Redirects the streams of this process. If the output is copied, runs this program with `args` as another process
    /// instead, until it ends: then returns its exit code.
    ///
    /// # Errors
    /// If a file cannot be opened, or the other process not started.
    pub fn start(&self, args: &[OsString]) -> anyhow::Result<Option<u8>> {
        match self {
            Self::Redirected { stdout, stderr } => {
                // The process that copies the output started this one with its signals blocked.
                signals().thread_unblock().context("cannot handle signals")?;
                redirect(stdout, stderr).map(|()| None)
            }
            Self::Copied { file, stderr } => run_copied(args, file, *stderr).map(Some),
        }
    }
}

fn redirect(stdout: &OutputSink, stderr: &OutputSink) -> anyhow::Result<()> {
    let (own, other) = (io::stdout(), io::stderr());
    let out = target(stdout, own.as_fd().try_clone_to_owned()?, other.as_fd().try_clone_to_owned()?)?;
    // One file that is opened twice would have two positions.
    let err = if stderr == stdout {
        out.try_clone()?
    } else {
        target(stderr, own.as_fd().try_clone_to_owned()?, other.as_fd().try_clone_to_owned()?)?
    };
    if *stdout != OutputSink::Stdout {
        dup2_stdout(&out).context("cannot redirect standard output")?;
    }
    if *stderr != OutputSink::Stderr {
        dup2_stderr(&err).context("cannot redirect standard error")?;
    }
    Ok(())
}

fn target(sink: &OutputSink, stdout: OwnedFd, stderr: OwnedFd) -> anyhow::Result<OwnedFd> {
    Ok(match sink {
        OutputSink::Stdout => stdout,
        OutputSink::Stderr => stderr,
        OutputSink::File { path, append } => open(path, *append)?.into(),
    })
}

fn open(path: &Path, append: bool) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).append(append).truncate(!append);
    options.open(path).with_context(|| format!("cannot open the log file {}", path.display()))
}

/// Runs this program with `args`, the first of which is its name, and copies its output. A process of its own: what it
/// printed last is copied however it ends.
fn run_copied(args: &[OsString], file: &Path, stderr: bool) -> anyhow::Result<u8> {
    let file = open(file, true)?;
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let mut command = Command::new(program);
    command.args(args.iter().skip(1)).stdout(writer.try_clone()?);
    if stderr {
        command.stderr(writer);
    }
    let mut child = spawn_with_signals(&mut command)?;
    // It has the writing ends of the pipe.
    drop(command);
    copy(reader, file);
    let status = child.wait().context("cannot wait for the agent")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Copies until the end of the input. A full disk or a closed stream does not stop the agent.
fn copy(mut from: PipeReader, mut file: File) {
    let mut stdout = io::stdout().lock();
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => {
                let _ = stdout.write_all(&chunk[..length]).and_then(|()| stdout.flush());
                let _ = file.write_all(&chunk[..length]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn signals() -> SigSet {
    SIGNALS.into_iter().collect()
}

/// Starts a process and passes signals on to it. They are blocked first, so that one that comes before there is a process is
/// passed on, too. The process inherits that, and [`LogOutput::start`] ends it there.
fn spawn_with_signals(command: &mut Command) -> anyhow::Result<Child> {
    let signals = signals();
    signals.thread_block().context("cannot handle signals")?;
    let child = command.spawn().context("cannot start the agent")?;
    let to = Pid::from_raw(child.id().cast_signed());
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            // It may have ended.
            let _ = kill(to, signal);
        }
    })?;
    Ok(child)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let path = PathBuf::from("/proc/none/kube-proxy.log");
        let stdout = OutputSink::File { path: path.clone(), append: true };
        for output in [
            LogOutput::Redirected { stdout: stdout.clone(), stderr: stdout.clone() },
            LogOutput::Redirected { stdout: OutputSink::Stdout, stderr: stdout },
            LogOutput::Copied { file: path, stderr: true },
        ] {
            let error = output.start(&["kube-proxy".into()]).unwrap_err();
            assert_eq!(error.to_string(), "cannot open the log file /proc/none/kube-proxy.log");
        }
        assert_eq!(LogOutput::default().start(&[]).unwrap(), None);
    }

    #[test]
    fn signals_are_blocked_before_the_process_starts_and_it_allows_them() {
        let (reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("cat");
        command.arg("/proc/self/status").stdout(writer);
        let mut child = spawn_with_signals(&mut command).unwrap();
        drop(command);
        let status = io::read_to_string(reader).unwrap();
        assert!(child.wait().unwrap().success());
        // It has what was blocked when it was started.
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
        let own = SigSet::thread_get_mask().unwrap();
        for signal in SIGNALS {
            assert_ne!(blocked & (1 << (signal as u32 - 1)), 0, "{signal}");
            assert!(own.contains(signal), "{signal}");
        }
        // What the agent does in that process.
        assert_eq!(LogOutput::default().start(&[]).unwrap(), None);
        let own = SigSet::thread_get_mask().unwrap();
        assert!(SIGNALS.into_iter().all(|signal| !own.contains(signal)));
    }

    #[test]
    fn a_log_file_grows_and_is_emptied_if_asked_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for _ in 0..2 {
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(b"a line\n").unwrap();
            drop(writer);
            copy(reader, open(&path, true).unwrap());
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a line\na line\n");
        drop(open(&path, false).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }
}
