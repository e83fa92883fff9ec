// SPDX-License-Identifier: Apache-2.0
//! Runs programs, each with a deadline. A program that exceeds it is killed with everything that it started. A process
//! in uninterruptible sleep (state D) ignores SIGKILL: the agent does not wait for it, reports its process id, and
//! reaps it after it ends.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::lock::lock;
use crate::words;

/// Pause between checks whether a program that has closed its output has ended.
const EXIT_PAUSE: Duration = Duration::from_millis(2);
/// How long the agent waits for the end of a killed program.
const KILLED: Duration = Duration::from_secs(1);
/// Limit of killed processes of one program that have not ended: no other is started then.
const MOST_STUCK: usize = 8;
/// Bytes of one read.
const CHUNK: usize = 64 * 1024;

/// Why a program has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChildError {
    #[error("{0} is not installed")]
    Missing(String),
    /// It cannot be started, or its pipes failed.
    #[error("cannot run {0}: {1}")]
    Unusable(String, String),
    /// It exceeded its deadline and was killed.
    #[error(
        "{program} did not end within {} s and was killed{}",
        limit.as_secs(), stuck.as_ref().map(Stuck::to_string).unwrap_or_default()
    )]
    TimedOut {
        program: String,
        /// The deadline.
        limit: Duration,
        /// Its process, if it has not ended after SIGKILL.
        stuck: Option<Stuck>,
    },
    /// It returned an error.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        program: String,
        /// Its exit status, as text.
        status: String,
        /// Its exit code; `None`: a signal ended it.
        code: Option<i32>,
        stderr: String,
    },
}

/// A process that has not ended after SIGKILL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    pub pid: u32,
    /// Its state in `/proc/PID/stat`; D: it waits in the kernel and cannot be killed.
    pub state: char,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, state } = self;
        write!(
            f,
            ", but its process {pid} does not end (state {state}); /proc/{pid}/stack shows what it waits for"
        )
    }
}

/// Killed processes that had not ended at the last check, with the names of their programs.
static STUCK: Mutex<Vec<(String, Child)>> = Mutex::new(Vec::new());

/// Returns the exit status of a process that has ended.
type WaitFn = fn(&mut Child) -> std::io::Result<Option<ExitStatus>>;

/// Runs a program with text on its standard input and returns its standard output. `started` gets the process id
/// before the program reads its input. A program that runs longer than `limit` is killed, with everything that it
/// started.
///
/// # Errors
/// When the program cannot be run, fails or exceeds its deadline.
pub fn run(
    program: &str,
    args: &[&str],
    input: &str,
    limit: Duration,
    started: impl FnOnce(u32),
) -> Result<String, ChildError> {
    run_with(program, args, input, limit, started, Child::try_wait)
}

/// Like [`run`]; `wait` checks whether a killed program has ended.
fn run_with(
    program: &str,
    args: &[&str],
    input: &str,
    limit: Duration,
    started: impl FnOnce(u32),
    wait: WaitFn,
) -> Result<String, ChildError> {
    let unusable = |error: &std::io::Error| ChildError::Unusable(program.into(), words::io_error(error));
    refuse_beside_stuck(program)?;
    let mut command = Command::new(program);
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    // A separate process group, so that everything it starts can be killed with it.
    command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => ChildError::Missing(program.to_owned()),
        _ => unusable(&error),
    })?;
    started(child.id());
    let mut running = Running { child, deadline: Instant::now() + limit, ended: false };
    let end = running.talk(input.as_bytes());
    let stuck = if running.ended { None } else { kill(program, running.child, wait) };
    match end {
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
        Ok(None) => Err(ChildError::TimedOut { program: program.to_owned(), limit, stuck }),
        Err(error) => Err(unusable(&error)),
    }
}

fn all_stuck() -> MutexGuard<'static, Vec<(String, Child)>> {
    lock(&STUCK)
}

/// Reaps killed processes that have ended. An error if too many of this program have not.
fn refuse_beside_stuck(program: &str) -> Result<(), ChildError> {
    let mut all = all_stuck();
    all.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
    let of_program = all.iter().filter(|(name, _)| name == program);
    let pids: Vec<String> = of_program.map(|(_, child)| child.id().to_string()).collect();
    if pids.len() < MOST_STUCK {
        return Ok(());
    }
    let why = format!("its processes {} were killed and do not end", pids.join(", "));
    Err(ChildError::Unusable(program.to_owned(), why))
}

/// Kills a program with everything that it started, and waits briefly for its end. A process that does not end is
/// returned, and reaped later.
fn kill(program: &str, mut child: Child, wait: WaitFn) -> Option<Stuck> {
    let group = i32::try_from(child.id()).map(Pid::from_raw);
    let _ = group.map(|group| killpg(group, Signal::SIGKILL));
    let deadline = Instant::now() + KILLED;
    while matches!(wait(&mut child), Ok(None)) {
        if Instant::now() >= deadline {
            let pid = child.id();
            all_stuck().push((program.to_owned(), child));
            return Some(Stuck { pid, state: state(pid) });
        }
        std::thread::sleep(EXIT_PAUSE);
    }
    None
}

/// The state in `/proc/PID/stat`; `?`: there is no such process.
fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?')
}

/// Exit status and output of a program.
struct End {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

struct Running {
    child: Child,
    deadline: Instant,
    /// Its exit status is known: its process id may belong to another process now.
    ended: bool,
}

impl Running {
    /// Writes the input and reads both outputs to their end, then waits for the exit status; `None`: the deadline
    /// passed.
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

    /// The time until the deadline; `None`: it has passed.
    fn left(&self) -> Option<Duration> {
        self.deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

/// One end of a pipe, with the input to write or the output read so far.
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

/// Waits until one of the pipes is ready, or the time is over.
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

/// Whether the operation can be repeated later.
fn is_temporary(error: &std::io::Error) -> bool {
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
                Err(error) if is_temporary(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&mut self) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        while self.done < self.bytes.len() {
            match file.write(&self.bytes[self.done..]) {
                Ok(count) => self.done += count,
                Err(error) if is_temporary(&error) => return Ok(()),
                // A program that ends early closes the pipe; its error message says why.
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
    fn large_input_and_output_do_not_block_each_other() {
        let input = "line of text\n".repeat(100_000);
        assert_eq!(sh("cat", &input, LIMIT).unwrap(), input);
        // This program ignores its input.
        assert_eq!(sh("echo done", &input, LIMIT).unwrap(), "done\n");
        let error = sh("cat >/dev/null; echo no luck >&2; exit 4", &input, LIMIT).unwrap_err();
        assert!(
            matches!(&error, ChildError::Failed { code: Some(4), stderr, .. } if stderr == "no luck"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_program_is_named_in_the_error() {
        let error = run("kube-ipvs-nothing", &[], "", LIMIT, |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "kube-ipvs-nothing is not installed");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_what_it_started() {
        let limit = Duration::from_millis(200);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        // The second process keeps the pipes open after the first has ended.
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

    #[test]
    fn a_program_that_cannot_be_killed_is_named_and_reaped_later() {
        let (mut pid, start) = (0, Instant::now());
        let limit = Duration::from_millis(100);
        // `wait` behaves as for a process in state D: killed, and not ended.
        let error =
            run_with("/bin/sh", &["-c", "sleep 600"], "", limit, |id| pid = id, |_| Ok(None)).unwrap_err();
        assert!(start.elapsed() < LIMIT, "the agent does not wait for its end");
        let ChildError::TimedOut { stuck: Some(stuck), .. } = &error else { panic!("{error}") };
        assert_eq!(stuck.pid, pid);
        let stuck = format!("was killed, but its process {pid} does not end (state {})", stuck.state);
        assert!(error.to_string().contains(&stuck), "{error}");
        assert!(all_stuck().iter().any(|(_, child)| child.id() == pid));
        // The process has in fact ended, and a later call reaps it.
        for _ in 0..500 {
            sh("exit 0", "", LIMIT).unwrap();
            if all_stuck().iter().all(|(_, child)| child.id() != pid) {
                assert_eq!(state(pid), '?', "it was reaped");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("process {pid} was not reaped");
    }

    #[test]
    fn a_program_with_many_stuck_processes_is_not_started() {
        const NAME: &str = "kube-ipvs-stuck";
        for _ in 0..MOST_STUCK {
            let child = Command::new("sleep").arg("600").spawn().unwrap();
            all_stuck().push((NAME.to_owned(), child));
        }
        let error = run(NAME, &[], "", LIMIT, |_| {}).unwrap_err().to_string();
        assert!(error.contains(NAME) && error.ends_with("were killed and do not end"), "{error}");
        sh("exit 0", "", LIMIT).unwrap();
        for (_, child) in all_stuck().iter_mut().filter(|(name, _)| name == NAME) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let error = run(NAME, &[], "", LIMIT, |_| {}).unwrap_err();
        assert!(matches!(error, ChildError::Missing(_)), "it is tried again: {error}");
    }

    #[test]
    fn the_state_of_a_process_is_read() {
        assert_ne!(state(std::process::id()), '?');
        assert_eq!(state(u32::MAX), '?');
    }
}
