// SPDX-License-Identifier: Apache-2.0
//! Programs that the agent runs: each has a deadline, and none is left behind.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::words;

/// Pause between looks whether a program that has closed its output has ended.
const EXIT_PAUSE: Duration = Duration::from_millis(2);
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// Why a program gave no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChildError {
    /// There is no such program.
    #[error("{0} is not installed")]
    Missing(String),
    /// It cannot be started, or its output cannot be read.
    #[error("cannot run {0}: {1}")]
    Unusable(String, String),
    /// It ran longer than it may and was killed.
    #[error("{program} did not end within {} s and was killed", limit.as_secs())]
    TimedOut {
        /// The program.
        program: String,
        /// How long it might run.
        limit: Duration,
    },
    /// It ended with a failure.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        program: String,
        /// Its exit status, in words.
        status: String,
        /// Its exit code, if it was not killed by a signal.
        code: Option<i32>,
        /// What it wrote to standard error.
        stderr: String,
    },
}

/// Runs a program with text on its standard input and returns its standard output. `started` is told the
/// process id before the program does anything. A program that runs longer than `limit` is killed, with
/// everything that it started.
///
/// # Errors
/// Says which program, and what was wrong with it.
pub fn run(
    program: &str,
    args: &[&str],
    input: &str,
    limit: Duration,
    started: impl FnOnce(u32),
) -> Result<String, ChildError> {
    let unusable = |error: &std::io::Error| ChildError::Unusable(program.into(), words::io_error(error));
    let mut command = Command::new(program);
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    // A group of its own, so that what it starts can be killed with it.
    command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => ChildError::Missing(program.to_owned()),
        _ => unusable(&error),
    })?;
    started(child.id());
    let mut running = Running { child, deadline: Instant::now() + limit, ended: false };
    match running.talk(input.as_bytes()) {
        Ok(Some(End { status, stdout, .. })) if status.success() => {
            Ok(String::from_utf8_lossy(&stdout).into_owned())
        }
        Ok(Some(End { status, stderr, .. })) => Err(ChildError::Failed {
            program: program.to_owned(),
            status: match (status.code(), status.signal()) {
                (None, Some(signal)) => format!("signal {signal}"),
                (code, _) => format!("exit code {}", code.unwrap_or_default()),
            },
            code: status.code(),
            stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
        }),
        Ok(None) => Err(ChildError::TimedOut { program: program.to_owned(), limit }),
        Err(error) => Err(unusable(&error)),
    }
}

/// How a program ended, and what it wrote.
struct End {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// A program that runs; killed and waited for when this goes away.
struct Running {
    child: Child,
    deadline: Instant,
    /// Its exit status is known: its process id may belong to another process by now.
    ended: bool,
}

impl Running {
    /// Writes the input and reads both outputs to their end, then waits for the exit status; `None`: too late.
    fn talk(&mut self, input: &[u8]) -> std::io::Result<Option<End>> {
        let stdin = self.child.stdin.take().map(|pipe| non_blocking(pipe.into())).transpose()?;
        let mut pipes = [
            Pipe::reading(self.child.stdout.take().map(Into::into))?,
            Pipe::reading(self.child.stderr.take().map(Into::into))?,
            Pipe { file: stdin, bytes: input.to_vec(), done: 0 },
        ];
        while pipes.iter().any(|pipe| pipe.file.is_some()) {
            let Some(left) = self.left() else { return Ok(None) };
            let [stdout, stderr, stdin] = &mut pipes;
            wait([&stdout.file, &stderr.file, &stdin.file], left)?;
            stdout.read()?;
            stderr.read()?;
            stdin.write()?;
        }
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.ended = true;
                let [stdout, stderr, _] = pipes;
                return Ok(Some(End { status, stdout: stdout.bytes, stderr: stderr.bytes }));
            }
            if self.left().is_none() {
                return Ok(None);
            }
            std::thread::sleep(EXIT_PAUSE);
        }
    }

    /// The time that is left; `None`: none.
    fn left(&self) -> Option<Duration> {
        self.deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let group = i32::try_from(self.child.id()).map(Pid::from_raw);
            let _ = group.map(|group| killpg(group, Signal::SIGKILL));
            let _ = self.child.wait();
        }
    }
}

/// One end of a pipe: the input that is left to write, or the output read so far.
struct Pipe {
    /// `None`: closed.
    file: Option<File>,
    bytes: Vec<u8>,
    done: usize,
}

fn non_blocking(fd: OwnedFd) -> std::io::Result<File> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(File::from(fd))
}

/// Waits until one of the pipes can be used, or the time is over.
fn wait(files: [&Option<File>; 3], left: Duration) -> std::io::Result<()> {
    let [stdout, stderr, stdin] = files;
    let reading = [stdout, stderr].into_iter().flatten().map(|file| (file, PollFlags::POLLIN));
    let writing = stdin.iter().map(|file| (file, PollFlags::POLLOUT));
    let mut fds: Vec<PollFd<'_>> =
        reading.chain(writing).map(|(file, events)| PollFd::new(file.as_fd(), events)).collect();
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// True when there is more to come later.
fn later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Pipe {
    fn reading(fd: Option<OwnedFd>) -> std::io::Result<Self> {
        Ok(Self { file: fd.map(non_blocking).transpose()?, bytes: Vec::new(), done: 0 })
    }

    fn read(&mut self) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk) {
                Ok(0) => {
                    self.file = None;
                    return Ok(());
                }
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&mut self) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        while self.done < self.bytes.len() {
            match file.write(&self.bytes[self.done..]) {
                Ok(count) => self.done += count,
                Err(error) if later(&error) => return Ok(()),
                // A program that ends early closes the pipe; its own message says why.
                Err(_) => break,
            }
        }
        self.file = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn sh(script: &str, input: &str, limit: Duration) -> Result<String, ChildError> {
        run("/bin/sh", &["-c", script], input, limit, |_| {})
    }

    #[test]
    fn large_input_and_output_do_not_wait_for_each_other() {
        let input = "line of text\n".repeat(100_000);
        assert_eq!(sh("cat", &input, LIMIT).unwrap(), input);
        // A program that reads nothing of it.
        assert_eq!(sh("echo done", &input, LIMIT).unwrap(), "done\n");
        let error = sh("cat >/dev/null; echo no luck >&2; exit 4", &input, LIMIT).unwrap_err();
        assert!(
            matches!(&error, ChildError::Failed { code: Some(4), stderr, .. } if stderr == "no luck"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let error = run("kube-ipvs-nothing", &[], "", LIMIT, |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "kube-ipvs-nothing is not installed");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_what_it_started() {
        let limit = Duration::from_millis(200);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        // The second process keeps the pipes open when the first has ended.
        for script in ["sleep 600 & echo $! > FILE; wait", "sleep 600 & echo $! > FILE; exit 0"] {
            let script = script.replace("FILE", file.to_str().unwrap());
            let error = sh(&script, "", limit).unwrap_err();
            assert!(matches!(error, ChildError::TimedOut { .. }), "{error}");
            assert!(error.to_string().contains("did not end within"), "{error}");
        }
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        for _ in 0..200 {
            if gone() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("process {pid} is still there");
    }
}
